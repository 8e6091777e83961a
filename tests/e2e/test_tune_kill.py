"""Killed anywhere, the same command ends with the same study and the same winner."""

from __future__ import annotations

import json
import random
import runpy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from distft.records import TrialRecord, read_metrics, read_record

STUDIES = runpy.run_path(str(Path(__file__).parents[1] / "tune_studies.py"))
write_config, command, of = STUDIES["write_config"], STUDIES["command"], STUDIES["of"]
TIMEOUT_S = 540
SEED, KILLS = 20, 5
ONE_THREAD = {"cpus": 1, "memory": "8GiB"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Unbroken:
    """A study nobody disturbed, and how long its journal grew."""

    config: Path
    folder: Path
    lines: int


@pytest.fixture(scope="module")
def unbroken(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    folder = tmp_path_factory.mktemp("unbroken")
    path = write_config(
        folder,
        tiny_bert,
        train__max_steps=24,
        cluster__shape=ONE_THREAD,
        tune__num_trials=5,
        tune__sampler="tpe",
        tune__confirm=2,
        tune__policy={"rungs": [0.25, 0.5], "keep": [0.7, 0.5]},
        tune__space={"method.trainable_layers": [1, 2]},
    )
    with command(folder, "tune", path) as process:
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    study_dir = folder / "runs" / "study"
    return Unbroken(path, study_dir, count_lines(study_dir / "study.journal"))


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_with_all_it_started(pid: int) -> None:
    driver = psutil.Process(pid)
    started = [driver, *driver.children(recursive=True)]
    for process in started:
        # Its parent may have taken it along.
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(started, timeout=30)


def killed_when(folder: Path, config: Path, name: str, ready: Callable[[], bool]) -> bool:
    """Run the command and kill it once something holds; whether it had not finished before."""
    with command(folder, "tune", config, f"name={name}") as process:
        deadline = time.monotonic() + TIMEOUT_S
        while process.poll() is None and not ready():
            assert time.monotonic() < deadline, "the moment did not come"
            time.sleep(0.01)
        if process.poll() is not None:
            _, err = process.communicate()
            assert process.returncode == 0, err
            return False
        kill_with_all_it_started(process.pid)
    return True


def learnt(trial: TrialRecord) -> dict[str, Any]:
    """What a trial came to, without what differs from run to run."""
    kept = trial.model_dump(exclude={"duration_s", "attempts", "run", "curve"})
    times = ("eval_seconds", "eval_rows_per_s", "eval_samples_per_s")
    kept["curve"] = [{k: v for k, v in p.items() if k not in times} for p in trial.curve]
    return kept


def assert_same_study(one: Path, other: Path) -> None:
    for kind in ("search", "confirm"):
        expected, found = [learnt(t) for t in of(one, kind)], [learnt(t) for t in of(other, kind)]
        assert found == expected
    wanted, got = STUDIES["record"](one), STUDIES["record"](other)
    assert (got.status, got.recommended) == (wanted.status, wanted.recommended)
    assert got.candidates == wanted.candidates
    winner, same = read_record(one / "winner"), read_record(other / "winner")
    assert same.config_hash == winner.config_hash
    assert (same.final, same.best, same.test) == (winner.final, winner.best, winner.test)


def starts(study_dir: Path, number: int) -> int:
    """How often a process began or continued a trial."""
    log = study_dir / "trials" / f"{number:05d}" / "logs" / "trial.log"
    return log.read_text().count("thread(s)") if log.exists() else 0


def test_killed_at_five_moments_it_ends_as_the_unbroken_one(unbroken: Unbroken) -> None:
    moments = sorted(random.Random(SEED).sample(range(2, unbroken.lines), KILLS))
    folder = unbroken.config.parent
    study_dir = folder / "runs" / "killed"
    kills = 0
    for moment in moments:
        ended = {t.number: starts(study_dir, t.number) for t in finished_of(study_dir)}
        ready = lambda: count_lines(study_dir / "study.journal") >= moment  # noqa: B023, E731 - used here
        kills += killed_when(folder, unbroken.config, "killed", ready)
        states = [(t.number, t.state) for t in finished_of(study_dir)]
        print(f"killed at line {moment} of {unbroken.lines}; ended before: {states}")
        assert {n: starts(study_dir, n) for n in ended} == ended
    assert kills == KILLS
    with command(folder, "tune", unbroken.config, "name=killed") as process:
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    STUDIES["assert_ledger_is_the_journal"](study_dir)
    assert_same_study(unbroken.folder, study_dir)


def finished_of(study_dir: Path) -> list[TrialRecord]:
    """The trials that the journal, the only truth, says have ended."""
    if not (study_dir / "study.journal").exists():
        return []
    kept = STUDIES["journal"](study_dir)
    return [
        TrialRecord.model_validate(trial.user_attrs["record"])
        for trial in kept
        if trial.state.is_finished()
    ]


def test_a_trial_whose_process_is_killed_goes_on_under_its_number(
    tiny_bert: Path, tmp_path: Path
) -> None:
    path = write_config(
        tmp_path,
        tiny_bert,
        train__max_steps=200,
        cluster__shape=ONE_THREAD,
        tune__num_trials=2,
        tune__methods=["full"],
        tune__policy={"rungs": [0.2], "keep": [0.99]},
        tune__sampler="grid",
        tune__space={"train.learning_rate": [1e-6, 1e-3]},
    )
    with command(tmp_path, "tune", path, "name=whole") as process:
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    trial_dir = tmp_path / "runs" / "lost" / "trials" / "00001"
    with command(tmp_path, "tune", path, "name=lost") as process:
        deadline = time.monotonic() + TIMEOUT_S
        # The checkpoint of its rung is whole once a later line of training is there.
        while not any(line["step"] > 40 for line in read_metrics(trial_dir)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        driver = psutil.Process(process.pid)
        found = STUDIES["processes"](driver, *STUDIES["ACTORS"])
        (pid,) = [p for p in found if STUDIES["log_of"](p) == trial_dir / "logs" / "trial.log"]
        psutil.Process(pid).kill()
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    study_dir = tmp_path / "runs" / "lost"
    trials = of(study_dir)
    assert [(t.number, t.state, t.attempts) for t in trials] == [
        (0, "complete", 1),
        (1, "complete", 2),
    ]
    notes = [line["note"] for line in read_metrics(trial_dir) if "note" in line]
    assert "continued from step 40" in notes
    assert json.loads((trial_dir / "eval.json").read_text())["step"] == 200
    assert_same_study(tmp_path / "runs" / "whole", study_dir)
