"""A counted piece of work as a bar in a terminal, or as a line now and then where there is none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distft.report.show import duration

LINE_EVERY_S = 20.0


@contextlib.contextmanager
def counting(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show how much of a piece of work is done.

    Args:
        what: Such as `preparing the data`.
        console: Where.

    Yields:
        A function to call with (done, total).
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    if not console.is_terminal:
        console.print(f"{what} ...", highlight=False)
        yield _lines(what, console)
        return
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(what: str, console: Console) -> Callable[[int, int], None]:
    """Return what prints a line, at most every 20 s, from the second part of the work on."""
    first: tuple[float, int] | None = None
    last_s = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal first, last_s
        now_s = time.monotonic()
        if first is None:
            # What came before the first part, such as loading a model, says nothing of the rest.
            first = (now_s, done)
        elif first[1] < done < total and now_s - last_s >= LINE_EVERY_S:
            left_s = (now_s - first[0]) / (done - first[1]) * (total - done)
            last_s = now_s
            console.print(f"{what}: {done}/{total}  ETA {duration(left_s)}", highlight=False)

    return tell
