"""VeRA: LoRA whose matrices are random, frozen and shared; two vectors a layer are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from distft.plugin import Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class VeraConfig(VariantConfig):
    """Keys of `method: {name: vera}`; PEFT's names."""

    name: str = "vera"
    """The method."""
    r: Annotated[int, Field(ge=1)] = 256
    """Rank of the shared matrices; higher than LoRA's, for it costs one number a layer."""
    d_initial: Annotated[float, Field(gt=0)] = 0.1
    """What the vector of length r starts from."""
    vera_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the update."""
    projection_prng_key: int = 0
    """Seeds the shared matrices, which are saved with the adapter."""
    target_modules: str | list[str] = "all-linear"
    """`all-linear`, or names of linear modules, such as [q_proj, v_proj]."""


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    import peft

    from distft import adapter

    wanted = peft.VeraConfig(**config.model_dump(exclude={"name"}))
    return adapter.attach(model, wanted, task)


METHOD = Method(
    name="vera",
    summary="vectors beside random matrices that all layers share (rank r)",
    source="Kopiczko et al. 2024, arXiv 2310.11454",
    config=VeraConfig,
    learning_rate=3e-3,
    space={
        "train.learning_rate": Range(1e-4, 3e-2, log=True),
        "method.r": (64, 128, 256, 512),
    },
    attach=_attach,
    adapter=True,
    merges=True,
    refuses=lambda config: {
        "model.dtype=bfloat16": "its shared projections stay float32, DeepSpeed's layers do not"
    },
)
