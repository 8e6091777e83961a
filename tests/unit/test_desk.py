"""The desk of a study, with an executor in process: every way a trial may go."""

from __future__ import annotations

import math
import re
import runpy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distft.errors import SearchError
from distft.records import TrialRecord
from distft.search.desk import ATTEMPTS, MOST_REFUSED, Desk, Launch
from distft.search.phases import Search

SEARCHES = runpy.run_path(str(Path(__file__).with_name("desk_searches.py")))
SIM, RATE = SEARCHES["SIM"], SEARCHES["RATE"]
plain, run = SEARCHES["plain"], SEARCHES["run"]

Train = Callable[[Launch], Any]


@pytest.fixture
def make(tmp_path: Path, tiny_bert: Path) -> Callable[..., Search]:
    """tune section, storage, concurrency -> a search."""
    search: Callable[..., Search] = SEARCHES["maker"](tmp_path, tiny_bert)
    return search


def test_a_search_from_end_to_end(make: Any, tmp_path: Path) -> None:
    search = make({"num_trials": 12})
    launched = []

    def train(launch: Launch) -> Any:
        launched.append(launch)
        return plain(launch)

    records = run(search, train)
    record = search.publish(status="completed", winner="winner")
    assert [r.number for r in records] == list(range(12))
    assert {r.method for r in records[:3]} == {"full", "freeze", "lora"}
    assert record.counts["complete"] + record.counts["pruned"] == 12
    assert record.counts["pruned"] > 3
    for trial in records:
        assert trial.run is not None
        last = trial.curve[-1]["samples"]
        assert (trial.samples, last) == (
            (1600, 1600) if trial.state == "complete" else (last, last)
        )
        assert trial.value == min(p["value"] for p in trial.curve if p["samples"])
        assert trial.duration_s == 0.5 * len(trial.curve) + 0.25 * (trial.state == "complete")
        assert trial.rungs[-1]["kept"] is (trial.state == "complete")
        assert trial.run.status == ("completed" if trial.state == "complete" else "pruned")
        assert trial.run.trial == {
            "study": "search",
            "number": trial.number,
            "params": trial.params,
            "rungs": trial.rungs,
        }
    further = search._confirmed
    chosen = [one.trial for one in record.candidates]
    assert sorted((r.params[RATE], r.seed) for r in further) == sorted(
        (search.trial(number).params[RATE], seed) for number in chosen for seed in (43, 44)
    )
    assert record.recommended in chosen
    assert len(launched) == 16
    winner = search.winner()
    assert winner.train.learning_rate == search.recommended.params[RATE]
    assert (winner.train.seed, winner.train.max_steps) == (42, None)
    assert set(record.importances["all"]) >= {"method.name"}
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 16


def test_an_order_says_when_to_stop_and_what_to_train(make: Any) -> None:
    search = make({"max_samples": 800})
    launch = search._desk.next()
    assert launch.order.plan.total_steps == 50
    # A rung at 40 samples is too early to tell trials apart.
    assert launch.order.rungs == [30]
    assert launch.order.run_dir.parts[-2:] == ("trials", "00000")
    assert launch.order.config["method"]["name"] == launch.config.method.name
    assert launch.order.config_hash == search._desk.records()[0].config_hash


def test_an_equal_sample_is_reused_and_counted(make: Any) -> None:
    search = make({"methods": ["full"], "space": {RATE: [5e-5, 1e-4]}, "policy": "none"})
    launched = []

    def train(launch: Launch) -> Any:
        launched.append(launch.number)
        return plain(launch)

    records = run(search, train)
    # The rest are confirmations, which are counted for themselves.
    own = [r for r in records if r.reused_from is None]
    assert len(own) == 2
    assert len(launched) == 2 + 2 * 2
    record = search.publish()
    assert record.counts == {**dict.fromkeys(record.counts, 0), "complete": 6, "reused": 4}
    assert record.spent["samples"] == 2 * 1600 if "samples" in record.spent else True
    for twin in [r for r in records if r.reused_from is not None]:
        first = records[twin.reused_from]
        assert twin.params == first.params
        assert (twin.value, twin.values, twin.curve) == (first.value, first.values, first.curve)
        assert twin.reason == f"the result of trial {first.number}"
        assert twin.duration_s == 0.0
    values = [trial.intermediate_values for trial in search._search._trials()]
    assert all(values[r.number] == values[own[own_index(own, r)].number] for r in records)


def own_index(own: list[TrialRecord], record: TrialRecord) -> int:
    return next(i for i, one in enumerate(own) if one.params == record.params)


def test_an_equal_sample_waits_for_its_twin_that_still_runs(make: Any) -> None:
    search = make({"methods": ["full"], "space": {RATE: 1e-4}, "num_trials": 3, "confirm": 0})
    desk = search._desk
    first = desk.next()
    assert desk.next() is None
    assert not desk.finished()
    assert [r.state for r in desk.records()] == ["running"] * 3
    reports = plain(first)
    report = next(reports)
    try:
        while not desk.report(0, report, 0.5):
            report = next(reports)
    except StopIteration as end:
        desk.end(0, end.value, 0.5)
    assert [r.state for r in desk.records()] == ["complete"] * 3
    assert [r.reused_from for r in desk.records()] == [None, 0, 0]
    assert desk.finished()


def test_a_cost_of_a_reused_trial_is_its_twins(make: Any) -> None:
    tune = {"methods": ["full"], "space": {RATE: [5e-5, 1e-4]}, "sampler": "nsga2"}
    search = make({**tune, "objective": ["loss", "duration_s", "trainable_params", "peak_memory"]})
    records = run(search)
    twins = [r for r in records if r.reused_from is not None]
    assert twins
    for record in records:
        seconds, params, peak_bytes = record.values[1:]
        assert (seconds, record.rungs) == (1.25, [])
        assert params == record.run.model.trainable_params
        assert peak_bytes == record.run.peak_memory_bytes["planned"] + (1 << 20)


@pytest.mark.parametrize(
    ("key", "values"),
    [("train.logging_steps", [5, 7]), ("train.per_device_train_batch_size", [4, 8])],
)
def test_different_samples_of_one_configuration_stop_the_study(
    make: Any, key: str, values: list[int]
) -> None:
    search = make({"methods": ["full"], "space": {RATE: 1e-4, key: values}, "sampler": "grid"})
    with pytest.raises(SearchError, match=rf"one configuration: {key} changes nothing") as caught:
        run(search)
    assert "tune.space" in caught.value.hint


def broken_report(**metrics: Any) -> Train:
    def train(launch: Launch) -> Any:
        for report in plain(launch):
            changes = metrics if launch.number == 1 else {}
            yield {k: v for k, v in {**report, **changes}.items() if v is not None}
        return SIM["result_of"](launch, {"eval_loss": 1.0})

    return train


@pytest.mark.parametrize(
    ("objective", "metrics", "said"),
    [
        (None, {"eval_loss": None}, r"eval_loss is not measured; allowed: eval_accuracy"),
        ("f1", {}, r"eval_f1 is not measured; allowed: eval_accuracy, eval_loss"),
        (None, {"eval_loss": math.nan}, r"eval_loss is nan at step 0"),
        (None, {"eval_loss": math.inf}, r"eval_loss is inf at step 0"),
        (["loss", "accuracy"], {"eval_accuracy": None}, r"eval_accuracy is not measured"),
        (["loss", "accuracy"], {"eval_accuracy": math.nan}, r"eval_accuracy is nan at step 0"),
    ],
)
def test_a_missing_or_endless_objective_fails_the_trial_alone(
    make: Any, objective: Any, metrics: dict[str, Any], said: str
) -> None:
    search = make({"objective": objective, "confirm": 0})
    if objective == "f1":
        with pytest.raises(SearchError, match=r"No trial came to a value") as caught:
            run(search, broken_report(**metrics))
        assert "eval_f1 is not measured" in caught.value.hint
        return
    records = run(search, broken_report(**metrics))
    failed = [r for r in records if r.state == "failed"]
    assert [r.number for r in failed] == [1]
    assert failed[0].reason == str(failed[0].run.error["message"])
    assert failed[0].run.status == "failed"
    assert re.match(said, failed[0].reason)
    assert len(records) == 6


def test_a_trial_that_raises_fails_alone_and_what_was_built_counts(make: Any) -> None:
    def train(launch: Launch) -> Any:
        if launch.number == 0:
            yield from ()
            raise MemoryError("no room")
        result = yield from plain(launch)
        if launch.number == 2:
            result["trainable_params"] += 1
        return result

    records = run(make({"policy": "none", "confirm": 0}), train)
    assert Counter(r.state for r in records) == {"complete": 5, "failed": 1}
    assert records[0].reason == "MemoryError: no room"
    trained = records[2].run.model.trainable_params
    assert records[2].reason == f"the plan says {trained - 1} trained parameters"
    assert {r.run.status for r in records} == {"completed", "failed"}


@pytest.mark.parametrize("times", [1, ATTEMPTS - 1, ATTEMPTS])
def test_a_lost_process_is_continued_under_its_number(make: Any, times: int) -> None:
    starts: list[int] = []

    def train(launch: Launch) -> Any:
        starts.append(launch.number)
        reports = plain(launch)
        yield next(reports)
        yield next(reports)
        if launch.number == 1 and starts.count(1) <= times:
            raise SIM["LostError"]("the node is gone")
        return (yield from reports)

    records = run(make({"policy": "none", "confirm": 0}), train)
    given_up = times == ATTEMPTS
    assert starts.count(1) == min(times + 1, ATTEMPTS)
    assert records[1].attempts == min(times + 1, ATTEMPTS)
    assert [r.state for r in records if r.number != 1] == ["complete"] * 5
    assert records[1].state == ("failed" if given_up else "complete")
    assert ("lost 3 times: the node is gone" in records[1].reason) is given_up
    assert len({p["samples"] for p in records[1].curve}) == len(records[1].curve)


def test_what_a_rung_decided_stays_decided(make: Any) -> None:
    """The second trial passes its rung, is lost, and comes back when better ones have passed."""
    policy = {"name": "successive_halving", "rungs": [0.5], "keep": [0.5]}
    search = make({"policy": policy, "confirm": 0})
    desk: Desk = search._desk
    launches = [desk.next() for _ in range(2)]
    assert [launch.order.rungs for launch in launches] == [[50], [50]]
    point = {"step": 50, "samples": 800}
    assert not desk.report(0, {**point, "eval_loss": 0.9}, 1.0)
    desk.lose(0, "gone")
    assert not desk.report(1, {**point, "eval_loss": 0.5}, 1.0)
    assert desk.next().number == 0
    assert not desk.report(0, {**point, "eval_loss": 0.9}, 1.0)
    assert [(r["rank"], r["of"], r["kept"]) for r in desk.records()[0].rungs] == [(1, 1, True)]


def test_constraints_are_kept_and_what_breaks_them_is_never_launched(make: Any) -> None:
    launched = []

    def train(launch: Launch) -> Any:
        launched.append(launch.order.plan.trainable_params)
        return plain(launch)

    search = make({"constraints": ["trainable_params <= 8K"], "policy": "none"})
    records = run(search, train)
    refused = [r for r in records if r.state == "refused"]
    assert {r.method for r in refused} >= {"full"}
    assert max(launched) <= 8000
    assert all("breaks the constraint trainable_params <= 8K (it has" in r.reason for r in refused)
    assert all((r.run, r.curve) == (None, []) for r in refused)
    counts = search.publish().counts
    assert (counts["complete"], counts["refused"]) == (6, len(refused))


def test_constraints_that_leave_nothing_end_the_search(make: Any) -> None:
    search = make({"constraints": ["trainable_params <= 1"], "sampler": "random"})
    with pytest.raises(SearchError, match=f"{MOST_REFUSED} trials in a row were refused"):
        run(search)


def test_what_cannot_be_attached_is_refused(make: Any) -> None:
    """The tiny model has two blocks."""
    space = {"method.trainable_layers": [1, 4]}
    tune = {"methods": ["freeze"], "space": {**space, RATE: [1e-4, 1e-3]}, "sampler": "grid"}
    records = run(make({**tune, "confirm": 0}))
    refused = [r for r in records if r.state == "refused"]
    assert [r.params["method.trainable_layers"] for r in refused] == [4, 4]
    assert "the model has 2 blocks" in refused[0].reason
    assert len(records) == 4
