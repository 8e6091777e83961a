"""A model's transformer blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distft.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """Return the transformer blocks from the first to the last.

    Args:
        model: A transformers model.

    Returns:
        The outermost list that is as long as the model is deep, a decoder's after the encoder's.

    Raises:
        ConfigError: The architecture holds no such list.
    """
    two = model.config.is_encoder_decoder
    stacks = [model.get_encoder(), model.get_decoder()] if two else [model]
    return [block for stack in stacks for block in _list_of_blocks(stack)]


def _list_of_blocks(stack: PreTrainedModel) -> nn.ModuleList:
    from torch import nn

    depth = getattr(stack.config.get_text_config(), "num_hidden_layers", None)
    for module in stack.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    kind = stack.config.model_type
    raise ConfigError(f"{kind} keeps no list of {depth} blocks.", "Use method full or lora.")


def are_alike(module: nn.Module, depth: int) -> bool:
    """Return whether a module's blocks have the same weights, and the same of them are trained.

    Args:
        module: A transformers model, with a method attached or without.
        depth: How many blocks it has.

    Returns:
        False also where the blocks are not found.
    """
    from torch import nn

    for found in module.modules():
        if isinstance(found, nn.ModuleList) and len(found) == depth:
            kinds = {
                tuple((name, p.shape, p.requires_grad) for name, p in block.named_parameters())
                for block in found
            }
            return len(kinds) == 1
    return False
