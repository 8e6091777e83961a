"""Replays of recorded curves: costs counted by hand, picks known, wrong files refused."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from distft.errors import ConfigError
from distft.search import replay as replaying
from distft.search.policy import Policy
from distft.search.recorded import Recording, Run, read
from distft.search.schedules import hyperband, promoting, stopping, whole

ROUNDS = 10
NAMES = {
    "stop-at-rungs, shipped",
    "stop-at-rungs",
    "pause-and-promote",
    "ASHA",
    "Hyperband",
    "full fidelity",
    "random",
}


def recording(losses: list[list[float]], seconds: list[float] | None = None) -> Recording:
    """Runs of ten steps of one sample; a run's test accuracy is 1 less its last loss."""
    runs = [
        Run([(step, loss) for step, loss in enumerate(each, 1)], 1 - each[-1], second)
        for each, second in zip(losses, seconds or [1.0] * len(losses), strict=True)
    ]
    return Recording(runs, ROUNDS, 1, 100, 0)


def flat(*levels: float) -> Recording:
    return recording([[level] * ROUNDS for level in levels])


def document(runs: int = 12, steps: int = 100, reports: int = 20, batch: int = 4) -> dict[str, Any]:
    """Runs whose losses keep their order all along: the first is the best."""
    every = steps // reports
    return {
        "steps": steps,
        "batch": batch,
        "test_n": 400,
        "runs": {
            f"run-{number}": {
                "train_loss": {
                    str(step): number + 10 * math.exp(-5 * step / steps)
                    for step in range(every, steps + 1, every)
                },
                "test": 0.9 - 0.02 * number,
            }
            for number in range(runs)
        },
    }


def write(folder: Path, content: Any) -> Path:
    path = folder / "curves.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


HALVING = Policy(rungs=(0.2, 0.5), keep=(0.5, 0.5))


def test_stopping_costs_what_was_trained() -> None:
    runs = flat(0.3, 0.4, 0.1, 0.2)
    # 0: alone, 10 steps. 1: second of 2, stopped after 2. 2: the best, 10. 3: second of 4, so over
    # the first rung; second of 3 at the next, stopped after 5.
    outcome = stopping(HALVING, workers=1)(runs, [0, 1, 2, 3])
    assert (outcome.samples, outcome.pick) == (10 + 2 + 10 + 5, 2)


def test_side_by_side_a_trial_meets_those_that_report_before_it() -> None:
    runs = flat(0.3, 0.1)
    assert stopping(HALVING, workers=1)(runs, [0, 1]).samples == 20
    # The same trials at once: the slow bad one finds the fast good one at the rung.
    runs = recording([[0.3] * ROUNDS, [0.1] * ROUNDS], seconds=[10.0, 1.0])
    outcome = stopping(HALVING, workers=2)(runs, [0, 1])
    assert (outcome.samples, outcome.pick) == (2 + 10, 1)


def test_promoting_costs_what_was_trained() -> None:
    runs = flat(0.3, 0.4, 0.1, 0.2)
    outcome = promoting(HALVING)(runs, [0, 1, 2, 3])
    assert (outcome.samples, outcome.pick) == (2 + 2 + 5 + 10, 2)


def test_hyperband_deals_the_pool_to_its_brackets() -> None:
    # eta 2, least 0.25: brackets of 4, 3 and 3 trials that begin at 0.25, 0.5 and 1.
    runs = flat(*[0.01 * (number + 1) for number in range(10)])
    # 0.25 and 0.5 of 10 steps are reached at steps 3 and 5.
    outcome = hyperband(2, 0.25)(runs, list(range(10)))
    assert (outcome.samples, outcome.pick) == ((3 + 3 + 5 + 10) + (5 + 5 + 10) + 30, 0)


def test_full_fidelity_and_random() -> None:
    runs = flat(0.3, 0.4, 0.1, 0.2)
    assert whole()(runs, [3, 2, 1, 0]).samples == 40
    assert whole()(runs, [3, 2, 1, 0]).pick == 2
    assert whole(1)(runs, [3, 2, 1, 0]).pick == 3


def test_the_finalist_is_one_of_those_that_got_furthest() -> None:
    # Run 1 is stopped early with a smaller loss than any finalist ends with.
    runs = recording([[0.1] * 4 + [0.5] * 6, [0.2] * 10])
    outcome = stopping(HALVING, workers=1)(runs, [0, 1])
    assert (outcome.samples, outcome.pick) == (12, 0)


def test_a_trial_that_diverges_ends_there_and_is_not_picked() -> None:
    runs = recording([[0.1, 0.1, 0.1, math.inf, *[0.1] * 6], [0.5] * 10])
    outcome = stopping(HALVING, workers=1)(runs, [0, 1])
    # Run 1 meets a better one at its first rung, but that one came to nothing.
    assert (outcome.samples, outcome.pick) == (4 + 2, 1)
    assert promoting(HALVING)(recording([[math.inf] * 10, [0.5] * 10]), [0, 1]).pick == 1


def test_scores_by_hand() -> None:
    runs = flat(0.30, 0.31, 0.5)
    found = replaying.score(runs, [[0, 1], [2, 1], [1, 0]], whole(1))
    # Picks 0, 2, 1 of bests 0, 1, 0; one standard error of 0.7 over 100 rows is 4.6 points.
    assert found.steps_ratio == 2.0
    assert found.regret_pt == pytest.approx((0 + 19 + 1) / 3)
    assert found.within_1se == pytest.approx(2 / 3)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "SPLITS", 2)
    monkeypatch.setattr(replaying, "POOLS", 2)


@pytest.mark.usefixtures("quick")
def test_runs_that_keep_their_order_are_found_at_a_fraction(tmp_path: Path) -> None:
    seen = []
    path = write(tmp_path, document(runs=16))
    found = replaying.replay(path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    by_name = {row.name: row for row in found.policies}
    assert set(by_name) == NAMES
    assert by_name["full fidelity"].steps_ratio == 1.0
    for name in NAMES - {"random"}:
        assert (by_name[name].regret_pt, by_name[name].within_1se) == (0.0, 1.0)
    assert by_name["random"].regret_pt > 0
    for name in NAMES - {"full fidelity"}:
        assert by_name[name].steps_ratio > 1
    # The cheapest of the grid: of eight trials two go on from 5 % and one of them from 10 %.
    assert by_name["pause-and-promote"].steps_ratio == pytest.approx(8 / (0.05 * 6 + 0.1 + 1.0))
    assert found.pool_runs == 8
    assert all(name in found.render() for name in NAMES)


@pytest.mark.usefixtures("quick")
def test_the_document_has_the_promised_form_and_repeats(tmp_path: Path) -> None:
    path = write(tmp_path, document())
    found = replaying.replay(path).model_dump()
    for row in found["policies"]:
        assert {"name", "steps_ratio", "regret_pt", "within_1se"} <= set(row)
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(
        json.dumps(replaying.replay(path).model_dump())
    )


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("shape", [(4, 60, 6, 1), (9, 100, 10, 8), (40, 1000, 50, 2)])
def test_any_number_of_runs_steps_and_reports(
    tmp_path: Path, shape: tuple[int, int, int, int]
) -> None:
    found = replaying.replay(write(tmp_path, document(*shape)))
    assert found.pool_runs == min(16, shape[0] // 2)
    for row in found.policies:
        assert row.steps_ratio >= 1
        assert 0 <= row.within_1se <= 1


@pytest.mark.usefixtures("quick")
def test_names_carry_nothing(tmp_path: Path) -> None:
    first = document()
    renamed = {**first, "runs": {f"x{i}": run for i, run in enumerate(first["runs"].values())}}
    one = replaying.replay(write(tmp_path, first)).model_dump()
    assert one == replaying.replay(write(tmp_path, renamed)).model_dump()


@pytest.mark.usefixtures("quick")
def test_a_goal_that_is_missed_is_said(tmp_path: Path) -> None:
    content = document(runs=8)
    draw = random.Random(0)
    for run in content["runs"].values():
        run["train_loss"] = {step: draw.random() for step in run["train_loss"]}
    text = replaying.replay(write(tmp_path, content)).render()
    assert "missed" in text


@pytest.mark.usefixtures("quick")
def test_without_test_n_only_the_best_counts(tmp_path: Path) -> None:
    content = document()
    del content["test_n"]
    found = replaying.replay(write(tmp_path, content))
    assert found.test_n is None
    assert any("no test_n" in note for note in found.notes)


def test_losses_that_are_not_finite_and_curves_that_end_early_rank_last(tmp_path: Path) -> None:
    content = document(runs=6)
    runs = list(content["runs"].values())
    runs[0]["train_loss"]["100"] = math.nan
    runs[1]["train_loss"] = {"5": 1.0, "10": 0.5}
    runs[2]["train_loss"]["50"] = None
    found = read(write(tmp_path, content))
    assert found.failed == 2
    assert found.runs[0].curve[-1] == (400, math.inf)
    assert found.runs[1].curve == [(20, 1.0), (40, 0.5), (60, math.inf)]
    assert found.runs[2].curve[9] == (200, math.inf)
    assert whole()(found, range(6)).pick == 2


def test_a_spacing_that_does_not_divide_the_steps_is_no_failure(tmp_path: Path) -> None:
    content = document(runs=4, steps=100, reports=20)
    for run in content["runs"].values():
        run["train_loss"] = {str(step): 1.0 for step in range(30, 91, 30)}
    found = read(write(tmp_path, content))
    assert found.failed == 0
    assert whole()(found, range(4)).samples == 4 * 400
    assert stopping(Policy((), ()), 1)(found, range(4)).samples == 4 * 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("", "Invalid JSON"),
        ("[1, 2]", "should be an object"),
        ({"curves": {}}, "runs: Field required"),
        ({"runs": {}}, "at least 4"),
        ({"test": None}, "run-0.test: .*valid number, got None"),
        ({"test": 1.7}, "run-0.test: .*less than or equal to 1, got 1.7"),
        ({"test": math.nan}, "run-0.test: .*finite"),
        ({"train_loss": {}}, "run-0.train_loss: .*at least 1"),
        ({"train_loss": {"ten": 1.0}}, "run-0.train_loss.ten.*integer"),
        ({"train_loss": {"0": 1.0}}, "run-0.train_loss.0.*greater than or equal to 1"),
        ({"train_loss": {"10": "high"}}, "run-0.train_loss.10: .*valid number, got 'high'"),
        ({"train_loss": {"200": 1.0}}, "step 200; allowed: up to `steps`, which is 100"),
        ({"train_loss": ...}, "run-0.train_loss: Field required"),
        ({"test": ...}, "run-0.test: Field required"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_allowed(
    tmp_path: Path, change: Any, message: str
) -> None:
    content = change
    if isinstance(change, dict) and not {"curves", "runs"} & set(change):
        content = document()
        run = content["runs"]["run-0"]
        for key, value in change.items():
            if value is ...:
                del run[key]
            else:
                run[key] = value
    with pytest.raises(ConfigError, match=message) as caught:
        replaying.replay(write(tmp_path, content))
    assert "llowed" in str(caught.value)
    assert "record_curves.py" in caught.value.hint


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        replaying.replay(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="Is a directory"):
        replaying.replay(tmp_path)


def test_the_shipped_curves_read() -> None:
    path = Path(__file__).parents[1] / "bench" / "curves" / "minilm_vader.json"
    found = read(path)
    assert len(found.runs) >= 24
    assert found.failed == 0
    assert all(len(run.curve) == 20 for run in found.runs)
    methods = {
        run["method"] for run in json.loads(path.read_text(encoding="utf-8"))["runs"].values()
    }
    assert methods == {"full", "freeze", "lora"}
