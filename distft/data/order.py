"""In which order samples are trained on: a pure function of seed, epoch and shard layout.

The order knows no world size. A step takes the next `global_batch_size` ids of it; only then are
they cut into micro-batches and dealt to ranks (see `distft.data.pack`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from distft.data.pack import Budget, MicroBatch, micro_batches

WINDOW = 64
"""Row groups whose rows are shuffled together; bounds the memory of the order and its readers."""


@dataclass(frozen=True)
class StepPlan:
    """What one rank does in one optimizer step."""

    step: int
    """0-based, over all epochs."""
    epoch: int
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
    *, seed: int, epoch: int, row_groups: Sequence[int], window: int = WINDOW, start: int = 0
) -> Iterator[int]:
    """Yield the sample ids of an epoch in their order.

    Row groups are shuffled, then rows inside windows of them. Windows before `start` are skipped,
    not generated.

    Args:
        seed: The run's.
        epoch: 0-based.
        row_groups: Rows of each row group, in shard order.
        window: Row groups shuffled together.
        start: How many ids to leave out at the beginning.

    Yields:
        Every id from 0 to the number of rows, once (less the first `start`).
    """
    sizes = np.asarray(row_groups, dtype=np.int64)
    offsets = np.cumsum(sizes) - sizes
    groups = _rng(seed, epoch, 0).permutation(len(sizes))
    for number, first in enumerate(range(0, len(groups), window)):
        members = groups[first : first + window]
        rows = int(sizes[members].sum())
        if start >= rows:
            start -= rows
            continue
        ids = np.concatenate([offsets[g] + np.arange(sizes[g]) for g in members])
        yield from _rng(seed, epoch, 1, number).permutation(ids)[start:].tolist()
        start = 0


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
) -> Iterator[StepPlan]:
    """Yield a rank's steps from `start_step` to `total_steps`.

    Args:
        seed: The run's.
        row_groups: Rows of each row group, in shard order.
        lengths: Ids -> tokens of each.
        global_batch_size: Samples of a step; an epoch's last step may hold fewer.
        budget: Of one rank's micro-batch.
        world_size: Number of ranks.
        rank: Which one.
        start_step: First step to yield; earlier ones cost nothing.
        total_steps: Step after the last.

    Yields:
        One plan per step.

    Raises:
        ValueError: There are no rows.
    """
    rows = sum(row_groups)
    if rows < 1:
        raise ValueError("there are no rows to train on")
    steps_per_epoch = -(-rows // global_batch_size)
    step = start_step
    while step < total_steps:
        epoch, inside = divmod(step, steps_per_epoch)
        ids = epoch_ids(
            seed=seed, epoch=epoch, row_groups=row_groups, start=inside * global_batch_size
        )
        for _ in range(min(steps_per_epoch - inside, total_steps - step)):
            batch = list(islice(ids, global_batch_size))
            by_rank = micro_batches(batch, lengths(batch), budget, world_size)
            yield StepPlan(step, epoch, len(batch), by_rank[rank])
            step += 1


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
