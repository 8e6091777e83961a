"""Labelled rows and conversations that a tiny model can learn in a few steps."""

from __future__ import annotations

from typing import Any

import pytest

_OPINIONS = {"good": "good great fine", "bad": "bad poor dull", "plain": "plain"}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """More threads than one only get in each other's way on models this small."""
    import torch

    torch.set_num_threads(1)


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
