"""How a fact is shown: numbers as short text, and cells that remember where they came from.

Every number on a page is looked up in the report's JSON document by JSON pointer (RFC 6901), so
page, Markdown and JSON cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]
"""The content of report.json."""

NOTHING = "-"


@dataclass(frozen=True)
class Cell:
    """One value of a table."""

    text: str
    value: Any = None
    """The number behind the text; None for words."""
    at: str = ""
    """JSON pointer of the value in report.json; empty for words and sums made for the page."""
    tone: str = ""
    """`good`, `bad`, `warn` or nothing."""
    share: float = 0.0
    """How strongly a cell of a confusion matrix is shaded, 0 to 1."""

    @property
    def is_number(self) -> bool:
        """Whether the cell is set like a number."""
        return self.value is not None


@dataclass(frozen=True)
class Table:
    """Rows under one caption; the first column names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    kind: str = ""
    """`wide`: over the whole page; `matrix`: a confusion matrix; `board`: many rows and columns
    with the first ones in view; `long`: opens on demand."""
    marked: int = -1
    """Index of the row set apart, such as the recommended one; -1: none."""

    @property
    def is_wide(self) -> bool:
        """Whether it needs the whole width of a page."""
        return bool(self.kind) or len(self.head) > 3

    @property
    def numeric(self) -> list[bool]:
        """For each column whether it is set like numbers: it holds one, and no words."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.head)
        return [
            any(cell.is_number for cell in column)
            and all(cell.is_number or cell.text == NOTHING for cell in column)
            for column in columns
        ]


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    tables: Sequence[Table] = field(default_factory=tuple)
    lead: str = ""
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def is_filled(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.tables or self.notes or self.lead)


def pointer(*parts: str | int) -> str:
    """Return the JSON pointer of a path of keys and positions."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def look_up(document: Any, path: str) -> Any:
    """Return what stands at a JSON pointer, or None.

    Args:
        document: Plain JSON data.
        path: The pointer, such as `/run/best/eval_loss`.

    Returns:
        The value; None where any part of the path is missing.
    """
    for part in path.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict):
            document = document.get(key)
        elif isinstance(document, list) and key.isdecimal() and int(key) < len(document):
            document = document[int(key)]
        else:
            return None
    return document


def number(value: float) -> str:
    """Return a number in four significant digits; whole ones in full with thousands apart."""
    if not math.isfinite(value):
        return "not finite"
    if isinstance(value, int) or (value == int(value) and 1000 <= abs(value) < 1e15):
        return f"{int(value):,}"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1:
        return f"{value:.4f}"
    if 1 <= abs(value) < 1e6:
        digits = max(0, 3 - int(math.log10(abs(value))))
        return f"{value:,.{digits}f}"
    return f"{value:.2e}"


def size(value: float) -> str:
    """Return a number of bytes in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.1f} {unit}" if value < 9.95 and unit != "B" else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def duration(seconds: float) -> str:
    """Return a time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.1f} %"


def words(text: Any) -> Cell:
    """Return a cell of words."""
    if text is None or text == "":
        return Cell(NOTHING)
    return Cell(str(text))


def cell(document: Document, path: str, how: Callable[[Any], str] = number, tone: str = "") -> Cell:
    """Return the cell of the value at a JSON pointer.

    Args:
        document: The report's document.
        path: Where the value stands.
        how: What makes text of a number.
        tone: `good`, `bad` or nothing.

    Returns:
        The cell; a dash where there is no value.
    """
    value = look_up(document, path)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(how(value), value, path, tone)
    return words(value)


def label(metric: str) -> str:
    """Return the name of a metric as a reader says it: `eval_f1_macro` -> `macro F1`."""
    known = {
        "entity_f1": "entity F1",
        "entity_f1_macro": "entity macro F1",
        "f1_macro": "macro F1",
        "f1_micro": "micro F1",
        "precision_macro": "macro precision",
        "precision_micro": "micro precision",
        "recall_macro": "macro recall",
        "recall_micro": "micro recall",
        "majority_accuracy": "accuracy of the most frequent class",
        "mae": "MAE",
        "mean_mse": "MSE of the mean",
        "mse": "MSE",
        "pearson": "Pearson correlation",
        "r2": "R2",
        "rmse": "RMSE",
        "spearman": "Spearman correlation",
        "subset_accuracy": "all labels of a row right",
        "targets": "trained targets",
    }
    plain = metric.removeprefix("eval_")
    return known.get(plain, plain.replace("_", " "))
