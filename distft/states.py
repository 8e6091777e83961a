"""What a run keeps: a model's parameters, counted on the meta device, and the bytes of its states.

Loads no weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from distft import plugin
from distft.blocks import are_alike
from distft.config import RunConfig
from distft.config_sections import ModelConfig, TrainConfig
from distft.errors import ConfigError
from distft.plugin import Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


_BUCKET = 500_000_000
"""`reduce_bucket_size` of DeepSpeed 0.19.8: numbers, taken whatever the model's size."""
_LIVE = 1_000_000_000
"""`stage3_max_live_parameters`: numbers that are gathered at a time, a larger weight alone."""
_SUB_GROUP = 1_000_000_000
"""`sub_group_size`: numbers that stage 3 updates at a time."""

SWAP_GROUP = 250_000_000
"""The same where they lie on a disk: what is in memory at a time, several times over."""


@dataclass(frozen=True)
class Counts:
    """Parameters of a model."""

    params: int
    """Of the pre-trained model with its head, without what the method adds."""
    trainable: int
    quantizable: int
    """Weights of the base that a method which quantizes stores in fewer bits."""
    largest: int
    """Numbers of the largest weight."""
    largest_quantizable: int
    """Of the largest of those that are stored in fewer bits; 0 where none is."""
    alike: bool
    """Whether all blocks have the same weights, and the same of them are trained."""


def count(config: RunConfig, labels: Sequence[str]) -> Counts:
    """Return how many parameters a run has and trains.

    Args:
        config: With its task resolved.
        labels: Class names in id order.

    Returns:
        The counts, kept for the next that asks.

    Raises:
        ConfigError: The method leaves nothing to train.
    """
    sections = config.model.model_dump_json(), config.method.model_dump_json()
    return _counted(*sections, config.method.name, config.task.name, tuple(labels))


def attached(model: PreTrainedModel, config: RunConfig, task: Task) -> nn.Module:
    """Return the module that is trained.

    Args:
        model: The base with the task's head; is changed.
        config: Says whether activations are computed twice, and the method.
        task: Of the run.

    Returns:
        The base with the method on it.
    """
    method = plugin.methods()[config.method.name]
    if config.train.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        # Without it the frozen embeddings' output would need no gradient, and no block either.
        model.enable_input_require_grads()
    if config.train.gradient_checkpointing or not method.virtual_tokens(config.method):
        # Nothing is generated here, and a decoder that keeps a cache takes a row of several
        # samples for one text. A prefix is a cache.
        model.config.use_cache = False
    return method.attach(model, config.method, task)


def model_states(
    config: RunConfig, counts: Counts, stage: int, world: int, device: str
) -> tuple[int, int, int]:
    """Return the bytes of a worker's model states: ZeRO (arXiv 1910.02054), section 3.

    DeepSpeed 0.19.8 keeps a float32 master partition at stages 1-3 even for float32 weights.

    Args:
        config: Of the run.
        counts: Of its model.
        stage: Of ZeRO.
        world: Number of workers.
        device: `cpu` or `cuda`.

    Returns:
        (weights, gradients, optimizer).
    """
    method = plugin.methods()[config.method.name]
    width = 2 if config.model.dtype == "bfloat16" else 4
    trainable = counts.trainable
    # An adapter's own parameters come on top of the base; a frozen or full run trains the base.
    added = trainable if method.adapter else 0
    weights = (counts.params + added) * width
    stored = method.quantization(config.method)
    if stored is not None:
        weights -= round(counts.quantizable * (width - stored.bytes_per_param))
    weights //= world if stage == 3 else 1
    gradients = trainable * width // (world if stage >= 2 else 1)
    moments = 4 * (floats_a_step(config.train) - 2)
    master = 4 if stage >= 1 or width == 2 else 0
    optimizer = trainable * (moments + master) // (world if stage >= 1 else 1)
    offload = config.cluster.offload
    if (offload == "nvme" and stage == 3) or (offload == "cpu" and stage >= 1 and device == "cuda"):
        optimizer = 0
        # Stages 2 and 3 move each part of the gradients out as it is reduced.
        gradients = 0 if stage >= 2 and device == "cuda" else gradients
    return weights, gradients, optimizer


def buffer_bytes(config: RunConfig, counts: Counts, stage: int, world: int) -> tuple[int, int]:
    """Return what DeepSpeed 0.19.8 and the optimizer take for a while on a graphics card.

    Args:
        config: Of the run.
        counts: Of its model.
        stage: Of ZeRO.
        world: Number of workers.

    Returns:
        (in a backward pass: the bucket in which gradients are reduced, at stage 3 the weights that
        are gathered, and of a base in fewer bits the weight in use; in an optimizer step: float32
        gradients of what is updated at a time and the square roots AdamW takes).
    """
    width = 2 if config.model.dtype == "bfloat16" else 4
    stored = plugin.methods()[config.method.name].quantization(config.method)
    passing = 0 if stored is None else counts.largest_quantizable * width
    if stage == 0:
        passing += min(counts.trainable, _BUCKET) * width if world > 1 else 0
        return passing, counts.trainable * width
    # Stage 1 reduces in float32.
    passing += _BUCKET * (4 if stage == 1 else width)
    mine = math.ceil(counts.trainable / world)
    if stage == 3:
        passing += min(counts.params, max(_LIVE, counts.largest)) * width
        mine = min(mine, _SUB_GROUP)
    # On the way to a disk DeepSpeed makes all gradients float32 on the card.
    step = {"none": 8 * mine, "cpu": 0, "nvme": 4 * math.ceil(counts.trainable / world)}
    return passing, step[config.cluster.offload]


def host_bytes(config: RunConfig, counts: Counts, stage: int, world: int, per_node: int) -> int:
    """Return the bytes of a node's main memory that its workers offload to.

    Args:
        config: Of the run.
        counts: Of its model.
        stage: Of ZeRO, 1-3.
        world: Number of workers.
        per_node: Of them on a node.

    Returns:
        Gradients as they come, and what `offload_bytes` counts; where that lies on a disk, the
        buffers through which it passes.
    """
    width = 2 if config.model.dtype == "bfloat16" else 4
    passing = counts.trainable * (width if stage >= 2 else 0) * per_node // world
    if config.cluster.offload == "cpu":
        return passing + offload_bytes(config, counts, world, per_node)
    # A group ends with the parameter that fills it.
    group = min(math.ceil(counts.trainable / world), SWAP_GROUP + counts.largest // world)
    return passing + floats_a_step(config.train) * group * 4 * per_node


def offload_bytes(config: RunConfig, counts: Counts, world: int, per_node: int) -> int:
    """Return the bytes of optimizer states that a node's workers offload, to memory or a disk.

    Args:
        config: Of the run.
        counts: Of its model.
        world: Number of workers.
        per_node: Of them on a node.

    Returns:
        Master weights, optimizer states and gradients, in float32.
    """
    return counts.trainable * 4 * floats_a_step(config.train) * per_node // world


def floats_a_step(train: TrainConfig) -> int:
    """Return how many float32 numbers a parameter has in an optimizer step.

    Args:
        train: The section of the configuration.

    Returns:
        Its master weight, its gradient and its moments.
    """
    return 2 + (2 if train.optim == "adamw_torch" else int(train.sgd_momentum > 0))


@lru_cache(maxsize=256)
def _counted(
    model_json: str, method_json: str, method_name: str, task_name: str, labels: tuple[str, ...]
) -> Counts:
    # Kept, because the trials of a search differ mostly in what does not change the model.
    import torch

    from distft import adapter, hf

    task, method = plugin.tasks()[task_name], plugin.methods()[method_name]
    given = ModelConfig.model_validate_json(model_json)
    model = hf.build_meta(given, task, list(labels))
    sizes = [p.numel() for p in model.parameters()]
    text = model.config.get_text_config()
    layers = adapter.quantized_layers(model, task)
    quantizable = [model.get_parameter(f"{name}.weight").numel() for name in layers]
    with torch.device("meta"):
        module = method.attach(model, method.config.model_validate_json(method_json), task)
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    if trainable == 0:
        raise ConfigError(f"method {method_name} leaves nothing to train on {given.id}.")
    return Counts(
        params=sum(sizes),
        trainable=trainable,
        quantizable=sum(quantizable),
        largest=max(sizes),
        largest_quantizable=max(quantizable, default=0),
        alike=not model.config.is_encoder_decoder
        and are_alike(module, getattr(text, "num_hidden_layers", 0)),
    )
