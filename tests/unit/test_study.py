"""The study on real Optuna: what it proposes, what reaches the sampler, what survives a kill."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from distft.errors import ConfigError, PlanError
from distft.records import TrialRecord
from distft.search.policy import Policy
from distft.search.sample import METHOD, Sample, Space, draw, parameters
from distft.search.study import JOURNAL, Settings, Study, check_same, open_storage
from distft.space import Limit, Range

RATE = "train.learning_rate"
SPACE = Space(
    {
        "full": {RATE: Range(1e-6, 3e-4, True)},
        "lora": {RATE: Range(1e-5, 3e-3, True), "method.r": (2, 4, 8, 16)},
    },
    frozenset(),
)
PRIOR: Sample = {METHOD: "lora", RATE: 3e-4, "method.r": 8}


def settings(**changes: Any) -> Settings:
    plain: dict[str, Any] = {
        "greater_is_better": [False],
        "sampler": "tpe",
        "seed": 42,
        "startup": 4,
        "policy": None,
        "budget_samples": 1000,
    }
    return Settings(**{**plain, **changes})


def record(number: int, sample: Sample, **changes: Any) -> TrialRecord:
    plain: dict[str, Any] = {
        "study": "search",
        "number": number,
        "state": "complete",
        "method": sample[METHOD],
        "params": sample,
        "config_hash": "h",
        "seed": 42,
    }
    return TrialRecord(**{**plain, **changes})


def loss(sample: Sample) -> float:
    best = {"full": 5e-5, "lora": 1e-3}[sample[METHOD]]
    return 0.3 + math.log10(sample[RATE] / best) ** 2 - 0.001 * sample.get("method.r", 0)


def one(study: Study, several: bool = False) -> Sample:
    """Ask, train, tell; every fifth trial fails, every third one is stopped."""
    trial = study.ask()
    sample = draw(SPACE, trial)
    value = loss(sample)
    state = "failed" if trial.number % 5 == 4 else "complete"
    if state == "complete" and not several and trial.number % 3 == 2:
        study.report(trial.number, 100, value)
        state = "pruned"
    values = ([value, sample[RATE]] if several else [value]) if state == "complete" else None
    study.tell(record(trial.number, sample, state=state, value=value), values)
    return sample


@pytest.fixture
def journal(tmp_path: Path) -> Callable[[], BaseStorage]:
    """The storage of one folder, opened anew at each call."""
    return lambda: open_storage(tmp_path, None)


@pytest.mark.parametrize(
    ("sampler", "trials"), [("tpe", 30), ("random", 30), ("grid", 10), ("gp", 6)]
)
def test_a_study_continued_at_every_point_proposes_what_the_unbroken_one_would(
    sampler: str, trials: int, journal: Callable[[], BaseStorage]
) -> None:
    given = settings(sampler=sampler)
    whole = Study(InMemoryStorage(), "s", given)
    whole.enqueue(parameters(SPACE, PRIOR))
    unbroken = [one(whole) for _ in range(trials)]
    Study(journal(), "s", given).enqueue(parameters(SPACE, PRIOR))
    broken = [one(Study(journal(), "s", given)) for _ in range(trials)]
    assert broken == unbroken
    assert unbroken[0] == PRIOR
    assert len({str(sample) for sample in unbroken}) == trials


def test_a_study_continued_with_several_objectives(journal: Callable[[], BaseStorage]) -> None:
    given = settings(sampler="nsga2", greater_is_better=[False, False])
    whole = Study(InMemoryStorage(), "s", given)
    unbroken = [one(whole, several=True) for _ in range(30)]
    assert [one(Study(journal(), "s", given), several=True) for _ in range(30)] == unbroken


def test_another_seed_proposes_something_else() -> None:
    first, second = (Study(InMemoryStorage(), "s", settings(seed=seed)) for seed in (1, 2))
    assert [one(first) for _ in range(5)] != [one(second) for _ in range(5)]


def test_tpe_learns() -> None:
    medians = {}
    for sampler in ("tpe", "random"):
        study = Study(InMemoryStorage(), "s", settings(sampler=sampler))
        medians[sampler] = statistics.median([loss(one(study)) for _ in range(40)][20:])
    assert medians["tpe"] < 0.7 * medians["random"]


def test_tpe_knows_what_was_refused() -> None:
    """Half of the space breaks the constraint, so a blind sampler would go there half the time."""
    limits = [Limit("trainable_params", 10.0, "trainable_params <= 10")]
    study = Study(InMemoryStorage(), "s", settings(limits=limits))
    refused = []
    for _ in range(24):
        trial = study.ask()
        sample = draw(Space({"full": SPACE.methods["full"]}, frozenset()), trial)
        # The best rates are forbidden: only the constraint can keep a sampler from them.
        size = 20.0 if sample[RATE] > 2e-5 else 5.0
        broken = study.limit(trial.number, {"trainable_params": size, "peak_memory": 1.0})
        assert broken == ("trainable_params <= 10 (it has 20)" if size > 10 else "")
        refused.append(bool(broken))
        state = "refused" if broken else "complete"
        value = loss(sample)
        study.tell(record(trial.number, sample, state=state), None if broken else [value])
    assert any(refused[:8])
    assert sum(refused[12:]) <= 3


def test_a_constraint_is_told_once(journal: Callable[[], BaseStorage]) -> None:
    limits = [Limit("peak_memory", 10.0, "peak_memory <= 10")]
    study = Study(journal(), "s", settings(limits=limits))
    number = study.ask().number
    values = {"trainable_params": 1.0, "peak_memory": 5.0}
    study.limit(number, values)
    later = Study(journal(), "s", settings(limits=limits))
    later.again(number)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert later.limit(number, values) == ""


def test_what_is_not_finite_never_reaches_the_sampler() -> None:
    storage = InMemoryStorage()
    study = Study(storage, "s", settings(policy=Policy((0.1,), (0.5,))))
    number = study.ask().number
    for samples, value in ((50, math.nan), (100, math.inf), (150, -math.inf)):
        assert study.report(number, samples, value) is None
    assert study._trials()[number].intermediate_values == {}


def test_the_policy_decides_and_a_repeated_report_changes_nothing() -> None:
    study = Study(InMemoryStorage(), "s", settings(policy=Policy((0.1, 0.5), (0.5, 0.5))))
    assert study.rung_samples == [100, 500]
    numbers = [study.ask().number for _ in range(4)]
    found = [study.report(number, 100, 1.0 + number) for number in numbers]
    assert [(d.rank, d.of, d.kept) for d in found if d is not None] == [
        (1, 1, True),
        (2, 2, False),
        (3, 3, False),
        (4, 4, False),
    ]
    assert study.report(0, 300, 0.5) is None
    again = study.report(1, 100, 0.1)
    assert again is not None
    assert (again.value, again.kept) == (2.0, True)


def test_a_greater_value_may_be_the_better_one() -> None:
    given = settings(policy=Policy((0.1,), (0.5,)), greater_is_better=[True])
    study = Study(InMemoryStorage(), "s", given)
    for number, kept in ((0, True), (1, True), (2, False)):
        decision = study.report(study.ask().number, 100, [0.5, 0.9, 0.6][number])
        assert decision is not None
        assert decision.kept is kept


def test_how_trials_end_in_optuna(journal: Callable[[], BaseStorage]) -> None:
    study = Study(journal(), "s", settings())
    for state in ("complete", "pruned", "refused", "failed"):
        trial = study.ask()
        made = record(trial.number, draw(SPACE, trial), state=state, reason=state)
        study.tell(made, [0.5] if state == "complete" else None)
    later = Study(journal(), "s", settings())
    assert [kept.state for kept in later.records()] == ["complete", "pruned", "refused", "failed"]
    states = [trial.state for trial in later._trials()]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL]
    assert later.records() == study.records()


def test_a_running_trial_is_continued_with_what_it_drew(journal: Callable[[], BaseStorage]) -> None:
    study = Study(journal(), "s", settings())
    for _ in range(6):
        one(study)
    samples = [draw(SPACE, study.ask()) for _ in range(3)]
    later = Study(journal(), "s", settings())
    assert later.running() == [6, 7, 8]
    assert [draw(SPACE, later.again(number)) for number in later.running()] == samples
    later.tell(record(7, samples[1]), [0.1])
    assert later.running() == [6, 8]


def test_two_studies_share_a_storage(journal: Callable[[], BaseStorage]) -> None:
    storage = journal()
    first, second = (Study(storage, name, settings()) for name in ("a", "b"))
    first.enqueue({}, of=3, seed=5)
    assert (first.enqueued(), second.enqueued()) == (1, 0)
    trial = first.ask()
    assert first.user_attributes(trial.number) == {"of": 3, "seed": 5}
    assert first.all_user_attributes() == [{"of": 3, "seed": 5}]
    assert (first.enqueued(), second.records()) == (0, [])


@pytest.mark.parametrize(
    "torn", [b'{"op_code": 4, "wor', b'{"op_code": 4, "worker_id": "x"}', b"{"]
)
def test_what_a_kill_left_in_the_journal_is_mended(
    torn: bytes, tmp_path: Path, journal: Callable[[], BaseStorage]
) -> None:
    study = Study(journal(), "s", settings())
    samples = [one(study) for _ in range(3)]
    path = tmp_path / JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    lock = path.with_name(path.name + ".lock")
    lock.symlink_to(path)
    later = Study(journal(), "s", settings())
    assert [kept.params for kept in later.records()] == samples
    assert not lock.is_symlink()
    assert path.read_bytes().startswith(whole)
    unbroken = Study(InMemoryStorage(), "s", settings())
    assert [one(later) for _ in range(3)] == [one(unbroken) for _ in range(6)][3:]


def test_a_journal_damaged_in_the_middle_is_refused(
    tmp_path: Path, journal: Callable[[], BaseStorage]
) -> None:
    study = Study(journal(), "s", settings())
    one(study)
    path = tmp_path / JOURNAL
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][: len(lines[2]) // 2]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ConfigError, match=r"study\.journal is damaged") as caught:
        journal()
    assert "--fresh" in caught.value.hint


def test_any_storage_optuna_knows(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = Study(open_storage(tmp_path, url), "s", settings())
    samples = [one(study) for _ in range(2)]
    later = Study(open_storage(tmp_path, url), "s", settings())
    assert [kept.params for kept in later.records()] == samples
    with pytest.raises(ConfigError, match=r"tune\.storage cannot be opened"):
        open_storage(tmp_path, "nosuch://user:secret@host/db")


def test_a_name_taken_by_another_configuration_is_refused(
    journal: Callable[[], BaseStorage],
) -> None:
    check_same(Study(journal(), "s", settings()), "aaaa", "s")
    check_same(Study(journal(), "s", settings()), "aaaa", "s")
    with pytest.raises(PlanError, match=r"study s exists with another .*\(aaaa, .* bbbb\)"):
        check_same(Study(journal(), "s", settings()), "bbbb", "s")
    check_same(Study(journal(), "other", settings()), "bbbb", "other")
