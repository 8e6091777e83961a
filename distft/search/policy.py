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
from dataclasses import dataclass, replace
from itertools import pairwise

from distft.errors import ConfigError

Curve = Sequence[tuple[int, float]]
"""(samples trained on, value) of each report, in order; lower is better."""

_ROUNDING = 1e-9
"""0.07 * 100 is a little more than 7; a report at 7 of 100 samples is at that rung all the same."""


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
"""Cut hard early, then leave what is left alone until 60 % of the budget: on recorded runs the
ranks between 15 and 45 % mislead more than those at 5 and 10 %."""
LEAST_SAMPLES = 96
"""Ranks at fewer samples say nothing: on recorded runs they are good at 96 and at 1,000 samples,
and worse than chance at 48, where the learning rate still warms up."""


def for_budget(policy: Policy, budget_samples: int) -> Policy:
    """Return a policy without the rungs that lie too early to tell trials apart.

    Args:
        policy: Any.
        budget_samples: Samples of a whole trial.

    Returns:
        The policy with its rungs from `LEAST_SAMPLES` on.
    """
    told = [
        (rung, share)
        for rung, share in zip(policy.rungs, policy.keep, strict=True)
        if (rung + _ROUNDING) * budget_samples >= LEAST_SAMPLES
    ]
    return replace(policy, rungs=tuple(r for r, _ in told), keep=tuple(share for _, share in told))


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
    rung, before = (
        bisect_right(policy.rungs, samples / budget_samples + _ROUNDING) - 1
        for samples in (curve[-1][0], curve[-2][0] if curve[1:] else 0)
    )
    if rung == before:
        return None
    window_samples = policy.smooth * budget_samples
    value = smoothed(curve, window_samples)
    rivals = []
    for other in others:
        reports = reached(policy, budget_samples, other, rung)
        if reports:
            rival = smoothed(other[:reports], window_samples)
            if math.isfinite(rival):
                rivals.append(rival)
    finite = math.isfinite(value)
    rank = 1 + (sum(rival < value for rival in rivals) if finite else len(rivals))
    of = 1 + len(rivals)
    kept = finite and rank <= max(1, math.floor(policy.keep[rung] * of + _ROUNDING))
    return Decision(rung, curve[-1][0], value, rank, of, kept)


def reached(policy: Policy, budget_samples: int, curve: Curve, rung: int) -> int:
    """Return how much of a curve is compared at a rung.

    Args:
        policy: Rungs.
        budget_samples: Samples of a whole trial.
        curve: Reports in order.
        rung: Its number.

    Returns:
        Number of reports up to the first one at or beyond the rung; 0: the curve is not there yet,
        or that report is at the next rung already, where alone it counts.
    """
    index = bisect_left(curve, ((policy.rungs[rung] - _ROUNDING) * budget_samples,))
    if index == len(curve):
        return 0
    newer = policy.rungs[rung + 1 : rung + 2]
    jumped = newer and curve[index][0] >= (newer[0] - _ROUNDING) * budget_samples
    return 0 if jumped else index + 1


def smoothed(curve: Curve, window_samples: float) -> float:
    """Return the mean value of a curve's last reports.

    Args:
        curve: At least one report.
        window_samples: Reports less than this before the last one count, and the last one itself.

    Returns:
        Their mean; not finite where one of them is not.
    """
    oldest = curve[-1][0] - window_samples * (1 - _ROUNDING)
    start = bisect_right(curve, (oldest, math.inf))
    values = [value for _, value in curve[min(start, len(curve) - 1) :]]
    return sum(values) / len(values)
