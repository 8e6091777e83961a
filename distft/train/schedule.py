"""The learning rate as a pure function of the step, so that a resumed run needs no state for it."""

from __future__ import annotations

import math


def learning_rate(
    step: int, *, peak: float, total_steps: int, warmup_steps: int, lr_scheduler_type: str
) -> float:
    """Return the learning rate of an optimizer step.

    Args:
        step: Counted from 0.
        peak: Highest rate.
        total_steps: Steps of the whole run.
        warmup_steps: Steps of linear rise from 0; the step after them has the peak.
        lr_scheduler_type: constant, linear or cosine (to 0 at total_steps).

    Returns:
        The rate, as transformers' schedules give it (optimization.py, 5.23).
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    if lr_scheduler_type == "constant":
        return peak
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if lr_scheduler_type == "linear":
        return peak * max(0.0, 1.0 - done)
    return peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
