"""Which training set gives the sample at each position of a run, and where its steps end. Pure.

Shares have few decimals, so the pattern of sets repeats after at most 10,000 samples, and any
position is reached without those before it. Within a repetition the samples of a set are jobs with
a release and a deadline, the earliest deadline first: after every sample each set has its share to
within one sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from pydantic import BaseModel

MOST_PASSES = 4
"""Over a mixed set without a warning: up to about so many, repeated rows teach nearly as much as
new ones (arXiv 2305.16264)."""


class MixedSet(BaseModel):
    """What a run takes of one training set, where there are several."""

    name: str
    share: float
    """Of the run's samples."""
    rows: int
    passes: float
    """How often the run goes through its rows."""

    def render(self, about: str) -> str:
        """Return it as a line of text, `about` before numbers that are estimated."""
        return (
            f"{100 * self.share:.4g} % of the samples from {self.name}: {about}{self.rows:,} rows, "
            f"{about}{self.passes:.3g} passes"
        )

    def warning(self) -> str:
        """Return what to do where its rows come too often, or nothing."""
        if self.passes <= MOST_PASSES:
            return ""
        return (
            f"the rows of {self.name} are passed over {self.passes:.1f} times: give it more rows "
            f"or a share below {self.share:g}"
        )


@dataclass(frozen=True)
class Mix:
    """The training sets of a run, that of `data.train` first; alone it makes the run by itself."""

    rows: tuple[int, ...]
    """Of each set."""
    shares: tuple[float, ...] = ()
    """Of the samples, for each set after the first; the rest is the first one's."""

    def __post_init__(self) -> None:
        if len(self.rows) != 1 + len(self.shares) or not all(self.rows):
            raise ValueError(
                f"there are no rows to train on in one of the sets: {self.rows} rows, "
                f"shares {self.shares}"
            )

    @cached_property
    def pattern(self) -> list[int]:
        """The set of each position, up to where it begins anew."""
        return _pattern(self.shares)[0]

    def taken(self, position: int) -> list[int]:
        """Return how many samples of each set stand before a position.

        Args:
            position: Samples consumed, over the whole run.

        Returns:
            One count per set; they sum to the position.
        """
        pattern, before = _pattern(self.shares)
        again, inside = divmod(position, len(pattern))
        counts: list[int] = (again * before[-1] + before[inside]).tolist()
        return counts

    def mean(self, means: Sequence[float]) -> float:
        """Return the mean over all samples of what has a mean in each set.

        Args:
            means: One per set.

        Returns:
            Each counts as much as its share.
        """
        shares = [1 - sum(self.shares), *self.shares]
        return sum(share * mean for share, mean in zip(shares, means, strict=True))

    def position(self, samples: int) -> int:
        """Return where `data.train` has given so many samples.

        Args:
            samples: Of `data.train`.

        Returns:
            The first position that has so many before it.
        """
        if samples < 1:
            return 0
        pattern, before = _pattern(self.shares)
        again, inside = divmod(samples - 1, int(before[-1, 0]))
        return again * len(pattern) + int(np.searchsorted(before[:, 0], inside + 1))

    def samples(self, num_train_epochs: float) -> int:
        """Return the samples of so many passes over `data.train`.

        Args:
            num_train_epochs: Passes; a part of one counts as such.

        Returns:
            Samples of all sets together.
        """
        return self.position(math.ceil(round(num_train_epochs * self.rows[0], 6)))

    def span(self, step: int, size: int) -> tuple[int, int]:
        """Return the samples of a step.

        A pass over a set that stands alone ends with a step, which may be short. Mixed sets are
        each passed over at their own pace, and no step is cut short for one of them.

        Args:
            step: 0-based.
            size: Samples of a whole step.

        Returns:
            (position of the first one, position after the last).
        """
        if self.shares:
            return step * size, (step + 1) * size
        epoch, inside = divmod(step, self.steps_per_epoch(size))
        first = epoch * self.rows[0] + inside * size
        return first, min(first + size, (epoch + 1) * self.rows[0])

    def steps_per_epoch(self, size: int) -> int:
        """Return how many steps a pass over `data.train` takes.

        Args:
            size: Samples of a whole step.

        Returns:
            At least 1.
        """
        return math.ceil(self.samples(1) / size)

    def steps_to(self, samples: float, size: int) -> int:
        """Return the step after which so many samples are consumed.

        Args:
            samples: Over the whole run.
            size: Samples of a whole step.

        Returns:
            The number of steps.
        """
        if self.shares:
            return math.ceil(round(samples / size, 6))
        epochs, rest = divmod(samples, self.rows[0])
        return int(epochs) * self.steps_per_epoch(size) + math.ceil(round(rest / size, 6))

    def length(self, size: int, num_train_epochs: float, max_steps: int | None) -> tuple[int, int]:
        """Return how long a run is.

        Args:
            size: Samples of a whole step.
            num_train_epochs: Passes over `data.train`.
            max_steps: Wins over them.

        Returns:
            (steps, samples).
        """
        if self.shares and max_steps is None:
            samples = self.samples(num_train_epochs)
            return math.ceil(samples / size), samples
        steps = max_steps or max(1, math.ceil(num_train_epochs * self.steps_per_epoch(size)))
        return steps, self.span(steps - 1, size)[1]


def mixed_sets(mix: Mix, specs: Sequence[str], samples: int) -> list[MixedSet]:
    """Return what a run takes of each of its training sets.

    Args:
        mix: The sets.
        specs: The files of those after `data.train`.
        samples: Of the run.

    Returns:
        One entry per set; nothing where there is only one.
    """
    if not mix.shares:
        return []
    here = f"{Path.cwd()}/"
    names = ["data.train", *(spec.removeprefix(here) for spec in specs)]
    shares = [round(1 - sum(mix.shares), 4), *mix.shares]
    return [
        MixedSet(name=name, share=share, rows=rows, passes=taken / rows)
        for name, share, rows, taken in zip(
            names, shares, mix.rows, mix.taken(samples), strict=True
        )
    ]


@lru_cache(maxsize=64)
def _pattern(shares: Sequence[float]) -> tuple[list[int], np.ndarray]:
    """Return the set of each position, and for each position the counts before it (int64)."""
    # As they are written: 0.1 is a tenth here, not the nearest binary fraction.
    exact = [Fraction(str(share)) for share in shares]
    exact = [Fraction(1) - sum(exact), *exact]
    period = math.lcm(*(share.denominator for share in exact))
    wanted = [int(share * period) for share in exact]
    pattern: list[int] = []
    given = [0] * len(wanted)
    for position in range(period):
        # A set's next sample is due where without it the set would fall a whole sample behind,
        # and not before the set would be a whole one ahead. Such jobs meet their deadlines if any
        # order does, and one does: a set alone at each moment would share it in proportion.
        due = [
            (-(-(done + 1) * period // each), number)
            for number, (done, each) in enumerate(zip(given, wanted, strict=True))
            if done * period // each <= position
        ]
        chosen = min(due)[1]
        given[chosen] += 1
        pattern.append(chosen)
    before = np.zeros((period + 1, len(wanted)), np.int64)
    before[np.arange(1, period + 1), pattern] = 1
    return pattern, before.cumsum(axis=0)
