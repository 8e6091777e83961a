"""What a search has spent of its limits, and which of them ended it."""

from __future__ import annotations

from typing import Any

import pytest

from distft.config_tune import BudgetConfig, TuneConfig
from distft.records import DataRecord, ModelRecord, RunRecord, TrialRecord
from distft.search.budget import Budget, budget_of


def run(world_size: int, device: Any) -> RunRecord:
    return RunRecord(
        name="t",
        status="completed",
        config_hash="h",
        config={},
        data=DataRecord(manifest="k", rows={}, tokens={}),
        model=ModelRecord(id="m", params=9, trainable_params=1),
        world_size=world_size,
        device=device,
        zero_stage=0,
        seeds={},
        versions={},
        started="",
        duration_s=0.0,
    )


def trial(number: int, **changes: Any) -> TrialRecord:
    plain: dict[str, Any] = {
        "study": "search",
        "number": number,
        "state": "complete",
        "method": "full",
        "params": {},
        "config_hash": "h",
        "seed": 1,
        "samples": 100,
        "duration_s": 10.0,
        "run": run(1, "cpu"),
    }
    return TrialRecord(**{**plain, **changes})


def test_trials_alone_are_the_limit_by_default() -> None:
    assert budget_of(TuneConfig(num_trials=7)).limits == {"trials": 7}


def test_hours_become_seconds() -> None:
    given = BudgetConfig(wall_hours=0.5, gpu_hours=2.0, samples=1000)
    limits = budget_of(TuneConfig(num_trials=7, budget=given)).limits
    assert limits == {"trials": 7, "wall_s": 1800, "gpu_s": 7200, "samples": 1000}


def test_what_counts() -> None:
    trials = [
        trial(0, run=run(4, "cuda")),
        trial(1),
        trial(2, state="failed", samples=30, run=run(1, "cuda"), duration_s=5.0),
        trial(3, state="refused", samples=0, run=None),
        trial(4, reused_from=0, run=run(4, "cuda")),
        trial(5, state="running", samples=20, run=None),
    ]
    spent = Budget({"trials": 9}).spent(trials, 12.5)
    assert spent == {"trials": 5, "wall_s": 12.5, "gpu_s": 45.0, "samples": 250}


@pytest.mark.parametrize(
    ("spent", "ended"),
    [
        ({"trials": 3, "samples": 99, "wall_s": 9.0}, ""),
        ({"trials": 4, "samples": 99, "wall_s": 9.0}, "trials"),
        ({"trials": 3, "samples": 100, "wall_s": 9.0}, "samples"),
        ({"trials": 4, "samples": 100, "wall_s": 9.0}, "samples"),
        ({"trials": 3, "samples": 10, "wall_s": 60.0}, "wall_s"),
    ],
)
def test_what_is_reached_first_ends_it(spent: dict[str, float], ended: str) -> None:
    assert Budget({"trials": 4, "wall_s": 60.0, "samples": 100}).ended_by(spent) == ended
