"""Samples -> one padded micro-batch of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distft import hf, texts
from distft.config import RunConfig
from distft.data.shards import Sample
from distft.plugin import Task
from distft.scoring import IGNORED

DUMMY_TOKENS = 8
LEFT_AS_IT_IS, REPLACED = 0.1, 0.1
"""Of the tokens a masked model is asked for, as BERT has it (Devlin et al. 2019, section 3.1)."""


@dataclass(frozen=True)
class Collator:
    """Pads samples of one task for one model."""

    task: Task
    outputs: int
    """Width of a vector of labels."""
    pad_id: int
    mask_id: int | None = None
    """Of a task that masks tokens."""
    vocabulary: int = 0
    """Ids there are to replace a token by."""
    decoder_start_id: int | None = None
    """Of a task whose labels are a sequence."""
    seed: int = 0

    def packed(self, samples: Sequence[Sample], rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return a micro-batch whose samples share rows; an empty one becomes a dummy.

        Positions begin anew with every sample, and there is no attention mask: that is how models
        of transformers 5 know samples apart (`masking_utils.find_packed_sequence_indices`).

        Args:
            samples: Of a task that packs, row after row.
            rows: How many of them stand in each row.

        Returns:
            `input_ids`, `position_ids` and `labels` (rows, T). Nothing predicts a first token,
            so its label is -100.
        """
        if not samples:
            return self._dummy()
        starts = np.cumsum([0, *rows])
        columns: dict[str, list[np.ndarray]] = {"input_ids": [], "position_ids": [], "labels": []}
        for start, count in zip(starts, rows, strict=False):
            mine = samples[start : start + count]
            labels = np.concatenate([one.labels for one in mine])
            labels[np.cumsum([0, *(len(one.labels) for one in mine[:-1])])] = IGNORED
            columns["labels"].append(labels)
            columns["input_ids"].append(np.concatenate([one.input_ids for one in mine]))
            columns["position_ids"].append(
                np.concatenate([np.arange(len(one.input_ids)) for one in mine])
            )
        filling = {"input_ids": self.pad_id, "position_ids": 0, "labels": IGNORED}
        return {key: _filled(parts, filling[key]) for key, parts in columns.items()}

    def __call__(self, samples: Sequence[Sample], step: int = 0) -> dict[str, torch.Tensor]:
        """Return a right-padded micro-batch; an empty one becomes a dummy that trains nothing.

        Args:
            samples: At most one micro-batch of them.
            step: Keys what a task draws anew in every step; an evaluation always takes 0.

        Returns:
            What the model takes, `input_ids` and `attention_mask` (B, T) first, and `labels` as
            the task has them.
        """
        if not samples:
            return self._dummy()
        batch = self._padded([sample.input_ids for sample in samples])
        batch |= texts.second_texts([s.second for s in samples], batch["attention_mask"])
        labels = [sample.labels for sample in samples]
        if self.task.labels == "class":
            batch["labels"] = torch.tensor([int(one[0]) for one in labels])
        elif self.task.labels == "vector":
            batch["labels"] = torch.from_numpy(np.stack(labels).astype(np.float32))
        elif self.task.labels == "tokens":
            batch["labels"] = _filled(labels, IGNORED, batch["input_ids"].shape[1])
            if self.task.masks_tokens:
                for i, sample in enumerate(samples):
                    self._mask(batch, i, sample, step)
        else:
            batch |= self._decoded(labels)
        return batch

    def _padded(self, ids: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        filled = _filled(ids, self.pad_id)
        lengths = torch.tensor([len(one) for one in ids])
        mask = (torch.arange(filled.shape[1]) < lengths[:, None]).long()
        return {"input_ids": filled, "attention_mask": mask}

    def _decoded(self, labels: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        assert self.decoder_start_id is not None
        wanted = _filled(labels, IGNORED)
        before = torch.full_like(wanted, self.decoder_start_id)
        before[:, 1:] = wanted[:, :-1]
        before[before == IGNORED] = self.pad_id
        # Padding comes after every trained position, so the causal mask hides it by itself.
        return {"decoder_input_ids": before, "labels": wanted}

    def _mask(self, batch: dict[str, torch.Tensor], row: int, sample: Sample, step: int) -> None:
        places = np.flatnonzero(sample.labels != IGNORED)
        wanted = self.task.num_targets(sample.labels.tolist())
        key = f"{self.seed}:{step}:{sample.sample_id}".encode()
        draw = np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:8], "big"))
        chosen = draw.choice(places, size=wanted, replace=False)
        fate = draw.random(wanted)
        drawn = draw.integers(self.vocabulary, size=wanted)
        ids = np.where(fate < LEFT_AS_IT_IS, sample.input_ids[chosen], self.mask_id)
        ids = np.where(fate > 1 - REPLACED, drawn, ids)
        labels = torch.full_like(batch["labels"][row], IGNORED)
        labels[chosen] = batch["labels"][row][chosen]
        batch["labels"][row] = labels
        batch["input_ids"][row, chosen] = torch.from_numpy(ids)

    def _dummy(self) -> dict[str, torch.Tensor]:
        # Every rank runs the same number of forward passes, or ZeRO-3's collectives hang. All
        # positions are attended to: a fully masked row would make attention produce NaN.
        ids = torch.full((1, DUMMY_TOKENS), self.pad_id)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.task.labels == "class":
            batch["labels"] = torch.full((1,), IGNORED)
        elif self.task.labels == "vector":
            batch["labels"] = torch.full((1, self.outputs), torch.nan)
        else:
            batch["labels"] = torch.full_like(ids, IGNORED)
            if self.task.labels == "sequence":
                batch["decoder_input_ids"] = ids.clone()
        return batch


def make_collator(config: RunConfig, task: Task, labels: Sequence[str]) -> Collator:
    """Return what pads the samples of a run.

    Args:
        config: Of the run.
        task: Of the run.
        labels: Class names in id order.

    Returns:
        The collator.
    """
    tokenizer = hf.load_tokenizer(config.model)
    return Collator(
        task=task,
        outputs=task.num_outputs or len(labels),
        pad_id=tokenizer.pad_token_id,
        mask_id=tokenizer.mask_token_id if task.masks_tokens else None,
        vocabulary=len(tokenizer),
        decoder_start_id=hf.decoder_start_id(config.model) if task.labels == "sequence" else None,
        seed=config.train.seed,
    )


def _filled(rows: Sequence[np.ndarray], value: int, length: int = 0) -> torch.Tensor:
    longest = max(length, *(len(row) for row in rows))
    filled = torch.full((len(rows), longest), value)
    for i, row in enumerate(rows):
        filled[i, : len(row)] = torch.from_numpy(row.astype(np.int64))
    return filled
