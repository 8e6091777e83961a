"""One text and one label per row: CSV, TSV, JSON or JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft.fields import is_class_name, label_of, text_of
from distft.plugin import Format, Row


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    return columns["text"] in raw and is_class_name(raw.get(columns["label"]))


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    return {
        "text": text_of(raw, columns["text"]),
        "label": label_of(raw.get(columns["label"]), columns["label"]),
    }


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
