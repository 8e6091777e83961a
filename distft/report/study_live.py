"""What a user watches while a study searches, and what it says when it ends. All on stderr.

Trials run in other processes: the live view only reads study.json and trials.jsonl, which the
driver replaces at every report of a trial.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from distft.errors import ConfigError
from distft.records import read_study
from distft.report import results, study, study_settings, study_tables
from distft.report.live import terminal_table
from distft.report.study_progress import Snapshot, events, headline, screen

POLL_S = 0.5
EVERY_S = 60.0
"""Between two lines that tell how far a study is, where nothing else is said."""


class _View(Protocol):
    def show(self, snapshot: Snapshot) -> None: ...

    def close(self) -> None: ...


def follow(study_dir: Path, *, stop: threading.Event, console: Console, plain: bool) -> None:
    """Show the progress of a study until its winner is trained or it is told to stop.

    Run it in a thread. The winner's training has a view of its own, `live.follow`: this one ends
    before.

    Args:
        study_dir: The study directory; its files may not exist yet.
        stop: Set when the search has ended; what was written until then is still shown.
        console: Where to draw: one screen when it is a terminal, else a line per event.
        plain: Lines also on a terminal.
    """
    source = Source(study_dir)
    screen_wanted = console.is_terminal and not plain
    view: _View = _Screen(console) if screen_wanted else _Lines(console, source.known())
    try:
        ended = False
        while not ended:
            ended = stop.wait(POLL_S) or source.phase == "winner"
            snapshot = source.read()
            if snapshot is not None:  # else the driver is still getting ready
                view.show(snapshot)
    finally:
        view.close()


class Source:
    """A study's files, read again when they have changed.

    Args:
        study_dir: The study directory.
    """

    def __init__(self, study_dir: Path) -> None:
        self._dir = study_dir
        self._stamp: tuple[int, ...] = ()
        self._last: Snapshot | None = None

    @property
    def phase(self) -> str:
        """Of what was read last; empty where nothing was."""
        return self._last.phase if self._last else ""

    def known(self) -> Snapshot | None:
        """Return what stands there at the start: the trials of an earlier attempt, or None."""
        return self.read()

    def read(self) -> Snapshot | None:
        """Return the newest state; the last whole one while files are missing or half there."""
        try:
            stamp = tuple(
                (self._dir / name).stat().st_mtime_ns for name in ("study.json", "trials.jsonl")
            )
            if stamp != self._stamp:
                record, trials = read_study(self._dir)
                self._last, self._stamp = Snapshot(record, tuple(trials)), stamp
        except (OSError, ConfigError):
            pass
        return self._last


class _Screen:
    """One screen that redraws itself."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self, snapshot: Snapshot) -> None:
        """Draw the state of the study."""
        self._live.update(screen(snapshot, self._console.height), refresh=True)

    def close(self) -> None:
        """Leave the terminal as it was, with the last screen on it."""
        self._live.stop()


class _Lines:
    """One plain line per event, for logs."""

    def __init__(self, console: Console, before: Snapshot | None) -> None:
        self._console = console
        self._before = before
        self._said_at = time.monotonic()
        if before is not None and before.trials:
            self._print(f"continuing: {headline(before)}")

    def show(self, snapshot: Snapshot) -> None:
        """Print what is new since the last time."""
        if snapshot is not self._before:
            for line in events(self._before, snapshot):
                self._print(line)
        self._before = snapshot
        if time.monotonic() - self._said_at >= EVERY_S:
            self._print(headline(snapshot))

    def close(self) -> None:
        """Nothing to undo."""

    def _print(self, text: str) -> None:
        self._said_at = time.monotonic()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def summarize(study_dir: Path, paths: Mapping[str, str], console: Console) -> None:
    """Print how a study ended: verdict, best of each method, base beside tuned, what to do next.

    Args:
        study_dir: A study directory with its record.
        paths: What `study.build` returned.
        console: Where to print.
    """
    content = study.read(study_dir)

    def say(text: str = "") -> None:
        console.print(Text(text), soft_wrap=True, highlight=False)

    say()
    console.print(Text(content["verdict"]["sentence"], style="bold"), soft_wrap=True)
    if content["verdict"]["price"]:
        say(content["verdict"]["price"])
    hint = (content["study"]["error"] or {}).get("hint")
    if hint:
        say(str(hint))
    tables = [study_tables.in_short(content)]
    if content["run"]:
        tables.extend(results.comparison(content).tables[:1])
    for table in tables:
        if table.rows:
            say()
            say(f"{table.caption}:")
            console.print(terminal_table(table))
    say()
    if content["run"]:
        say(f"model   {study_dir / content['study']['winner'] / 'model'}")
    say(f"report  {paths.get('html', study_dir / 'report.html')}")
    say()
    say("Next:")
    for what, command in study_settings.commands(content, study_dir)[:4]:
        say(f"  {command}   # {what[0].lower()}{what[1:]}")
