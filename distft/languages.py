"""Which language a text is in, by py3langid, whose model lies in its package."""

from __future__ import annotations

from functools import cache
from typing import Any

READ_CHARS = 2000
"""The beginning of a text; more costs time and changes little."""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def known() -> list[str]:
    """Return the codes of the languages that can be told apart, sorted: `de`, `en`, ..."""
    return sorted(_identifier().labels)


def told(text: str) -> tuple[str, float]:
    """Return the likeliest language of a text.

    Args:
        text: Of which the first 2,000 characters are read.

    Returns:
        (code, probability from 0 to 1); of a few words the probability is low, whatever they say.
    """
    code, probability = _identifier().classify(text[:READ_CHARS])
    return str(code), float(probability)
