"""What can become of one of their keys, and the rules that say so.

A rule is a function of the key's value and of the other keys. A program's table (`KEYS`) has one
for each key it knows, so that a new key is one line there.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distft.errors import nearest

Verdict = Literal["mapped", "decided", "absent", "refused"]

NOT_SET = "not set there either"
OFF = "off there, and here"
UNKNOWN = "distft knows no such key of theirs; `distft schema` lists its own"

_SECRET = re.compile(r"(hub_token|auth_token|api_key|secret|password)$", re.IGNORECASE)
_SAID_CHARS = 60


@dataclass(frozen=True)
class Outcome:
    """What becomes of a key."""

    verdict: Verdict
    """mapped: the same under our key. decided: theirs means something else, or we chose. absent:
    there is no counterpart. refused: without it, another thing would be trained."""
    reason: str = ""
    sets: Mapping[str, Any] = field(default_factory=dict)
    """Our dotted key -> value."""


@dataclass(frozen=True)
class Theirs:
    """Their config, and where the files lie that it names."""

    keys: Mapping[str, Any]
    """Flat; a section that the table knows by its keys is `section.key`."""
    path: Path
    """The file."""
    dataset_dir: Path | None = None
    """Folder of the data sets that was given on the command line."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value; the default where the key is missing or null."""
        value = self.keys.get(key)
        return default if value is None else value

    def find(self, name: str | Path) -> Path | None:
        """Return an existing file or folder.

        Args:
            name: As their config has it: absolute, or below the working directory, the config's
                folder or a folder above that one, since they start from their own root.

        Returns:
            Its path; None where it is on none of these.
        """
        for base in (Path(), *self.path.absolute().parents):
            found = base / Path(name).expanduser()
            with contextlib.suppress(OSError):  # such as a name that is too long
                if found.exists():
                    return found
        return None


Rule = Callable[[Any, Theirs], Outcome]


@dataclass(frozen=True)
class Program:
    """What is known of another program's configs."""

    name: str
    signs: tuple[str, ...]
    """Keys that only its configs have."""
    keys: Mapping[str, Rule]
    implied: Mapping[str, Rule]
    """Keys whose absence means something else there than here; the rule is given None."""


@dataclass(frozen=True)
class Entry:
    """One of their keys with its outcome."""

    key: str
    value: Any
    outcome: Outcome

    @property
    def said(self) -> str:
        """Key, value and what became of it on one line."""
        ours = ", ".join(f"{key}: {shown(value)}" for key, value in self.outcome.sets.items())
        key = shown(self.key)
        parts = [f"{key}: {shown(self.value)}" if self.value is not None else key]
        parts += [f"-> {ours}"] if ours else []
        return " ".join(parts) + (f" ({self.outcome.reason})" if self.outcome.reason else "")

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "key": self.key,
            "value": self.value,
            "ours": dict(self.outcome.sets),
            "reason": self.outcome.reason,
        }


def mapped(reason: str = "", **sets: Any) -> Outcome:
    """Return that a key means the same here; `train__seed=1` sets train.seed."""
    return Outcome("mapped", reason, _dotted(sets))


def decided(reason: str, **sets: Any) -> Outcome:
    """Return that a key became something near to it, and why."""
    return Outcome("decided", reason, _dotted(sets))


def missing(reason: str) -> Outcome:
    """Return that a key has no counterpart."""
    return Outcome("absent", reason)


def wrong(reason: str) -> Outcome:
    """Return that a config with this key cannot be carried over."""
    return Outcome("refused", reason)


def _dotted(sets: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in sets.items()}


def same(path: str, reason: str = "") -> Rule:
    """Return the rule of a key that is ours under this path."""
    return lambda value, theirs: Outcome("mapped", reason, {path: value})


def absent(reason: str) -> Rule:
    """Return the rule of a key without counterpart, unless it is off."""
    return lambda value, theirs: mapped(OFF) if value is False else missing(reason)


def refused(reason: str) -> Rule:
    """Return the rule of a key with which another thing is trained, unless it is off."""
    return lambda value, theirs: mapped(OFF) if value in (False, "") else wrong(reason)


def one_of(path: str, values: Mapping[Any, Any], reason: str, otherwise: Rule) -> Rule:
    """Return the rule of a key whose values bear other names here.

    Args:
        path: Our key.
        values: Theirs -> ours.
        reason: Said where the name changes.
        otherwise: For values that are not among them.

    Returns:
        The rule.
    """

    def rule(value: Any, theirs: Theirs) -> Outcome:
        # A list cannot be looked up.
        if not isinstance(value, (str, int, float)) or value not in values:
            return otherwise(value, theirs)
        ours = values[value]
        if ours == value:
            return Outcome("mapped", "", {path: ours})
        return Outcome("decided", reason, {path: ours})

    return rule


def whole_steps(path: str) -> Rule:
    """Return the rule of a number of steps, which there may be a share of all steps."""

    def rule(value: Any, theirs: Theirs) -> Outcome:
        if isinstance(value, float) and value < 1:
            return missing(f"there a share of all steps; {path} counts steps, and derives them")
        return Outcome("mapped", "", {path: int(value) if isinstance(value, float) else value})

    return rule


def names(value: Any) -> list[str]:
    """Return names that stand in a list, or in one text with commas between."""
    parts = value.split(",") if isinstance(value, str) else value
    return [str(part).strip() for part in parts if str(part).strip()]


def unknown(key: str, known: Collection[str]) -> Outcome:
    """Return what becomes of a key that the table does not hold."""
    return missing(UNKNOWN + nearest(key, known))


def shown(value: Any) -> str:
    """Return a value as one would write it on one line, at most 60 characters."""
    plain = isinstance(value, str) and value.isprintable() and value.strip() == value != ""
    text = value if plain else json.dumps(value, default=str, ensure_ascii=False)
    if not text.isprintable():
        text = json.dumps(value, default=str)
    return text if len(text) <= _SAID_CHARS else text[: _SAID_CHARS - 3] + "..."


def without_secrets(key: str, value: Any) -> Any:
    """Return a value that may be shown: no token, and no variable of an environment.

    Args:
        key: Its name.
        value: As it was read.

    Returns:
        The same with `***` in place of what may be secret.
    """
    if isinstance(value, Mapping):
        hidden = key == "env_vars"
        return {k: "***" if hidden else without_secrets(str(k), v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_secrets(key, one) for one in value]
    return "***" if isinstance(value, str) and _SECRET.search(key) else value
