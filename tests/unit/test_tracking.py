"""What trackers are told: every line once and in order, whatever they raise."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from distft import plugin
from distft.errors import ConfigError
from distft.plugin import Ending, Tracked, Tracker
from distft.train import tracking
from distft.train.journal import Journal


@dataclass
class Diary:
    """A tracker that keeps what it is told, and fails as often as it is asked to."""

    told: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    endings: list[tuple[Ending, dict[str, float]]] = field(default_factory=list)
    opened: list[str | None] = field(default_factory=list)
    failures: int = 0
    closed: threading.Event | None = None
    id = "diary-1"

    def open(self, run: Tracked) -> Diary:
        self._fail()
        self.opened.append(run.id)
        return self

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no answer from https://me:secret-word@host")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.closed is not None:
            self.closed.wait()
        self._fail()
        self.told.append((step, dict(numbers)))

    def close(self, ending: Ending, summary: Mapping[str, float]) -> None:
        self.endings.append((ending, dict(summary)))


@pytest.fixture
def journal(tmp_path: Path) -> Callable[..., Journal]:
    def make(diary: Diary, step: int | None = None) -> Journal:
        tracker = Tracker(name="diary", summary="", package="json", open=diary.open)
        run = Tracked(name="x", study=None, run_dir=tmp_path, output_dir=tmp_path, config={})
        return Journal(tmp_path, 0, step, [tracker], run)

    return make


def line(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "samples": 4 * step, "loss": 1.0 / (step + 1), **more}


def notes(run_dir: Path) -> list[str]:
    lines = [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [each["note"] for each in lines if "note" in each]


def test_every_line_is_told_and_the_result_is_flat(
    journal: Callable[..., Journal], tmp_path: Path
) -> None:
    diary = Diary()
    with journal(diary) as writes:
        writes.metrics({"step": 0, "samples": 0, "eval_loss": 2.0})
        writes.metrics({"step": 0, "samples": 0, "note": "not a number"})
        writes.metrics(line(1, skipped=True, text="x"))
        writes.metrics({"step": 1, "samples": 4, "eval_loss": 1.5})
        writes.result({"test": {"tuned": {"eval_loss": 1.25}}, "step": 1})
    assert diary.told == [
        (0, {"samples": 0, "eval_loss": 2.0}),
        (1, {"samples": 4, "loss": 0.5}),
        (1, {"samples": 4, "eval_loss": 1.5}),
    ]
    assert diary.endings == [("completed", {"result/test/tuned/eval_loss": 1.25, "result/step": 1})]
    assert notes(tmp_path) == ["not a number"]


def test_a_resumed_run_is_told_what_is_missing_and_nothing_twice(
    journal: Callable[..., Journal], tmp_path: Path
) -> None:
    first, second, third = Diary(), Diary(), Diary()
    with journal(first) as writes:
        for step in range(1, 6):
            writes.metrics(line(step))
    # It was killed after step 5, its checkpoint is of step 3: 4 and 5 are done again.
    with journal(second, step=3) as writes:
        for step in range(4, 8):
            writes.metrics(line(step))
    assert [step for step, _ in first.told] == [1, 2, 3, 4, 5]
    assert [step for step, _ in second.told] == [6, 7]
    assert (first.opened, second.opened) == ([None], ["diary-1"])
    # A tracker that was not asked before is told all of it.
    (tmp_path / "logs" / "diary.json").unlink()
    with journal(third, step=7):
        pass
    assert [step for step, _ in third.told] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("failures", [1, 3])
def test_what_a_tracker_does_not_take_is_offered_again(
    journal: Callable[..., Journal], tmp_path: Path, failures: int
) -> None:
    diary = Diary(failures=failures)
    with journal(diary) as writes:
        for step in range(1, 8):
            left = diary.failures
            writes.metrics(line(step))
            assert wait_for(lambda left=left: diary.failures < left or diary.told)
    assert [step for step, _ in diary.told] == [1, 2, 3, 4, 5, 6, 7]
    assert diary.endings[0][0] == "completed"
    (note,) = notes(tmp_path)
    assert note.startswith("diary does not take this run's metrics (ConnectionError: no answer")
    assert "secret-word" not in note


def wait_for(happened: Callable[[], Any]) -> bool:
    pause = threading.Event()
    return any(happened() or pause.wait(0.01) for _ in range(500)) or bool(happened())


def test_a_tracker_that_fails_to_the_end_is_counted(
    journal: Callable[..., Journal], tmp_path: Path
) -> None:
    with journal(Diary(failures=1000)) as writes:
        for step in range(1, 4):
            writes.metrics(line(step))
    first, last = notes(tmp_path)
    assert "training goes on" in first
    assert last.startswith("diary has not taken all of this run; 3 lines are not there: Connection")


def test_a_tracker_that_hangs_holds_nothing_up(
    journal: Callable[..., Journal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "END_S", 0.1)
    released = threading.Event()
    diary = Diary(closed=released)
    with journal(diary) as writes:
        for step in range(1, 4):
            writes.metrics(line(step))
    (note,) = notes(tmp_path)
    assert "no answer within" in note
    released.set()


@pytest.mark.parametrize(("error", "ending"), [(ValueError, "failed"), (GeneratorExit, "stopped")])
def test_a_tracker_is_told_how_a_run_ended(
    journal: Callable[..., Journal], error: type[BaseException], ending: str
) -> None:
    diary = Diary()
    writes = journal(diary)
    with pytest.raises(error), writes:
        raise error
    assert diary.endings == [(ending, {})]


def test_the_default_is_tensorboard_for_runs_and_none_for_trials() -> None:
    assert [each.name for each in tracking.chosen(None, trial=False)] == ["tensorboard"]
    assert tracking.chosen(None, trial=True) == []
    assert tracking.chosen([], trial=False) == []
    assert [each.name for each in tracking.chosen(["mlflow"], trial=True)] == ["mlflow"]


def test_what_is_not_installed_is_said_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = plugin.trackers()
    known["mlflow"] = replace(known["mlflow"], package="mlflow_that_is_not_there")
    known["tensorboard"] = replace(known["tensorboard"], package="left_behind")
    monkeypatch.setattr(plugin, "trackers", lambda: known)
    # A folder of that name is no package.
    (tmp_path / "left_behind").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="mlflow is not installed") as caught:
        tracking.chosen(["mlflow"], trial=False)
    assert caught.value.hint == "Run: pip install 'distft[tracking]'"
    assert tracking.chosen(None, trial=False) == []
