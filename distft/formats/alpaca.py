"""Instruction, optional input, output; optional system prompt and earlier turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft.fields import exchange, history_of, optional_text_of, text_of
from distft.plugin import Format, Row


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    return columns["instruction"] in raw and columns["output"] in raw


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    instruction = text_of(raw, columns["instruction"])
    given = optional_text_of(raw, columns["input"])
    return {
        "messages": exchange(
            instruction if given is None else f"{instruction}\n{given}",
            optional_text_of(raw, columns["output"]),
            system=optional_text_of(raw, columns["system"]),
            history=history_of(raw, columns["history"]),
        )
    }


FORMAT = Format(
    name="alpaca",
    summary="instruction, optional input, system and history, and the output to learn",
    row="conversation",
    columns={
        "instruction": "instruction",
        "input": "input",
        "output": "output",
        "system": "system",
        "history": "history",
    },
    target="output",
    example={
        "instruction": "Translate into English.",
        "input": "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002",
        "output": "The weather is nice today.",
    },
    detect=_detect,
    read=_read,
)
