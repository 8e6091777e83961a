"""When a trial is stopped: one pure function over the curves so far.

The live study and the replay call the same function, so a policy that was scored on recorded curves
is the one that runs. Rungs are counted in samples: trials of different batch sizes and report
spacings meet at the same place. Only ranks are compared, so neither the loss's scale nor its offset
matters.
"""

from __future__ import annotations

import math
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
    smooth: int = 1
    """Reports averaged into a rung's value, the rung's own included."""
    fewest: int = 1
    """Trials at a rung, this one included, before any is stopped there."""

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise((0.0, *self.rungs, 1.0)))
        shares = len(self.keep) == len(self.rungs) and all(0 < share <= 1 for share in self.keep)
        if not (rising and shares and self.smooth >= 1 and self.fewest >= 1):
            raise ConfigError(
                f"Got {self}; allowed: rungs rising between 0 and 1, a share to keep above 0 and "
                "at most 1 for each of them, smooth and fewest of 1 or more."
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


DEFAULT = Policy(rungs=(0.1, 0.25, 0.5), keep=(0.25, 0.25, 0.25), smooth=2)


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
    reached = _reached(policy, budget_samples, curve)
    if not reached or reached[-1][1] != len(curve) - 1:
        return None
    rung, at = reached[-1]
    value = smoothed(curve[: at + 1], policy.smooth)
    rivals = [
        smoothed(other[: index + 1], policy.smooth)
        for other in others
        for number, index in _reached(policy, budget_samples, other)
        if number == rung
    ]
    rivals = [rival for rival in rivals if math.isfinite(rival)]
    finite = math.isfinite(value)
    rank = 1 + (sum(rival < value for rival in rivals) if finite else len(rivals))
    of = len(rivals) + 1
    allowed = max(1, math.floor(policy.keep[rung] * of + _ROUNDING))
    kept = finite and (of < policy.fewest or rank <= allowed)
    return Decision(rung, curve[at][0], value, rank, of, kept)


def smoothed(curve: Curve, reports: int) -> float:
    """Return the mean value of a curve's last reports.

    Args:
        curve: At least one report.
        reports: How many; fewer where there are fewer.

    Returns:
        Their mean; not finite where one of them is not.
    """
    values = [value for _, value in curve[-reports:]]
    return sum(values) / len(values)


_ROUNDING = 1e-9
"""0.07 * 100 is a little more than 7; a report at 7 of 100 samples is at that rung all the same."""


def _reached(policy: Policy, budget_samples: int, curve: Curve) -> list[tuple[int, int]]:
    """Return (rung, index of the report that was the first at it), a report at one rung at most."""
    found: list[tuple[int, int]] = []
    rung = -1
    for index, (samples, _) in enumerate(curve):
        share = samples / budget_samples + _ROUNDING
        newest = sum(place <= share for place in policy.rungs) - 1
        if newest > rung:
            rung = newest
            found.append((rung, index))
    return found
