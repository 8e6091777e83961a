"""Plain text: JSON lines of {"text"}, or a .txt file with one text a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft.fields import text_of
from distft.plugin import Format, Row


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    # Beside other fields it may be the text of a labelled row whose label goes by another name.
    return list(raw) == [columns["text"]]


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    return {"text": text_of(raw, columns["text"])}


FORMAT = Format(
    name="text",
    summary="plain text: the only field of a row, or a line of a .txt file",
    row="plain_text",
    columns={"text": "text"},
    target="text",
    example={"text": "The valve closes when the pressure falls below 2 bar."},
    detect=_detect,
    read=_read,
)
