"""In which order samples are trained on: a pure function of seed, epoch, shares and shard layout.

The order knows no world size. A step takes the next `global_batch_size` ids of it; only then are
they cut into micro-batches and dealt to ranks (see `distft.data.pack`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, cycle, islice

import numpy as np

from distft.data.mix import Mix
from distft.data.pack import Budget, MicroBatch, micro_batches

WINDOW = 64
"""Row groups whose rows are shuffled together; bounds the memory of the order and its readers."""


@dataclass(frozen=True)
class StepPlan:
    """What one rank does in one optimizer step."""

    step: int
    """0-based, over all epochs."""
    epoch: int
    """Of `data.train`, where the step begins."""
    num_samples: int
    """Samples of the step over all ranks."""
    micro_batches: list[MicroBatch]
    """This rank's; as many as every other rank's."""

    @property
    def ids(self) -> list[int]:
        """The samples of this rank."""
        return [one for micro in self.micro_batches for one in micro.ids]


def _rng(*seeds: int) -> np.random.Generator:
    # Philox named, not default_rng: its stream is a published algorithm, not NumPy's choice.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seeds)))


def epoch_ids(
    *,
    seed: int,
    epoch: int,
    row_groups: Sequence[int],
    window: int = WINDOW,
    start: int = 0,
    number: int = 0,
) -> Iterator[int]:
    """Yield the sample ids of an epoch of one training set in their order.

    Row groups are shuffled, then rows inside windows of them. Windows before `start` are skipped,
    not generated.

    Args:
        seed: The run's.
        epoch: 0-based.
        row_groups: Rows of each row group, in shard order.
        window: Row groups shuffled together.
        start: How many ids to leave out at the beginning.
        number: Of the set; each has an order of its own.

    Yields:
        Every id from 0 to the number of rows, once (less the first `start`).
    """
    mixed = (number,) if number else ()
    sizes = np.asarray(row_groups, dtype=np.int64)
    offsets = np.cumsum(sizes) - sizes
    groups = _rng(seed, epoch, 0, *mixed).permutation(len(sizes))
    for place, first in enumerate(range(0, len(groups), window)):
        members = groups[first : first + window]
        rows = int(sizes[members].sum())
        if start >= rows:
            start -= rows
            continue
        ids = np.concatenate([offsets[g] + np.arange(sizes[g]) for g in members])
        yield from _rng(seed, epoch, 1, place, *mixed).permutation(ids)[start:].tolist()
        start = 0


def sample_ids(*, seed: int, row_groups: Sequence[int], mix: Mix, start: int = 0) -> Iterator[int]:
    """Yield the sample ids of a run in their order, without end.

    Each set is passed over again and again, at the pace its share gives it.

    Args:
        seed: The run's.
        row_groups: Rows of each row group, in shard order, one set after the other.
        mix: The sets.
        start: Position of the first id; those before it are not generated.

    Yields:
        The id at each position.

    Raises:
        ValueError: A set ends inside a row group.
    """
    ends = list(accumulate(mix.rows))
    groups = np.searchsorted(list(accumulate(row_groups)), ends, side="right")
    passes = []
    for number, (rows, taken) in enumerate(zip(mix.rows, mix.taken(start), strict=True)):
        mine = row_groups[0 if not number else groups[number - 1] : groups[number]]
        if sum(mine) != rows:
            raise ValueError(f"set {number} has {rows} rows, its row groups {sum(mine)}")
        passes.append(_passes(seed, number, mine, ends[number] - rows, taken))
    inside = start % len(mix.pattern)
    for number in chain(mix.pattern[inside:], cycle(mix.pattern)):
        yield next(passes[number])


def _passes(
    seed: int, number: int, row_groups: Sequence[int], first: int, taken: int
) -> Iterator[int]:
    """Yield the ids of a set, epoch after epoch, less the first `taken` of them."""
    epoch, start = divmod(taken, sum(row_groups))
    while True:
        ids = epoch_ids(seed=seed, epoch=epoch, row_groups=row_groups, start=start, number=number)
        for one in ids:
            yield first + one
        epoch, start = epoch + 1, 0


def plan_steps(  # noqa: PLR0913 - keyword-only facts of one run, all from its plan
    *,
    seed: int,
    row_groups: Sequence[int],
    lengths: Callable[[Sequence[int]], np.ndarray],
    global_batch_size: int,
    budget: Budget,
    world_size: int,
    rank: int,
    start_step: int,
    total_steps: int,
    mix: Mix | None = None,
    total_samples: int | None = None,
) -> Iterator[StepPlan]:
    """Yield a rank's steps from `start_step` to `total_steps`.

    Args:
        seed: The run's.
        row_groups: Rows of each row group, in shard order.
        lengths: Ids -> tokens of each.
        global_batch_size: Samples of a step; the last one of an epoch, or where sets are mixed of
            the run, may hold fewer.
        budget: Of one rank's micro-batch.
        world_size: Number of ranks.
        rank: Which one.
        start_step: First step to yield; earlier ones cost nothing.
        total_steps: Step after the last.
        mix: The sets that the row groups belong to; None: all to one.
        total_samples: Of the run, where its last step ends sooner than it could.

    Yields:
        One plan per step.

    Raises:
        ValueError: There are no rows.
    """
    mix = mix or Mix((sum(row_groups),))
    start, _ = mix.span(start_step, global_batch_size)
    ids = sample_ids(seed=seed, row_groups=row_groups, mix=mix, start=start)
    for step in range(start_step, total_steps):
        first, end = mix.span(step, global_batch_size)
        batch = list(islice(ids, min(end, total_samples or end) - first))
        by_rank = micro_batches(batch, lengths(batch), budget, world_size)
        yield StepPlan(step, mix.taken(first)[0] // mix.rows[0], len(batch), by_rank[rank])


def eval_plan(rows: int, rank: int, world_size: int, batch_size: int) -> list[list[int]]:
    """Return a rank's evaluation batches; over all ranks every row stands exactly once.

    Args:
        rows: Rows of the split; ids are 0 to rows - 1.
        rank: Which rank.
        world_size: Number of ranks.
        batch_size: Most rows of a batch.

    Returns:
        The same number of batches for every rank; empty ones fill up.
    """
    starts = range(0, rows, batch_size)
    batches = [list(range(start, min(start + batch_size, rows))) for start in starts]
    mine = batches[rank::world_size]
    return mine + [[] for _ in range(-(-len(batches) // world_size) - len(mine))]
