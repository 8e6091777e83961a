"""When a trial is stopped: only by its rank, only at rungs, whatever the scale or the spacing."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.errors import ConfigError
from distft.search.policy import (
    DEFAULT,
    LEAST_SAMPLES,
    Decision,
    Policy,
    decide,
    for_budget,
    reached,
    smoothed,
)

BUDGET = 1000
HALF = Policy(rungs=(0.1, 0.5), keep=(0.5, 0.5))

few = settings(max_examples=25, deadline=None)

# Whole numbers: means, shifts and doublings of them are exact, so ties stay ties.
values = st.integers(-(10**6), 10**6).map(float)
spacings = st.sampled_from([10, 25, 50, 70, 100, 300])


@st.composite
def curves(draw: st.DrawFn, value: st.SearchStrategy[float] = values) -> list[tuple[int, float]]:
    spacing = draw(spacings)
    count = draw(st.integers(1, BUDGET // spacing))
    return [(spacing * (i + 1), draw(value)) for i in range(count)]


policies = st.builds(
    Policy,
    rungs=st.just((0.1, 0.3, 0.6)),
    keep=st.tuples(*[st.sampled_from([0.2, 0.25, 0.5, 1.0])] * 3),
    smooth=st.sampled_from([0.0, 0.1, 0.25]),
)
studies = st.tuples(policies, curves(), st.lists(curves(), max_size=6))


def flat(value: float, spacing: int = 100, until: int = BUDGET) -> list[tuple[int, float]]:
    return [(samples, value) for samples in range(spacing, until + 1, spacing)]


def test_a_worked_example() -> None:
    others = [flat(1.0), flat(3.0, until=100), flat(5.0, until=100)]
    assert decide(HALF, BUDGET, flat(2.0, until=100), others) == Decision(
        rung=0, samples=100, value=2.0, rank=2, of=4, kept=True
    )
    assert decide(HALF, BUDGET, flat(4.0, until=100), others) == Decision(
        rung=0, samples=100, value=4.0, rank=3, of=4, kept=False
    )
    assert decide(HALF, BUDGET, flat(2.0, until=500), others) == Decision(
        rung=1, samples=500, value=2.0, rank=2, of=2, kept=False
    )


@few
@given(studies, st.integers(-1000, 1000), st.sampled_from([0.5, 2.0, 8.0]))
def test_scale_and_offset_do_not_matter(
    study: tuple[Policy, list[tuple[int, float]], list[list[tuple[int, float]]]],
    offset: int,
    scale: float,
) -> None:
    def moved(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
        return [(samples, scale * value + offset) for samples, value in curve]

    policy, curve, others = study
    got = decide(policy, BUDGET, curve, others)
    there = decide(policy, BUDGET, moved(curve), [moved(other) for other in others])
    ranks = [each and (each.rung, each.rank, each.of, each.kept) for each in (got, there)]
    assert ranks[0] == ranks[1]


@few
@given(studies, st.randoms(use_true_random=False))
def test_the_order_of_the_others_does_not_matter(
    study: tuple[Policy, list[tuple[int, float]], list[list[tuple[int, float]]]],
    draw: random.Random,
) -> None:
    policy, curve, others = study
    shuffled = draw.sample(others, len(others))
    assert decide(policy, BUDGET, curve, others) == decide(policy, BUDGET, curve, shuffled)


@few
@given(studies, st.integers(1, 1000))
def test_a_better_trial_is_never_stopped_where_a_worse_one_goes_on(
    study: tuple[Policy, list[tuple[int, float]], list[list[tuple[int, float]]]], less: int
) -> None:
    policy, curve, others = study
    worse = decide(policy, BUDGET, curve, others)
    better = decide(policy, BUDGET, [(samples, v - less) for samples, v in curve], others)
    assert (worse is None) == (better is None)
    if worse is not None and better is not None:
        assert better.rank <= worse.rank
        assert better.kept >= worse.kept


@few
@given(studies)
def test_the_best_goes_on_and_a_value_that_is_not_finite_never(
    study: tuple[Policy, list[tuple[int, float]], list[list[tuple[int, float]]]],
) -> None:
    policy, curve, others = study
    decision = decide(policy, BUDGET, curve, others)
    if decision is not None:
        assert decision.kept or decision.rank > 1
        broken = decide(policy, BUDGET, [*curve[:-1], (curve[-1][0], math.nan)], others)
        assert broken is not None
        assert not broken.kept
        assert broken.rank == broken.of


@few
@given(studies, st.lists(curves(st.sampled_from([math.nan, math.inf, -math.inf])), max_size=4))
def test_others_that_are_not_finite_do_not_count(
    study: tuple[Policy, list[tuple[int, float]], list[list[tuple[int, float]]]],
    broken: list[list[tuple[int, float]]],
) -> None:
    policy, curve, others = study
    assert decide(policy, BUDGET, curve, [*broken, *others]) == decide(
        policy, BUDGET, curve, others
    )


@few
@given(policies, curves())
def test_decisions_fall_at_rungs_only_and_once_at_each(
    policy: Policy, curve: list[tuple[int, float]]
) -> None:
    for end in range(1, len(curve) + 1):
        before = curve[end - 2][0] if end > 1 else 0
        crossed = [
            number
            for number, share in enumerate(policy.rungs)
            if before < share * BUDGET <= curve[end - 1][0]
        ]
        decision = decide(policy, BUDGET, curve[:end], [])
        assert (decision and decision.rung) == (max(crossed) if crossed else None)


@pytest.mark.parametrize("spacing", [10, 20, 50, 100])
@pytest.mark.parametrize("others_spacing", [10, 20, 50, 100])
def test_the_spacing_of_reports_does_not_matter(spacing: int, others_spacing: int) -> None:
    others = [flat(float(value), others_spacing) for value in (1, 2, 4, 5)]
    decisions = [
        decide(DEFAULT, BUDGET, flat(3.0, spacing, until), others)
        for until in range(spacing, BUDGET + 1, spacing)
    ]
    at_last_rung = [each for each in decisions if each is not None][-1]
    assert at_last_rung == Decision(rung=2, samples=600, value=3.0, rank=3, of=5, kept=False)


def test_a_share_that_is_no_whole_number_in_binary_is_reached_all_the_same() -> None:
    assert 0.07 * 100 > 7
    assert reached(Policy((0.07,), (0.5,)), 100, [(6, 1.0), (7, 1.0)], 0) == 2


def test_one_report_over_two_rungs_counts_at_the_newer_one() -> None:
    curve = [(50, 1.0), (600, 1.0), (700, 1.0)]
    assert [reached(HALF, BUDGET, curve, rung) for rung in (0, 1)] == [0, 2]
    assert [reached(HALF, BUDGET, curve[:1], rung) for rung in (0, 1)] == [0, 0]


@pytest.mark.parametrize(
    ("window", "mean"), [(0, 5.0), (100, 5.0), (101, 4.5), (200, 4.5), (300, 4.0), (9999, 3.0)]
)
def test_smoothing_looks_back_over_samples(window: float, mean: float) -> None:
    curve = [(100 * i, float(i)) for i in range(1, 6)]
    assert smoothed(curve, window) == mean


def test_rungs_too_early_to_tell_are_left_out() -> None:
    assert for_budget(DEFAULT, 20 * LEAST_SAMPLES) == DEFAULT
    shorter = for_budget(DEFAULT, 20 * LEAST_SAMPLES - 1)
    assert shorter == Policy(DEFAULT.rungs[1:], DEFAULT.keep[1:], DEFAULT.smooth)
    assert for_budget(DEFAULT, LEAST_SAMPLES).rungs == ()


@pytest.mark.parametrize(
    ("rungs", "keep", "smooth"),
    [
        ((0.0,), (0.5,), 0),
        ((1.0,), (0.5,), 0),
        ((0.5, 0.2), (0.5, 0.5), 0),
        ((0.2, 0.5), (0.5,), 0),
        ((0.2,), (0.0,), 0),
        ((0.2,), (1.5,), 0),
        ((0.2,), (0.5,), 1.0),
        ((0.2,), (0.5,), -0.1),
        ((math.nan,), (0.5,), 0),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(
    rungs: tuple[float, ...], keep: tuple[float, ...], smooth: float
) -> None:
    with pytest.raises(ConfigError, match="allowed: rungs rising between 0 and 1"):
        Policy(rungs, keep, smooth)
