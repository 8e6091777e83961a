"""A run directory -> the one document that page, Markdown and JSON of its report are made of."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from distft.errors import ConfigError
from distft.records import SCHEMA_VERSION, Metrics, read_metrics, read_record
from distft.report.show import Document
from distft.report.verdict import judge


def read(run_dir: Path) -> Document:
    """Return everything a report tells of one run.

    Args:
        run_dir: A run directory with a run.json; the other files may be missing.

    Returns:
        `schema_version, run, metrics, evaluations, plan, verdict`; plain JSON data in which
        numbers that are not finite stand as None.

    Raises:
        ConfigError: No run.json there, or a file in it that cannot be read.
    """
    run = read_record(run_dir).model_dump()
    plan = _read_json(run_dir / "plan.json")
    metrics = last_attempt(read_metrics(run_dir))
    evaluations = _read_json(run_dir / "eval.json")
    last_step = max((int(line.get("step") or 0) for line in metrics), default=0)
    document: Document = finite(
        {
            "schema_version": SCHEMA_VERSION,
            "run": run,
            "metrics": metrics,
            "evaluations": evaluations,
            "plan": plan,
        }
    )
    document["verdict"] = judge(
        document["run"], document["evaluations"], last_step, int(plan.get("total_steps") or 0)
    )
    return document


def is_evaluation(line: Metrics) -> bool:
    """Return whether a line of metrics.jsonl is an evaluation."""
    return any(key.startswith("eval_") for key in line)


def last_attempt(lines: list[Metrics]) -> list[Metrics]:
    """Return the lines that count: a step done again after a restart replaces what it repeats.

    Args:
        lines: The lines of metrics.jsonl in the order written.

    Returns:
        The lines with ascending steps, training and evaluation apart.
    """
    kept: dict[bool, list[tuple[int, Metrics]]] = {False: [], True: []}
    for index, line in enumerate(lines):
        same_kind = kept[is_evaluation(line)]
        while same_kind and (same_kind[-1][1].get("step") or 0) >= (line.get("step") or 0):
            same_kind.pop()
        same_kind.append((index, line))
    return [line for _, line in sorted(kept[False] + kept[True], key=lambda pair: pair[0])]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{path} is not JSON: {error}.",
            "Run the same `distft train` command again: it writes the file anew.",
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object, got {type(value).__name__}.")
    return value


def finite(value: Any) -> Any:
    """Return plain JSON data with None for every number that is not finite."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
