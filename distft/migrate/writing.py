"""What a migration is shown as: our YAML with the origin of each key, and a list of their keys."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from distft.migrate.convert import Migration
from distft.migrate.rules import shown

_WIDTH = 100


def config_text(made: Migration) -> str:
    """Return our YAML, with a comment where a key was chosen or bears another name there.

    Args:
        made: The migration.

    Returns:
        A file that `distft plan` reads; at its end what has no counterpart.
    """
    notes = _notes(made)
    lines = [
        f"# From {made.source.name} of {made.program}, by `distft migrate`.",
        "# `distft plan FILE` shows what it would do.",
    ]
    said: set[str] = set()
    for key, value in made.config.items():
        if isinstance(value, Mapping):
            lines.append(f"{key}:")
        for inner, one in value.items() if isinstance(value, Mapping) else ((None, value),):
            path = key if inner is None else f"{key}.{inner}"
            indent = "" if inner is None else "  "
            lines += _said_once(path, one, notes, said, indent)
    absent = [entry for entry in made.of("absent") if entry.value is not None]
    if absent:
        lines += ["", "# Without counterpart:"]
        for entry in absent:
            lines += _comment(entry.said, "# - ", "#   ")
    return "\n".join(lines) + "\n"


def listing(made: Migration) -> str:
    """Return what became of each key, for a terminal.

    Args:
        made: The migration.

    Returns:
        A paragraph for each kind of outcome.
    """
    parts = {
        "mapped": made.of("mapped"),
        "decided by distft, since theirs means something else": made.of("decided"),
        "without counterpart": made.of("absent"),
        "not in the file; their defaults, which are not ours": list(made.implied),
    }
    lines = [f"{made.source} is a config of {made.program} (told by {', '.join(made.because)})"]
    for title, entries in parts.items():
        lines.append(f"{title}: {len(entries)}")
        for entry in entries:
            # Such as the paths of several sets, which all make data.train.
            first = next(one for one in entries if one.outcome == entry.outcome)
            again = entry.outcome.sets and first is not entry
            named = f"{shown(entry.key)}: {shown(entry.value)} -> as {first.key}"
            lines.append(f"  {named if again else entry.said}")
    return "\n".join(lines)


def _notes(made: Migration) -> dict[str, tuple[list[str], str]]:
    """Return for each of our keys the names of theirs, and why it was chosen."""
    found: dict[str, tuple[list[str], str]] = {}
    for entry in (*made.entries, *made.implied):
        for path in entry.outcome.sets:
            sources, why = found.setdefault(path, ([], ""))
            sources.append(entry.key)
            if entry.outcome.verdict == "decided":
                found[path] = (sources, why or entry.outcome.reason)
    return found


def _said_once(
    path: str,
    value: Any,
    notes: Mapping[str, tuple[Sequence[str], str]],
    said: set[str],
    indent: str,
) -> list[str]:
    """Return a key with its value; why it was chosen stands above the first key it holds for."""
    sources, why = notes[path]
    key, told = path.rpartition(".")[2], ", ".join(sources)
    reason = f"{told}: {why}" if why else ""
    line = f"{indent}{key}: {_flow(value)}"
    if reason and reason not in said:
        said.add(reason)
        return [*_comment(reason, f"{indent}# ", f"{indent}# "), line]
    return [line if list(sources) == [key] else f"{line}  # {told}"]


def _flow(value: Any) -> str:
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(text: str, first: str, later: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )
