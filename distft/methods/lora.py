"""LoRA: a low-rank update beside each frozen linear layer; a new head is trained and saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from distft.errors import ConfigError
from distft.plugin import Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class LoraConfig(VariantConfig):
    """Keys of `method: {name: lora}`; PEFT's names."""

    name: str = "lora"
    """The method."""
    r: Annotated[int, Field(ge=1)] = 8
    """Rank of the update."""
    lora_alpha: Annotated[int, Field(ge=1)] = 32
    """The update is scaled by lora_alpha / r; fixed, it keeps the best learning rate about the
    same over ranks."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the update."""
    target_modules: str | list[str] = "all-linear"
    """`all-linear`, or names of linear modules, such as [q_proj, v_proj]."""


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    import peft

    from distft import hf

    assert isinstance(config, LoraConfig)
    wanted = peft.LoraConfig(
        task_type=task.peft_type,
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.target_modules,
        modules_to_save=hf.head_modules(model) if task.new_head else None,
    )
    try:
        adapted: nn.Module = peft.get_peft_model(model, wanted)
    except ValueError as error:
        raise ConfigError(f"method.target_modules: {str(error).splitlines()[0]}") from error
    return adapted


METHOD = Method(
    name="lora",
    summary="a low-rank update beside each linear layer (rank r)",
    source="Hu et al. 2021, arXiv 2106.09685",
    config=LoraConfig,
    learning_rate=3e-4,
    space={
        "train.learning_rate": Range(1e-5, 3e-3, log=True),
        "method.r": (2, 4, 8, 16, 32, 64),
    },
    attach=_attach,
    adapter=True,
    merges=True,
)
