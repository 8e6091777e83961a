"""Samples -> one padded micro-batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distft.data.shards import Sample
from distft.plugin import Task

DUMMY_TOKENS = 8


def collate(samples: Sequence[Sample], task: Task, pad_id: int) -> dict[str, torch.Tensor]:
    """Return a right-padded micro-batch; an empty one becomes a dummy that trains nothing.

    Args:
        samples: At most one micro-batch of them.
        task: Says whether labels align with tokens.
        pad_id: Fills `input_ids`; masked by `attention_mask`, never by its value.

    Returns:
        `input_ids`, `attention_mask` (B, T) and `labels`, (B, T) or (B,), -100 where untrained.
    """
    if not samples:
        # Every rank runs the same number of forward passes, or ZeRO-3's collectives hang. All
        # positions are attended to: a fully masked row would make attention produce NaN.
        ids = torch.full((1, DUMMY_TOKENS), pad_id)
        shape = (1, DUMMY_TOKENS) if task.token_labels else (1,)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.full(shape, -100),
        }
    longest = max(len(sample.input_ids) for sample in samples)
    ids = torch.full((len(samples), longest), pad_id)
    mask = torch.zeros((len(samples), longest), dtype=torch.long)
    labels = torch.full((len(samples), longest) if task.token_labels else (len(samples),), -100)
    for i, sample in enumerate(samples):
        length = len(sample.input_ids)
        ids[i, :length] = torch.tensor(sample.input_ids, dtype=torch.long)
        mask[i, :length] = 1
        if task.token_labels:
            labels[i, :length] = torch.tensor(sample.labels, dtype=torch.long)
        else:
            labels[i] = int(sample.labels[0])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
