"""Lines of metrics.jsonl to the trackers of `report_to`, each in a thread of its own.

A tracker neither fails a run nor holds it up: what it does not take is offered again with the next
line, and what it has not taken in the end is counted in a note. It is told every line once, however
often the run was killed.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from distft import plugin
from distft.errors import ConfigError
from distft.plugin import Ending, Tracked, Tracker, Tracking
from distft.records import write_json
from distft.redact import hide

END_S = 60.0
"""Longest wait for a tracker to take what is left when a run ends."""
DEFAULT = "tensorboard"


def chosen(report_to: Sequence[str] | None, *, trial: bool) -> list[Tracker]:
    """Return the trackers of a run.

    Args:
        report_to: Their names; None: TensorBoard where it is installed, but for a search trial.
        trial: Whether it is one.

    Returns:
        The trackers.

    Raises:
        ConfigError: One that is named is not installed.
    """
    known = plugin.trackers()
    if report_to is None:
        default = known[DEFAULT]
        return [default] if not trial and _installed(default) else []
    for name in report_to:
        if not _installed(known[name]):
            raise ConfigError(
                f"report_to: {name} is not installed.", "Run: pip install 'distft[tracking]'"
            )
    return [known[name] for name in dict.fromkeys(report_to)]


def _installed(tracker: Tracker) -> bool:
    # A folder of that name, which some trackers leave where they run, has no origin.
    found = importlib.util.find_spec(tracker.package)
    return found is not None and found.origin is not None


class Delivery:
    """What one tracker has been told, and what it is still to be told.

    Args:
        tracker: Which.
        run: What it is told of the run.
        note: Called with a sentence, from the tracker's thread, when it does not take a line.
    """

    def __init__(self, tracker: Tracker, run: Tracked, note: Callable[[str], None]) -> None:
        self._tracker, self._note = tracker, note
        self._path = run.run_dir / "logs" / f"{tracker.name}.json"
        kept = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self._run = replace(run, id=kept.get("id"))
        known = () if tracker.told_again else kept.get("told", ())
        self._told = tuple(known) or (-1, False)
        self._open: Tracking | None = None
        self._waiting: deque[Mapping[str, Any]] = deque()
        self._failure = ""
        self._lines: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._ending: tuple[Ending, Mapping[str, float]] | None = None
        self._thread = threading.Thread(target=self._deliver, daemon=True)
        self._thread.start()

    def put(self, line: Mapping[str, Any]) -> None:
        """Hand a line of metrics.jsonl over; it is told later, and skipped where it is known."""
        if "note" not in line:
            self._lines.put(line)

    def end(self, ending: Ending, result: Mapping[str, Any]) -> None:
        """Wait, but not for long, until the rest is told.

        Args:
            ending: How the run left its loop.
            result: What eval.json holds; empty where the run did not come so far.
        """
        self._ending = (ending, dict(_numbers(result, "result/")))
        self._lines.put(None)
        self._thread.join(END_S)
        if self._thread.is_alive() or self._waiting or self._failure:
            rest = f"; {len(self._waiting)} lines are not there" if self._waiting else ""
            why = self._failure or f"no answer within {END_S:.0f} s"
            self._note(f"{self._tracker.name} has not taken all of this run{rest}: {why}")

    def _deliver(self) -> None:
        while (line := self._lines.get()) is not None:
            self._waiting.append(line)
            if self._lines.empty():
                self._try(self._tell)
        self._try(self._tell)
        if not self._waiting:
            self._try(self._close)

    def _try(self, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the run goes on
            first = not self._failure
            text = str(error).strip().splitlines()
            self._failure = hide(f"{type(error).__name__}: {text[0] if text else 'no message'}")
            if first:
                self._note(
                    f"{self._tracker.name} does not take this run's metrics ({self._failure}); "
                    "training goes on, and every line is offered again"
                )
        else:
            self._failure = ""

    def _tell(self) -> None:
        run = self._opened()
        while self._waiting:
            line = self._waiting[0]
            # A step may have two lines: the training's comes before the evaluation's.
            place = (int(line["step"]), "eval_loss" in line)
            if place > self._told:
                run.write(place[0], {k: v for k, v in _numbers(line) if k != "step"})
                self._told = place
                self._keep(run)
            self._waiting.popleft()

    def _opened(self) -> Tracking:
        if self._open is None:
            self._open = self._tracker.open(self._run)
            self._keep(self._open)
        return self._open

    def _close(self) -> None:
        assert self._ending is not None
        self._opened().close(*self._ending)

    def _keep(self, run: Tracking) -> None:
        write_json(self._path, {"id": run.id, "told": list(self._told)})


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of nested mappings by their path, such as `result/test/tuned/eval_loss`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value
