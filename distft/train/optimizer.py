"""The optimizer both engines use: AdamW or SGD over groups that differ in weight decay and pace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from distft import plugin
from distft.config import RunConfig
from distft.config_sections import TrainConfig
from distft.plugin import Pace


def build_optimizer(
    module: nn.Module, config: RunConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """Return the optimizer over the trainable parameters.

    Args:
        module: What is trained.
        config: Of the run; its method says which parameters have a pace of their own.
        learning_rate: Peak rate; `set_rate` sets the rate of every step.

    Returns:
        AdamW (decoupled decay) or SGD with momentum; biases and norms do not decay.
    """
    train = config.train
    paces = plugin.methods()[config.method.name].paces(module, config.method)
    found: dict[tuple[Pace, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            # A partitioned tensor has no shape of its own; DeepSpeed keeps the whole one.
            shape = getattr(parameter, "ds_shape", parameter.shape)
            plain = len(shape) < 2 or name.endswith("bias")
            decay = 0.0 if plain else train.weight_decay
            found[paces.get(name, Pace()), decay].append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "pace": pace}
        for (pace, decay), parameters in found.items()
    ]
    if train.optim == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=train.sgd_momentum)
    return torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
    )


def set_rate(groups: Iterable[dict[str, Any]], learning_rate: float, done: float) -> None:
    """Set the rate of a step.

    Args:
        groups: Parameter groups of the optimizer.
        learning_rate: Of the run at this step.
        done: Share of the run's steps before this one; a group that starts later stands still.
    """
    for group in groups:
        pace = group["pace"]
        group["lr"] = learning_rate * pace.scale if done >= pace.start else 0.0


def state_keys(train: TrainConfig) -> tuple[str, ...]:
    """Return the names of the optimizer's tensors per parameter.

    Args:
        train: The section of the configuration.

    Returns:
        torch's names, each as large as its parameter.
    """
    if train.optim == "sgd":
        return ("momentum_buffer",) if train.sgd_momentum else ()
    return ("exp_avg", "exp_avg_sq")
