"""Which configurations are confirmed, and which one is recommended. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from distft.records import Candidate, TrialRecord


def ranked(trials: Sequence[TrialRecord], greater_is_better: bool) -> list[TrialRecord]:
    """Return the trials that have a value, best first.

    Args:
        trials: Of a search.
        greater_is_better: Direction of their value.

    Returns:
        Finished ones before those stopped early, whose values are of less training; among the
        latter those that got further first. One trial per configuration.
    """
    sign = -1.0 if greater_is_better else 1.0

    def order(trial: TrialRecord) -> tuple[float, ...]:
        assert trial.value is not None
        done = trial.state == "complete"
        return (not done, 0 if done else -trial.samples, sign * trial.value, trial.number)

    usable = [t for t in trials if t.value is not None and t.state in ("complete", "pruned")]
    return sorted((t for t in usable if t.reused_from is None), key=order)


def cost_of(trial: TrialRecord) -> list[float]:
    """Return what a configuration costs, comparable in order.

    Planned, not measured: the same command must name the same winner again.

    Args:
        trial: Of the search; one that was launched.

    Returns:
        Planned bytes of one worker, trained parameters.
    """
    assert trial.run is not None
    return [float(trial.run.peak_memory_bytes["planned"]), float(trial.run.model.trainable_params)]


def candidates(
    chosen: Sequence[TrialRecord], confirmed: Mapping[int, Mapping[int, float]]
) -> list[Candidate]:
    """Return the configurations that were confirmed.

    Args:
        chosen: Search trials, best first.
        confirmed: Number of the search trial -> seed -> value at full budget.

    Returns:
        One candidate each; whether it is within the tolerance is not decided yet.
    """
    found = []
    for trial in chosen:
        by_seed = confirmed.get(trial.number, {})
        values = list(by_seed.values())
        assert trial.value is not None
        found.append(
            Candidate(
                trial=trial.number,
                method=trial.method,
                params=trial.params,
                search_value=trial.value,
                seeds=list(by_seed),
                values=values,
                mean=statistics.fmean(values) if values else None,
                spread=statistics.stdev(values) if len(values) > 1 else None,
                cost=cost_of(trial),
                within_tolerance=False,
            )
        )
    return found


def standard_error(found: Sequence[Candidate]) -> float:
    """Return the standard error of the difference of two means, pooled over the candidates.

    Args:
        found: With the values of their seeds; those with fewer than two say nothing about it.

    Returns:
        sqrt(pooled variance * (1 / seeds + 1 / seeds)), with the mean number of seeds; 0 where no
        candidate has two.
    """
    several = [one for one in found if len(one.values) > 1]
    if not several:
        return 0.0
    freedom = sum(len(one.values) - 1 for one in several)
    squares = sum(statistics.variance(one.values) * (len(one.values) - 1) for one in several)
    seeds = statistics.fmean(len(one.values) for one in several)
    return math.sqrt(squares / freedom * 2 / seeds)


def recommend(
    found: Sequence[Candidate], greater_is_better: bool, tolerance: float | None
) -> tuple[list[Candidate], float, str, int | None]:
    """Return which candidate is recommended: the cheapest near enough to the best mean.

    Args:
        found: The confirmed configurations.
        greater_is_better: Direction of their values.
        tolerance: `tune.tolerance`; None: one standard error of the difference.

    Returns:
        (candidates with `within_tolerance` decided, the tolerance used, how it came about, number
        of the recommended search trial or None where none has a mean).
    """
    allowed = standard_error(found) if tolerance is None else tolerance
    said = (
        "tune.tolerance"
        if tolerance is not None
        else f"one standard error of the difference, pooled over {len(found)} configurations"
    )
    means = [one.mean for one in found if one.mean is not None]
    if not means:
        return list(found), allowed, said, None
    best = max(means) if greater_is_better else min(means)
    decided = [
        one.model_copy(
            update={"within_tolerance": one.mean is not None and abs(one.mean - best) <= allowed}
        )
        for one in found
    ]
    near = [one for one in decided if one.within_tolerance]
    sign = -1.0 if greater_is_better else 1.0
    cheapest = min(near, key=lambda one: (one.cost, sign * (one.mean or 0.0), one.trial))
    return decided, allowed, said, cheapest.trial
