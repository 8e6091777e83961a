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
    plain = [{"text": row["text"]} for row in labelled]
    return {
        "labelled_text": labelled,
        "multi_labelled_text": [
            {"text": row["text"], "labels": [row["label"]] * (row["label"] != "plain")}
            for row in labelled
        ],
        "rated_text": [
            {"text": row["text"], "value": {"good": 4.0, "bad": 1.0, "plain": 2.5}[row["label"]]}
            for row in labelled
        ],
        "tagged_words": [
            {"words": row["text"].split(), "tags": ["O", "B-THING", "O", f"B-{row['label']}"]}
            for row in labelled
        ],
        "plain_text": plain,
        "text_to_text": [{"source": row["text"], "target": row["label"]} for row in labelled],
        "conversation": conversations,
    }
