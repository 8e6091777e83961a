"""What the loop asks of an engine: forward, backward, step, and the state behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

StateReader = Callable[[str], Mapping[str, torch.Tensor]]
"""Parameter name -> {"param": float32 weights, optimizer key: tensor}, whole, on the CPU."""


class Evaluated(Protocol):
    """The part of an engine that evaluation uses; all ranks call its methods."""

    @property
    def module(self) -> nn.Module:
        """The model, for names and modes; parameters may be partitioned."""
        ...

    @property
    def rank(self) -> int:
        """Which of the workers this is."""
        ...

    @property
    def world_size(self) -> int:
        """How many workers there are."""
        ...

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits of a micro-batch; the labels in it are not used."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank, on every rank."""
        ...


class Engine(Evaluated, Protocol):
    """One process's part in training; every method is called by all ranks."""

    def backward(self, loss_sum: torch.Tensor, step_targets: int, *, last: bool) -> None:
        """Add this micro-batch's share of the gradient.

        Args:
            loss_sum: Loss summed over the micro-batch's targets.
            step_targets: Targets of the whole optimizer step, over all ranks.
            last: Whether it is the last micro-batch of the step; ranks do equally many.
        """
        ...

    def step(self, learning_rate: float, step: int) -> float:
        """Clip, update the weights, clear the gradients.

        Args:
            learning_rate: Of this step.
            step: Its number, counted from 0.

        Returns:
            The global gradient norm before clipping.
        """
        ...

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the values summed over all ranks, in float64."""
        ...

    def state(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Yield each trainable parameter's whole float32 weights and optimizer tensors in turn."""
        ...

    def load_state(self, read: StateReader, step: int, *, optimizer: bool = True) -> None:
        """Put a state back.

        Args:
            read: Gives each trainable parameter's tensors.
            step: Optimizer steps behind it.
            optimizer: False: the weights only.
        """
        ...

    def fingerprints(self) -> dict[str, float]:
        """Return a number per parameter that changes with this rank's part of it."""
        ...

    def close(self) -> None:
        """Remove what it keeps outside of memory; it is not used afterwards."""
        ...


def fingerprint(tensor: torch.Tensor) -> float:
    """Return a number that changes when the tensor does.

    Args:
        tensor: Any values.

    Returns:
        Its sum and norm in float64, added; equal tensors give equal numbers.
    """
    values = tensor.detach()
    if not values.is_floating_point():
        # The packed weights of a quantized base.
        values = values.float()
    norm = torch.linalg.vector_norm(values, dtype=torch.float64)
    return float(values.sum(dtype=torch.float64) + norm)
