"""Canonical rows -> token ids, with a reason for every row that gives none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distft.errors import DataError
from distft.plugin import EncodeContext, Encoded, Row, Task, TrainsNothing, UnusableRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_row(
    row: Row, task: Task, tokenizer: PreTrainedTokenizerBase, context: EncodeContext
) -> Encoded | UnusableRow:
    """Return a row's tokens, or why it cannot be used.

    Args:
        row: A canonical row.
        task: The task that encodes it.
        tokenizer: The model's.
        context: Longest sample and class names.

    Returns:
        The sample, or what says the reason to count the row under.

    Raises:
        DataError: The task broke its contract: a sample longer than the cutoff.
    """
    try:
        encoded = task.encode(row, tokenizer, context)
    except UnusableRow as error:
        return error.with_traceback(None)
    if len(encoded.input_ids) > context.cutoff_len:
        raise DataError(
            f"task {task.name} made a sample of {len(encoded.input_ids)} tokens "
            f"where {context.cutoff_len} are allowed."
        )
    # A tokenizer may drop all of a text, such as control characters, and still frame the nothing.
    frame = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if all(token in frame for token in encoded.input_ids):
        return UnusableRow("the row has no token, or special ones only")
    if task.labels == "sequence" and all(token in frame for token in encoded.labels):
        return UnusableRow("the target has no token, or special ones only")
    if task.num_targets(encoded.labels) == 0:
        return TrainsNothing("nothing in the row is trained on")
    return encoded
