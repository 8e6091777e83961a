"""Killed in every way, the same command goes on, and ends where an unbroken run does."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from distft import cli

Lines = Callable[[Path], list[dict[str, Any]]]
Samples = Callable[[Path], dict[int, list[list[int]]]]

FULL = ("method=full", "cluster.zero_stage=3", "train.learning_rate=1e-4")


def tree(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The command and everything it started, Ray's processes too."""
    driver = psutil.Process(process.pid)
    return [driver, *driver.children(recursive=True)]


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        # Its parent may have taken it along.
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def gone(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Those still there after a while, without what only waits to be collected."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return [each for each in alive if each.is_running() and each.status() != "zombie"]


CONTINUED = re.compile(r"^continued from step (4|8|12)$", re.MULTILINE)
"""A busy machine hears of a step late; every fourth one leaves a checkpoint."""


def wait_for_step(process: subprocess.Popen[str], run_dir: Path, step: int, lines: Lines) -> None:
    deadline = time.monotonic() + 300
    while not any(
        "loss" in line and line["step"] >= step for line in lines(run_dir / "metrics.jsonl")
    ):
        if process.poll() is not None:
            pytest.fail(f"ended before step {step}: {process.communicate()[1]}")
        assert time.monotonic() < deadline, f"no step {step}"
        time.sleep(0.02)


def losses(run_dir: Path, lines: Lines) -> dict[int, float]:
    found = [line for line in lines(run_dir / "metrics.jsonl") if "loss" in line]
    assert len({line["step"] for line in found}) == len(found), "a step is logged once"
    return {line["step"]: line["loss"] for line in found}


def weights(run_dir: Path) -> dict[str, Any]:
    """Parameters and optimizer state of the last checkpoint."""
    newest = max((run_dir / "checkpoints").glob("step-*"))
    files = sorted((newest / "state").glob("*.safetensors"))
    return {f"{newest.name}|{k}": t for file in files for k, t in load_file(file).items()}


def assert_equal_runs(one: Path, other: Path, lines: Lines, samples: Samples) -> None:
    expected, found = losses(one, lines), losses(other, lines)
    assert found.keys() == expected.keys()
    assert max(abs(found[step] - expected[step]) for step in expected) <= 1e-6
    assert samples(other) == samples(one)
    wanted, got = weights(one), weights(other)
    assert got.keys() == wanted.keys()
    furthest = max(float((got[key].float() - wanted[key].float()).abs().max()) for key in wanted)
    print(f"largest difference of weights and optimizer state: {furthest:.3g}")
    assert furthest <= 1e-6


def run_of(folder: Any, name: str, *words: str) -> tuple[str, ...]:
    return ("train", str(folder.config), f"name={name}", *words)


@pytest.mark.slow
def test_killed_with_everything_it_started_and_continued(
    finished: Any,
    lines: Lines,
    samples: Samples,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = finished.folder
    command, run_dir = run_of(folder, "killed"), folder.run("killed")
    with folder.start(*command) as process:
        wait_for_step(process, run_dir, 5, lines)
        started = tree(process)
        for each in started:
            # It would end while the second command loads its libraries.
            each.suspend()
        monkeypatch.chdir(folder.path)
        assert cli.main(list(command)) == 3
        assert "Another process is working in" in capsys.readouterr().err
        kill(started)
        assert gone(started, 30) == []
    assert json.loads((run_dir / "run.json").read_text())["status"] == "interrupted"
    again = folder.distft(*command)
    assert again.returncode == 0, again.stderr
    assert CONTINUED.search(again.stderr), again.stderr
    assert_equal_runs(finished.run_dir, run_dir, lines, samples)


@pytest.mark.slow
def test_zero_3_full_killed_and_continued(finished: Any, lines: Lines, samples: Samples) -> None:
    folder = finished.folder
    unbroken = folder.distft(*run_of(folder, "full", *FULL))
    assert unbroken.returncode == 0, unbroken.stderr
    command, run_dir = run_of(folder, "full-killed", *FULL), folder.run("full-killed")
    with folder.start(*command) as process:
        wait_for_step(process, run_dir, 6, lines)
        kill(tree(process))
    again = folder.distft(*command)
    assert again.returncode == 0, again.stderr
    assert CONTINUED.search(again.stderr), again.stderr
    assert_equal_runs(folder.run("full"), run_dir, lines, samples)


@pytest.mark.slow
def test_only_the_command_killed_leaves_nothing_behind_that_writes(
    finished: Any, lines: Lines, samples: Samples
) -> None:
    """As when memory runs out: Ray's processes are orphans, and must not go on in the run."""
    folder = finished.folder
    command, run_dir = run_of(folder, "orphaned"), folder.run("orphaned")
    with folder.start(*command) as process:
        wait_for_step(process, run_dir, 5, lines)
        started = tree(process)
        process.kill()
    again = folder.distft(*command)
    # Ray's agents write nothing to a run, and give up on its dead GCS after a minute.
    assert gone(started, 90) == []
    assert again.returncode == 0, again.stderr
    assert "continued from step" in again.stderr
    assert_equal_runs(finished.run_dir, run_dir, lines, samples)


@pytest.mark.slow
def test_killed_at_random_steps_and_continued_by_other_numbers_of_workers(
    finished: Any, lines: Lines, samples: Samples
) -> None:
    """Dropout is drawn by rank, so losses may differ; what a step holds may not."""
    folder, run_dir = finished.folder, finished.folder.run("resized")
    moments = sorted(random.SystemRandom().sample(range(1, 14), 2))
    print(f"killed at steps {moments}")
    for workers, step in zip((1, 2), moments, strict=True):
        command = run_of(folder, "resized", f"cluster.num_workers={workers}")
        with folder.start(*command) as process:
            wait_for_step(process, run_dir, step, lines)
            kill(tree(process))
    done = folder.distft(*run_of(folder, "resized", "cluster.num_workers=1"))
    assert done.returncode == 0, done.stderr
    unbroken, joined = (
        {step: sorted(i for rank in ranks for i in rank) for step, ranks in sorted(log.items())}
        for log in (samples(finished.run_dir), samples(run_dir))
    )
    assert list(joined) == list(range(1, 15))
    assert joined == unbroken
    assert losses(run_dir, lines).keys() == losses(finished.run_dir, lines).keys()


@pytest.mark.slow
@pytest.mark.parametrize(("actor", "number"), [("RayTrainWorker", 2), ("TrainController", 1)])
def test_a_dead_process_of_a_run_is_replaced(
    finished: Any, lines: Lines, samples: Samples, actor: str, number: int
) -> None:
    folder = finished.folder
    name = actor.lower()
    command, run_dir = run_of(folder, name), folder.run(name)
    with folder.start(*command) as process:
        wait_for_step(process, run_dir, 5, lines)
        actors = [p for p in tree(process) if actor in " ".join(p.cmdline())]
        assert len(actors) == number
        actors[0].kill()
        stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    assert stdout == ""
    assert "a worker died; starting again from the newest checkpoint (1)\n" in stderr
    assert CONTINUED.search(stderr), stderr
    assert "Traceback" not in stderr
    assert_equal_runs(finished.run_dir, run_dir, lines, samples)


@pytest.mark.slow
def test_ctrl_c_then_a_damaged_checkpoint_is_passed_over(
    finished: Any, lines: Lines, samples: Samples
) -> None:
    folder = finished.folder
    command, run_dir = run_of(folder, "ctrl-c"), folder.run("ctrl-c")
    with folder.start(*command) as process:
        wait_for_step(process, run_dir, 9, lines)
        started = tree(process)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert stderr.endswith("Interrupted. The same command continues a run or a study.\n")
    assert "Traceback" not in stderr
    assert json.loads((run_dir / "run.json").read_text())["status"] == "interrupted"
    assert gone(started, 30) == []
    assert not list(run_dir.parent.glob(".*.lock"))
    # The workers may have come past step 9 before they heard of it.
    *_, sound, damaged = sorted((run_dir / "checkpoints").glob("step-*"))
    file = max((damaged / "state").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    again = folder.distft(*command)
    assert again.returncode == 0, again.stderr
    note = f"checkpoint {damaged.name} is not used: state/{file.name} is damaged\n"
    assert note in again.stderr
    assert f"continued from step {int(sound.name.removeprefix('step-'))}\n" in again.stderr
    assert_equal_runs(finished.run_dir, run_dir, lines, samples)


@pytest.mark.slow
def test_two_names_at_once_do_not_disturb_each_other(
    finished: Any, lines: Lines, samples: Samples
) -> None:
    folder = finished.folder
    names = ("left", "right")
    both = [folder.start(*run_of(folder, name)) for name in names]
    for name, process in zip(names, both, strict=True):
        with process:
            _, stderr = process.communicate(timeout=500)
        assert process.returncode == 0, stderr
        assert_equal_runs(finished.run_dir, folder.run(name), lines, samples)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_fails_the_run(finished: Any) -> None:
    folder = finished.folder
    command = run_of(folder, "boom", "train.learning_rate=1e6", "train.optim=sgd")
    done = folder.distft(*command, "train.max_grad_norm=0", "--json")
    assert done.returncode == 4, done.stderr
    document = json.loads(done.stdout)
    assert document["error"] == "TrainError"
    assert "learning_rate" in document["hint"]
    said = done.stderr.splitlines()[-1]
    assert said == f"distft: {document['message']} {document['hint']}"
    assert "Traceback" not in done.stderr
    record = json.loads((folder.run("boom") / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", document)
    assert (folder.run("boom") / "report.html").is_file()
