"""Whether a model keeps samples that share a row apart: tried on the model itself before training.

A model whose attention takes no notice of positions that begin anew would let samples see one
another, and none of its files says so.
"""

from __future__ import annotations

import numpy as np
import torch

from distft.data.shards import Sample
from distft.errors import TrainError
from distft.train.batch import Collator
from distft.train.engine import Evaluated
from distft.train.job import Job

_LENGTHS = (5, 4, 6)
_TOLERANCE = 0.05
"""Of the logits' standard deviation: far above bfloat16's rounding, far below another position."""


def packed(job: Job, engine: Evaluated) -> tuple[bool, list[str]]:
    """Return whether samples of a job share rows; called by all ranks.

    Args:
        job: What is trained.
        engine: With the method attached.

    Returns:
        Whether they do, and what is to be said of it.

    Raises:
        TrainError: `data.packing` asks for it and the model cannot.
    """
    if not job.plan.packing:
        return False, []
    found = problem(engine, job.collate)
    if found is None:
        return True, []
    if job.config.data.packing:
        raise TrainError(
            f"data.packing: {job.config.model.id} cannot be trained on rows of several samples: "
            f"{found}.",
            "Leave data.packing out.",
        )
    return False, [f"samples share no rows: {found}"]


def problem(engine: Evaluated, collate: Collator) -> str | None:
    """Return why a model cannot keep samples of a row apart, or None; called by all ranks.

    Args:
        engine: Holds the model.
        collate: Makes such rows.

    Returns:
        The second half of a sentence.
    """
    draw = np.random.default_rng(0)
    first, other, second, third = (
        _sample(draw.integers(collate.vocabulary, size=length))
        for length in (_LENGTHS[0], *_LENGTHS)
    )
    was_training = engine.module.training
    engine.module.eval()
    try:
        with torch.no_grad():
            row, changed, alone = (
                engine.forward(collate.packed(samples, [len(samples)]))[0].float()
                for samples in ([first, second, third], [other, second, third], [second])
            )
    except TypeError as error:
        # A model without `position_ids`; all ranks meet it.
        if "position_ids" not in str(error):
            raise
        return "it takes no positions"
    finally:
        engine.module.train(was_training)
    begin, end = _LENGTHS[0], _LENGTHS[0] + _LENGTHS[1]
    if not torch.equal(row[begin:], changed[begin:]):
        return "a sample sees the one before it"
    if (row[begin:end] - alone).abs().max() > _TOLERANCE * alone.std():
        return "a sample's positions do not begin anew"
    return None


def _sample(ids: np.ndarray) -> Sample:
    return Sample(0, ids, ids)
