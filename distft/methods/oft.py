"""OFT: each linear layer's input is turned by a learned, block-diagonal rotation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from distft.errors import ConfigError
from distft.plugin import Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class OftConfig(VariantConfig):
    """Keys of `method: {name: oft}`; PEFT's names."""

    name: str = "oft"
    """The method."""
    oft_block_size: Annotated[int, Field(ge=2)] = 32
    """Inputs that one block turns; where it does not divide a layer's width, PEFT takes the nearest
    size that does."""
    module_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the blocks that turn nothing in a step."""
    coft: bool = False
    """Keep every rotation within a small angle of none (constrained OFT)."""
    eps: Annotated[float, Field(gt=0)] = 6e-5
    """How small, with coft."""
    block_share: bool = False
    """One rotation for all blocks of a layer."""
    use_cayley_neumann: bool = True
    """Approximate the rotation by a series, which is faster; false: solve for it."""
    num_cayley_neumann_terms: Annotated[int, Field(ge=2)] = 5
    """Length of that series."""
    target_modules: str | list[str] = "all-linear"
    """`all-linear`, or names of linear modules, such as [q_proj, v_proj]."""


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    import peft
    from transformers.pytorch_utils import Conv1D

    from distft import adapter

    assert isinstance(config, OftConfig)
    layers = (model.get_submodule(name) for name in adapter.linear_layers(model, task))
    if config.target_modules == "all-linear" and any(isinstance(one, Conv1D) for one in layers):
        raise ConfigError(
            f"Method oft turns the input of Linear layers only; those of {model.config.model_type} "
            "models are Conv1D.",
            "Take method lora, which goes beside both.",
        )
    wanted = peft.OFTConfig(r=0, **config.model_dump(exclude={"name"}))
    adapted = adapter.attach(model, wanted, task)
    for name, parameter in adapted.named_parameters():
        # A block of one has nothing to turn; a partitioned tensor keeps its whole shape aside.
        if ".oft_R." in name and 0 in getattr(parameter, "ds_shape", parameter.shape):
            raise ConfigError(
                f"method.oft_block_size: no block size near {wanted.oft_block_size} divides the "
                f"width of {name.partition('.oft_R.')[0]}.",
                "Leave that layer out of method.target_modules, or choose another block size.",
            )
    return adapted


METHOD = Method(
    name="oft",
    summary="a rotation before each linear layer, in blocks (block size)",
    source="Qiu et al. 2023, arXiv 2306.07280; Qiu et al. 2025 (OFTv2), arXiv 2506.19847",
    config=OftConfig,
    learning_rate=1e-3,
    space={
        "train.learning_rate": Range(1e-5, 1e-2, log=True),
        "method.oft_block_size": (16, 32, 64),
    },
    attach=_attach,
    adapter=True,
    merges=True,
)
