"""Mixed sets: exact shares after every sample, each row once a pass, the same from anywhere."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distft.data.manifest import Manifest, SplitInfo, TokenizerInfo, TrainingSet
from distft.data.mix import MOST_PASSES, Mix, mixed_sets
from distft.data.order import StepPlan, epoch_ids, plan_steps, sample_ids
from distft.data.pack import Budget
from distft.data.sets import label_counts

QUICK = settings(max_examples=40, deadline=None)

Groups = list[list[int]]
"""Rows of each row group, set by set."""


@st.composite
def some_shares(draw: st.DrawFn) -> tuple[float, ...]:
    """Shares of one to six sets beside data.train, together less than 1."""
    whole = draw(st.sampled_from([10, 20, 100, 400, 1000]))
    count = draw(st.integers(1, 6))
    cuts = draw(st.lists(st.integers(1, whole - 1), min_size=count, max_size=count, unique=True))
    ends = sorted(cuts)
    return tuple((end - before) / whole for before, end in zip([0, *ends], ends, strict=False))


@st.composite
def some_sets(draw: st.DrawFn) -> tuple[Groups, Mix]:
    shares = draw(some_shares())
    group = st.lists(st.integers(1, 9), min_size=1, max_size=12)
    groups = [draw(group) for _ in range(1 + len(shares))]
    return groups, Mix(tuple(map(sum, groups)), shares)


def flat(groups: Groups) -> list[int]:
    return [rows for one in groups for rows in one]


def set_of(mix: Mix, sample_id: int) -> int:
    return int(np.searchsorted(np.cumsum(mix.rows), sample_id, side="right"))


@QUICK
@given(shares=some_shares())
@example((0.3333, 0.3333, 0.3333))
@example((0.0001,) * 20)
def test_after_every_sample_each_set_has_its_share_to_within_one(shares: tuple[float, ...]) -> None:
    mix = Mix((1,) * (1 + len(shares)), shares)
    mixed = [Fraction(str(share)) for share in shares]
    period = len(mix.pattern)
    wanted = np.array([int(share * period) for share in (1 - sum(mixed, Fraction(0)), *mixed)])
    taken = np.eye(len(wanted), dtype=int)[mix.pattern].cumsum(axis=0)
    positions = np.arange(1, period + 1)[:, None]
    # In whole numbers: |count - share * position| < 1, times the period.
    assert (np.abs(taken * period - wanted * positions) < period).all()
    # There it begins anew, so that one repetition stands for any position.
    assert taken[-1].tolist() == wanted.tolist()


@QUICK
@given(sets=some_sets(), position=st.integers(0, 10**12))
def test_what_stands_before_a_position_is_counted_without_a_walk(
    sets: tuple[Groups, Mix], position: int
) -> None:
    _, mix = sets
    taken = mix.taken(position)
    assert sum(taken) == position
    after = mix.taken(position + 1)
    assert [b - a for a, b in zip(taken, after, strict=True)].count(1) == 1
    assert (
        after[mix.pattern[position % len(mix.pattern)]]
        == 1 + (taken[mix.pattern[position % len(mix.pattern)]])
    )
    reached = mix.position(taken[0])
    assert reached <= position
    assert mix.taken(reached)[0] == taken[0]
    assert taken[0] == 0 or mix.taken(reached - 1)[0] == taken[0] - 1


@QUICK
@given(sets=some_sets(), seed=st.integers(0, 3))
def test_every_id_of_a_set_comes_once_in_each_of_its_passes(
    sets: tuple[Groups, Mix], seed: int
) -> None:
    groups, mix = sets
    long = min(4 * mix.samples(1), 5000)
    ids = list(islice(sample_ids(seed=seed, row_groups=flat(groups), mix=mix), long))
    firsts = np.cumsum(mix.rows) - mix.rows
    counted = [0] * len(mix.rows)
    for number, (first, rows) in enumerate(zip(firsts.tolist(), mix.rows, strict=True)):
        mine = [one for one in ids if first <= one < first + rows]
        counted[number] = len(mine)
        for start in range(0, len(mine) - rows + 1, rows):
            assert sorted(mine[start : start + rows]) == list(range(first, first + rows))
    assert counted == mix.taken(long)


@QUICK
@given(sets=some_sets())
def test_mixing_leaves_the_order_of_data_train_as_it_was(sets: tuple[Groups, Mix]) -> None:
    groups, mix = sets
    ids = islice(sample_ids(seed=5, row_groups=flat(groups), mix=mix), min(mix.samples(2), 5000))
    mine = [one for one in ids if one < mix.rows[0]]
    alone = [
        one for epoch in (0, 1) for one in epoch_ids(seed=5, epoch=epoch, row_groups=groups[0])
    ]
    assert mine == alone[: len(mine)]


@QUICK
@given(sets=some_sets(), start=st.integers(0, 3000))
def test_a_stream_rebuilt_at_any_position_gives_the_tail(
    sets: tuple[Groups, Mix], start: int
) -> None:
    groups, mix = sets
    row_groups = flat(groups)
    whole = list(islice(sample_ids(seed=1, row_groups=row_groups, mix=mix), start + 40))
    tail = list(islice(sample_ids(seed=1, row_groups=row_groups, mix=mix, start=start), 40))
    assert tail == whole[start:]


def steps(groups: Groups, mix: Mix, world: int, rank: int, **changes: Any) -> list[StepPlan]:
    total, samples = mix.length(12, 2.0, None)
    usual: dict[str, Any] = {"start_step": 0, "total_steps": total, "total_samples": samples}
    plans = plan_steps(
        seed=3,
        row_groups=flat(groups),
        lengths=lambda ids: np.asarray(ids) % 7,
        global_batch_size=12,
        budget=Budget(micro_batch_tokens=21),
        world_size=world,
        rank=rank,
        mix=mix,
        **{**usual, **changes},
    )
    return list(plans)


@QUICK
@given(sets=some_sets(), data=st.data())
def test_runs_stopped_and_continued_at_another_world_size_join_to_the_same_order(
    sets: tuple[Groups, Mix], data: Any
) -> None:
    groups, mix = sets
    total, samples = mix.length(12, 2.0, None)
    total, samples = min(total, 60), min(samples, 60 * 12)
    order = list(islice(sample_ids(seed=3, row_groups=flat(groups), mix=mix), samples))
    stop = data.draw(st.integers(0, total))
    limits = {"total_samples": samples, "total_steps": total}
    for before, after in ((1, 2), (2, 4), (4, 1)):
        joined: list[list[int]] = []
        for world, first, end in ((before, 0, stop), (after, stop, total)):
            cut = {**limits, "start_step": first, "total_steps": end}
            ranks = [steps(groups, mix, world, rank, **cut) for rank in range(world)]
            assert {len(plans) for plans in ranks} == {end - first}
            for together in zip(*ranks, strict=True):
                ids = [i for plan in together for i in plan.ids]
                assert {plan.num_samples for plan in together} == {len(ids)}
                joined.append(ids)
        assert [len(ids) for ids in joined[:-1]] == [12] * (total - 1)
        for number, ids in enumerate(joined):
            assert sorted(ids) == sorted(order[12 * number : 12 * (number + 1)])


@QUICK
@given(sets=some_sets(), epochs=st.sampled_from([1, 2, 3]))
def test_a_run_of_epochs_holds_every_row_of_data_train_so_many_times(
    sets: tuple[Groups, Mix], epochs: int
) -> None:
    groups, mix = sets
    total, samples = mix.length(12, epochs, None)
    if samples > 6000:
        return
    plans = steps(groups, mix, 1, 0, total_steps=total, total_samples=samples)
    ids = [i for plan in plans for i in plan.ids]
    assert len(ids) == samples
    counts = Counter(one for one in ids if one < mix.rows[0])
    assert counts == dict.fromkeys(range(mix.rows[0]), epochs)
    assert plans[0].epoch == 0
    assert {plan.epoch for plan in plans} <= set(range(epochs))


def test_without_a_mix_the_order_is_the_one_it_always_was() -> None:
    """Written down before sets could be mixed: runs of then go on with the same rows."""
    groups = [7, 5, 9]
    ids = list(islice(sample_ids(seed=1, row_groups=groups, mix=Mix((21,))), 42))
    assert ids == [
        *(17, 0, 3, 20, 18, 6, 13, 5, 12, 2, 7, 10, 15, 9, 8, 14, 4, 1, 19, 16, 11),
        *(5, 20, 15, 14, 3, 13, 19, 7, 12, 18, 6, 4, 10, 1, 17, 0, 9, 8, 2, 16, 11),
    ]
    plans = plan_steps(
        seed=1,
        row_groups=groups,
        lengths=lambda ids: np.zeros(len(ids)),
        global_batch_size=8,
        budget=Budget(micro_batch_tokens=1),
        world_size=1,
        rank=0,
        start_step=0,
        total_steps=4,
    )
    found = [(plan.epoch, sorted(plan.ids)) for plan in plans]
    cuts = [(0, 0, 8), (0, 8, 16), (0, 16, 21), (1, 21, 29)]
    assert found == [(epoch, sorted(ids[first:end])) for epoch, first, end in cuts]


@given(rows=st.integers(1, 500), size=st.integers(1, 64), epochs=st.sampled_from([0.5, 1, 2.5]))
def test_a_set_alone_ends_each_pass_with_a_step(rows: int, size: int, epochs: float) -> None:
    mix = Mix((rows,))
    per_epoch = math.ceil(rows / size)
    assert mix.steps_per_epoch(size) == per_epoch
    total, samples = mix.length(size, epochs, None)
    assert total == math.ceil(epochs * per_epoch)
    assert samples == sum(end - first for first, end in (mix.span(s, size) for s in range(total)))
    assert mix.span(per_epoch, size)[0] == rows
    assert mix.steps_to(rows + 0.5, size) == per_epoch + 1
    assert mix.steps_to(2 * rows, size) == 2 * per_epoch


def test_lengths_of_mixed_runs() -> None:
    mix = Mix((70, 1000, 5), (0.2, 0.1))
    assert mix.pattern == [0, 0, 0, 1, 0, 0, 1, 0, 0, 2]
    assert mix.samples(1) == 99
    assert mix.taken(1000) == [700, 200, 100]
    assert mix.length(16, 3.0, None) == (19, 299)
    assert mix.length(16, 3.0, 4) == (4, 64)
    assert mix.steps_to(33, 16) == 3
    assert mix.mean([10.0, 20.0, 30.0]) == pytest.approx(14.0)


def test_a_set_that_is_repeated_too_often_is_named() -> None:
    mix = Mix((70, 1000, 5), (0.2, 0.1))
    samples = 10 * 5 * MOST_PASSES
    found = mixed_sets(mix, ["g.jsonl", "h.jsonl"], samples)
    assert [(one.name, one.share, one.rows) for one in found] == [
        ("data.train", 0.7, 70),
        ("g.jsonl", 0.2, 1000),
        ("h.jsonl", 0.1, 5),
    ]
    assert [one.passes for one in found] == [2.0, 0.04, MOST_PASSES]
    assert not any(one.warning() for one in found)
    warned = mixed_sets(mix, ["g.jsonl", "h.jsonl"], samples + 10)[2].warning()
    assert "h.jsonl are passed over 4.2 times" in warned
    assert mixed_sets(Mix((70,)), [], 100) == []


def test_impossible_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows to train on"):
        Mix((5, 0), (0.5,))
    with pytest.raises(ValueError, match="no rows to train on"):
        Mix((5, 5), ())
    with pytest.raises(ValueError, match="its row groups"):
        next(sample_ids(seed=0, row_groups=[4, 6], mix=Mix((5, 5), (0.5,))))


def test_a_class_weighs_as_often_as_it_is_drawn() -> None:
    sets = [
        TrainingSet(format="f", columns={}, rows=40, tokens=1, label_counts=[30, 10, 0]),
        TrainingSet(format="f", columns={}, rows=400, tokens=1, label_counts=[0, 200, 200]),
    ]
    together = SplitInfo(rows=440, label_counts=[30, 210, 200])
    manifest = Manifest(
        key="k",
        task="seq_cls",
        format="f",
        columns={},
        labels=["a", "b", "c"],
        cutoff_len=8,
        tokenizer=TokenizerInfo(name="t", sha256="0"),
        splits={"train": together},
        training_sets=sets,
        dropped={},
        dropped_rows=[],
        sources=[],
    )
    # A pass over the 40 rows comes with 39 of the 400: none of them follows the last.
    assert label_counts(manifest, (0.5,)) == ([30, 30, 20], 79)
    alone = manifest.model_copy(update={"training_sets": []})
    assert label_counts(alone, ()) == ([30, 210, 200], 440)
