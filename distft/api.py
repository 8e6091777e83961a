"""Every command as a function; the command line only wraps these."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from distft import plugin, run_dir
from distft.config import RunConfig
from distft.errors import DistftError, TrainError
from distft.records import (
    DataRecord,
    ModelRecord,
    RunRecord,
    read_evaluations,
    read_record,
    write_json,
)

if TYPE_CHECKING:
    from distft.data.manifest import Manifest
    from distft.plan import Plan


def plan(config: RunConfig) -> Plan:
    """Return the plan of a run from a sample of its data; launches nothing, loads no Ray.

    Args:
        config: The configuration.

    Returns:
        Every number with its reason.

    Raises:
        DistftError: Anything wrong with configuration, model or data, or it does not fit.
    """
    from distft.capacity import local_capacity, shape_capacity
    from distft.data.stats import sample_stats
    from distft.plan import make_plan

    config = _resolved(config)
    shape = config.cluster.shape
    capacity = local_capacity() if shape is None else shape_capacity(shape)
    made = make_plan(config, sample_stats(config), capacity)
    if config.cluster.address is not None and shape is None:
        made.notes.append(
            f"this is a plan for this machine; set cluster.shape to plan for the cluster at "
            f"{config.cluster.address}"
        )
    return made


def prepare(config: RunConfig) -> Manifest:
    """Tokenize the data into shards, once.

    Args:
        config: The configuration.

    Returns:
        The manifest of what is there now.

    Raises:
        DistftError: Anything wrong with configuration, model or data.
    """
    from distft.launch.session import connected

    config = _resolved(config)
    run_dir.check_writable(Path(config.output_dir).absolute())
    with connected(config.cluster):
        return _prepare(config, Console(stderr=True))[1]


def train(config: RunConfig, *, fresh: bool = False) -> RunRecord:
    """Train one run, or continue it, or return what it came to; the directory decides.

    Args:
        config: The configuration.
        fresh: Delete what the directory holds and start anew.

    Returns:
        The record of the finished run.

    Raises:
        DistftError: Anything wrong, refused or failed; run.json says so too.
    """
    from distft.data.resolve import prepared_key
    from distft.data.stats import sample_stats
    from distft.plan import batch_sizes

    config = _resolved(config)
    folder = config.run_dir
    console = Console(stderr=True)
    run_dir.check_writable(folder.parent)
    task = plugin.tasks()[config.task.name]
    data_key = prepared_key(config, task, config.data.format or "")
    config_hash = config.hash(data_key, batch_sizes(config)[0])
    held = run_dir.check_free(folder, config_hash, fresh=fresh)
    if held is not None and held.status == "completed":
        _close(folder, console)
        return held
    # Everything a sample can show is refused before a directory or a cluster exists; whether it
    # fits a cluster at an address is known only once that is asked.
    if config.cluster.address is None or config.cluster.shape is not None:
        plan(config)
    else:
        sample_stats(config)
    with run_dir.claimed(folder, fresh=fresh), _recorded(folder):
        record = _run(config, config_hash, folder, console)
    _close(folder, console)
    return record


def evaluate(folder: Path, data: Path | None = None) -> dict[str, Any]:
    """Return the metrics of a finished run's model on its test rows or on a file.

    Args:
        folder: The run directory.
        data: A file of rows in the run's format.

    Returns:
        See `distft.predict.evaluate_run`.
    """
    from distft.predict import evaluate_run

    return evaluate_run(folder, None if data is None else str(data))


def predict(folder: Path, source: Path, target: Path) -> dict[str, Any]:
    """Write a prediction for every row of a file.

    Args:
        folder: The run directory.
        source: Rows in the run's format.
        target: JSON lines.

    Returns:
        See `distft.predict.predict`.
    """
    from distft import predict as predicting

    return predicting.predict(folder, str(source), target)


def export(folder: Path, target: Path, *, merge: bool = False) -> dict[str, Any]:
    """Write a run's model to a folder, and prove it.

    Args:
        folder: The run directory.
        target: New folder.
        merge: Fold an adapter into the base.

    Returns:
        See `distft.export.export`.
    """
    from distft import export as exporting

    return exporting.export(folder, target, merge=merge)


def report(folder: Path) -> dict[str, str]:
    """Write report.html, report.md and report.json of a run.

    Args:
        folder: The run directory.

    Returns:
        Their paths by kind.
    """
    from distft.report.run import build

    return build(folder)


def _resolved(config: RunConfig) -> RunConfig:
    """Fill in the format and the task from the data, and make every path absolute.

    Workers of a cluster that runs already have another working directory.
    """
    from distft.data.resolve import detect

    format_name, task_name = detect(config)
    task = config.task or plugin.tasks()[task_name].config(name=task_name)
    data = {split: _absolute(getattr(config.data, split)) for split in ("train", "eval", "test")}
    model_id = config.model.id
    if (Path(model_id).expanduser() / "config.json").is_file():
        model_id = _absolute(model_id)
    return config.model_copy(
        update={
            "task": task,
            "model": config.model.model_copy(update={"id": model_id}),
            "data": config.data.model_copy(update={"format": format_name, **data}),
            "output_dir": _absolute(config.output_dir),
        }
    )


def _absolute(spec: Any) -> Any:
    if isinstance(spec, list):
        return [_absolute(one) for one in spec]
    if not isinstance(spec, str) or spec.startswith("asset:"):
        return spec
    return str(Path(spec).expanduser().absolute())


def _prepare(config: RunConfig, console: Console) -> tuple[Path, Manifest]:
    from distft.data.prepare import prepare as prepare_data
    from distft.report.progress import counting

    with counting("preparing the data", console) as progress:
        return prepare_data(config, progress=progress)


def _run(config: RunConfig, config_hash: str, folder: Path, console: Console) -> RunRecord:
    from distft.capacity import shape_capacity
    from distft.data.stats import stats_of
    from distft.launch import preflight, session, trainer
    from distft.plan import make_plan
    from distft.train.job import Order

    started = time.time()
    with session.connected(config.cluster):
        root, manifest = _prepare(config, console)
        shape = config.cluster.shape
        capacity = session.capacity(config.cluster) if shape is None else shape_capacity(shape)
        made = make_plan(config, stats_of(manifest), capacity)
        record = _first_record(config, config_hash, made, manifest, preflight.versions())
        run_dir.write_start(folder, config, made, record)
        if not (folder / "eval.json").exists():
            preflight.check(config.cluster, made, folder)
            order = Order(
                config=config.dump(),
                plan=made,
                run_dir=folder,
                data_root=root,
                config_hash=config_hash,
            )
            with _followed(folder, made, console) as say:
                trainer.fit(order, config.cluster, say=say)
    return _finish(folder, record, started, console)


def _finish(folder: Path, record: RunRecord, started: float, console: Console) -> RunRecord:
    result = read_evaluations(folder)
    record = record.model_copy(
        update={
            "duration_s": time.time() - started,
            "baseline": result["baseline"],
            "final": {"step": result["step"], **result["final"]},
            "best": {"step": result["best_step"], **result["best"]},
            "test": result["test"],
            "peak_memory_bytes": {
                **record.peak_memory_bytes,
                "measured": result["peak_memory_bytes"],
            },
            "tokens_per_s": result["tokens_per_s"],
        }
    )
    write_json(folder / "run.json", record.model_dump())
    console.print("exporting the model and loading it again ...", highlight=False)
    # Left by a run that was killed while it exported.
    shutil.rmtree(folder / "model", ignore_errors=True)
    export(folder, folder / "model")
    record = record.model_copy(update={"status": "completed"})
    write_json(folder / "run.json", record.model_dump())
    return record


def _first_record(
    config: RunConfig, config_hash: str, made: Plan, manifest: Manifest, versions: dict[str, str]
) -> RunRecord:
    return RunRecord(
        name=config.name,
        status="interrupted",
        config_hash=config_hash,
        config=config.dump(),
        data=DataRecord(
            manifest=manifest.key,
            rows={split: info.rows for split, info in manifest.splits.items()},
            tokens={split: info.tokens for split, info in manifest.splits.items()},
            labels=list(manifest.labels),
            dropped=dict(manifest.dropped),
            truncated={split: info.truncated for split, info in manifest.splits.items()},
        ),
        model=ModelRecord(
            id=config.model.id, params=made.params, trainable_params=made.trainable_params
        ),
        world_size=made.world_size,
        zero_stage=made.zero_stage,
        seeds={"train": config.train.seed},
        versions=versions,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        duration_s=0.0,
        peak_memory_bytes={"planned": made.memory.total_bytes},
    )


@contextlib.contextmanager
def _recorded(folder: Path) -> Iterator[None]:
    """Write into run.json how a run ended when it did not end well."""
    try:
        yield
    except Exception as error:
        known = error if isinstance(error, DistftError) else TrainError(str(error))
        with contextlib.suppress(DistftError, OSError):
            record = read_record(folder)
            failed = record.model_copy(update={"status": "failed", "error": known.as_dict()})
            write_json(folder / "run.json", failed.model_dump())
            report(folder)
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


@contextlib.contextmanager
def _followed(folder: Path, made: Plan, console: Console) -> Iterator[Any]:
    """Show progress meanwhile."""
    from distft.report.live import follow

    stop = threading.Event()
    thread = threading.Thread(
        target=follow,
        args=(folder, made.model_dump()),
        kwargs={"stop": stop, "console": console},
        daemon=True,
    )
    thread.start()
    try:
        yield lambda text: console.print(text, highlight=False)
    finally:
        stop.set()
        thread.join()


def _close(folder: Path, console: Console) -> None:
    from distft.report.live import summarize

    summarize(folder, report(folder), console)
    sys.stderr.flush()
