"""Partial fine-tuning: the head, or some blocks and the head; the rest is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distft.errors import ConfigError
from distft.plugin import Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class FreezeConfig(VariantConfig):
    """Keys of `method: {name: freeze}`."""

    name: str = "freeze"
    """The method."""
    trainable_layers: int = 2
    """Blocks that are trained: 2 is the last two, -2 the first two, 0 none but the head. A new
    head is always trained."""


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    from distft import hf

    assert isinstance(config, FreezeConfig)
    count = config.trainable_layers
    blocks = hf.blocks(model)
    if abs(count) > len(blocks):
        raise ConfigError(
            f"method.trainable_layers: got {count}, but the model has {len(blocks)} blocks; "
            f"allowed: -{len(blocks)} to {len(blocks)}."
        )
    if count == 0 and not task.new_head and model.config.get_text_config().tie_word_embeddings:
        raise ConfigError(
            "method.trainable_layers: 0 trains the output layer alone, but this model shares it "
            "with its input embeddings.",
            "Train the last blocks instead: method.trainable_layers=2.",
        )
    model.requires_grad_(False)
    chosen = blocks[-count:] if count > 0 else blocks[:-count]
    for block in chosen if count else []:
        block.requires_grad_(True)
    if task.new_head or count == 0:
        for name in hf.head_modules(model):
            model.get_submodule(name).requires_grad_(True)
    return model


METHOD = Method(
    name="freeze",
    summary="the head, or the last or first blocks and the head",
    source="Lee et al. 2019 (What Would Elsa Do?), arXiv 1911.03090",
    config=FreezeConfig,
    learning_rate=1e-4,
    space={
        "train.learning_rate": Range(1e-5, 3e-3, log=True),
        "method.trainable_layers": (1, 2, 4),
    },
    attach=_attach,
    adapter=False,
    merges=False,
)
