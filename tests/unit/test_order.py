"""The order of samples: every id once, the same at any world size and from any step on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distft.data.order import StepPlan, epoch_ids, eval_plan, plan_steps
from distft.data.pack import Budget

groups = st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(any)
"""Uneven, and some of them empty."""


@given(row_groups=groups, seed=st.integers(0, 5), epoch=st.integers(0, 5), window=st.integers(1, 8))
def test_every_id_once_an_epoch(row_groups: list[int], seed: int, epoch: int, window: int) -> None:
    ids = list(epoch_ids(seed=seed, epoch=epoch, row_groups=row_groups, window=window))
    assert sorted(ids) == list(range(sum(row_groups)))


@given(row_groups=groups, window=st.integers(1, 8), data=st.data())
def test_starting_late_gives_the_tail(row_groups: list[int], window: int, data: Any) -> None:
    start = data.draw(st.integers(0, sum(row_groups)))
    whole = list(epoch_ids(seed=1, epoch=2, row_groups=row_groups, window=window))
    tail = list(epoch_ids(seed=1, epoch=2, row_groups=row_groups, window=window, start=start))
    assert tail == whole[start:]


def test_seeds_and_epochs_differ() -> None:
    orders = {
        tuple(epoch_ids(seed=seed, epoch=epoch, row_groups=[50, 50]))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_windows_bound_what_is_mixed() -> None:
    ids = list(epoch_ids(seed=0, epoch=0, row_groups=[10] * 12, window=3))
    for first in range(0, 120, 30):
        assert len({one // 10 for one in ids[first : first + 30]}) == 3


def steps(row_groups: list[int], world: int, rank: int, **changes: Any) -> list[StepPlan]:
    rows = sum(row_groups)
    lengths = np.random.default_rng(0).integers(1, 100, rows)
    settings = {
        "seed": 3,
        "global_batch_size": 12,
        "budget": Budget(micro_batch_tokens=300),
        "start_step": 0,
        "total_steps": 2 * -(-rows // 12) + 1,
    }
    settings.update(changes)
    plans = plan_steps(
        row_groups=row_groups,
        lengths=lambda ids: lengths[np.asarray(ids, dtype=np.int64)],
        world_size=world,
        rank=rank,
        **settings,
    )
    return list(plans)


@given(row_groups=groups)
def test_a_step_is_the_next_samples_of_the_order_at_any_world_size(row_groups: list[int]) -> None:
    rows = sum(row_groups)
    for world in (1, 2, 4):
        ranks = [steps(row_groups, world, rank) for rank in range(world)]
        order = {e: list(epoch_ids(seed=3, epoch=e, row_groups=row_groups)) for e in range(3)}
        position = Counter[int]()
        for number, together in enumerate(zip(*ranks, strict=True)):
            epoch = number // -(-rows // 12)
            wanted = order[epoch][position[epoch] : position[epoch] + 12]
            position[epoch] += 12
            got = [one for plan in together for one in plan.ids]
            assert sorted(got) == sorted(wanted)
            for plan in together:
                assert (plan.step, plan.epoch) == (number, epoch)
                assert plan.num_samples == len(wanted)
                assert len(plan.micro_batches) == len(together[0].micro_batches)


@given(row_groups=groups, start=st.integers(0, 60))
def test_resuming_at_any_step_gives_the_tail(row_groups: list[int], start: int) -> None:
    whole = steps(row_groups, 2, 1, total_steps=60)
    assert steps(row_groups, 2, 1, total_steps=60, start_step=start) == whole[start:]


@given(
    row_groups=groups,
    batch=st.integers(1, 12),
    parts=st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 20)), max_size=5),
)
def test_stopped_anywhere_and_rebuilt_at_other_world_sizes_it_is_the_same_log(
    row_groups: list[int], batch: int, parts: list[tuple[int, int]]
) -> None:
    def log(world: int, start: int, end: int) -> list[tuple[int, int, list[int]]]:
        ranks = [
            steps(
                row_groups, world, rank, global_batch_size=batch, start_step=start, total_steps=end
            )
            for rank in range(world)
        ]
        return [
            (
                together[0].step,
                together[0].epoch,
                sorted(one for plan in together for one in plan.ids),
            )
            for together in zip(*ranks, strict=True)
        ]

    ends = list(accumulate(count for _, count in parts))
    joined = [
        line
        for (world, count), end in zip(parts, ends, strict=True)
        for line in log(world, end - count, end)
    ]
    assert joined == log(1, 0, ends[-1] if ends else 0)
    a_epoch = -(-sum(row_groups) // batch)
    for first in range(0, len(joined) - a_epoch + 1, a_epoch):
        ids = [one for _, _, step in joined[first : first + a_epoch] for one in step]
        assert sorted(ids) == list(range(sum(row_groups)))


def test_a_short_last_step_leaves_ranks_without_work_not_without_micro_batches() -> None:
    last = [steps([13], 4, rank, total_steps=2)[1].micro_batches for rank in range(4)]
    assert Counter(len(batches[0].ids) for batches in last) == {1: 1, 0: 3}
    assert all(len(batches) == 1 for batches in last)


def test_impossible_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        steps([], 1, 0, total_steps=1)


def test_a_far_step_is_reached_without_the_epochs_before() -> None:
    (plan,) = steps([256] * 400, 1, 0, start_step=10**9, total_steps=10**9 + 1)
    assert plan.epoch == 10**9 // -(-256 * 400 // 12)


@given(rows=st.integers(0, 100), world=st.integers(1, 5), batch=st.integers(1, 9))
def test_evaluation_counts_every_row_once(rows: int, world: int, batch: int) -> None:
    plans = [eval_plan(rows, rank, world, batch) for rank in range(world)]
    assert len({len(plan) for plan in plans}) == 1
    assert all(len(ids) <= batch for plan in plans for ids in plan)
    assert sorted(one for plan in plans for ids in plan for one in ids) == list(range(rows))


def test_pythons_hash_seed_changes_nothing() -> None:
    code = (
        "from distft.data.order import epoch_ids\n"
        "print(list(epoch_ids(seed=1, epoch=1, row_groups=[7, 5, 9], window=2)))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1", "77")
    }
    here = list(epoch_ids(seed=1, epoch=1, row_groups=[7, 5, 9], window=2))
    assert outputs == {str(here)}
