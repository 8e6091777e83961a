"""Token ids -> the text of each, so that what a model sees can be read. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST_PIECE = 16
"""Tokens. One character takes at most 4; more is text that holds U+FFFD itself."""
_SPLIT_CHARACTER = "\ufffd"


class Piece(BaseModel):
    """The text of a token, or of several that are one character only together."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    text: str
    ids: list[int]
    trained: bool
    special: bool
    label: str = ""
    """The class its token is to get, where each has one."""


def pieces(
    ids: Sequence[int], trained: Sequence[bool], tokenizer: PreTrainedTokenizerBase
) -> list[Piece]:
    """Return the text of tokens one by one; what is a character only together stays together.

    Args:
        ids: The tokens.
        trained: Which of them are trained; shorter where the rest is not.
        tokenizer: The one that made them.

    Returns:
        The pieces in order; together they hold every id.
    """
    special = set(tokenizer.all_special_ids)

    def decode(first: int, stop: int) -> str:
        return str(tokenizer.decode(list(ids[first:stop]), clean_up_tokenization_spaces=False))

    found: list[Piece] = []
    # ids[before:start] gives what follows its context: whether a space or a ## stands there.
    before = start = 0
    for stop in range(1, len(ids) + 1):
        text = decode(before, stop)[len(decode(before, start)) :]
        goes_on = stop < len(ids) and ids[stop] not in special and stop - start < _LONGEST_PIECE
        # Half a character is U+FFFD, or nothing where the tokenizer leaves out what it cannot read.
        if (not text or text.endswith(_SPLIT_CHARACTER)) and goes_on:
            continue
        mine = list(ids[start:stop])
        piece = Piece(
            text=text, ids=mine, trained=any(trained[start:stop]), special=mine[0] in special
        )
        found.append(piece)
        before, start = start, stop
    return found
