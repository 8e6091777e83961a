"""A query and its response, with optional system prompt and earlier turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft.fields import exchange, history_of, optional_text_of, text_of
from distft.plugin import Format, Row


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    return columns["query"] in raw and columns["response"] in raw


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    return {
        "messages": exchange(
            text_of(raw, columns["query"]),
            optional_text_of(raw, columns["response"]),
            system=optional_text_of(raw, columns["system"]),
            history=history_of(raw, columns["history"]),
        )
    }


FORMAT = Format(
    name="query_response",
    summary="a query, optional system and history ([query, response] pairs), and the response",
    row="conversation",
    columns={
        "query": "query",
        "response": "response",
        "system": "system",
        "history": "history",
    },
    target="response",
    example={
        "query": "And of Italy?",
        "response": "Rome.",
        "history": [["What is the capital of France?", "Paris."]],
    },
    detect=_detect,
    read=_read,
)
