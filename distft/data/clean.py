"""Canonical rows -> cleaned ones, with what was changed, or why a row is left out. Pure.

Changes come before filters, so that a filter judges what the model would see. In this order a
cleaned row cleaned again stays as it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distft import languages, masking
from distft.config_sections import CleanConfig
from distft.plugin import Row, UnusableRow

Words = list[str]
"""One text of a row: the text alone, or a sentence's words."""

# Kept: tab and line feed, the joiners of Persian, Indic scripts and emoji (U+200C, U+200D), and
# format characters that are seen, such as the Arabic number sign.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0001\U000e0020-\U000e007f]"
)
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")

STEPS = (
    *("control_characters", "unicode", "mask"),
    *("empty", "min_chars", "max_chars", "languages", "near_duplicates"),
)
"""What is counted, in the order in which it is done."""

_SURE = 0.5
"""Probability from which a language counts as told."""
_BEFORE_CHARS, _AFTER_CHARS = 30, 60
"""Of an excerpt, around the first character that differs."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a step did to a row."""

    step: str
    before: str = ""
    """Excerpt; empty where the row holds something masked."""
    after: str | None = None
    """Excerpt; None where the step leaves the row out."""


class CleanedOut(UnusableRow):
    """A row that a filter leaves out: nothing is wrong with it.

    Args:
        reason: Counted in the manifest.
        changes: What was done to it; the last is that it is left out.
    """

    def __init__(self, reason: str, changes: Sequence[Change]) -> None:
        super().__init__(reason)
        self.changes = tuple(changes)


def clean_row(row: Row, config: CleanConfig, *, filters: bool) -> tuple[Row, tuple[Change, ...]]:
    """Return a row with its texts cleaned; labels, tags, roles and tools stay as they are.

    Args:
        row: A canonical row; it is not altered.
        config: Which steps.
        filters: Whether a row may also be left out for its length or language.

    Returns:
        The row, and what was changed in the order of the steps.

    Raises:
        CleanedOut: A text of it is empty after cleaning, or a filter leaves the row out.
    """
    parts = first = texts_of(row)
    found: list[tuple[str, list[Words], list[Words]]] = []
    for step, change in _steps(config):
        changed = [change(part) for part in parts]
        if changed != parts:
            found.append((step, parts, changed))
            parts = changed
    changes = _shown(found)
    if found and any(
        _blank(new) and not _blank(old) for old, new in zip(first, parts, strict=True)
    ):
        _leave_out("empty", "a text is empty after cleaning", parts, changes)
    if filters:
        _filter(parts, config, changes)
    return (_rebuilt(row, parts) if found else row), tuple(changes)


def texts_of(row: Row, *, target: bool = True) -> list[Words]:
    """Return the texts of a row.

    Args:
        row: A canonical row of any kind.
        target: Also the text to be written (`text_to_text`).

    Returns:
        A list of words each; one word for a text that is not cut into words.
    """
    if "messages" in row:
        return [[message["content"]] for message in row["messages"]]
    if "words" in row:
        return [list(row["words"])]
    names = [name for name in _TEXTS if target or name != "target"]
    return [[row[name]] for name in names if row.get(name) is not None]


_TEXTS = ("text", "pair", "source", "target")


def _rebuilt(row: Row, parts: Sequence[Words]) -> Row:
    if "messages" in row:
        pairs = zip(row["messages"], parts, strict=True)
        return {**row, "messages": [{**message, "content": part[0]} for message, part in pairs]}
    if "words" in row:
        return {**row, "words": parts[0]}
    names = [name for name in _TEXTS if row.get(name) is not None]
    return {**row, **{name: part[0] for name, part in zip(names, parts, strict=True)}}


def _steps(config: CleanConfig) -> list[tuple[str, Callable[[Words], Words]]]:
    steps: list[tuple[str, Callable[[Words], Words]]] = []
    form, kinds, region = config.unicode, config.mask, config.phone_region
    # Characters first: what stands between a letter and its accent would keep them apart.
    if config.control_characters:
        steps.append(("control_characters", lambda part: [visible(word) for word in part]))
    if form is not None:
        steps.append(("unicode", lambda part: [unicodedata.normalize(form, word) for word in part]))
    if kinds:
        steps.append(("mask", lambda part: masking.masked(part, kinds, region)))
    return steps


def visible(text: str) -> str:
    """Return a text without control characters and characters of no width.

    Args:
        text: Any.

    Returns:
        Tabs stay, and every line ends with a line feed.
    """
    return _LINE_END.sub("\n", _INVISIBLE.sub("", text))


def _filter(parts: Sequence[Words], config: CleanConfig, changes: list[Change]) -> None:
    chars = sum(len(" ".join(part)) for part in parts)
    least, most = config.min_chars, config.max_chars
    step = reason = ""
    if least is not None and chars < least:
        step, reason = "min_chars", f"shorter than {least} characters"
    elif most is not None and chars > most:
        step, reason = "max_chars", f"longer than {most} characters"
    elif config.languages:
        code, probability = languages.told(_joined(parts))
        if code not in config.languages and probability >= _SURE:
            step, reason = "languages", f"language {code}"
    if step:
        _leave_out(step, f"{reason} (data.clean.{step})", parts, changes)


def _leave_out(step: str, reason: str, parts: Sequence[Words], changes: Sequence[Change]) -> None:
    raise CleanedOut(reason, [*changes, Change(step, _excerpt(_joined(parts), 0))])


def _joined(parts: Sequence[Words]) -> str:
    return "\n".join(" ".join(part) for part in parts)


def _shown(found: Sequence[tuple[str, list[Words], list[Words]]]) -> list[Change]:
    """Return excerpts of what each step changed.

    Of a row that holds something masked only the final text is shown: an address may stand in what
    an earlier step saw, also in a shape that only a later one recognises.
    """
    hide = any(step == "mask" for step, _, _ in found)
    changes: list[Change] = []
    for step, old, made in found:
        new = found[-1][2] if hide else made
        where = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
        before, after = " ".join(old[where]), " ".join(new[where])
        pairs = enumerate(zip(before, after, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))
        changes.append(
            Change(step, "" if hide else _excerpt(before, place), _excerpt(after, place))
        )
    return changes


def _excerpt(text: str, place: int) -> str:
    start, stop = max(0, place - _BEFORE_CHARS), place + _AFTER_CHARS
    head, tail = "..." if start else "", "..." if stop < len(text) else ""
    return f"{head}{text[start:stop]}{tail}"


def _blank(part: Words) -> bool:
    return not any(word.strip() for word in part)
