"""E-mail addresses and phone numbers in a text, and what is written in their place."""

from __future__ import annotations

import re
from collections.abc import Sequence

MASKS = {"email": "[EMAIL]", "phone": "[PHONE]"}
"""Square brackets: `<` and `>` melt with a combining solidus, so that a normalised text would not
stay one."""

# Letters of scripts that put spaces between words; others would take in the text around.
_LETTER = r"A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u04ff"
_LOCAL = rf"[{_LETTER}0-9._%+\-]"
_LABEL = rf"[{_LETTER}0-9](?:[{_LETTER}0-9\-]{{0,61}}[{_LETTER}0-9])?"
# The look-behind and the bounds keep the search linear in long runs without an @.
_EMAIL = re.compile(
    rf"(?<!{_LOCAL}){_LOCAL}{{1,64}}@(?:{_LABEL}\.){{1,8}}[{_LETTER}]{{2,63}}(?![{_LETTER}0-9])"
)

Span = tuple[int, int, str]
"""First character, the one after the last, and what is written in their place."""


def spans(text: str, kinds: Sequence[str], region: str | None) -> list[Span]:
    """Return what is to be masked in a text.

    Args:
        text: Any.
        kinds: Of `MASKS`.
        region: Country whose numbers may stand without +code, such as `DE`; None: none.

    Returns:
        In order, none overlapping another.
    """
    found: list[Span] = []
    if "email" in kinds and "@" in text:
        found += [(*match.span(), MASKS["email"]) for match in _EMAIL.finditer(text)]
    if "phone" in kinds:
        numbers = _phones(text, region)
        found += [
            (start, stop, MASKS["phone"])
            for start, stop in numbers
            if not any(start < end and begin < stop for begin, end, _ in found)
        ]
    return sorted(found)


def _phones(text: str, region: str | None) -> list[tuple[int, int]]:
    import phonenumbers

    matches = phonenumbers.PhoneNumberMatcher(text, region)
    return [(match.start, match.end) for match in matches]


def regions() -> set[str]:
    """Return the countries whose numbering is known, as ISO 3166 codes."""
    import phonenumbers

    return set(phonenumbers.SUPPORTED_REGIONS)


def masked(words: Sequence[str], kinds: Sequence[str], region: str | None) -> list[str]:
    """Return words with what is to be masked replaced, as many as there were.

    Args:
        words: Of one text, read with spaces between them; a text of its own is one word.
        kinds: Of `MASKS`.
        region: As `spans` takes it.

    Returns:
        The words; of a number written as three words each is replaced. Masking them again
        changes nothing.
    """
    known = list(words)
    while found := spans(" ".join(known), kinds, region):
        start = 0
        for i, word in enumerate(known):
            known[i] = _replaced(word, start, found)
            start += len(word) + 1
    return known


def _replaced(word: str, offset: int, found: Sequence[Span]) -> str:
    """Return a word that stands at an offset of the text, with its share of the spans replaced."""
    parts: list[str] = []
    place = 0
    for start, stop, mask in found:
        first, last = max(start - offset, 0), min(stop - offset, len(word))
        if first < last:
            parts += [word[place:first], mask]
            place = last
    return "".join([*parts, word[place:]])
