"""What a command prints: one document on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distft.errors import ConfigError, PlanError, nearest

if TYPE_CHECKING:
    from rich.console import RenderableType

_PIPE_COLUMNS = 160

Show = Callable[[Any, "RenderableType"], None]


@contextlib.contextmanager
def answer(as_json: bool) -> Iterator[Show]:
    """Collect what a command has to say; it is all that reaches stdout.

    Args:
        as_json: Print the document, not the text.

    Yields:
        show(document, text).
    """
    from rich.console import Console

    shown: list[Any] = []
    with _stdout_to_stderr():
        yield lambda document, text: shown.append(document if as_json else text)
    for what in shown:
        if as_json:
            text = json.dumps(what, indent=2, ensure_ascii=False, default=str)
            sys.stdout.write(text + "\n")
        elif isinstance(what, str):
            sys.stdout.write(what + "\n" if what else "")
        else:
            # Where few characters are known, the others are shown as escapes.
            if reconfigure := getattr(sys.stdout, "reconfigure", None):
                reconfigure(errors="backslashreplace")
            # What is piped has no width of its own; 80 columns would cut a table.
            fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
            Console(width=None if fixed else _PIPE_COLUMNS).print(what)


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    # The file descriptor, not sys.stdout: Ray and DeepSpeed log to it from C++ and from children.
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        # A log handler made meanwhile keeps the stream it found.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def write_new(path: Path, text: str) -> None:
    """Write a file that must not exist.

    Args:
        path: The file.
        text: What it shall hold.

    Raises:
        PlanError: It exists.
        ConfigError: It cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise PlanError(f"{path} exists already.", "Name another file, or remove it.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error


def written(path: Path) -> str:
    """Return what to say of a config that was written."""
    return f"Wrote {path}. Try: distft plan {path}"


def lines(values: Mapping[str, Any]) -> str:
    """Return one line per value; a mapping of mappings, such as per-class metrics, is indented.

    Args:
        values: Name -> value.

    Returns:
        The text.
    """
    said: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            said += [f"{name}:", *(f"  {line}" for line in lines(value).splitlines())]
        else:
            text = (
                f"{value:.4g}"
                if isinstance(value, float)
                else _cell(value)
                if value != {}
                else "none"
            )
            said.append(f"{name}: {text}")
    return "\n".join(said)


def one_of(rows: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Return the row of a name.

    Args:
        rows: With `name`.
        name: The name.

    Returns:
        The row.

    Raises:
        ConfigError: No row has that name; the text says which there are.
    """
    known = [row["name"] for row in rows]
    if name not in known:
        raise ConfigError(
            f"{name!r} is not known{nearest(name, known)}; allowed: {', '.join(known)}."
        )
    return rows[known.index(name)]


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> RenderableType:
    """Return rows as a table for the terminal.

    Args:
        rows: At least one; all with the same names.
        names: Which of them to show; default: all.

    Returns:
        What rich prints.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = names or list(rows[0])
    for name in names:
        # Only what is told in words may take several lines.
        drawn.add_column(name, overflow="fold", no_wrap=name in ("name", "rows"))
    for row in rows:
        drawn.add_row(*(Text(_cell(row[name])) for name in names))
    return drawn


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_cell(each)}" for name, each in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
