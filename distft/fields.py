"""A raw row's fields by kind: text, label, number, earlier turns. A wrong one has a reason."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from distft.plugin import UnusableRow

Message = dict[str, str]
"""{"role", "content"} of a conversation."""

_LARGEST = 3.4e38
_DECIMAL = re.compile(r"[+-]?(?=[0-9.]*[.eE])([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def text_of(raw: Mapping[str, Any], column: str) -> str:
    """Return a field's text.

    Args:
        raw: A row as it stands in a file.
        column: Name of the field.

    Returns:
        The text as it is, never blank.

    Raises:
        UnusableRow: The field is missing, no text, or blank.
    """
    value = raw.get(column)
    if value is None:
        raise UnusableRow(f"field {column!r} is missing")
    if not isinstance(value, str):
        raise UnusableRow(f"field {column!r} must be text, got {type(value).__name__}")
    if not value.strip():
        raise UnusableRow(f"field {column!r} is empty")
    return value


def optional_text_of(raw: Mapping[str, Any], column: str) -> str | None:
    """Return a field's text where it has one.

    Args:
        raw: A row as it stands in a file.
        column: Name of the field.

    Returns:
        The text as it is; None where the field is absent, null or blank.

    Raises:
        UnusableRow: The field is no text.
    """
    value = raw.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return text_of(raw, column)


def label_of(value: object, column: str) -> str | None:
    """Return a class name as text.

    Args:
        value: Text, a whole number or true/false.
        column: Its field, for the reason.

    Returns:
        `3` as "3", `true` as "true", text without spaces around it; None for null and for blank
        text, which is how a CSV says that there is no label.

    Raises:
        UnusableRow: It is of another type.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise UnusableRow(
            f"field {column!r} must be text, a whole number or true/false, "
            f"got {type(value).__name__}"
        )
    return value.strip() or None


def number_of(raw: Mapping[str, Any], column: str) -> float | None:
    """Return a field's number.

    Args:
        raw: A row as it stands in a file.
        column: Name of the field: a number, or text such as a CSV's "3.5".

    Returns:
        A finite number; None where the field is absent, null or blank.

    Raises:
        UnusableRow: It is no finite number.
    """
    value = raw.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UnusableRow(f"field {column!r} must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except ValueError:
        raise UnusableRow(f"field {column!r} must be a number such as 3.5, got text") from None
    except OverflowError:
        number = math.inf
    # Numbers are learnt in float32.
    if not abs(number) <= _LARGEST:
        raise UnusableRow(f"field {column!r} must be a finite number below 3.4e38")
    return number


def is_class_name(value: object) -> bool:
    """Return whether a value is surely the name of a class.

    Args:
        value: A field as it stands in a file.

    Returns:
        True for "good", 4, "4" and true; False for null, blank text, and for 4.0 and "4.0", which
        may be a class or a measure.
    """
    if not isinstance(value, (str, int)) or (isinstance(value, str) and not value.strip()):
        return False
    return _decimal(value) is None


def is_measure(value: object) -> bool:
    """Return whether a value is surely a measure and no class: a number with a fraction.

    Args:
        value: A field as it stands in a file.

    Returns:
        True for 3.5 and "3.50"; False for 4, "4", 4.0, "v1.2", true and null.
    """
    number = _decimal(value)
    return number is not None and not number.is_integer()


def _decimal(value: object) -> float | None:
    """Return the finite number that a value writes with a decimal point or an exponent."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        value = float(value)
    return value if isinstance(value, float) and math.isfinite(value) else None


def history_of(raw: Mapping[str, Any], column: str) -> list[Message]:
    """Return the earlier turns of a conversation.

    Args:
        raw: A row as it stands in a file.
        column: Name of the field: a list of [question, answer] pairs.

    Returns:
        A user's and an assistant's message per pair; empty where the field is absent or null.

    Raises:
        UnusableRow: It is no list of pairs of texts.
    """
    turns = raw.get(column) or []
    wrong = UnusableRow(f"field {column!r} must be a list of [question, answer] pairs")
    if not isinstance(turns, list):
        raise wrong
    messages: list[Message] = []
    for turn in turns:
        pair = isinstance(turn, list) and len(turn) == 2
        if not pair or not all(isinstance(text, str) and text.strip() for text in turn):
            raise wrong
        messages += exchange(turn[0], turn[1])
    return messages


def exchange(
    question: str,
    answer: str | None,
    *,
    system: str | None = None,
    history: Iterable[Message] = (),
) -> list[Message]:
    """Return a conversation of one question and its answer.

    Args:
        question: What the user says.
        answer: What the assistant says; None in a row to predict.
        system: The system prompt, where there is one.
        history: The turns before.

    Returns:
        Messages in order.
    """
    return [
        *([] if system is None else [{"role": "system", "content": system}]),
        *history,
        {"role": "user", "content": question},
        *([] if answer is None else [{"role": "assistant", "content": answer}]),
    ]
