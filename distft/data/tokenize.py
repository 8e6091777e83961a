"""Canonical rows -> token ids, with a reason for every row that gives none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from distft.errors import DataError
from distft.plugin import EncodeContext, Encoded, Row, Task, TrainsNothing, UnusableRow
from distft.texts import Tokens, Whole, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_row(
    row: Row, task: Task, tokenizer: PreTrainedTokenizerBase, context: EncodeContext
) -> Encoded | UnusableRow:
    """Return a row's tokens, or why it cannot be used; see `encode_rows`."""
    return encode_rows([row], task, tokenizer, context)[0]


def encode_rows(
    rows: Sequence[Row], task: Task, tokenizer: PreTrainedTokenizerBase, context: EncodeContext
) -> list[Encoded | UnusableRow]:
    """Return the tokens of rows, or why they cannot be used.

    Args:
        rows: Canonical rows; the tokens of all of them are held at once.
        task: The task that encodes them.
        tokenizer: The model's.
        context: Longest sample and class names.

    Returns:
        For each row the sample, or what says the reason to count the row under.

    Raises:
        DataError: The task broke its contract: a sample longer than the cutoff.
    """
    # A tokenizer may drop all of a text, such as control characters, and still frame the nothing.
    frame = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    samples = _samples(rows, task, tokenizer, context)
    return [_checked(sample, task, context, frame) for sample in samples]


def _samples(
    rows: Sequence[Row], task: Task, tokenizer: PreTrainedTokenizerBase, context: EncodeContext
) -> Iterator[Encoded | UnusableRow]:
    encode = task.encode
    found: Iterable[Tokens | None] = [None] * len(rows)
    if isinstance(encode, Whole):
        found = tokenize([encode.texts(row, tokenizer) for row in rows], tokenizer)
    for row, tokens in zip(rows, found, strict=True):
        try:
            if isinstance(encode, Whole) and tokens is not None:
                yield encode.finish(row, tokens, tokenizer, context)
            else:
                yield encode(row, tokenizer, context)
        except UnusableRow as error:
            yield error.with_traceback(None)


def _checked(
    encoded: Encoded | UnusableRow, task: Task, context: EncodeContext, frame: set[int]
) -> Encoded | UnusableRow:
    if isinstance(encoded, UnusableRow):
        return encoded
    if len(encoded.input_ids) > context.cutoff_len:
        raise DataError(
            f"task {task.name} made a sample of {len(encoded.input_ids)} tokens "
            f"where {context.cutoff_len} are allowed."
        )
    if frame.issuperset(encoded.input_ids):
        return UnusableRow("the row has no token, or special ones only")
    if task.labels == "sequence" and frame.issuperset(encoded.labels):
        return UnusableRow("the target has no token, or special ones only")
    if task.num_targets(encoded.labels) == 0:
        return TrainsNothing("nothing in the row is trained on")
    return encoded
