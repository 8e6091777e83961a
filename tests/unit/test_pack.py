"""Micro-batches of a step: nothing lost, budgets kept, ranks alike, little padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distft.data.pack import Budget, MicroBatch, micro_batches, pack

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=60)


def cut(lengths: Sequence[int], budget: Budget, world_size: int = 1) -> list[list[MicroBatch]]:
    ids = [10 * i for i in range(len(lengths))]
    return micro_batches(ids, np.array(lengths), budget, world_size)


def rows_of(micro: MicroBatch, lengths: Sequence[int]) -> list[int]:
    """Return the tokens of each of its rows."""
    tokens = iter(lengths[one // 10] for one in micro.ids)
    return [sum(next(tokens) for _ in range(count)) for count in micro.rows]


def padding(ranks: list[list[MicroBatch]], lengths: Sequence[int]) -> float:
    filled = [rows_of(micro, lengths) for rank in ranks for micro in rank if micro.ids]
    return 1 - sum(lengths) / sum(max(rows) * len(rows) for rows in filled)


@given(
    lengths=LENGTHS,
    row_tokens=st.none() | st.integers(20, 200),
    rows=st.none() | st.integers(1, 5),
    overhead=st.sampled_from([0, 30, 1000]),
    world=st.sampled_from([1, 2, 4]),
)
def test_every_sample_once_within_the_budget(
    lengths: list[int], row_tokens: int | None, rows: int | None, overhead: int, world: int
) -> None:
    ranks = cut(lengths, Budget(200, row_tokens, rows, overhead), world)
    micros = [micro for rank in ranks for micro in rank]
    assert sorted(one for micro in micros for one in micro.ids) == [
        10 * i for i in range(len(lengths))
    ]
    assert len({len(rank) for rank in ranks}) == 1
    assert len(ranks) == world
    for micro in micros:
        filled = rows_of(micro, lengths)
        assert sum(micro.rows) == len(micro.ids)
        assert len(filled) == 1 or max(filled, default=0) * len(filled) <= 200
        assert len(filled) <= (rows or len(filled))
        if row_tokens is None:
            assert set(micro.rows) <= {1}
        else:
            assert all(
                tokens <= max(row_tokens, *lengths) or count == 1
                for tokens, count in zip(filled, micro.rows, strict=True)
            )


@given(lengths=LENGTHS, world=st.sampled_from([1, 2, 4]), packed=st.booleans(), seed=st.integers(0))
def test_the_cut_does_not_depend_on_the_order_of_the_ids(
    lengths: list[int], world: int, packed: bool, seed: int
) -> None:
    budget = Budget(200, 100 if packed else None, None, 10)
    ids = np.arange(len(lengths))
    shuffled = np.random.default_rng(seed % 2**32).permutation(ids)
    one = micro_batches(ids.tolist(), np.array(lengths), budget, world)
    other = micro_batches(shuffled.tolist(), np.array(lengths)[shuffled], budget, world)
    assert one == other


@given(lengths=LENGTHS, capacity=st.integers(20, 150), world=st.sampled_from([1, 2, 4]))
def test_rows_are_as_few_as_best_fit_finds(lengths: list[int], capacity: int, world: int) -> None:
    falling = sorted(lengths, reverse=True)
    rows = pack(falling, capacity, at_least=world)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    # Any two rows of a best fit hold more than one row can.
    fewest = 2 * sum(lengths) // max(capacity, falling[0]) + 1
    assert len(rows) <= -(-fewest // world) * world


def test_ranks_hold_similar_lengths_at_the_same_index() -> None:
    lengths = (np.arange(64) % 41 + 1).tolist()
    ranks = cut(lengths, Budget(200), 2)
    for left, right in zip(*ranks, strict=True):
        for one, other in zip(rows_of(left, lengths), rows_of(right, lengths), strict=False):
            assert abs(one - other) <= 3


def test_the_longest_rows_come_first() -> None:
    lengths = [5, 90, 20, 80, 70, 3]
    (rank,) = cut(lengths, Budget(100))
    longest = [max(rows_of(micro, lengths)) for micro in rank]
    assert longest == sorted(longest, reverse=True)


def test_a_costly_micro_batch_is_worth_some_padding() -> None:
    lengths = [100, 40, 40, 4, 4, 4]
    assert padding(cut(lengths, Budget(1000)), lengths) == 0
    assert len(cut(lengths, Budget(1000, overhead_tokens=10_000))[0]) == 1


@pytest.mark.parametrize("name", ["uniform", "lognormal", "bimodal", "long tail"])
def test_packed_steps_hold_little_padding(name: str) -> None:
    """Exact counts of steps of 64 samples in rows of 512; `make bench` compares with others."""
    random = np.random.default_rng(0)
    lengths = {
        "uniform": random.integers(10, 512, 2048),
        "lognormal": np.clip(random.lognormal(4.3, 0.8, 2048), 4, 512).astype(int),
        "bimodal": np.where(
            random.random(2048) < 0.8,
            random.integers(10, 60, 2048),
            random.integers(300, 512, 2048),
        ),
        "long tail": np.clip(random.zipf(1.6, 2048) * 8, 8, 512),
    }[name]
    steps = [lengths[start : start + 64].tolist() for start in range(0, 2048, 64)]
    tokens = positions = 0
    for step in steps:
        share = padding(cut(step, Budget(8 * 512, 512, None, 64)), step)
        tokens += sum(step)
        positions += sum(step) / (1 - share)
    assert 1 - tokens / positions <= 0.02
