"""Partial fine-tuning: the head, some blocks or named modules; the rest is frozen."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

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
    trainable_layers: int | None = None
    """Blocks that are trained: 2 is the last two, -2 the first two, 0 none but the head; unset: 2,
    or those that trainable_modules names. A new head is always trained."""
    trainable_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """Modules that are trained, by name or by the end of it: `bert.encoder.layer.1` is that block,
    `attention` or `q_proj` that part of every block. Instead of trainable_layers."""

    @model_validator(mode="after")
    def _one_choice(self) -> FreezeConfig:
        if self.trainable_modules is not None and self.trainable_layers is not None:
            raise ValueError(
                "trainable_layers and trainable_modules are both set; leave one of them out"
            )
        if self.trainable_modules is None and self.trainable_layers is None:
            self.trainable_layers = 2
        return self


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    from distft import heads

    assert isinstance(config, FreezeConfig)
    if config.trainable_modules is None:
        assert config.trainable_layers is not None
        chosen = _blocks(model, config.trainable_layers)
    else:
        chosen = _named(model, config.trainable_modules)
    trained = heads.trained_parameters(model, task)
    if not chosen and not trained:
        if model.config.get_text_config().tie_word_embeddings:
            raise ConfigError(
                "method.trainable_layers: 0 trains the output layer alone, but this model shares "
                "it with its input embeddings.",
                "Train the last blocks instead: method.trainable_layers=2.",
            )
        chosen = [model.get_submodule(name) for name in heads.head_modules(model)]
    model.requires_grad_(False)
    for parameter in [*trained, *(p for module in chosen for p in module.parameters())]:
        parameter.requires_grad_(True)
    return model


def _blocks(model: PreTrainedModel, count: int) -> list[nn.Module]:
    from distft.blocks import blocks_of

    blocks = blocks_of(model)
    if abs(count) > len(blocks):
        raise ConfigError(
            f"method.trainable_layers: got {count}, but the model has {len(blocks)} blocks; "
            f"allowed: -{len(blocks)} to {len(blocks)}."
        )
    if count == 0:
        return []
    return blocks[-count:] if count > 0 else blocks[:-count]


def _named(model: PreTrainedModel, wanted: list[str]) -> list[nn.Module]:
    known = {
        name: module
        for name, module in model.named_modules()
        if name and any(True for _ in module.parameters())
    }
    chosen = []
    for one in wanted:
        found = [known[name] for name in known if f".{name}".endswith(f".{one}")]
        if not found:
            names = list(dict.fromkeys([*(n.rpartition(".")[2] for n in known), *known]))
            near = difflib.get_close_matches(one, names, n=4, cutoff=0.5) or names[:4]
            raise ConfigError(
                f"method.trainable_modules: no module of the model is named {one!r}.",
                f"Near it: {', '.join(near)}.",
            )
        chosen += found
    return chosen


METHOD = Method(
    name="freeze",
    summary="the head, the last or first blocks, or modules by name",
    source="Lee et al. 2019 (What Would Elsa Do?), arXiv 1911.03090",
    config=FreezeConfig,
    learning_rate=1e-4,
    space={
        "train.learning_rate": Range(1e-5, 3e-3, log=True),
        "method.trainable_layers": (1, 2, 4),
    },
    attach=_attach,
    adapter=False,
    searched=True,
    merges=False,
)
