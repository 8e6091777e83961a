"""Words and one tag each: JSON lines, or column files (.conll, .bio, .iob)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft.plugin import Format, Row, UnusableRow


def _detect(raw: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    return isinstance(raw.get(columns["tokens"]), list) and columns["tags"] in raw


def _words(raw: Mapping[str, Any], column: str) -> list[str]:
    words = raw.get(column)
    if words is None:
        raise UnusableRow(f"field {column!r} is missing")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UnusableRow(f"field {column!r} must be a list of words")
    if not any(word.strip() for word in words):
        raise UnusableRow(f"field {column!r} holds no word")
    return words


def _tags(raw: Mapping[str, Any], column: str) -> list[str] | None:
    tags = raw.get(column)
    if tags is None:
        return None
    if not isinstance(tags, list):
        raise UnusableRow(f"field {column!r} must be a list of tags, got {type(tags).__name__}")
    if any(isinstance(tag, int) for tag in tags):
        raise UnusableRow(
            f"field {column!r} holds numbers: write each tag's name, such as B-PER, in their "
            "place; the data set's own list of names says which is which"
        )
    if not all(isinstance(tag, str) and tag.strip() for tag in tags):
        raise UnusableRow(f"field {column!r} must hold tags as text, none of them empty")
    return [tag.strip() for tag in tags]


def _read(raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    words, tags = _words(raw, columns["tokens"]), _tags(raw, columns["tags"])
    if tags is not None and len(tags) != len(words):
        raise UnusableRow(
            f"fields {columns['tokens']!r} and {columns['tags']!r} differ in length: "
            "every word needs one tag"
        )
    return {"words": words, "tags": tags}


FORMAT = Format(
    name="ner",
    summary="words and a tag each, such as B-PER and O; .conll, .bio and .iob files too",
    row="tagged_words",
    columns={"tokens": "tokens", "tags": "ner_tags"},
    target="tags",
    example={
        "tokens": ["Ada", "Lovelace", "lived", "in", "London", "."],
        "ner_tags": ["B-PER", "I-PER", "O", "O", "B-LOC", "O"],
    },
    detect=_detect,
    read=_read,
)
