"""QLoRA: LoRA beside a frozen base whose linear weights are stored in 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from distft.plugin import Method, Quantization, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class QloraConfig(VariantConfig):
    """Keys of `method: {name: qlora}`; PEFT's names where it has them."""

    name: str = "qlora"
    """The method."""
    quant_type: Literal["nf4", "fp4", "int8"] = "nf4"
    """How the linear weights of the base are stored: 4-bit normal float, 4-bit float or 8-bit
    integer (LLM.int8). Embeddings, norms, output layers and new heads are not."""
    use_double_quant: bool = True
    """Quantize the scales of the 4-bit blocks too."""
    r: Annotated[int, Field(ge=1)] = 8
    """Rank of the update."""
    lora_alpha: Annotated[int, Field(ge=1)] = 32
    """The update is scaled by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the update."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv 2312.03732)."""
    target_modules: str | list[str] = "all-linear"
    """`all-linear`, or names of linear modules, such as [q_proj, v_proj]."""


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    import peft

    from distft import adapter

    keys = config.model_dump(exclude={"name", "quant_type", "use_double_quant"})
    return adapter.attach(model, peft.LoraConfig(**keys), task)


def _quantization(config: VariantConfig) -> Quantization:
    from transformers import BitsAndBytesConfig

    assert isinstance(config, QloraConfig)
    if config.quant_type == "int8":
        # One float32 scale a row is nothing beside its width.
        return Quantization(BitsAndBytesConfig(load_in_8bit=True), 1.0)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quant_type,
        bnb_4bit_use_double_quant=config.use_double_quant,
    )
    # A scale for 64 weights: float32, or 8 bits with a float32 one for 256 of them.
    scale_bytes = 1 + 4 / 256 if config.use_double_quant else 4
    return Quantization(settings, 0.5 + scale_bytes / 64)


def _refuses(config: VariantConfig) -> Mapping[str, str]:
    return {
        "cluster.zero_stage=3": "transformers loads quantized weights undivided, so every worker "
        "would hold the whole base"
    }


METHOD = Method(
    name="qlora",
    summary="LoRA on a base stored in 4 or 8 bits (rank r)",
    source="Dettmers et al. 2023, arXiv 2305.14314",
    config=QloraConfig,
    learning_rate=3e-4,
    space={
        "train.learning_rate": Range(1e-5, 3e-3, log=True),
        "method.r": (2, 4, 8, 16, 32, 64),
    },
    attach=_attach,
    adapter=True,
    merges=False,
    refuses=_refuses,
    quantization=_quantization,
)
