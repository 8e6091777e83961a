"""Run directories as a training leaves them, for the tests of the report.

The curves are drawn from a seeded generator; the metrics come from the tasks' own functions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distft import plugin
from distft.config import RunConfig
from distft.records import DataRecord, ModelRecord, RunRecord, write_json

LABELS = ("negative", "neutral", "positive")
STEPS = 230


def _prefixed(metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"eval_{key}": value for key, value in metrics.items()}


def class_metrics(
    labels: Sequence[str], rows: int, accuracy: float, loss: float, seed: int = 0
) -> dict[str, Any]:
    """Return seq_cls metrics of simulated predictions with about this accuracy."""
    random = np.random.default_rng(seed)
    shares = np.linspace(1, 3, len(labels))
    truth = random.choice(len(labels), size=rows, p=shares / shares.sum())
    other = random.integers(0, len(labels), size=rows)
    columns = {
        "label": truth,
        "prediction": np.where(random.random(rows) < accuracy, truth, other),
        "loss_sum": random.gamma(50.0, loss / 50, rows),
        "num_targets": np.ones(rows),
    }
    return _prefixed(plugin.tasks()["seq_cls"].metrics(columns, list(labels)))


def answer_metrics(rows: int, loss: float, accuracy: float) -> dict[str, Any]:
    """Return sft metrics of simulated answers."""
    random = np.random.default_rng(3)
    targets = random.integers(5, 60, rows).astype(float)
    columns = {
        "loss_sum": targets * random.normal(loss, 0.2, rows),
        "num_targets": targets,
        "num_correct": np.round(targets * accuracy),
        "correct": np.round(targets * accuracy),
    }
    return _prefixed(plugin.tasks()["sft"].metrics(columns, []))


def _plan(rows: dict[str, int]) -> dict[str, Any]:
    weights, optimizer = 90_871_820, 1_187_352
    return {
        "params": 22_863_363,
        "trainable_params": 148_419,
        "world_size": 2,
        "zero_stage": 2,
        "offload": "none",
        "engine": "deepspeed",
        "device": "cpu",
        "threads_per_worker": 1,
        "global_batch_size": 16,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "micro_batch_tokens": 8 * 118,
        "packing": False,
        "steps_per_epoch": 186,
        "total_steps": STEPS,
        "warmup_steps": 14,
        "eval_steps": 46,
        "save_steps": 46,
        "learning_rate": 0.001,
        "rows": rows,
        "mean_tokens": 27.4,
        "max_tokens": 118,
        "total_samples": STEPS * 16,
        "exact": True,
        "memory": {
            "weights_bytes": weights,
            "gradients_bytes": 296_838,
            "optimizer_bytes": optimizer,
            "total_bytes": weights + 296_838 + optimizer,
            "available_bytes": 6_442_450_944,
            "by_stage": {"0": 93_840_200, "1": 92_652_848, "2": 92_356_010, "3": 47_500_000},
        },
        "reasons": {
            "train.learning_rate": "the default of the method lora",
            "train.per_device_train_batch_size": "16 samples of a step over 2 workers",
            "train.eval_steps": "a fifth of the run",
            "cluster.zero_stage": "asked for",
        },
        "notes": ["ZeRO 0 would fit too"],
    }


def _lines(final_loss: float, evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    random = np.random.default_rng(7)
    every = STEPS // (len(evaluations) - 1)
    lines: list[dict[str, Any]] = []
    for step in range(STEPS + 1):
        if step and step % 5 == 0:
            done = step / STEPS
            lines.append(
                {
                    "step": step,
                    "samples": step * 16,
                    "tokens": step * 438,
                    "epoch": round(step / 186, 4),
                    "loss": float(final_loss * (1 + np.exp(-5 * done)) + random.normal(0, 0.03)),
                    "learning_rate": 0.001 * min(step / 14, (STEPS - step) / (STEPS - 14)),
                    "grad_norm": float(1.4 * np.exp(-done) + random.gamma(2, 0.12)),
                    "tokens_per_s": float(1650 + random.normal(0, 60)),
                    "padding": 0.04,
                }
            )
        if step % every == 0:
            scalars = {k: v for k, v in evaluations[step // every].items() if np.isscalar(v)}
            lines.append({"step": step, "samples": step * 16, **scalars})
    return lines


def write_run(
    run_dir: Path,
    *,
    labels: Sequence[str] = LABELS,
    status: str = "completed",
    error: dict[str, Any] | None = None,
    task: str = "seq_cls",
) -> RunRecord:
    """Write a run directory: run.json, metrics.jsonl, eval.json, plan.json, config.yaml.

    Args:
        run_dir: Made here; its name becomes the run's.
        labels: Class names of a seq_cls run.
        status: As in the record; an unfinished run has half the lines and no evaluation at the end.
        error: The record's error.
        task: seq_cls or sft.

    Returns:
        The record written.
    """
    run_dir.mkdir(parents=True)
    rows = {"train": 2_972, "eval": 371, "test": 371}
    if task == "seq_cls":
        curve = [0.30, 0.45, 0.58, 0.66, 0.64, 0.63]
        evaluations = [
            class_metrics(labels, 371, a, 1.15 - 0.75 * a, seed=i) for i, a in enumerate(curve)
        ]
        base = class_metrics(labels, 371, 0.05, 1.11, seed=11)
        tuned = class_metrics(labels, 371, 0.62, 0.69, seed=12)
    else:
        losses = [2.96, 2.61, 2.40, 2.24, 2.27, 2.29]
        evaluations = [answer_metrics(89, loss, 0.75 - loss / 8) for loss in losses]
        base, tuned = answer_metrics(90, 2.98, 0.38), answer_metrics(90, 2.26, 0.47)
    best = {**evaluations[3], "step": 138}
    config = RunConfig.model_validate(
        {"name": run_dir.name, "model": "asset:minilm-l6", "data": {"train": "asset:vader-amazon"}}
    )
    dumped = {**config.dump(), "task": {"name": task}, "method": {"name": "lora", "rank": 8}}
    lines = _lines(best["eval_loss"], evaluations)
    done = status == "completed"
    record = RunRecord(
        name=run_dir.name,
        status=status,
        config_hash="9f3c2a71d05be846",
        config=dumped,
        data=DataRecord(
            manifest="4be1f0c29a77d3e5",
            rows=rows,
            tokens={"train": 81_402, "eval": 10_233, "test": 10_118},
            labels=list(labels) if task == "seq_cls" else [],
            dropped={"the text is empty": 3, "its text stands in another split": 41},
            truncated={"train": 12, "eval": 0, "test": 2},
        ),
        model=ModelRecord(id="asset:minilm-l6", params=22_863_363, trainable_params=148_419),
        world_size=2,
        zero_stage=2,
        seeds={"train": 42, "data": 42},
        versions={"distft": "0.1.0", "torch": "2.13.0", "deepspeed": "0.19.8", "ray": "2.60.0"},
        started="2026-11-22T18:29:04+00:00",
        duration_s=83.21,
        baseline=evaluations[0],
        final=evaluations[-1] if done else {},
        best=best if done else {},
        test={"base": base, "tuned": tuned} if done else {},
        peak_memory_bytes={"planned": 92_356_010, "measured": 1_402_118_144},
        tokens_per_s=1653.4,
        padding=0.04,
        error=error,
    )
    write_json(run_dir / "run.json", record.model_dump())
    write_json(run_dir / "plan.json", _plan(rows))
    written = lines if done else lines[: len(lines) // 2]
    text = "".join(json.dumps(line) + "\n" for line in written)
    (run_dir / "metrics.jsonl").write_text(text, encoding="utf-8")
    (run_dir / "config.yaml").write_text("model: asset:minilm-l6\n", encoding="utf-8")
    if done:
        content = {"baseline": evaluations[0], "final": evaluations[-1], "best": best}
        write_json(run_dir / "eval.json", {**content, "test": record.test})
    return record
