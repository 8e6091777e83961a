"""How a step's samples are cut into micro-batches with little padding: a pure function.

Samples may share a row (packing); rows of similar length make a micro-batch, within its budget of
tokens. Which samples a step holds is decided before (see `distft.data.order`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Budget:
    """What bounds a micro-batch of one rank."""

    micro_batch_tokens: int
    """Positions of a micro-batch, padding included; a longer sample stands alone."""
    row_tokens: int | None = None
    """Positions of a row in which several samples may stand, at least the longest sample's; None:
    each has a row of its own."""
    micro_batch_rows: int | None = None
    """Rows of a micro-batch, where tokens do not say all that it needs."""
    overhead_tokens: int = 0
    """What one more micro-batch costs, as the number of tokens that take as long."""


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one forward pass."""

    ids: list[int]
    """Row after row; empty where a rank has none to do."""
    rows: list[int]
    """How many of them stand in each row."""


def micro_batches(
    ids: Sequence[int], lengths: np.ndarray, budget: Budget, world_size: int
) -> list[list[MicroBatch]]:
    """Return what each rank does of a step.

    Longest rows come first: a step that does not fit into memory shows at once. At the same index
    ranks hold rows of similar length, for they wait for one another.

    Args:
        ids: The samples of the step.
        lengths: Tokens of each.
        budget: Of a micro-batch.
        world_size: Number of ranks.

    Returns:
        By rank, the same number of micro-batches for each; every id stands in exactly one.
    """
    # Ties go by id: the cut must not depend on the order in which ids are given.
    order = np.lexsort((np.asarray(ids), -np.asarray(lengths)))
    ordered, sizes = [ids[i] for i in order], np.asarray(lengths)[order]
    if budget.row_tokens is None:
        rows = [[place] for place in range(len(ordered))]
    else:
        rows = pack(sizes.tolist(), budget.row_tokens, at_least=world_size)
    filled = np.array([int(sizes[row].sum()) for row in rows])
    falling = np.argsort(-filled, kind="stable")
    rows = [rows[i] for i in falling]
    cuts = _cut(filled[falling], budget, world_size)
    return [
        [
            MicroBatch(
                [ordered[place] for row in rows[start + rank : end : world_size] for place in row],
                [len(row) for row in rows[start + rank : end : world_size]],
            )
            for start, end in cuts
        ]
        for rank in range(world_size)
    ]


def pack(lengths: Sequence[int], capacity: int, *, at_least: int = 1) -> list[list[int]]:
    """Return rows of samples: as few as best fit finds, as equally filled as that number allows.

    Best fit decreasing says how many rows there are, a multiple of `at_least`. Then the smallest
    capacity that still gives no more rows is sought by bisection, so that rows which stand side by
    side need no padding (MULTIFIT: Coffman, Garey and Johnson 1978, section 2).

    Args:
        lengths: Tokens of each sample, falling.
        capacity: Of a row; at least the longest sample's.
        at_least: Rows wanted where there are as many samples; their number divides by it.

    Returns:
        Positions in `lengths`, each in exactly one row.
    """
    capacity = max(capacity, lengths[0])
    rows = _best_fit(lengths, capacity)
    most = min(len(lengths), -(-len(rows) // at_least) * at_least)
    low, high = max(lengths[0], -(-sum(lengths) // most)), capacity
    while low < high:
        middle = (low + high) // 2
        tried = _best_fit(lengths, middle)
        if len(tried) <= most:
            rows, high = tried, middle
        else:
            low = middle + 1
    return rows


def _best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    # (room left, row), sorted: the first with enough room is the one it fits best.
    open_rows: list[tuple[int, int]] = []
    for place, length in enumerate(lengths):
        found = bisect_left(open_rows, (length, -1))
        if found == len(open_rows):
            rows.append([place])
            row, room = len(rows) - 1, capacity
        else:
            room, row = open_rows.pop(found)
            rows[row].append(place)
        insort(open_rows, (room - length, row))
    return rows


def _cut(lengths: np.ndarray, budget: Budget, world_size: int) -> list[tuple[int, int]]:
    """Return where rows, longest first, are cut: the least positions and overhead in all."""
    rows = len(lengths)
    costs = np.zeros(rows + 1)
    starts = np.zeros(rows + 1, np.int64)
    for end in range(1, rows + 1):
        # The first row of a micro-batch is the longest; ranks do equally many.
        begin = np.arange(end)
        each = -(-(end - begin) // world_size)
        positions = each * lengths[:end]
        total = costs[:end] + (positions + budget.overhead_tokens) * world_size
        fits = positions <= budget.micro_batch_tokens
        if budget.micro_batch_rows is not None:
            fits &= each <= budget.micro_batch_rows
        fits |= each == 1
        total[~fits] = np.inf
        # Of equal costs the one with most rows at once.
        starts[end] = int(np.argmin(total))
        costs[end] = total[starts[end]]
    cuts: list[tuple[int, int]] = []
    end = rows
    while end:
        cuts.append((int(starts[end]), end))
        end = int(starts[end])
    return cuts[::-1]
