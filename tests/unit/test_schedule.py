"""The learning rate of every step, against transformers' own schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distft.train.schedule import learning_rate

PEAK = 3e-4


def theirs(name: str, total: int, warmup: int) -> list[float]:
    """The rates transformers would train with, step by step."""
    import transformers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    make: Any = {
        "constant": transformers.get_constant_schedule_with_warmup,
        "linear": transformers.get_linear_schedule_with_warmup,
        "cosine": transformers.get_cosine_schedule_with_warmup,
    }[name]
    more = {} if name == "constant" else {"num_training_steps": total}
    schedule = make(optimizer, num_warmup_steps=warmup, **more)
    rates = []
    for _ in range(total):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (7, 0), (20, 1), (20, 6), (20, 20), (5, 9)])
def test_equals_transformers(name: str, total: int, warmup: int) -> None:
    ours = [
        learning_rate(
            step, peak=PEAK, total_steps=total, warmup_steps=warmup, lr_scheduler_type=name
        )
        for step in range(total)
    ]
    assert ours == pytest.approx(theirs(name, total, warmup), rel=1e-12, abs=1e-18)
    assert max(ours) <= PEAK
