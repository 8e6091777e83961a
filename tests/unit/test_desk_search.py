"""Whole searches at the desk: budgets, samplers, several objectives, and kills."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distft.errors import SearchError
from distft.records import TrialRecord
from distft.search.desk import Launch
from distft.search.phases import Search
from distft.search.study import Study, open_storage

SEARCHES = runpy.run_path(str(Path(__file__).with_name("desk_searches.py")))
SIM, RATE = SEARCHES["SIM"], SEARCHES["RATE"]
plain, run = SEARCHES["plain"], SEARCHES["run"]


@pytest.fixture
def make(tmp_path: Path, tiny_bert: Path) -> Callable[..., Search]:
    """tune section, storage, concurrency -> a search."""
    search: Callable[..., Search] = SEARCHES["maker"](tmp_path, tiny_bert)
    return search


@pytest.mark.parametrize(
    ("budget_samples", "states", "spent"),
    [
        (2400, ["complete", "pruned"], 2400),
        (2410, ["complete", "pruned"], 2560),
        # A trial at its last step is not stopped any more.
        (3200, ["complete", "complete"], 3200),
        (3050, ["complete", "complete"], 3200),
    ],
)
def test_a_budget_of_samples_stops_what_runs(
    make: Any, budget_samples: int, states: list[str], spent: int
) -> None:
    tune = {"budget": {"samples": budget_samples}, "policy": "none", "num_trials": 50, "confirm": 0}
    search = make(tune, concurrent=1)

    def train(launch: Launch) -> Any:
        metrics = {"eval_loss": 1.0 / (launch.number + 1), "eval_accuracy": 0.5}
        for step in range(0, 101, 10):
            yield {"step": step, "samples": 16 * step, **metrics}
        return SIM["result_of"](launch, metrics)

    records = run(search, train)
    assert [r.state for r in records] == states
    stopped = [r.reason for r in records if r.state == "pruned"]
    assert stopped == ["the budget ended: samples"] * states.count("pruned")
    record = search.publish()
    assert (record.ended_by, record.spent["samples"]) == ("samples", spent)


def test_a_budget_of_time_stops_what_runs(make: Any) -> None:
    search = make({"budget": {"wall_hours": 1e-9}, "policy": "none"})
    with pytest.raises(SearchError, match="No trial came to a value"):
        run(search)
    assert search._desk.records() == []
    search = make({"budget": {"wall_hours": 10.0}, "policy": "none", "confirm": 0})

    def train(launch: Launch) -> Any:
        yield {"step": 0, "samples": 0, "eval_loss": 1.1}
        yield {"step": 50, "samples": 800, "eval_loss": 0.8}
        search._earlier_s = 36_000.0
        yield {"step": 75, "samples": 1200, "eval_loss": 0.7}
        raise AssertionError("it was not stopped")

    records = run(search, train)
    assert [r.state for r in records] == ["pruned", "pruned"]
    assert {r.reason for r in records} == {"the budget ended: wall_s"}
    assert search.publish().ended_by == "wall_s"


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "gp"])
def test_every_sampler_runs_and_tries_the_priors_first(make: Any, sampler: str) -> None:
    search = make({"sampler": sampler, "num_trials": 7, "confirm": 0})
    records = run(search)
    assert len(records) == 7
    assert all(r.state in ("complete", "pruned") for r in records)
    if sampler != "grid":
        assert [r.params[RATE] for r in records[:3]] == [1e-4, 3e-5, 3e-4]


def test_several_objectives(make: Any) -> None:
    tune = {"sampler": "nsga2", "objective": ["accuracy", "trainable_params"], "num_trials": 14}
    search = make(tune)
    records = run(search)
    assert {r.state for r in records} == {"complete"}
    assert all(r.rungs == [] for r in records)
    assert all(r.values == [r.value, r.run.model.trainable_params] for r in records)
    record = search.publish()
    assert record.greater_is_better == [True, False]
    assert record.best_trial == max(records, key=lambda r: (r.value, -r.number)).number
    assert len(search._search._study.best_trials) >= 1


class Dying(Study):
    """A study whose process is killed before its nth change, or between a record and its tell."""

    left = math.inf

    def _count(self) -> None:
        Dying.left -= 1
        if Dying.left < 0:
            raise SIM["Killed"]

    def save(self, record: TrialRecord) -> None:
        self._count()
        super().save(record)
        self._count()

    def ask(self) -> Any:
        self._count()
        return super().ask()

    def enqueue(self, parameters: Any, **attributes: Any) -> None:
        self._count()
        super().enqueue(parameters, **attributes)

    def report(self, number: int, samples: int, value: float) -> Any:
        self._count()
        return super().report(number, samples, value)


def until_killed(search: Search) -> bool:
    try:
        run(search)
    except SIM["Killed"]:
        return False
    return True


@pytest.mark.parametrize("every", [1, 2, 3, 5, 8, 13, 29])
def test_a_search_killed_again_and_again_is_the_unbroken_one(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """One trial at a time: what runs side by side meets its rungs in another order."""
    # Four values of which some are drawn twice, so that reuse is under way at some kills.
    tune = {"num_trials": 8, "methods": ["lora", "full"], "space": {RATE: [1e-4, 3e-4]}}
    tune |= {"constraints": ["trainable_params <= 9K"]}
    unbroken = make(tune, concurrent=1)
    expected = run(unbroken)
    monkeypatch.setattr("distft.search.phases.Study", Dying)
    kills = 0
    for _ in range(500):
        Dying.left = every + kills
        search = make(tune, open_storage(tmp_path, None), concurrent=1)
        done = until_killed(search)
        if done:
            break
        kills += 1
    Dying.left = math.inf
    assert done
    assert kills > 1
    assert search.recommended.params == unbroken.recommended.params
    assert len(search._confirmed) == 4
    for key in ("state", "params", "value", "values", "rungs", "reused_from", "samples", "reason"):
        found = [getattr(r, key) for r in search._desk.records()]
        assert found == [getattr(r, key) for r in expected], key
    curves = [[(p["samples"], p["value"]) for p in r.curve] for r in search._desk.records()]
    assert curves == [[(p["samples"], p["value"]) for p in r.curve] for r in expected]
