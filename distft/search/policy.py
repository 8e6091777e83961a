"""When a trial is stopped: one pure function over the curves so far.

The live study and the replay call the same function, so a policy that was scored on recorded curves
is the one that runs. Everything is counted in samples: trials of different batch sizes and report
spacings meet at the same place. Only ranks are compared, so neither the loss's scale nor its offset
matters.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from distft.errors import ConfigError

Curve = Sequence[tuple[int, float]]
"""(samples trained on, value) of each report, in order; lower is better."""


@dataclass(frozen=True)
class Policy:
    """Where trials are compared, and how many of them go on."""

    rungs: tuple[float, ...]
    """Shares of a trial's budget, rising, above 0 and below 1."""
    keep: tuple[float, ...]
    """For each rung the share of the trials at it that go on; the best one always does."""
    smooth: float = 0.0
    """Share of the budget whose reports, back from where a trial stands, are averaged; 0: only the
    newest report counts."""

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise((0.0, *self.rungs, 1.0)))
        shares = len(self.keep) == len(self.rungs) and all(0 < share <= 1 for share in self.keep)
        if not (rising and shares and 0 <= self.smooth < 1):
            raise ConfigError(
                f"Got {self}; allowed: rungs rising between 0 and 1, for each of them a share to "
                "keep above 0 and at most 1, and a share to smooth over below 1."
            )


@dataclass(frozen=True)
class Decision:
    """What was decided about a trial at a rung."""

    rung: int
    """Number of the rung, from 0."""
    samples: int
    """Where the trial stood."""
    value: float
    """Smoothed."""
    rank: int
    """1 is the best; equal values share a rank."""
    of: int
    """Trials at this rung so far, this one included."""
    kept: bool
    """False: stop it."""


DEFAULT = Policy(rungs=(0.05, 0.1, 0.6), keep=(0.25, 0.25, 0.25), smooth=0.1)


def decide(
    policy: Policy, budget_samples: int, curve: Curve, others: Sequence[Curve]
) -> Decision | None:
    """Return whether a trial goes on, if its last report is the first one at a rung.

    Args:
        policy: Rungs and shares.
        budget_samples: Samples of a whole trial.
        curve: The trial's reports so far; the last one has just come.
        others: The same of every other trial of the study, whatever became of it; values that are
            not finite do not count.

    Returns:
        The decision, or None between rungs. Where one report jumps over several rungs, it counts at
        the newest of them. A value that is not finite is never kept.
    """
    last = len(curve) - 1
    at_rungs = reached(policy, budget_samples, curve)
    rung = next((number for number, index in at_rungs.items() if index == last), None)
    if rung is None:
        return None
    window_samples = policy.smooth * budget_samples
    value = smoothed(curve, window_samples)
    rivals = []
    for other in others:
        index = reached(policy, budget_samples, other).get(rung)
        if index is not None:
            rivals.append(smoothed(other[: index + 1], window_samples))
    rivals = [rival for rival in rivals if math.isfinite(rival)]
    finite = math.isfinite(value)
    rank = 1 + (sum(rival < value for rival in rivals) if finite else len(rivals))
    of = 1 + len(rivals)
    kept = finite and rank <= max(1, math.floor(policy.keep[rung] * of + _ROUNDING))
    return Decision(rung, curve[last][0], value, rank, of, kept)


def reached(policy: Policy, budget_samples: int, curve: Curve) -> dict[int, int]:
    """Return the rungs a curve has reached.

    Args:
        policy: Rungs.
        budget_samples: Samples of a whole trial.
        curve: Reports in order.

    Returns:
        Number of the rung -> index of the first report at or beyond it, rungs rising. A report
        stands for one rung at most, the newest.
    """
    first_at = {
        bisect_left(curve, (share - _ROUNDING) * budget_samples, key=_samples): rung
        for rung, share in enumerate(policy.rungs)
    }
    return {rung: index for index, rung in first_at.items() if index < len(curve)}


def smoothed(curve: Curve, window_samples: float) -> float:
    """Return the mean value of a curve's last reports.

    Args:
        curve: At least one report.
        window_samples: Reports less than this before the last one count, and the last one itself.

    Returns:
        Their mean; not finite where one of them is not.
    """
    newest = curve[-1][0]
    start = bisect_right(curve, newest - window_samples * (1 - _ROUNDING), key=_samples)
    values = [value for _, value in curve[min(start, len(curve) - 1) :]]
    return sum(values) / len(values)


_ROUNDING = 1e-9
"""0.07 * 100 is a little more than 7; a report at 7 of 100 samples is at that rung all the same."""


def _samples(report: tuple[int, float]) -> int:
    return report[0]
