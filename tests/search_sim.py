"""A study's setting built by hand, and an executor in process whose trials train nothing.

The desk, the study, the plans and Optuna are the real ones; only the reports come from a function.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from distft.capacity import Capacity
from distft.config_file import parse
from distft.data.manifest import Manifest, SplitInfo, TokenizerInfo
from distft.data.stats import stats_of
from distft.errors import SearchError
from distft.search.desk import Desk, Launch
from distft.search.setting import Setting

ROWS = {"train": 1600, "eval": 80, "test": 80}

Trial = Generator[dict[str, Any], None, dict[str, Any]]
"""Reports, then what eval.json holds."""


class LostError(Exception):
    """Raised by a trial whose process is gone."""


class Killed(BaseException):
    """Raised to end everything, as SIGKILL would."""


def make_setting(
    folder: Path, model: Path, tune: dict[str, Any], *, concurrent: int = 2, **sections: Any
) -> Setting:
    raw: dict[str, Any] = {
        "name": "study",
        "output_dir": str(folder),
        "model": {"id": str(model)},
        "task": "seq_cls",
        "data": {"train": "f", "format": "classification"},
        "tune": tune,
        **sections,
    }
    raw["train"] = {"num_train_epochs": 1.0, **raw.get("train", {})}
    manifest = Manifest(
        key="key",
        task="seq_cls",
        format="classification",
        columns={},
        labels=["bad", "good"],
        cutoff_len=32,
        tokenizer=TokenizerInfo(name="tiny", sha256="0" * 64),
        splits={name: SplitInfo(rows=rows, tokens=9 * rows) for name, rows in ROWS.items()},
        dropped={},
        dropped_rows=[],
        sources=[],
    )
    return Setting(
        config=parse(raw),
        folder=folder,
        data_key=manifest.key,
        data_root=folder,
        manifest=manifest,
        stats=stats_of(manifest),
        capacity=Capacity(1, 8, 64 << 30, 0, 0, source="a test"),
        concurrent=concurrent,
        versions={"distft": "0"},
    )


def reported_steps(launch: Launch) -> list[int]:
    """Steps after which a trial is evaluated: before the first, at its rungs and at its end."""
    order = launch.order
    return [0, *(order.rungs or []), order.plan.total_steps]


def result_of(launch: Launch, metrics: dict[str, float]) -> dict[str, Any]:
    """Return what eval.json holds."""
    plan = launch.order.plan
    return {
        "baseline": metrics,
        "final": metrics,
        "best": metrics,
        "best_step": plan.total_steps,
        "step": plan.total_steps,
        "test": {},
        "peak_memory_bytes": plan.memory.total_bytes + (1 << 20),
        "tokens_per_s": 1000.0,
        "padding": 0.1,
        "trainable_params": plan.trainable_params,
    }


def curve(launch: Launch, loss: Callable[[int], float]) -> Trial:
    """Report a loss, which is a function of the samples trained on."""
    metrics: dict[str, float] = {}
    for step in reported_steps(launch):
        samples = step * launch.order.plan.global_batch_size
        metrics = {"eval_loss": loss(samples), "eval_accuracy": 1 / (1 + loss(samples))}
        yield {"step": step, "samples": samples, **metrics}
    return result_of(launch, metrics)


def run(desk: Desk, setting: Setting, train: Callable[[Launch], Trial]) -> None:
    """Run a desk's trials in turns, as many side by side as the setting says."""
    live: dict[int, Trial] = {}
    while True:
        while len(live) < setting.concurrent and (launch := desk.next()) is not None:
            live[launch.number] = train(launch)
        if not live:
            # Nothing runs, so whatever is left to do would have been handed out.
            assert desk.finished()
            return
        for number in list(live):
            if _pull(desk, number, live[number]):
                del live[number]


def _pull(desk: Desk, number: int, trial: Trial) -> bool:
    """Take a trial's next report; return whether the trial is over."""
    try:
        return desk.report(number, next(trial), 0.5)
    except StopIteration as end:
        desk.end(number, end.value, 0.25)
    except LostError as error:
        desk.lose(number, str(error))
    except Exception as error:
        if isinstance(error, AssertionError):
            raise
        desk.fail(number, SearchError(f"{type(error).__name__}: {error}").as_dict())
    return True
