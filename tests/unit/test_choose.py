"""Which trials are confirmed, and which configuration is recommended, worked out by hand."""

from __future__ import annotations

import math
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from distft.records import Candidate, TrialRecord
from distft.search.choose import candidates, cost_of, ranked, recommend, standard_error

BUDGET = runpy.run_path(str(Path(__file__).with_name("test_budget.py")))


def trial(number: int, value: float | None, **changes: Any) -> TrialRecord:
    made: TrialRecord = BUDGET["trial"](number, value=value, **changes)
    return made


def candidate(number: int, values: Sequence[float], cost: float = 1.0) -> Candidate:
    return Candidate(
        trial=number,
        method="full",
        params={},
        search_value=0.0,
        seeds=list(range(len(values))),
        values=list(values),
        mean=sum(values) / len(values) if values else None,
        spread=None,
        cost=[cost, 0.0],
        within_tolerance=False,
    )


def test_the_best_come_first_and_the_finished_before_the_stopped() -> None:
    trials = [
        trial(0, 0.5),
        trial(1, 0.4),
        trial(2, 0.1, state="pruned", samples=50),
        trial(3, 0.9, state="pruned", samples=60),
        trial(4, 0.2, state="pruned", samples=50),
        trial(5, None, state="failed"),
        trial(6, 0.1, state="failed"),
        trial(7, 0.1, reused_from=1),
        trial(8, None, state="pruned", samples=0),
        trial(9, 0.4),
        trial(10, 0.1, state="running"),
    ]
    assert [t.number for t in ranked(trials, False)] == [1, 9, 0, 3, 2, 4]
    assert [t.number for t in ranked(trials, True)] == [0, 1, 9, 3, 4, 2]


def test_candidates_hold_mean_and_spread_of_their_seeds() -> None:
    run = BUDGET["run"](1, "cpu").model_copy(update={"peak_memory_bytes": {"planned": 70}})
    chosen = [trial(3, 0.4, run=run), trial(1, 0.5, run=run), trial(2, 0.6, run=run)]
    found = candidates(chosen, {3: {43: 0.1, 44: 0.3}, 1: {43: 0.2}})
    assert [one.trial for one in found] == [3, 1, 2]
    assert found[0].mean == pytest.approx(0.2)
    assert found[0].spread == pytest.approx(math.sqrt(0.02))
    assert (found[0].seeds, found[0].values, found[0].search_value) == ([43, 44], [0.1, 0.3], 0.4)
    assert (found[1].mean, found[1].spread) == (0.2, None)
    assert (found[2].mean, found[2].spread, found[2].values) == (None, None, [])
    assert found[0].cost == cost_of(chosen[0]) == [70.0, 1.0]


def test_the_standard_error_is_pooled() -> None:
    """Variances 2 (one degree of freedom) and 1 (two): pooled (2 + 2) / 3 over 2.5 seeds."""
    found = [candidate(0, [1.0, 3.0]), candidate(1, [1.0, 2.0, 3.0]), candidate(2, [9.0])]
    assert standard_error(found) == pytest.approx(math.sqrt(4 / 3 * 2 / 2.5))


def test_one_seed_says_nothing_about_the_noise() -> None:
    assert standard_error([candidate(0, [1.0]), candidate(1, [2.0]), candidate(2, [])]) == 0.0
    _, allowed, _, number = recommend([candidate(0, [1.0], 9), candidate(1, [1.1], 1)], False, None)
    assert (allowed, number) == (0.0, 0)


@pytest.mark.parametrize(
    ("tolerance", "number", "within"),
    [
        (0.0, 0, [True, False, False]),
        (0.05, 0, [True, False, False]),
        (0.25, 1, [True, True, False]),
        (1.0, 2, [True, True, True]),
    ],
)
@pytest.mark.parametrize("greater", [False, True])
def test_the_cheapest_within_the_tolerance_is_recommended(
    tolerance: float, number: int, within: list[bool], greater: bool
) -> None:
    sign = -1 if greater else 1
    found = [
        candidate(0, [sign * 1.0] * 2, 9.0),
        candidate(1, [sign * 1.2] * 2, 5.0),
        candidate(2, [sign * 1.5] * 2, 1.0),
    ]
    decided, allowed, said, chosen = recommend(found, greater, tolerance)
    assert (allowed, said, chosen) == (tolerance, "tune.tolerance", number)
    assert [one.within_tolerance for one in decided] == within


def test_by_default_one_standard_error_is_allowed() -> None:
    near = [candidate(0, [1.0, 1.2], 9.0), candidate(1, [1.1, 1.3], 1.0)]
    decided, allowed, said, number = recommend(near, False, None)
    assert allowed == pytest.approx(math.sqrt(0.02))
    assert (number, [one.within_tolerance for one in decided]) == (1, [True, True])
    assert said == "one standard error of the difference, pooled over 2 configurations"
    far = [candidate(0, [1.0, 1.2], 9.0), candidate(1, [1.2, 1.4], 1.0)]
    assert recommend(far, False, None)[3] == 0


def test_equal_costs_go_to_the_better_mean_then_to_the_earlier_trial() -> None:
    better = [candidate(4, [1.1] * 2), candidate(7, [1.0] * 2)]
    assert recommend(better, False, 0.5)[3] == 7
    assert recommend(better, True, 0.5)[3] == 4
    assert recommend([candidate(7, [1.0] * 2), candidate(4, [1.0] * 2)], False, 0.5)[3] == 4


def test_who_has_no_mean_is_not_recommended() -> None:
    found = [candidate(0, [], 1.0), candidate(1, [2.0, 2.0], 9.0)]
    decided, _, _, number = recommend(found, False, 5.0)
    assert (number, [one.within_tolerance for one in decided]) == (1, [False, True])
    assert recommend([candidate(0, [])], False, None)[3] is None
