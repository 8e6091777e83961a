"""A counted piece of work as a bar in a terminal, or as one line where there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


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
        yield lambda done, total: None
        return
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
