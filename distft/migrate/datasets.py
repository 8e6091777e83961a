"""Their data sets -> `data.train` and its kin: files or addresses, one format, its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distft import plugin
from distft.migrate.rules import Outcome, wrong

HUB_FILES = (
    "the data files at the top of that hub repository; where they lie deeper, name them, such as "
    "hf://datasets/ORG/NAME/data/train-*.parquet"
)


@dataclass(frozen=True)
class Rows:
    """One of their data sets, in our words."""

    name: str
    spec: str
    """Path or address."""
    format: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """Role -> column, as they have it."""
    notes: Sequence[str] = ()
    """What is not the same."""


def hub(name: str) -> str:
    """Return the address of a data set on the hub."""
    return f"hf://datasets/{name}"


def local(path: Path) -> str:
    """Return how a file is written: below the working directory relative to it, else absolute."""
    whole = path.absolute().resolve()
    here = Path().resolve()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)


def outcome(key: str, sets: Sequence[Rows], shares: Sequence[float] = ()) -> Outcome:
    """Return our settings for data sets that are read together.

    Args:
        key: `train` or `eval`.
        sets: At least one.
        shares: Of each set but the first, where they are drawn from by shares.

    Returns:
        Files, format and columns; refused where the sets differ in these.
    """
    first = sets[0]
    for other in sets[1:]:
        if (other.format, dict(other.columns)) != (first.format, dict(first.columns)):
            return wrong(
                f"{first.name} is {_described(first)}, {other.name} is {_described(other)}: distft "
                "reads one format and one set of columns in a run; write the rows of one as those "
                "of the other"
            )
    known = plugin.formats()[first.format].columns
    columns = {role: name for role, name in first.columns.items() if known.get(role) != name}
    ours: dict[str, Any] = {"data.format": first.format}
    specs = [one.spec for one in sets]
    if shares:
        ours["data.train"] = specs[0]
        ours["data.mix"] = dict(zip(specs[1:], shares, strict=True))
    else:
        ours[f"data.{key}"] = specs[0] if len(specs) == 1 else specs
    if columns:
        ours["data.columns"] = columns
    notes = list(dict.fromkeys(note for one in sets for note in one.notes))
    if shares:
        notes.append("an epoch is one pass over the first set; the others are drawn by shares")
    return Outcome("decided" if notes else "mapped", "; ".join(notes), ours)


def _described(one: Rows) -> str:
    columns = ", ".join(f"{role}={name}" for role, name in one.columns.items())
    return f"{one.format} ({columns})" if columns else one.format
