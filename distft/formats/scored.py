"""A text, or two, and a number: ratings, similarities, prices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft.fields import is_measure, number_of, text_of
from distft.plugin import Format, Row


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    return columns["text"] in raw and is_measure(raw.get(columns["label"]))


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    row: Row = {
        "text": text_of(raw, columns["text"]),
        "value": number_of(raw, columns["label"]),
    }
    if columns["pair"] in raw:
        row["pair"] = text_of(raw, columns["pair"])
    return row


FORMAT = Format(
    name="scored",
    summary="a text, optionally a second one (pair), and a number with a decimal point",
    row="rated_text",
    columns={"text": "text", "pair": "pair", "label": "label"},
    target="label",
    example={"text": "A man plays the guitar.", "pair": "Somebody makes music.", "label": 3.8},
    detect=_detect,
    read=_read,
)
