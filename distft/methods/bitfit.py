"""BitFit: every bias of the model moves, and a new head; all other weights are frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distft.errors import ConfigError
from distft.plugin import Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class BitfitConfig(VariantConfig):
    """Keys of `method: {name: bitfit}`."""

    name: str = "bitfit"
    """The method. It trains the biases of linear layers and norms, and all of a new head."""


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    from distft import heads

    model.requires_grad_(False)
    biases = [p for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"]
    if not biases:
        raise ConfigError(
            f"Method bitfit trains biases, and {model.config.model_type} models have none.",
            "Take method ln_tuning, which trains the norms instead.",
        )
    for parameter in [*biases, *heads.trained_parameters(model, task)]:
        parameter.requires_grad_(True)
    return model


METHOD = Method(
    name="bitfit",
    summary="the biases, and a new head; models without biases are refused",
    source="Ben Zaken et al. 2022 (BitFit), arXiv 2106.10199",
    config=BitfitConfig,
    learning_rate=1e-3,
    space={"train.learning_rate": Range(1e-4, 1e-2, log=True)},
    attach=_attach,
    adapter=False,
    merges=False,
)
