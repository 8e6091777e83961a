"""Evaluation: every row exactly once, sums reduced over ranks, never means of means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from distft.data.order import eval_plan
from distft.data.shards import Sample
from distft.errors import TrainError
from distft.plugin import Task
from distft.train.batch import Collator
from distft.train.engine import Evaluated


class Rows(Protocol):
    """Rows numbered from 0."""

    @property
    def row_groups(self) -> Sequence[int]:
        """Their number, in parts."""
        ...

    def read(self, ids: Sequence[int]) -> list[Sample]:
        """Return the rows with these numbers."""
        ...


def evaluate(
    engine: Evaluated,
    task: Task,
    reader: Rows,
    labels: Sequence[str],
    *,
    batch_size: int,
    collate: Collator,
) -> dict[str, Any]:
    """Return the metrics of a split; called by all ranks, the same on each.

    Args:
        engine: What is evaluated; dropout is off meanwhile.
        task: Scores and metrics.
        reader: The rows.
        labels: Class names in id order.
        batch_size: Rows of one rank's batch.
        collate: Pads the rows.

    Returns:
        The task's metrics, each name prefixed `eval_`.

    Raises:
        TrainError: The loss is not finite, or a row was lost or counted twice.
    """
    rows = sum(reader.row_groups)
    columns: dict[str, list[torch.Tensor]] = {}
    ids: list[int] = []
    was_training = engine.module.training
    engine.module.eval()
    with torch.no_grad():
        for batch_ids in eval_plan(rows, engine.rank, engine.world_size, batch_size):
            batch = collate(reader.read(batch_ids))
            logits = engine.forward(batch)
            scores = task.score(logits, batch["labels"].to(logits.device), labels)
            if batch_ids:
                ids.extend(batch_ids)
                for key, values in scores.items():
                    columns.setdefault(key, []).append(values.cpu())
    engine.module.train(was_training)
    mine = {key: torch.cat(parts).numpy() for key, parts in columns.items()}
    gathered = engine.gather((np.array(ids, dtype=np.int64), mine))
    counted = np.concatenate([part_ids for part_ids, _ in gathered])
    by_id = np.argsort(counted, kind="stable")
    if not np.array_equal(counted[by_id], np.arange(rows)):
        raise TrainError(f"Evaluation counted {len(counted)} rows, {rows} exist.")
    whole = {
        key: np.concatenate([part[key] for _, part in gathered if key in part])[by_id]
        for key in gathered[0][1]
    }
    if not np.isfinite(whole["loss_sum"]).all():
        raise TrainError(
            "The evaluation loss is not finite.", "Lower train.learning_rate, or use float32."
        )
    return {f"eval_{key}": value for key, value in task.metrics(whole, labels).items()}
