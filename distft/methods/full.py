"""Full fine-tuning: every parameter moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distft.plugin import Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class FullConfig(VariantConfig):
    """Keys of `method: {name: full}`."""

    name: str = "full"
    """The method."""


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    model.requires_grad_(True)
    return model


METHOD = Method(
    name="full",
    summary="every parameter is trained",
    source="Howard and Ruder 2018 (ULMFiT), arXiv 1801.06146",
    config=FullConfig,
    learning_rate=3e-5,
    space={"train.learning_rate": Range(1e-6, 3e-4, log=True)},
    attach=_attach,
    adapter=False,
    searched=True,
    merges=False,
)
