"""Labelled rows and conversations that a tiny model can learn in a few steps."""

from __future__ import annotations

from typing import Any

import pytest

LABELS = ["bad", "good", "plain"]
_OPINIONS = {"good": "good great fine", "bad": "bad poor dull", "plain": "plain"}


@pytest.fixture(scope="session")
def rows() -> dict[str, list[dict[str, Any]]]:
    """Kind of row -> canonical rows."""
    labelled = [
        {"text": f"the {noun} {verb} {word}", "label": label}
        for label, words in _OPINIONS.items()
        for word in words.split()
        for noun in ("film", "story", "acting")
        for verb in ("is", "was")
    ]
    conversations = [
        {
            "messages": [
                {"role": "user", "content": f"say {word}"},
                {"role": "assistant", "content": word * 2},
            ]
        }
        for word in ["good", "bad", "fine", "poor"]
    ]
    return {"labelled_text": labelled, "conversation": conversations}
