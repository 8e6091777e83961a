"""A text and any number of labels: a JSON list, or one text with the names separated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft.fields import label_of, text_of
from distft.plugin import Format, Row, UnusableRow

_SEPARATORS = ("|", ";", ",")


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    return columns["text"] in raw and isinstance(raw.get(columns["labels"]), (list, str))


def _labels(value: object, column: str) -> list[str] | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        value = _split(value, column)
    if not isinstance(value, list):
        raise UnusableRow(
            f"field {column!r} must be a list of labels, or text with {' or '.join(_SEPARATORS)} "
            f"between them, got {type(value).__name__}"
        )
    names = [label_of(one, column) for one in value]
    if None in names:
        raise UnusableRow(f"field {column!r} holds a label that is null or empty")
    return list(dict.fromkeys(name for name in names if name is not None))


def _split(text: str, column: str) -> list[str]:
    used = [separator for separator in _SEPARATORS if separator in text]
    if len(used) > 1:
        raise UnusableRow(
            f"field {column!r} holds {' and '.join(used)}: which of them separates labels is "
            "unclear; use one, or a JSON list"
        )
    return text.split(used[0]) if used else [text]


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    return {
        "text": text_of(raw, columns["text"]),
        "labels": _labels(raw.get(columns["labels"]), columns["labels"]),
    }


FORMAT = Format(
    name="multilabel",
    summary="a text and its labels: a list (empty: none applies), or text with | or ; or , between",
    row="multi_labelled_text",
    columns={"text": "text", "labels": "labels"},
    target="labels",
    example={"text": "Great picture, poor battery.", "labels": ["screen", "battery"]},
    detect=_detect,
    read=_read,
)
