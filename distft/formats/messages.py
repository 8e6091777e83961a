"""Conversations as chat APIs write them: a list of {role, content}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft.plugin import Format, Row, UnusableRow

_ROLES = ("system", "user", "assistant")
_UNSUPPORTED = ("tool_calls", "function_call")


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    return isinstance(raw.get(columns["messages"]), list)


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    column = columns["messages"]
    turns = raw.get(column)
    if turns is None:
        raise UnusableRow(f"field {column!r} is missing")
    if not isinstance(turns, list):
        raise UnusableRow(
            f"field {column!r} must be a list of {{role, content}}, got {type(turns).__name__}"
        )
    if not turns:
        raise UnusableRow(f"field {column!r} is empty")
    messages = [_message(turn, column) for turn in turns]
    if any(message["role"] == "system" for message in messages[1:]):
        raise UnusableRow(f"field {column!r}: a system message may only come first")
    return {"messages": messages}


def _message(turn: object, column: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise UnusableRow(
            f"field {column!r} must be a list of {{role, content}}, "
            f"got a list with {type(turn).__name__}"
        )
    role, content = turn.get("role"), turn.get("content")
    if role not in _ROLES:
        raise UnusableRow(
            f"field {column!r}: unknown or missing role {role!r}; allowed: {', '.join(_ROLES)}"
        )
    for key in _UNSUPPORTED:
        if turn.get(key):
            raise UnusableRow(f"field {column!r}: a message with {key!r} is not supported")
    if not isinstance(content, str) or not content.strip():
        raise UnusableRow(f"field {column!r}: a message's 'content' is missing, empty or not text")
    return {"role": role, "content": content}


FORMAT = Format(
    name="messages",
    summary="a list of {role, content} turns; roles system, user, assistant",
    row="conversation",
    columns={"messages": "messages"},
    target="messages",
    example={
        "messages": [
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "Paris."},
        ]
    },
    detect=_detect,
    read=_read,
)
