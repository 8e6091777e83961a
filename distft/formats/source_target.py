"""A text and what becomes of it: translation, summary, answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft.fields import optional_text_of, text_of
from distft.plugin import Format, Row


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    return columns["source"] in raw and columns["target"] in raw


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    return {
        "source": text_of(raw, columns["source"]),
        "target": optional_text_of(raw, columns["target"]),
    }


FORMAT = Format(
    name="source_target",
    summary="a source text and the target text to write for it",
    row="text_to_text",
    columns={"source": "source", "target": "target"},
    target="target",
    example={"source": "Das Ventil schliesst.", "target": "The valve closes."},
    detect=_detect,
    read=_read,
)
