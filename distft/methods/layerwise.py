"""Layer by layer: blocks open one after another from the top, and learn slower further down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from distft.plugin import Method, Pace, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class LayerwiseConfig(VariantConfig):
    """Keys of `method: {name: layerwise}`.

    Stage 0, open from the first step, is what follows the last block: its norm and the head. Then
    come the blocks from the last to the first (of an encoder-decoder model those of the decoder
    before those of the encoder), and the embeddings, with an output layer that shares them. A
    stage that is not yet open stands still because its rate is 0: its gradients exist, count in
    the clipped norm and enter the optimizer's running means.
    """

    name: str = "layerwise"
    """The method."""
    gradual_unfreezing: bool = True
    """Open one stage after the other; false: all are open from the start."""
    unfreeze_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the run's steps after which the last stage opens; the others at equal distances."""
    learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Learning rate of a stage as a share of that of the stage above it; 1.0: the same for all."""


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    from distft.blocks import blocks_of

    # Refused here where the architecture keeps no list of blocks.
    blocks_of(model)
    model.requires_grad_(True)
    return model


def _paces(module: nn.Module, config: VariantConfig) -> Mapping[str, Pace]:
    from distft.blocks import blocks_of

    assert isinstance(config, LayerwiseConfig)
    blocks = blocks_of(module)  # type: ignore[arg-type]  # what _attach returned
    block_of = {id(p): i for i, block in enumerate(blocks, 1) for p in block.parameters()}
    paces: dict[str, Pace] = {}
    # Models register their parts in the order in which they are passed through: what comes before
    # the first block are embeddings, what comes after a block and in none belongs above it.
    height = 0
    for name, parameter in module.named_parameters():
        inside = block_of.get(id(parameter))
        if inside is not None:
            height = inside
        above = height == len(blocks) and inside is None
        down = 0 if above else len(blocks) + 1 - height
        start = config.unfreeze_share * down / (len(blocks) + 1)
        paces[name] = Pace(
            scale=config.learning_rate_decay**down,
            start=start if config.gradual_unfreezing else 0.0,
        )
    return paces


METHOD = Method(
    name="layerwise",
    summary="blocks open one by one from the top and learn slower further down",
    source="Howard and Ruder 2018 (ULMFiT), arXiv 1801.06146, sections 3.2 and 3.3",
    config=LayerwiseConfig,
    learning_rate=5e-5,
    space={
        "train.learning_rate": Range(1e-6, 5e-4, log=True),
        "method.learning_rate_decay": Range(0.7, 1.0),
    },
    attach=_attach,
    adapter=False,
    merges=False,
    paces=_paces,
)
