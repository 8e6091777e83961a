"""`distft tune` as a user runs it: refusals, a result that is kept, more trials, Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from distft import cli
from distft.config_file import load
from distft.launch import session
from distft.records import TrialRecord, read_record

STUDIES = runpy.run_path(str(Path(__file__).parents[1] / "tune_studies.py"))
write_config, command, of = STUDIES["write_config"], STUDIES["command"], STUDIES["of"]
TIMEOUT_S = 540

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command in this process, which must not start Ray: exit status, stdout, stderr."""

    @contextlib.contextmanager
    def connected(*_: object, **__: object) -> Iterator[None]:
        pytest.fail("Ray was started")
        yield

    monkeypatch.setattr(session, "connected", connected)

    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_a_wrong_tune_key_names_its_line(say: Say, tiny_bert: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path, tiny_bert, tune__num_trails=3)
    line = 1 + [text.strip() for text in path.read_text().splitlines()].index("num_trails: 3")
    status, out, err = say("tune", path)
    assert (status, out) == (2, "")
    assert f"{path}:{line}" in err
    assert "did you mean num_trials" in err
    status, out, _ = say("tune", path, "--json")
    assert (status, json.loads(out)["exit_code"]) == (2, 2)


def test_what_cannot_be_searched_is_refused(say: Say, tiny_bert: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path, tiny_bert, tune__space={"train.seed": [1, 2]})
    status, _, err = say("tune", path)
    assert status == 2
    assert "tune.confirm_seeds says" in err
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_a_study(finished: Any, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.folder.path)
    before = (finished.run_dir / "run.json").read_bytes()
    for words in ((), ("--fresh",)):
        status, out, err = say("tune", finished.folder.config, *words)
        assert (status, out) == (3, "")
        assert "holds a run, not a study" in err
    assert (finished.run_dir / "run.json").read_bytes() == before


@dataclass(frozen=True)
class Tuned:
    """A study that was run once, with what it printed."""

    config: Path
    folder: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def tuned(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("tuned")
    path = write_config(folder, tiny_bert, tune__num_trials=3, tune__confirm=2)
    with command(folder, "tune", path, "--json") as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    return Tuned(path, folder / "runs" / "study", out, err)


def plain(trials: list[TrialRecord]) -> list[dict[str, Any]]:
    return [trial.model_dump() for trial in trials]


@pytest.mark.slow
def test_the_document_is_the_record_and_progress_is_plain(tuned: Tuned) -> None:
    document = json.loads(tuned.out)
    assert document == json.loads((tuned.folder / "study.json").read_text())
    assert (document["status"], document["winner"]) == ("completed", "winner")
    assert "\x1b" not in tuned.err
    for expected in ("trial 0 started: ", "Recommended: ", "training the winner", "report  "):
        assert expected in tuned.err
    for noise in ("Traceback", "WARNING ray", "INFO", "(pid="):
        assert noise not in tuned.err
    assert [path.name for path in tuned.folder.parent.glob(".*")] == []


@pytest.mark.slow
def test_the_same_command_prints_its_result_without_ray(tuned: Tuned, say: Say) -> None:
    before = (tuned.folder / "trials.jsonl").read_bytes()
    status, out, err = say("tune", tuned.config)
    assert (status, out) == (0, "")
    assert "Recommended: " in err
    status, out, _ = say("tune", tuned.config, "--json")
    assert status == 0
    assert json.loads(out) == json.loads(tuned.out)
    assert (tuned.folder / "trials.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_study_is_not_a_run_nor_another_study(tuned: Tuned, say: Say) -> None:
    before = (tuned.folder / "study.journal").read_bytes()
    status, _, err = say("train", tuned.config)
    assert status == 3
    assert "holds a study, not a run" in err
    for change in ("train.weight_decay=0.2", "tune.sampler=tpe", "tune.methods=[full]"):
        status, _, err = say("tune", tuned.config, change)
        assert status == 3, change
        assert "another configuration" in err
        assert "--fresh" in err
    assert (tuned.folder / "study.journal").read_bytes() == before


@pytest.mark.slow
def test_best_yaml_trains_the_winner_again(tuned: Tuned) -> None:
    best = tuned.folder / "best.yaml"
    with command(tuned.folder.parents[1], "train", best, "name=again") as process:
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    again, winner = read_record(tuned.folder.parent / "again"), read_record(tuned.folder / "winner")
    assert again.config_hash == winner.config_hash
    assert again.final == winner.final
    assert again.test == winner.test


@pytest.mark.slow
def test_another_method_and_another_study_tokenize_nothing(tuned: Tuned) -> None:
    """The rows were tokenized once, for the first study; a run of either method finds them."""
    made = STUDIES["preparations"](tuned.folder.parent)
    assert len(made) == 1
    best, folder = tuned.folder / "best.yaml", tuned.folder.parents[1]
    for words in (
        ("train", best, "name=lora", "method=lora", "train.max_steps=2"),
        ("train", best, "name=full", "method=full", "train.max_steps=2"),
        ("tune", tuned.config, "name=other", "tune.num_trials=2", "train.max_steps=4"),
    ):
        with command(folder, *words) as process:
            _, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, err
    assert STUDIES["preparations"](tuned.folder.parent) == made


@pytest.mark.slow
def test_more_trials_continue_and_fresh_begins_again(tuned: Tuned) -> None:
    before, folder = of(tuned.folder), tuned.folder.parents[1]
    with command(folder, "tune", tuned.config, "tune.num_trials=5", "--plain") as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (0, ""), err
    after = of(tuned.folder)
    assert plain(after[:3]) == plain(before)
    assert [trial.number for trial in after] == [0, 1, 2, 3, 4]
    STUDIES["assert_ledger_is_the_journal"](tuned.folder)
    words = ("tune.num_trials=1", "tune.methods=[full]", "tune.confirm=0", "--fresh", "--json")
    with command(folder, "tune", tuned.config, *words) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert json.loads(out)["counts"]["complete"] == 1
    assert [trial.method for trial in of(tuned.folder)] == ["full"]
    assert [path.name for path in (tuned.folder / "trials").iterdir()] == ["00000"]


@pytest.mark.slow
def test_ctrl_c_then_the_same_command_goes_on(tiny_bert: Path, tmp_path: Path) -> None:
    shape = {"cpus": 1, "memory": "8GiB"}
    path = write_config(tmp_path, tiny_bert, cluster__shape=shape)
    study_dir = tmp_path / "runs" / "study"
    with command(tmp_path, "tune", path) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while not (study_dir / "trials" / "00001" / "metrics.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        driver = psutil.Process(process.pid)
        started = [driver, *driver.children(recursive=True)]
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (130, ""), err
    assert err.splitlines()[-1].startswith("Interrupted. The same command continues")
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(started, timeout=30)
    assert [each for each in alive if each.is_running() and each.status() != "zombie"] == []
    assert STUDIES["record"](study_dir).status == "interrupted"
    assert list(study_dir.parent.glob(".*.lock")) == []
    first = of(study_dir)[0]
    assert first.state == "complete"
    with command(tmp_path, "tune", path) as process:
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    after = of(study_dir)
    assert plain(after[:1]) == plain([first])
    assert [trial.number for trial in after] == [0, 1, 2, 3]
    assert load(path).name == STUDIES["record"](study_dir).name
    STUDIES["assert_ledger_is_the_journal"](study_dir)
