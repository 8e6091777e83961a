"""Config -> the module that is trained: base weights, head, method, gradient checkpointing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import nn

from distft import hf, plugin
from distft.config import RunConfig


def builder(config: RunConfig, labels: list[str]) -> Callable[[hf.Gather | None], nn.Module]:
    """Return the function an engine calls when it is ready to hold the model.

    Args:
        config: With its task resolved.
        labels: Class names in id order.

    Returns:
        (how to make partitioned parameters whole, or None) -> the module. What it adds to the
        base is drawn from the seed, the same on every rank.
    """

    def build(gather: hf.Gather | None) -> nn.Module:
        task = plugin.tasks()[config.task.name]
        model = hf.load_model(
            config.model,
            task,
            labels,
            seed=config.train.seed,
            gather=gather or (lambda parameters: contextlib.nullcontext()),
        )
        if config.train.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            # Without it the frozen embeddings' output would need no gradient, and no block either.
            model.enable_input_require_grads()
            model.config.use_cache = False
        torch.manual_seed(config.train.seed)
        return plugin.methods()[config.method.name].attach(model, config.method, task)

    return build
