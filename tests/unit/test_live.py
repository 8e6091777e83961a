"""The live view and the closing summary, fed by a file that grows as a training's does."""

from __future__ import annotations

import io
import json
import os
import runpy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distft.report.live import Tail, follow, summarize
from distft.report.show import number

RUNS = runpy.run_path(str(Path(__file__).parents[1] / "report_runs.py"))
Watched = runpy.run_path(str(Path(__file__).parents[1] / "watched.py"))["Watched"]
PLAN = {"total_steps": 20, "world_size": 2}


def training(step: int, loss: float = 0.8123) -> dict[str, Any]:
    return {"step": step, "loss": loss, "learning_rate": 9e-5, "tokens_per_s": 1650.4}


def append(path: Path, *lines: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


@contextmanager
def following(run_dir: Path, *, terminal: bool) -> Iterator[Any]:
    stream, stop = Watched(), threading.Event()
    console = Console(file=stream, force_terminal=terminal, width=140, _environ={})
    thread = threading.Thread(
        target=follow, args=(run_dir, PLAN), kwargs={"stop": stop, "console": console}
    )
    thread.start()
    try:
        yield stream
    finally:
        stop.set()
        thread.join(timeout=60)
    assert not thread.is_alive()


def test_a_log_gets_plain_lines_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with following(tmp_path, terminal=False) as stream:
        stream.wait_for("starting 2 Ray workers ...\n")
        append(path, {"step": 0, "eval_loss": 1.1, "eval_accuracy": 0.36, "eval_rows": 371})
        stream.wait_for("step 0/20  eval loss 1.100  eval accuracy 0.3600\n")
        append(path, {**training(5), "data_wait": 0.01})
        stream.wait_for("step 5/20  loss 0.8123  lr 9.00e-05  1,650 tokens/s  ETA ")
        append(path, {**training(20), "data_wait": 0.25})
    text = stream.getvalue()
    assert "step 20/20  loss 0.8123  lr 9.00e-05  1,650 tokens/s  waits for data 25%" in text
    assert "\x1b" not in text
    assert "\r" not in text
    assert len(text.splitlines()) == 4


def test_the_last_lines_are_shown_even_when_the_end_comes_first(tmp_path: Path) -> None:
    stream, stop = io.StringIO(), threading.Event()
    console = Console(file=stream, force_terminal=False, width=40)

    class LateFile(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            append(tmp_path / "metrics.jsonl", training(20, 0.5))
            stop.set()
            return True

    follow(tmp_path, PLAN, stop=LateFile(), console=console)
    assert stream.getvalue().splitlines()[-1].startswith("step 20/20  loss 0.5000")


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with following(tmp_path, terminal=True) as stream:
        stream.wait_for("starting 2 Ray workers ...")
        append(path, {"step": 0, "eval_loss": 1.1}, training(5), training(10, 0.7))
        stream.wait_for("10/20")
        stream.wait_for("loss 0.7000")
        append(path, training(20, 0.6))
        stream.wait_for("last evaluation, saving ...")
    text = stream.getvalue()
    assert "step 0/20  eval loss 1.100" in text
    assert text.endswith(("\x1b[?25h", "\n")), "the cursor is back"


def test_lines_of_an_earlier_attempt_are_not_news(tmp_path: Path) -> None:
    append(tmp_path / "metrics.jsonl", training(5), training(10))
    with following(tmp_path, terminal=False) as stream:
        stream.wait_for("resuming after step 10 at most, starting 2 Ray workers ...")
        append(tmp_path / "metrics.jsonl", training(15, 0.5))
        stream.wait_for("step 15/20")
    assert "step 5/20" not in stream.getvalue()
    assert "step 10/20" not in stream.getvalue()


def cut(path: Path, *lines: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def swap(path: Path, *lines: dict[str, Any]) -> None:
    other = path.with_name("other")
    cut(other, *lines)
    os.replace(other, path)


@pytest.mark.parametrize("rewrite", [cut, swap])
def test_a_file_cut_back_to_the_checkpoint_is_read_on(
    tmp_path: Path, rewrite: Callable[..., None]
) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, training(5), training(10), training(15))
    tail = Tail(path)
    assert [line["step"] for line in tail.history] == [5, 10, 15]
    rewrite(path, training(5))
    assert tail.read() == []
    append(path, training(10, 0.7))
    assert tail.read() == [training(10, 0.7)]
    rewrite(path, training(6, 0.9))
    assert tail.read() == [training(6, 0.9)]


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text('{"step": 5, "lo', encoding="utf-8")
    assert tail.read() == []
    with path.open("a", encoding="utf-8") as file:
        file.write('ss": 0.5}\n{"step')
    assert tail.read() == [{"step": 5, "loss": 0.5}]


def test_the_summary_tells_the_result_and_the_next_three_commands(tmp_path: Path) -> None:
    run_dir = tmp_path / "quickstart"
    record = RUNS["write_run"](run_dir)
    stream = io.StringIO()
    summarize(run_dir, {"html": "there/report.html"}, Console(file=stream, width=100))
    text = stream.getvalue()
    base, tuned = record.test["base"], record.test["tuned"]
    row = next(line for line in text.splitlines() if line.startswith("accuracy"))
    assert row.split() == [
        "accuracy",
        number(base["eval_accuracy"]),
        number(tuned["eval_majority_accuracy"]),
        number(tuned["eval_accuracy"]),
        f"+{number(tuned['eval_accuracy'] - base['eval_accuracy'])}",
    ]
    assert f"model   {run_dir}/model" in text
    assert "report  there/report.html" in text
    commands = [line.split()[:2] for line in text.splitlines() if line.startswith("  distft")]
    assert commands == [["distft", "evaluate"], ["distft", "predict"], ["distft", "export"]]


def test_the_summary_of_a_failed_run_says_how_to_go_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "failed"
    error = {"error": "TrainError", "message": "worker [red]1[/red] died.", "hint": "Try again."}
    RUNS["write_run"](run_dir, status="failed", error=error)
    stream = io.StringIO()
    summarize(run_dir, {}, Console(file=stream, width=60))
    text = stream.getvalue()
    assert ": worker [red]1[/red] died." in text
    assert "Try again." in text
    assert f"  distft train {run_dir}/config.yaml" in text
    assert "model " not in text
