"""Config -> the module that is trained: base weights, head, method, gradient checkpointing."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from distft import heads, hf, plugin, states
from distft.config import RunConfig
from distft.config_sections import ModelConfig
from distft.plugin import Quantization, Task


class Load(Protocol):
    """Gives the base model with the task's head, as `hf.load_model` does."""

    def __call__(
        self,
        model: ModelConfig,
        task: Task,
        labels: Sequence[str],
        *,
        seed: int,
        gather: heads.Gather,
        quantization: Quantization | None,
    ) -> PreTrainedModel:
        """Return the model, the caller's own to change."""
        ...


class Pristine:
    """Base weights kept in memory, from which every trial of a process starts anew.

    Attributes:
        model: The untouched model; None before the first trial.
    """

    def __init__(self) -> None:
        self.model: PreTrainedModel | None = None
        self._key = ""

    def load(
        self,
        model: ModelConfig,
        task: Task,
        labels: Sequence[str],
        *,
        seed: int,
        gather: heads.Gather,
        quantization: Quantization | None,
    ) -> PreTrainedModel:
        """Return a copy of the model, which is read from its files only when it is another one.

        Args:
            model: Which model.
            task: Decides the head.
            labels: Class names in id order.
            seed: Seeds the new weights.
            gather: As for `hf.load_model`.
            quantization: As for `hf.load_model`.

        Returns:
            The caller's own copy.
        """
        key = repr((model, task.name, list(labels), seed, quantization))
        if self.model is None or key != self._key:
            self.model = None
            self.model = hf.load_model(
                model, task, labels, seed=seed, gather=gather, quantization=quantization
            )
            self._key = key
        return copy.deepcopy(self.model)


def builder(
    config: RunConfig, labels: list[str], load: Load = hf.load_model
) -> Callable[[heads.Gather | None], nn.Module]:
    """Return the function an engine calls when it is ready to hold the model.

    Args:
        config: With its task resolved.
        labels: Class names in id order.
        load: Gives the base model.

    Returns:
        (how to make partitioned parameters whole, or None) -> the module. What it adds to the
        base is drawn from the seed, the same on every rank.
    """

    def build(gather: heads.Gather | None) -> nn.Module:
        task, method = plugin.tasks()[config.task.name], plugin.methods()[config.method.name]
        model = load(
            config.model,
            task,
            labels,
            seed=config.train.seed,
            gather=gather or (lambda parameters: contextlib.nullcontext()),
            quantization=method.quantization(config.method),
        )
        torch.manual_seed(config.train.seed)
        return states.attached(model, config, task)

    return build
