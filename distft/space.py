"""What a search draws from, and what it must keep, as plain data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LIMITED = ("trainable_params", "peak_memory")
"""What a limit may name: trained parameters; planned bytes of model states on one worker."""

_UNITS = {
    "": 1.0,
    **{unit: 1000.0**power for power, unit in enumerate("KMBT", start=1)},
    **{f"{unit}B": 1000.0**power for power, unit in enumerate("KMGT", start=1)},
    **{f"{unit}iB": 1024.0**power for power, unit in enumerate("KMGT", start=1)},
}


@dataclass(frozen=True)
class Range:
    """A numeric range a search may draw from; whole numbers when both ends are."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Values = Range | tuple[Any, ...]
"""A range, or choices; one choice is a constant."""


@dataclass(frozen=True)
class Limit:
    """One constraint: `name` must not be above `most`."""

    name: str
    most: float
    text: str
    """As it was written."""


def parse_values(path: str, value: Any) -> Values:
    """Return what a key of `tune.space` may be.

    Args:
        path: Dotted config path, for messages.
        value: `{low, high, log}`, a list of choices, or a constant.

    Returns:
        The range or the choices.

    Raises:
        ValueError: It is none of them; the text says what is allowed.
    """
    if isinstance(value, list):
        if not value or not all(isinstance(v, str | int | float | bool) for v in value):
            raise ValueError(f"{path}: a list of choices holds words and numbers; got {value!r}")
        return tuple(dict.fromkeys(value))
    if not isinstance(value, Mapping):
        return (value,)
    low, high, log = value.get("low", ""), value.get("high", ""), value.get("log", False)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
    if not numbers or not isinstance(log, bool) or set(value) - {"low", "high", "log"}:
        raise ValueError(
            f"{path}: a range is {{low: NUMBER, high: NUMBER, log: true or false}}; got "
            f"{dict(value)!r}"
        )
    if not -math.inf < low < high < math.inf or (log and low <= 0):
        raise ValueError(
            f"{path}: low must be below high, both finite, and low above 0 with log; got low "
            f"{low:g}, high {high:g}"
        )
    return Range(low, high, log)


def parse_limit(text: str) -> Limit:
    """Return one constraint.

    Args:
        text: Such as `trainable_params <= 10M` or `peak_memory <= 24GB`.

    Returns:
        The limit.

    Raises:
        ValueError: It does not read so.
    """
    number = r"([0-9]+(?:\.[0-9]+)?(?:[eE][0-9]+)?)"
    match = re.fullmatch(rf"\s*(\w+)\s*<=\s*{number}\s*(\w*)\s*", text)
    known = match is not None and match[1] in LIMITED and match[3] in _UNITS
    if match is None or not known or float(match[2]) == 0:
        raise ValueError(
            f"a constraint is NAME <= NUMBER above 0, such as 'trainable_params <= 10M' or "
            f"'peak_memory <= 24GB'; NAME is one of {', '.join(LIMITED)}; got {text!r}"
        )
    return Limit(match[1], float(match[2]) * _UNITS[match[3]], text.strip())
