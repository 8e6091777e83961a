"""Prefix tuning: trained keys and values in front of those of every attention layer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from distft.errors import ConfigError
from distft.plugin import Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class PrefixTuningConfig(VariantConfig):
    """Keys of `method: {name: prefix_tuning}`; PEFT's names. Only keys and values are saved."""

    name: str = "prefix_tuning"
    """The method. The prefix takes positions of the model: a row plus num_virtual_tokens must
    fit."""
    num_virtual_tokens: Annotated[int, Field(ge=1)] = 20
    """Length of the prefix."""
    prefix_projection: bool = False
    """Write keys and values by a small trained network, as Li and Liang do; false: train them
    directly, from about 0, which is P-Tuning v2 (Liu et al. 2022, arXiv 2110.07602)."""
    encoder_hidden_size: Annotated[int, Field(ge=1)] | None = None
    """Width of that network; unset: the model's own."""

    @model_validator(mode="after")
    def _width_where_it_is_used(self) -> PrefixTuningConfig:
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise ValueError("encoder_hidden_size: only with prefix_projection: true")
        return self


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    import peft

    from distft import heads, virtual_tokens

    assert isinstance(config, PrefixTuningConfig)
    if "past_key_values" not in inspect.signature(model.base_model.forward).parameters:
        raise ConfigError(
            f"Method prefix_tuning needs a model that takes past_key_values; "
            f"{model.config.model_type} models do not.",
            "Take method prompt_tuning or p_tuning.",
        )
    sizes = model.config.get_text_config()
    # Of T5 and BART; PEFT would take the encoder's depth, and heads as wide as divide the model.
    depths = (getattr(sizes, key, None) for key in ("num_decoder_layers", "decoder_layers"))
    head_width = getattr(sizes, "d_kv", None)
    wanted = peft.PrefixTuningConfig(
        task_type=task.peft_type,
        num_layers=next((depth for depth in depths if depth), None),
        token_dim=head_width and head_width * sizes.num_heads,
        num_virtual_tokens=config.num_virtual_tokens,
        prefix_projection=config.prefix_projection,
        encoder_hidden_size=config.encoder_hidden_size,  # None: PEFT's own
        modules_to_save=heads.trained_whole(model, task) or None,
    )
    adapted = peft.get_peft_model(model, wanted)
    if not config.prefix_projection:
        virtual_tokens.begin_small(adapted)
    return virtual_tokens.align(adapted)


def _virtual_tokens(config: VariantConfig) -> int:
    assert isinstance(config, PrefixTuningConfig)
    return config.num_virtual_tokens


def _refuses(config: VariantConfig) -> Mapping[str, str]:
    return {
        "train.gradient_checkpointing=true": "the prefix is a key-value cache, and a block that is "
        "computed twice would fill it twice"
    }


METHOD = Method(
    name="prefix_tuning",
    summary="trained keys and values in front of those of every attention layer",
    source="Li and Liang 2021, arXiv 2101.00190",
    config=PrefixTuningConfig,
    learning_rate=1e-2,
    space={
        "train.learning_rate": Range(1e-3, 1e-1, log=True),
        "method.num_virtual_tokens": (5, 10, 20, 50),
    },
    attach=_attach,
    adapter=True,
    merges=False,
    refuses=_refuses,
    virtual_tokens=_virtual_tokens,
)
