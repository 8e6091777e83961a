"""Conversations of {from, value} turns, with optional system prompt and tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from distft.fields import Message, optional_text_of
from distft.plugin import Format, Row, UnusableRow

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "system": "system",
}
"""`from` -> role. A call is what the assistant says: its content is the call's JSON."""


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    turns = raw.get(columns["conversations"])
    return isinstance(turns, list) and any(
        isinstance(turn, dict) and "from" in turn for turn in turns
    )


def _message(turn: object, column: str) -> Message:
    if not isinstance(turn, dict):
        raise UnusableRow(
            f"field {column!r} must be a list of {{from, value}}, "
            f"got a list with {type(turn).__name__}"
        )
    speaker, value = turn.get("from"), turn.get("value")
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise UnusableRow(
            f"field {column!r}: unknown or missing speaker {speaker!r}; "
            f"allowed: {', '.join(_ROLES)}"
        )
    if speaker == "function_call" and isinstance(value, (dict, list)):
        value = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str) or not value.strip():
        raise UnusableRow(f"field {column!r}: a turn's 'value' is missing, empty or not text")
    if speaker == "function_call" and not _is_call(value):
        raise UnusableRow(
            f"field {column!r}: a function_call must be JSON with the function's 'name'"
        )
    return {"role": _ROLES[speaker], "content": value}


def _is_call(text: str) -> bool:
    try:
        calls = json.loads(text)
    except (ValueError, RecursionError):
        return False
    calls = calls if isinstance(calls, list) else [calls]
    return bool(calls) and all(isinstance(call, dict) and call.get("name") for call in calls)


def _tools(value: object, column: str) -> list[dict[str, Any]]:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UnusableRow(f"field {column!r} must be a list of tools, or its JSON") from None
    if value is None or value == "":
        return []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UnusableRow(f"field {column!r} must be a list of tools, or its JSON")
    return value


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    column = columns["conversations"]
    turns = raw.get(column)
    if turns is None:
        raise UnusableRow(f"field {column!r} is missing")
    if not isinstance(turns, list):
        raise UnusableRow(
            f"field {column!r} must be a list of {{from, value}}, got {type(turns).__name__}"
        )
    if not turns:
        raise UnusableRow(f"field {column!r} is empty")
    messages = _with_system(
        [_message(turn, column) for turn in turns], optional_text_of(raw, columns["system"]), column
    )
    tools = _tools(raw.get(columns["tools"]), columns["tools"])
    return {"messages": messages, **({"tools": tools} if tools else {})}


def _with_system(messages: list[Message], system: str | None, column: str) -> list[Message]:
    if any(message["role"] == "system" for message in messages[1:]):
        raise UnusableRow(f"field {column!r}: a system turn may only come first")
    if system is None:
        return messages
    if messages[0]["role"] == "system":
        raise UnusableRow(f"field {column!r} has a system turn beside the row's system prompt")
    return [{"role": "system", "content": system}, *messages]


FORMAT = Format(
    name="sharegpt",
    summary="a list of {from, value} turns, optional system and tools; calls and their results too",
    row="conversation",
    columns={"conversations": "conversations", "system": "system", "tools": "tools"},
    target="conversations",
    example={
        "conversations": [
            {"from": "human", "value": "What is the capital of France?"},
            {"from": "gpt", "value": "Paris."},
        ],
        "system": "Be brief.",
    },
    detect=_detect,
    read=_read,
)
