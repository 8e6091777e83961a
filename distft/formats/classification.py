"""One text and one label per row: CSV, TSV, JSON or JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft.plugin import Format, Row, UnusableRow


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    return columns["text"] in raw and columns["label"] in raw


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    text = raw.get(columns["text"])
    if text is None:
        raise UnusableRow(f"field {columns['text']!r} is missing")
    if not isinstance(text, str):
        raise UnusableRow(f"field {columns['text']!r} must be text, got {type(text).__name__}")
    if not text.strip():
        raise UnusableRow(f"field {columns['text']!r} is empty")
    return {"text": text, "label": _label(raw.get(columns["label"]), columns["label"])}


def _label(value: object, column: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise UnusableRow(
            f"field {column!r} must be text, a whole number or true/false, "
            f"got {type(value).__name__}"
        )
    # An empty cell is how a CSV says that there is no label.
    return value.strip() or None


FORMAT = Format(
    name="classification",
    summary="a text and its label",
    row="labelled_text",
    columns={"text": "text", "label": "label"},
    target="label",
    example={"text": "Works as described, would buy again.", "label": "positive"},
    detect=_detect,
    read=_read,
)
