"""What a run keeps: a model's parameters, counted on the meta device, and the bytes of its states.

Loads no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from distft import plugin
from distft.config import RunConfig
from distft.config_sections import ModelConfig
from distft.errors import ConfigError


@dataclass(frozen=True)
class Counts:
    """Parameters of a model."""

    params: int
    """Of the pre-trained model with its head, without what the method adds."""
    trainable: int
    quantizable: int
    """Weights of the base that a method which quantizes stores in fewer bits."""


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
    moments = 8 if config.train.optim == "adamw_torch" else 4 * (config.train.sgd_momentum > 0)
    master = 4 if stage >= 1 or width == 2 else 0
    optimizer = trainable * (moments + master) // (world if stage >= 1 else 1)
    if config.cluster.offload == "cpu" and stage >= 1 and device == "cuda":
        optimizer = 0
    return weights, gradients, optimizer


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
    params = sum(p.numel() for p in model.parameters())
    layers = adapter.quantized_layers(model, task)
    quantizable = sum(model.get_parameter(f"{name}.weight").numel() for name in layers)
    with torch.device("meta"):
        module = method.attach(model, method.config.model_validate_json(method_json), task)
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    if trainable == 0:
        raise ConfigError(f"method {method_name} leaves nothing to train on {given.id}.")
    return Counts(params, trainable, quantizable)
