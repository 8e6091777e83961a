"""What a user watches while a run trains, and what it says when it ends. All on stderr.

Training happens in other processes: the live view only reads the `metrics.jsonl` that rank 0
appends to.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from distft.records import Metrics
from distft.report import document, results, settings
from distft.report.show import Table, duration, label, number

POLL_S = 0.2
NOTABLE_WAIT = 0.05
"""Share of the time that data may take before a line says so."""


class Tail:
    """The lines another process appends to a file, which may not exist yet.

    Args:
        path: The file.

    Attributes:
        history: What stood in the file at the start: lines of an earlier attempt.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: list[bytes] = []
        self._identity = (0, 0)
        self._offset = 0
        self._torn = b""
        self.history = self.read()

    def read(self) -> list[Metrics]:
        """Return the whole lines that came since the last call; a half one waits for its end."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                replaced = identity != self._identity or status.st_size < self._offset
                if replaced:
                    self._identity, self._offset, self._torn = identity, 0, b""
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(text)
        *lines, self._torn = (self._torn + text).split(b"\n")
        if replaced:
            # A resumed run may cut the file back to its checkpoint: what is left is not news.
            known, self._seen = self._seen, lines
            lines = lines[_common(lines, known) :]
        else:
            self._seen.extend(lines)
        return [line for line in map(_parsed, lines) if line]


def _common(lines: list[bytes], seen: list[bytes]) -> int:
    pairs = zip(lines, seen, strict=False)
    return next((i for i, (new, old) in enumerate(pairs) if new != old), min(len(lines), len(seen)))


def _parsed(line: bytes) -> Metrics:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class _View(Protocol):
    def phase(self, text: str) -> None: ...

    def line(self, line: Metrics) -> None: ...

    def close(self) -> None: ...


def follow(
    run_dir: Path, plan: Mapping[str, Any], *, stop: threading.Event, console: Console
) -> None:
    """Show the progress of a running training until told to stop; run it in a thread.

    Args:
        run_dir: The run directory; its metrics.jsonl may not exist yet.
        plan: The content of plan.json: `total_steps` and `world_size` are used.
        stop: Set when the training has ended; what was written until then is still shown.
        console: Where to draw: a bar when it is a terminal, else plain lines.
    """
    total = int(plan.get("total_steps") or 0)
    tail = Tail(run_dir / "metrics.jsonl")
    before = max((int(line.get("step") or 0) for line in tail.history), default=0)
    workers = int(plan.get("world_size") or 1)
    starting = f"starting {workers} Ray worker{'s' if workers > 1 else ''} ..."
    if before:
        starting = f"resuming after step {before} at most, {starting}"
    view: _View = _Bar(total, console) if console.is_terminal else _Lines(total, console)
    try:
        view.phase(starting)
        ended = False
        while not ended:
            ended = stop.wait(POLL_S)
            for line in tail.read():
                view.line(line)
    finally:
        view.close()


def _evaluation(line: Metrics) -> str:
    counts = ("eval_rows", "eval_targets", "eval_entities")
    skipped = (*counts, "eval_majority_accuracy", "eval_mean_mse")
    shown = {
        key: value
        for key, value in line.items()
        if key.startswith("eval_")
        and key not in skipped
        and isinstance(value, int | float)
        # Their F1 says both; a line of ten figures is not read.
        and not {"precision", "recall"} & set(key.split("_"))
    }
    return "  ".join(f"eval {label(key)} {number(value)}" for key, value in shown.items())


def _training(line: Metrics) -> str:
    said = [
        f"{name} {number(line[key])}"
        for key, name in (("loss", "loss"), ("learning_rate", "lr"))
        if isinstance(line.get(key), int | float)
    ]
    if isinstance(line.get("tokens_per_s"), int | float):
        said.append(f"{line['tokens_per_s']:,.0f} tokens/s")
    if line.get("data_wait", 0) >= NOTABLE_WAIT:
        said.append(f"waits for data {line['data_wait']:.0%}")
    return "  ".join(said)


def _phase(step: int, total: int) -> str:
    return "last evaluation, saving ..." if total and step >= total else "training"


class _Bar:
    """A bar that redraws itself; evaluations stay as lines above it."""

    def __init__(self, total: int, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            # Long enough to hold an evaluation, which would look like a stall.
            speed_estimate_period=600,
        )
        self._task = self._progress.add_task("", start=False, total=total or None, said="")
        self._total = total
        self._started = False
        self._progress.start()

    def phase(self, text: str) -> None:
        """Show what is going on."""
        self._progress.update(self._task, description=text)

    def line(self, line: Metrics) -> None:
        """Show a line of metrics.jsonl."""
        step = int(line.get("step") or 0)
        if "note" in line:
            self._progress.print(Text(str(line["note"])), highlight=False)
        elif document.is_evaluation(line):
            text = f"step {step}/{self._total or '?'}  {_evaluation(line)}"
            self._progress.print(Text(text), highlight=False)
        else:
            self._progress.update(self._task, said=_training(line))
        if not self._started:
            # A resumed run begins in the middle, which must not count as speed.
            self._progress.reset(
                self._task, start=True, completed=step, description=_phase(step, self._total)
            )
            self._started = True
            return
        self._progress.update(self._task, completed=step, description=_phase(step, self._total))

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


class _Lines:
    """One plain line per line of metrics.jsonl, for logs."""

    def __init__(self, total: int, console: Console) -> None:
        self._total = total
        self._console = console
        self._first: tuple[float, int] | None = None

    def phase(self, text: str) -> None:
        """Print what is going on."""
        self._print(text)

    def line(self, line: Metrics) -> None:
        """Print a line of metrics.jsonl."""
        if "note" in line:
            self._print(str(line["note"]))
            return
        step = int(line.get("step") or 0)
        said = _evaluation(line) if document.is_evaluation(line) else _training(line)
        self._print(f"step {step}/{self._total or '?'}  {said}{self._remaining(step)}")

    def close(self) -> None:
        """Nothing to undo."""

    def _remaining(self, step: int) -> str:
        now = time.monotonic()
        self._first = self._first or (now, step)
        done = step - self._first[1]
        if done <= 0 or self._total <= step:
            return ""
        return f"  ETA {duration((now - self._first[0]) / done * (self._total - step))}"

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def summarize(run_dir: Path, report: Mapping[str, str], console: Console) -> None:
    """Print how a run ended: verdict, base beside tuned, where things are, what to try next.

    Args:
        run_dir: A run directory with its record.
        report: What `report.run.build` returned.
        console: Where to print.
    """
    content = document.read(run_dir)

    def say(text: str = "") -> None:
        console.print(Text(text), soft_wrap=True, highlight=False)

    say()
    console.print(Text(content["verdict"]["sentence"], style="bold"), soft_wrap=True)
    hint = (content["run"]["error"] or {}).get("hint")
    if hint:
        say(str(hint))
    section = results.comparison(content)
    if content["run"]["status"] == "completed" and section.tables:
        say()
        say(f"{section.tables[0].caption}:")
        console.print(terminal_table(section.tables[0]))
        say()
        say(f"model   {run_dir / 'model'}")
    say(f"report  {report.get('html', run_dir / 'report.html')}")
    say()
    say("Next:")
    for what, command in settings.commands(content, run_dir)[:3]:
        say(f"  {command}   # {what[0].lower()}{what[1:]}")


def terminal_table(content: Table) -> RichTable:
    """Return a table of the report for a terminal."""
    table = RichTable(box=None, pad_edge=False)
    for name, numeric in zip(content.head, content.numeric, strict=True):
        table.add_column(Text(name), justify="right" if numeric else "left", no_wrap=True)
    tones = {"good": "green", "bad": "red"}
    for row in content.rows:
        table.add_row(*(Text(cell.text, style=tones.get(cell.tone, "")) for cell in row))
    return table
