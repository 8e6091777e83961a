"""A prompt and its completion, as one exchange of a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft.fields import exchange, optional_text_of, text_of
from distft.plugin import Format, Row


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    return columns["prompt"] in raw and columns["completion"] in raw


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    prompt = text_of(raw, columns["prompt"])
    return {"messages": exchange(prompt, optional_text_of(raw, columns["completion"]))}


FORMAT = Format(
    name="prompt_completion",
    summary="a prompt and the completion to learn",
    row="conversation",
    columns={"prompt": "prompt", "completion": "completion"},
    target="completion",
    example={"prompt": "The capital of France is", "completion": "Paris."},
    detect=_detect,
    read=_read,
)
