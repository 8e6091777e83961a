"""LoRA and its kin: a low-rank update beside each frozen linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from distft.errors import ConfigError
from distft.plugin import Method, Pace, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Start = bool | Literal["gaussian", "orthogonal", "pissa", "olora"]
FastStart = Annotated[str, Field(pattern=r"^pissa_niter_[1-9][0-9]*$")]


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
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv 2312.03732)."""
    use_dora: bool = False
    """Train the length of each weight's columns besides (Liu et al. 2024, arXiv 2402.09353)."""
    init_lora_weights: Start | FastStart = True
    """`true`: as LoRA has it; `false`: random, so that the model is another at the start;
    `gaussian`; `orthogonal`; `pissa`: the largest singular vectors of the weight (Meng et al. 2024,
    arXiv 2404.02948), `pissa_niter_16`: the same, found faster; `olora`: a QR decomposition
    (Buyukakyuz 2024, arXiv 2406.01775)."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] = 1.0
    """Rate of the matrices B as a multiple of the run's; LoRA+ takes 16 (Hayou et al. 2024, arXiv
    2402.12354)."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Rank of the modules whose name ends with a key (a regular expression), instead of r."""
    alpha_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """The same for lora_alpha."""


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    import peft

    from distft import adapter

    assert isinstance(config, LoraConfig)
    keys = config.model_dump(exclude={"name", "loraplus_lr_ratio"})
    adapted = adapter.attach(model, peft.LoraConfig(**keys), task)
    patterns = {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}
    adapter.check_patterns(adapted, patterns)
    if config.init_lora_weights == "olora":
        _check_orientation(adapted)
    return adapted


def _check_orientation(adapted: nn.Module) -> None:
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    for name, layer in adapted.named_modules():
        # PEFT 0.21.2 decomposes its weight, which is stored the other way round, as it lies.
        if isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), Conv1D):
            raise ConfigError(
                f"method.init_lora_weights: olora cannot begin beside {name}, a Conv1D.",
                "Take pissa, which can, or true.",
            )


def _paces(module: nn.Module, config: VariantConfig) -> Mapping[str, Pace]:
    assert isinstance(config, LoraConfig)
    faster = Pace(scale=config.loraplus_lr_ratio)
    return {name: faster for name, _ in module.named_parameters() if ".lora_B." in name}


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
    searched=True,
    merges=True,
    paces=_paces,
)
