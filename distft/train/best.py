"""Which evaluation is the best so far, and whether to stop."""

from __future__ import annotations

from distft.errors import ConfigError
from distft.plugin import greater_is_better
from distft.records import Metrics
from distft.train.checkpoint import Position
from distft.train.job import Job


def _metric(job: Job) -> tuple[str, bool]:
    train = job.config.train
    name = train.metric_for_best_model or job.task.objective
    name = name if name.startswith("eval_") else f"eval_{name}"
    if train.greater_is_better is not None:
        return name, train.greater_is_better
    if train.metric_for_best_model is None:
        return name, job.task.greater_is_better
    return name, greater_is_better(name)


def check_measured(job: Job, metrics: Metrics) -> None:
    """Check that the metric that decides is there, before a step is spent.

    Args:
        job: Of the run.
        metrics: Of the base model.

    Raises:
        ConfigError: The metric the user named is not measured.
    """
    name, _ = _metric(job)
    if not isinstance(metrics.get(name), float | int):
        known = sorted(key for key, value in metrics.items() if isinstance(value, float))
        raise ConfigError(
            f"train.metric_for_best_model: {name} is not measured.", f"Allowed: {', '.join(known)}."
        )


def compare(job: Job, position: Position) -> None:
    """Update the best evaluation of a position with its latest one.

    Args:
        job: Of the run; says which metric decides.
        position: Changed in place.
    """
    name, greater = _metric(job)
    value, best = position.latest[name], position.best.get(name)
    if best is None or (value > best if greater else value < best):
        position.best = {"step": position.step, **position.latest}
        position.best_step = position.step
        position.bad_evals = 0
    else:
        position.bad_evals += 1


def stopped(job: Job, position: Position) -> bool:
    """Return whether early stopping ends the run here.

    Args:
        job: Of the run.
        position: Where it stands.

    Returns:
        True after `early_stopping_patience` evaluations in a row without a better one.
    """
    patience = job.config.train.early_stopping_patience
    return patience is not None and position.bad_evals >= patience
