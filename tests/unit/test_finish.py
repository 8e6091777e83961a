"""The proof of what moved: frozen parameters stay, declared ones do not all stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from distft.errors import TrainError
from distft.train.engine import fingerprint
from distft.train.finish import check_changed


class Single:
    """As much of an engine as the proof asks for."""

    def __init__(self) -> None:
        self.module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.module[0].requires_grad_(False)

    def fingerprints(self) -> dict[str, float]:
        return {name: fingerprint(p) for name, p in self.module.named_parameters()}

    def gather(self, value: Any) -> list[Any]:
        return [value]


@pytest.fixture
def engine() -> Any:
    return Single()


def nudge(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        parameter.view(-1)[0] += 1e-3


def test_declared_parameters_that_stayed_are_named(engine: Any) -> None:
    before = engine.fingerprints()
    nudge(engine.module[1].weight)
    assert check_changed(engine, before) == ["1.bias"]


def test_a_frozen_parameter_that_moved_is_an_error(engine: Any) -> None:
    before = engine.fingerprints()
    nudge(engine.module[1].weight)
    nudge(engine.module[0].bias)
    with pytest.raises(TrainError, match=r"frozen parameter changed while training: 0\.bias"):
        check_changed(engine, before)


def test_a_run_that_moved_nothing_is_an_error(engine: Any) -> None:
    with pytest.raises(TrainError, match="No declared parameter changed"):
        check_changed(engine, engine.fingerprints())
