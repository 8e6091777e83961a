"""(IA)3: learned vectors rescale keys, values and the inner activations of the feed-forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distft.plugin import Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Ia3Config(VariantConfig):
    """Keys of `method: {name: ia3}`; PEFT's names."""

    name: str = "ia3"
    """The method."""
    target_modules: str | list[str] | None = None
    """Names of linear modules, or `all-linear`; by default PEFT's choice for the architecture, and
    every linear layer where it has none."""
    feedforward_modules: list[str] | None = None
    """Those of them whose input is rescaled, not their output; by default PEFT's choice, and the
    layers that make their input narrower where it has none."""


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    import peft
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

    from distft import adapter

    assert isinstance(config, Ia3Config)
    targets, inputs = config.target_modules, config.feedforward_modules
    known = model.config.model_type in KNOWN
    if targets is None and not known:
        targets = "all-linear"
    if inputs is None and not (known and config.target_modules is None):
        inputs = adapter.narrowing_layers(model, adapter.linear_layers(model, task))
        if isinstance(targets, list):
            inputs = [one for one in inputs if one.endswith(tuple(targets))]
    wanted = peft.IA3Config(target_modules=targets, feedforward_modules=inputs)
    return adapter.attach(model, wanted, task)


METHOD = Method(
    name="ia3",
    summary="vectors that rescale keys, values and inner activations; very few parameters",
    source="Liu et al. 2022 (T-Few), arXiv 2205.05638",
    config=Ia3Config,
    learning_rate=3e-3,
    space={"train.learning_rate": Range(1e-3, 1e-1, log=True)},
    attach=_attach,
    adapter=True,
    merges=True,
)
