"""Two texts and the one label of both: inference, paraphrase, question and passage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft.fields import is_class_name, label_of, text_of
from distft.plugin import Format, Row


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    texts = columns["text"] in raw and columns["pair"] in raw
    return texts and is_class_name(raw.get(columns["label"]))


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    return {
        "text": text_of(raw, columns["text"]),
        "pair": text_of(raw, columns["pair"]),
        "label": label_of(raw.get(columns["label"]), columns["label"]),
    }


FORMAT = Format(
    name="text_pair",
    summary="two texts and their label; columns such as {text: premise, pair: hypothesis}",
    row="labelled_text",
    columns={"text": "text", "pair": "pair", "label": "label"},
    target="label",
    example={"text": "A man plays the guitar.", "pair": "Nobody plays.", "label": "contradiction"},
    detect=_detect,
    read=_read,
)
