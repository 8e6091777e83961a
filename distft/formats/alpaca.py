"""Instruction, optional input, output; optional system prompt and earlier turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distft.plugin import Format, Row, UnusableRow


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    return columns["instruction"] in raw and columns["output"] in raw


def _text(raw: Mapping[str, Any], column: str) -> str:
    """Return a field's text; empty where the field is absent or null."""
    value = raw.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UnusableRow(f"field {column!r} must be text, got {type(value).__name__}")
    return value if value.strip() else ""


def _history(raw: Mapping[str, Any], column: str) -> Iterator[dict[str, str]]:
    turns = raw.get(column) or []
    if not isinstance(turns, list):
        raise UnusableRow(f"field {column!r} must be a list of [question, answer] pairs")
    for turn in turns:
        pair = isinstance(turn, list) and len(turn) == 2
        if not pair or not all(isinstance(text, str) and text.strip() for text in turn):
            raise UnusableRow(f"field {column!r} must be a list of [question, answer] pairs")
        yield {"role": "user", "content": turn[0]}
        yield {"role": "assistant", "content": turn[1]}


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    instruction = _text(raw, columns["instruction"])
    if not instruction:
        raise UnusableRow(f"field {columns['instruction']!r} is missing or empty")
    system = _text(raw, columns["system"])
    question = [text for text in (instruction, _text(raw, columns["input"])) if text]
    answer = _text(raw, columns["output"])
    messages = [
        *([{"role": "system", "content": system}] if system else []),
        *_history(raw, columns["history"]),
        {"role": "user", "content": "\n".join(question)},
        *([{"role": "assistant", "content": answer}] if answer else []),
    ]
    return {"messages": messages}


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
