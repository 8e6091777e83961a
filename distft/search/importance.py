"""Which parameter explains the values of a search (Optuna's evaluators)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.importance import get_param_importances
from optuna.trial import create_trial

from distft.records import TrialRecord
from distft.search.sample import METHOD

FEWEST = 4
"""Trials below which nothing is said."""


def importances(
    trials: Sequence[TrialRecord], greater_is_better: bool
) -> dict[str, dict[str, float]]:
    """Return how much of the values' variation each parameter explains.

    Args:
        trials: Of the search; those stopped early count with their last value.
        greater_is_better: Direction of the values.

    Returns:
        `all` -> {method.name: share} and, per method with enough trials, parameter -> share; the
        shares of one group add up to 1.
    """
    usable = [t for t in trials if t.value is not None and t.reused_from is None]
    found: dict[str, dict[str, float]] = {}
    for method in sorted({t.method for t in usable}):
        own = [t for t in usable if t.method == method]
        paths = [
            path
            for path in own[0].params
            if path != METHOD and len({str(t.params.get(path)) for t in own}) > 1
        ]
        if len(own) >= FEWEST and paths:
            found[method] = _shares(own, paths, greater_is_better)
    if len(usable) >= FEWEST and len({t.method for t in usable}) > 1:
        shared = set.intersection(*(set(t.params) for t in usable))
        paths = sorted(p for p in shared if len({str(t.params[p]) for t in usable}) > 1)
        found["all"] = _shares(usable, paths, greater_is_better)
    return found


def _shares(
    trials: Sequence[TrialRecord], paths: Sequence[str], greater_is_better: bool
) -> dict[str, float]:
    axes = {path: _axis([trial.params[path] for trial in trials]) for path in paths}
    study = optuna.create_study(direction="maximize" if greater_is_better else "minimize")
    for trial in trials:
        params = {path: trial.params[path] for path in paths}
        study.add_trial(create_trial(params=params, distributions=axes, value=trial.value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = get_param_importances(study, evaluator=evaluator)
    return {path: float(share) for path, share in shares.items()}


def _axis(values: Sequence[Any]) -> Any:
    numbers = all(isinstance(v, float) and v > 0 for v in values)
    if numbers:
        return FloatDistribution(min(values), max(values), log=True)
    return CategoricalDistribution(sorted(set(values), key=str))
