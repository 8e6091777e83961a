"""A counted piece of work as a bar in a terminal, or as a line now and then where there is none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from distft.report.show import duration

LINE_EVERY_S = 20.0
SPEED_OVER_S = 120.0
"""A part of slow work, such as a batch of written answers, may take half of that."""


@contextlib.contextmanager
def counting(
    what: str, console: Console, unit: str = "rows"
) -> Iterator[Callable[[int, int], None]]:
    """Show how much of a piece of work is done, how fast, and how long the rest will take.

    Args:
        what: Such as `preparing the data`.
        console: Where.
        unit: What is counted.

    Yields:
        A function to call with (done, total).
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
    )
    if not console.is_terminal:
        console.print(f"{what} ...", highlight=False)
        yield _lines(what, console, unit)
        return
    with Progress(*columns, console=console, speed_estimate_period=SPEED_OVER_S) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Rate(ProgressColumn):
    """What was done in a second of late; rich leaves out how far it was when it began."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{_rate(speed)} {self._unit}/s")


def _rate(a_second: float) -> str:
    return f"{a_second:,.0f}" if a_second >= 10 else f"{a_second:.2g}"


def _lines(what: str, console: Console, unit: str) -> Callable[[int, int], None]:
    """Return what prints a line, at most every 20 s, from the second part of the work on."""
    first: tuple[float, int] | None = None
    last_s = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal first, last_s
        now_s = time.monotonic()
        if first is None:
            # What came before the first part, such as loading a model or the rows of an earlier
            # attempt, says nothing of the rest.
            first = (now_s, done)
        elif first[1] < done < total and now_s - last_s >= LINE_EVERY_S:
            rate = (done - first[1]) / (now_s - first[0])
            left = duration((total - done) / rate)
            last_s = now_s
            said = f"{what}: {done}/{total}  {_rate(rate)} {unit}/s  ETA {left}"
            console.print(said, highlight=False)

    return tell
