"""Every row once an epoch, and the same rows in every step, however many workers there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Samples = Callable[[Path], dict[int, list[list[int]]]]


@pytest.mark.slow
def test_logged_ids_are_every_row_once_and_the_same_steps_at_world_1_and_2(
    finished: Any, samples: Samples
) -> None:
    folder = finished.folder
    done = folder.distft(
        "train", folder.config, "name=alone", "cluster.num_workers=1", "train.max_steps=10"
    )
    assert done.returncode == 0, done.stderr
    two, one = samples(finished.run_dir), samples(folder.run("alone"))
    assert sorted(one) == list(range(1, 11))
    assert all(len(ranks) == 1 for ranks in one.values())
    assert all(len(ranks) == 2 for ranks in two.values())
    # 96 rows in steps of 20: the fifth step of an epoch holds 16.
    epochs = []
    for first in (1, 6):
        steps = [[i for rank in one[step] for i in rank] for step in range(first, first + 5)]
        assert [len(ids) for ids in steps] == [20, 20, 20, 20, 16]
        assert sorted(i for ids in steps for i in ids) == list(range(96))
        epochs.append(steps)
    assert epochs[0] != epochs[1], "each epoch has an order of its own"
    for step in one:
        assert sorted(i for rank in two[step] for i in rank) == sorted(one[step][0])
