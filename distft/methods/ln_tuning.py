"""LN-tuning: only the weights of the normalisation layers move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from distft.plugin import Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class LnTuningConfig(VariantConfig):
    """Keys of `method: {name: ln_tuning}`; PEFT's names."""

    name: str = "ln_tuning"
    """The method."""
    target_modules: list[str] | None = None
    """Names of normalisation layers; by default all of them, whatever the architecture."""


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    import peft

    from distft import adapter

    assert isinstance(config, LnTuningConfig)
    targets = config.target_modules or adapter.norm_layers(model, task)
    return adapter.attach(model, peft.LNTuningConfig(target_modules=targets), task)


def _refuses(config: VariantConfig) -> Mapping[str, str]:
    return {
        "cluster.zero_stage=3": "PEFT trains a copy of each layer, and a copy of a weight that "
        "ZeRO-3 has divided is none that DeepSpeed knows"
    }


METHOD = Method(
    name="ln_tuning",
    summary="only the weights of the normalisation layers are trained",
    source="Zhao et al. 2023, arXiv 2312.11420",
    config=LnTuningConfig,
    learning_rate=1e-3,
    space={"train.learning_rate": Range(1e-4, 1e-2, log=True)},
    attach=_attach,
    adapter=True,
    merges=True,
    refuses=_refuses,
)
