"""The live view of a study and its closing summary, fed by files as its driver rewrites them."""

from __future__ import annotations

import io
import json
import re
import runpy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distft.records import StudyRecord, TrialRecord, read_study
from distft.report import study_live
from distft.report.show import number
from distft.report.study_live import follow, summarize
from distft.report.study_progress import Snapshot, eta, events, headline, screen

STUDIES = runpy.run_path(str(Path(__file__).parents[1] / "report_studies.py"))
Watched = runpy.run_path(str(Path(__file__).parents[1] / "watched.py"))["Watched"]
write_study, rewrite = STUDIES["write_study"], STUDIES["rewrite"]


@contextmanager
def following(
    study_dir: Path, *, terminal: bool, plain: bool = False
) -> Iterator[tuple[Any, threading.Thread]]:
    stream, stop = Watched(), threading.Event()
    console = Console(file=stream, force_terminal=terminal, width=140, height=40, _environ={})
    thread = threading.Thread(
        target=follow, args=(study_dir,), kwargs={"stop": stop, "console": console, "plain": plain}
    )
    thread.start()
    try:
        yield stream, thread
    finally:
        stop.set()
        thread.join(timeout=60)
    assert not thread.is_alive()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_live, "POLL_S", 0.01)


def moment(tmp_path: Path, phase: str, **more: Any) -> Snapshot:
    """Return a study as it was read at a phase."""
    write_study(tmp_path / phase, phase=phase, **more)
    record, trials = read_study(tmp_path / phase)
    return Snapshot(record, tuple(trials))


def at(now: Snapshot, count: int, **changes: Any) -> tuple[StudyRecord, list[TrialRecord]]:
    """Return a study with its first trials only."""
    record = now.record.model_copy(
        update={"candidates": [], "recommended": None, "winner": None, "status": "running"}
        | changes
    )
    return record, list(now.trials[:count])


def test_a_log_gets_one_line_per_event(tmp_path: Path) -> None:
    now = moment(tmp_path, "winner")
    study_dir = tmp_path / "live"
    study_dir.mkdir()
    with following(study_dir, terminal=False) as (stream, thread):
        record, trials = at(now, 5)
        early = trials[0].model_copy(
            update={"state": "running", "rungs": trials[0].rungs[:1], "value": 0.99}
        )
        rewrite(study_dir, record.model_copy(update={"best_trial": None}), [early])
        stream.wait_for("trial 0 started: full, learning rate 5.4e-05\n")
        stream.wait_for("trial 0 goes on at rung 1 (96 samples): loss ")
        rewrite(study_dir, record.model_copy(update={"best_trial": 0}), trials)
        stream.wait_for("best so far: trial 0 full, learning rate 5.4e-05 loss ")
        rewrite(study_dir, now.record, list(now.trials))
        stream.wait_for("winner begins\n")
        thread.join(timeout=60)
        assert not thread.is_alive(), "the winner's training has its own view"
    text = stream.getvalue()
    assert text.count("trial 0 started") == text.count("trial 0 goes on at rung 1") == 1
    assert re.search(r"trial 0 complete after 960 samples, 32 s: loss 0\.\d+\n", text)
    assert "trial 4 failed after 144 samples, 5 s: the loss is not finite at step 14: nan." in text
    assert re.search(
        r"trial \d is stopped at rung 1 \(96 samples\): loss .*, rank \d of \d\n", text
    )
    assert "trial 6 refused (full, learning rate " in text
    assert "trial 9 not run: same configuration as trial 0\n" in text
    assert "trial 9 started" not in text
    assert "confirmation 0 complete after 2,400 samples" in text
    assert "\x1b" not in text


def test_a_terminal_gets_one_screen_and_lines_where_asked_for(tmp_path: Path) -> None:
    moment(tmp_path, "search")
    with following(tmp_path / "search", terminal=True) as (stream, _):
        stream.wait_for("best so far: trial ")
    text = stream.getvalue()
    assert "5 of 16" not in text
    assert "trials 8 of 16, wall time" in text
    assert text.endswith(("\x1b[?25h", "\n")), "the cursor is back"
    with following(tmp_path / "search", terminal=True, plain=True) as (stream, _):
        stream.wait_for("continuing: search: ")
    assert "\x1b[?25l" not in stream.getvalue()


def test_what_stood_there_before_is_not_news(tmp_path: Path) -> None:
    now = moment(tmp_path, "search")
    study_dir = tmp_path / "search"
    with following(study_dir, terminal=False) as (stream, _):
        stream.wait_for("continuing: search: ")
        ended = now.trials[-1].model_copy(update={"state": "failed", "reason": "out of memory"})
        rewrite(study_dir, now.record, [*now.trials[:-1], ended])
        stream.wait_for("trial 7 failed after 192 samples, 6 s: out of memory\n")
    assert "trial 0 " not in stream.getvalue().replace("best trial 0 ", "")


def test_files_that_are_half_there_wait_for_the_whole(tmp_path: Path) -> None:
    now = moment(tmp_path, "search")
    study_dir = tmp_path / "late"
    with following(study_dir, terminal=False) as (stream, _):
        study_dir.mkdir()
        (study_dir / "study.json").write_text('{"schema_ver', encoding="utf-8")
        (study_dir / "trials.jsonl").write_text("", encoding="utf-8")
        record, trials = at(now, 1)
        rewrite(study_dir, record, trials)
        stream.wait_for("trial 0 started")


def test_the_screen_fits_and_shows_the_running_ones_first(tmp_path: Path) -> None:
    now = moment(tmp_path, "search", trials=60)
    stream = io.StringIO()
    console = Console(file=stream, width=80, height=24, force_terminal=False)
    console.print(screen(now, 24))
    lines = stream.getvalue().rstrip("\n").splitlines()
    assert len(lines) <= 23
    assert all(len(line) <= 80 for line in lines)
    table = [line for line in lines if re.match(r" *\d+  ", line)]
    running = [trial for trial in now.trials if trial.state == "running"]
    assert [int(line.split()[0]) for line in table[: len(running)]] == [
        trial.number for trial in running
    ]
    assert all(f"{trial.samples}/960" in " ".join(table) for trial in running)
    assert re.search(r"\.\.\. and \d+ more", stream.getvalue())
    assert now.value(now.best.value if now.best else None) in stream.getvalue()


def test_the_time_to_come_follows_from_what_ended(tmp_path: Path) -> None:
    now = moment(tmp_path, "winner", troubles=False, trials=8)
    record, trials = at(now, 4, limits={"trials": 8.0}, max_concurrent=2)
    whole = [trial.model_copy(update={"duration_s": 30.0, "state": "complete"}) for trial in trials]
    running = whole[3].model_copy(update={"state": "running", "duration_s": 10.0})
    four_left = Snapshot(record, (*whole[:3], running))
    assert eta(four_left) == "ETA 1 min 10 s for the search"
    little = record.model_copy(update={"limits": {"trials": 8.0, "wall_s": 60.0}})
    spent = little.model_copy(update={"spent": {"wall_s": 45.0}})
    assert eta(Snapshot(spent, four_left.trials)) == "ETA 15 s for the search"
    assert eta(Snapshot(record, (running,))) == "ETA known when a trial has ended"
    unbounded = record.model_copy(update={"limits": {}})
    assert "ETA unknown" in eta(Snapshot(unbounded, four_left.trials))
    samples = record.model_copy(
        update={"limits": {"samples": 6_000.0}, "spent": {"samples": 3_000.0}}
    )
    assert eta(Snapshot(samples, tuple(whole[:3]))) == "ETA 45 s for the search"


def test_phases_are_told_apart(tmp_path: Path) -> None:
    search, confirm = moment(tmp_path, "search"), moment(tmp_path, "confirm")
    assert (search.phase, confirm.phase) == ("search", "confirmation")
    assert moment(tmp_path, "winner").phase == "winner"
    assert headline(confirm).startswith("confirmation: ")
    assert "search ended; confirmation begins" in list(events(search, confirm))
    assert "no trial yet" in headline(moment(tmp_path, "empty"))


def test_the_summary_tells_the_result_and_what_to_do_next(tmp_path: Path) -> None:
    study_dir = tmp_path / "quickstart"
    record = write_study(study_dir)
    stream = io.StringIO()
    summarize(study_dir, {"html": "there/report.html"}, Console(file=stream, width=120))
    text = stream.getvalue()
    assert "Recommended: lora, learning rate " in text
    assert re.search(r"^full +\d+ +learning rate", text, re.MULTILINE)
    test = json.loads((study_dir / "winner" / "run.json").read_text())["test"]
    row = next(line for line in text.splitlines() if line.startswith("accuracy"))
    assert row.split()[1] == number(test["base"]["eval_accuracy"])
    assert row.split()[3] == number(test["tuned"]["eval_accuracy"])
    assert f"model   {study_dir}/winner/model" in text
    assert "report  there/report.html" in text
    commands = [line.split()[:2] for line in text.splitlines() if line.startswith("  ")]
    assert ["distft", "predict"] in commands
    assert ["distft", "train"] in commands
    assert record.recommended is not None


@pytest.mark.parametrize("phase", ["empty", "search", "confirm", "failed", "refused"])
def test_the_summary_of_a_study_that_is_not_done_says_how_to_go_on(
    tmp_path: Path, phase: str
) -> None:
    error = {"error": "SearchError", "message": "it [red]broke[/red].", "hint": "Mend it."}
    write_study(tmp_path / phase, phase=phase, error=error if phase == "failed" else None)
    stream = io.StringIO()
    summarize(tmp_path / phase, {}, Console(file=stream, width=100))
    text = stream.getvalue()
    assert "  distft tune CONFIG.yaml" in text
    assert "model " not in text
    if phase == "failed":
        assert "it [red]broke[/red]." in text
        assert "Mend it." in text
