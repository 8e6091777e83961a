"""What a migration is shown as: our YAML with the origin of each key, and a list of their keys."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from distft.migrate.convert import Migration

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
    said = ""
    for key, value in made.config.items():
        if isinstance(value, Mapping):
            lines.append(f"{key}:")
        for inner, one in value.items() if isinstance(value, Mapping) else ((None, value),):
            path = key if inner is None else f"{key}.{inner}"
            indent = "" if inner is None else "  "
            comment, line = _line(path, one, notes)
            if comment != said:
                lines += _comment(comment, f"{indent}# ", f"{indent}# ")
            said = comment
            lines.append(indent + line)
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
        lines += [f"{title}: {len(entries)}"] + [f"  {entry.said}" for entry in entries]
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


def _line(path: str, value: Any, notes: Mapping[str, tuple[Sequence[str], str]]) -> tuple[str, str]:
    """Return what to say above a key, and the key with its value and, where it differs, theirs."""
    sources, why = notes[path]
    key, told = path.rpartition(".")[2], ", ".join(sources)
    line = f"{key}: {_flow(value)}"
    if why:
        return f"{told}: {why}", line
    return "", line if list(sources) == [key] else f"{line}  # {told}"


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
