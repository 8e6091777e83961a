"""What a run came to, in one sentence and the numbers behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft import plugin
from distft.report.show import label, number

Metrics = Mapping[str, Any]


def headline(task_name: str, metrics: Metrics) -> str:
    """Return the metric a run is judged by.

    Args:
        task_name: The task of the run.
        metrics: What was measured, with `eval_` keys.

    Returns:
        The task's own headline where it was measured, else accuracy, else the loss.
    """
    task = plugin.tasks().get(task_name)
    wanted = [task.headline] if task and task.headline else []
    for name in (*wanted, "accuracy", "loss"):
        if f"eval_{name}" in metrics:
            return f"eval_{name}"
    return "eval_loss"


def judge(run: Metrics, evaluations: Metrics, last_step: int, total_steps: int) -> dict[str, Any]:
    """Return the verdict on a run.

    Args:
        run: The run record as plain data.
        evaluations: The content of eval.json.
        last_step: The last step metrics.jsonl tells of; 0 where none.
        total_steps: The steps planned; 0 where unknown.

    Returns:
        `sentence`, `split`, `metric`, `rows`, `base`, `tuned`, `majority`, `gain` and
        `over_majority`; a number that was not measured is None.
    """
    split, base, tuned, majority = _measured(run, evaluations)
    metric = headline(str((run["config"].get("task") or {}).get("name")), tuned or base)
    verdict: dict[str, Any] = {
        "sentence": "",
        "split": split,
        "metric": metric,
        "rows": tuned.get("eval_rows") or run["data"]["rows"].get(split),
        "base": base.get(metric),
        "tuned": tuned.get(metric),
        "majority": majority.get(metric),
    }
    if metric == "eval_accuracy" and verdict["majority"] is None:
        verdict["majority"] = tuned.get("eval_majority_accuracy")
    verdict["gain"] = _difference(verdict["tuned"], verdict["base"])
    verdict["over_majority"] = _difference(verdict["tuned"], verdict["majority"])
    if run["status"] != "completed":
        verdict["sentence"] = _unfinished(run, last_step, total_steps)
    elif verdict["gain"] is None:
        verdict["sentence"] = "The run completed; it holds no evaluation to compare."
    else:
        verdict["sentence"] = _compared(verdict) + _generative(metric, base, tuned) + "."
    return verdict


def _measured(run: Metrics, evaluations: Metrics) -> tuple[str, Metrics, Metrics, Metrics]:
    test = evaluations.get("test") or run.get("test") or {}
    if test.get("tuned"):
        return "test", test.get("base") or {}, test["tuned"], test.get("majority") or {}
    best = evaluations.get("best") or run.get("best") or run.get("final") or {}
    return "eval", evaluations.get("baseline") or run.get("baseline") or {}, best, {}


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _unfinished(run: Metrics, last_step: int, total_steps: int) -> str:
    planned = f" of {total_steps:,}" if total_steps else ""
    where = f"after step {last_step:,}{planned}" if last_step else "before its first step"
    message = str((run.get("error") or {}).get("message") or "").strip()
    first_line = message.splitlines()[0].rstrip(".") if message else ""
    verb = {"failed": "failed", "interrupted": "was interrupted"}.get(run["status"], "was pruned")
    return f"The run {verb} {where}" + (f": {first_line}." if first_line else ".")


def _compared(verdict: Metrics) -> str:
    metric = verdict["metric"]
    rows = f"{verdict['rows']:,} " if verdict["rows"] else ""
    change = f"stayed at {number(verdict['base'])}"
    if verdict["gain"]:
        verb = "rose" if verdict["gain"] > 0 else "fell"
        change = f"{verb} from {number(verdict['base'])} to {number(verdict['tuned'])}"
    text = f"On {rows}{verdict['split']} rows {label(metric)} {change}"
    over = verdict["over_majority"]
    if over is None:
        return text
    if not over:
        return f"{text}, the same as always answering the most frequent class"
    side = "above" if over >= 0 else "below"
    good, better = ((n >= 0) == plugin.greater_is_better(metric) for n in (over, verdict["gain"]))
    link = "but " if better and not good else ""
    return (
        f"{text}, {link}{number(abs(over))} {side} always answering the most frequent "
        f"class ({number(verdict['majority'])})"
    )


def _generative(told: str, base: Metrics, tuned: Metrics) -> str:
    if "eval_perplexity" not in tuned or "eval_perplexity" not in base:
        return ""
    said = [
        f"{label(metric)} {number(base[metric])} to {number(tuned[metric])}"
        for metric in ("eval_loss", "eval_perplexity")
        if metric != told
    ]
    return f" ({', '.join(said)})"
