"""A look at training rows as an HTML page that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from distft import records
from distft.data.guard import UNTRAINED_SHARE
from distft.data.manifest import DroppedRow
from distft.data.preview import LISTED_ROWS, Preview
from distft.errors import ConfigError
from distft.report import preview as told
from distft.report import render
from distft.report.show import Cell, Section, Table, number, percent, words


def write(path: Path, preview: Preview) -> None:
    """Write a look as an HTML page that loads nothing.

    Args:
        path: Where it goes; see `check_page`.
        preview: The look.

    Raises:
        ConfigError: It cannot be written.
    """
    values = {
        "title": preview.name,
        "described": [
            f"task {preview.task}",
            f"format {preview.format}",
            preview.model,
            f"cutoff_len {preview.cutoff_len}",
        ],
        "verdict": _verdict(preview),
        "problems": told.problems(preview),
        "strip": _strip(preview),
        "histogram": preview.histogram,
        "most_rows": max((each.rows for each in preview.histogram), default=1),
        "lengths": told.lengths(preview),
        "lost": _lost(preview),
        "span": told.span,
        "legend": told.legend(preview, "Underlined and green"),
        "shown": preview.shown,
        "about": lambda row: told.about(row, preview),
        "visible": told.visible,
        "figures": (),
    }
    try:
        records.write_text(path, render.html("preview.html.j2", values))
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


def check_page(path: Path) -> None:
    """Refuse a page that could not be written, or would replace what is none.

    Args:
        path: Where the page is to go.

    Raises:
        ConfigError: It is no .html file, or its folder does not exist.
    """
    if path.suffix not in (".html", ".htm"):
        raise ConfigError(f"--html: got {path}; allowed: a file that ends in .html.")
    if not path.parent.is_dir():
        raise _unwritable(path, f"{path.parent} is no folder")


def _unwritable(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"--html: {path} cannot be written: {reason}.", "Name another file.")


def _verdict(preview: Preview) -> str:
    said = {
        "Looked at": told.looked_at(preview),
        "Trained": told.trained(preview),
        "Truncated": told.share(preview.truncated, preview),
    }
    return " ".join(f"{name}: {text}." for name, text in said.items() if text)


def _strip(preview: Preview) -> list[tuple[str, Cell]]:
    bad = preview.untrained > UNTRAINED_SHARE * preview.sampled
    cells = [
        ("training rows", Cell(f"{preview.rows['train']:,}")),
        ("looked at", Cell(f"{preview.sampled:,}")),
        ("tokens a row", Cell(number(preview.mean_tokens))),
        ("truncated", Cell(f"{preview.truncated:,}")),
        ("train nothing", Cell(f"{preview.untrained:,}", tone="bad" if bad else "")),
    ]
    if preview.trained_tokens is not None and preview.tokens:
        share = percent(preview.trained_tokens / preview.tokens)
        cells.insert(0, ("trained tokens", Cell(share)))
    return cells


def _lost(preview: Preview) -> Section:
    tables = []
    count = preview.untrained + preview.unusable
    many = max(count, preview.truncated) > LISTED_ROWS
    if preview.refused_rows:
        tables.append(_table(f"Training rows that cannot be used: {count:,}", preview.refused_rows))
    if preview.dropped_rows:
        caption = f"Rows in no split: {sum(preview.dropped.values()):,}"
        tables.append(_table(caption, preview.dropped_rows, preview.dropped))
    if preview.truncated_rows:
        caption = f"Truncated training rows: {preview.truncated:,}"
        tables.append(_table(caption, preview.truncated_rows))
    notes = [f"Of many rows the first {LISTED_ROWS} are listed."] if many else []
    return Section("lost", "What is lost", tables, notes=notes)


def _table(
    caption: str, rows: Sequence[DroppedRow], counts: Mapping[str, int] | None = None
) -> Table:
    cells = [[words(told.where(one)), words(told.visible(one.reason))] for one in rows]
    if counts is None:
        return Table(caption, ("row", "why"), cells, kind="wide")
    for line, one in zip(cells, rows, strict=True):
        line.append(Cell(f"{counts[one.reason]:,}"))
    return Table(caption, ("first row", "why", "rows"), cells, kind="wide")
