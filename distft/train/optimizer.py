"""The optimizer both engines use: AdamW or SGD over two groups, with and without weight decay."""

from __future__ import annotations

import torch
from torch import nn

from distft.config_sections import TrainConfig


def build_optimizer(
    module: nn.Module, train: TrainConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """Return the optimizer over the trainable parameters.

    Args:
        module: What is trained.
        train: The section of the configuration.
        learning_rate: Peak rate; the loop sets the rate of every step.

    Returns:
        AdamW (decoupled decay) or SGD with momentum; biases and norms do not decay.
    """
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in zip(decay_groups(module), (train.weight_decay, 0.0), strict=True)
        if parameters
    ]
    if train.optim == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=train.sgd_momentum)
    return torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
    )


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


def decay_groups(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable parameters that decay, and those that do not.

    Args:
        module: What is trained.

    Returns:
        (matrices, biases and norms). Shapes are unknown to a partitioned tensor, so DeepSpeed's
        record of the full shape is used where there is one.
    """
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)
            plain = len(shape) < 2 or name.endswith("bias")
            (rest if plain else decayed).append(parameter)
    return decayed, rest
