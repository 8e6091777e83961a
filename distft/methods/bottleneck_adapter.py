"""Bottleneck adapters: a narrow two-layer network behind each sublayer; the model is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from distft.errors import ConfigError
from distft.plugin import Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class BottleneckAdapterConfig(VariantConfig):
    """Keys of `method: {name: bottleneck_adapter}`; the names of the `adapters` library."""

    name: str = "bottleneck_adapter"
    """The method."""
    style: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """`houlsby`: an adapter behind every attention and every feed-forward sublayer; `pfeiffer`:
    behind the feed-forward sublayers only. Both add inside the sublayer's residual connection."""
    reduction_factor: Annotated[int, Field(ge=1)] = 16
    """Width of the model over that of the bottleneck."""
    non_linearity: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """Between the two layers."""
    ln_before: bool = False
    """A LayerNorm before the bottleneck."""


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    import peft

    from distft import bottleneck, heads

    assert isinstance(config, BottleneckAdapterConfig)
    places = bottleneck.places(model, after_attention=config.style == "houlsby")
    if not places:
        raise ConfigError(
            f"Method bottleneck_adapter does not know where the sublayers of "
            f"{model.config.model_type} models end.",
            "Take method lora, which goes beside every linear layer.",
        )
    wanted = bottleneck.BottleneckConfig(
        task_type=task.peft_type,
        target_modules=set(places),
        reduction_factor=config.reduction_factor,
        non_linearity=config.non_linearity,
        ln_before=config.ln_before,
        modules_to_save=heads.trained_whole(model, task) or None,
    )
    adapted: nn.Module = peft.get_peft_model(model, wanted)
    return adapted


METHOD = Method(
    name="bottleneck_adapter",
    summary="a narrow network behind each sublayer (Houlsby or Pfeiffer)",
    source="Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2020, arXiv 2005.00247",
    config=BottleneckAdapterConfig,
    learning_rate=1e-3,
    space={
        "train.learning_rate": Range(1e-4, 1e-2, log=True),
        "method.reduction_factor": (2, 4, 8, 16, 32, 64),
    },
    attach=_attach,
    adapter=True,
    merges=False,
)
