"""Where a prompt method puts vectors before the input: outputs and positions that fit the input.

PEFT 0.21.2 leaves the logits of the vectors in the output, drops the positions of left-padded
rows, and has a decoder classify by the last position, be it padding. Hooks mend all three.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class SmallEmbedding(nn.Embedding):
    """An embedding that begins small, about 0: normal, with this standard deviation."""

    spread = 0.02

    def reset_parameters(self) -> None:
        """Draw the weights; called on construction, where ZeRO-3 can still follow."""
        nn.init.normal_(self.weight, std=self.spread)


def begin_small(module: nn.Module) -> None:
    """Have a prefix begin with keys and values about 0.

    PEFT 0.21.2 draws them with a standard deviation of 1, which drowns what a decoder has learnt;
    its other choice, zeros, keeps all positions of the prefix alike for ever.

    Args:
        module: A PEFT model with a prefix without projection, just attached; changed in place.
    """
    encoder: Any = module.get_submodule("prompt_encoder.default")
    old = encoder.embedding
    encoder.embedding = SmallEmbedding(
        old.num_embeddings, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype
    )


def align(module: nn.Module) -> nn.Module:
    """Make a model with virtual tokens answer as one without: a logit row per input token.

    Args:
        module: A PEFT model, just attached or loaded; one without virtual tokens is left alone.

    Returns:
        The module itself.
    """
    config: Any = module.active_peft_config
    base: Any = module.base_model
    if not config.is_prompt_learning or base.config.is_encoder_decoder:
        return module
    if config.task_type == "CAUSAL_LM":
        if "position_ids" in inspect.signature(base.forward).parameters:
            base.register_forward_pre_hook(_count_positions, with_kwargs=True)
    elif config.task_type == "SEQ_CLS" and hasattr(base, "score"):
        last = _LastAttended()
        base.register_forward_pre_hook(last.remember, with_kwargs=True)
        base.score.register_forward_pre_hook(last.choose)
    if config.task_type != "SEQ_CLS":
        module.register_forward_hook(_cut, with_kwargs=True)
    return module


@contextmanager
def without(module: nn.Module) -> Iterator[None]:
    """Have a model answer as if there were no virtual tokens, for as long as it lasts.

    Args:
        module: One with virtual tokens; any other is left alone.

    Yields:
        Nothing.
    """
    config: Any = getattr(module, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        yield
        return
    # PEFT 0.21.2's own disable_adapter fails for a model that generates no text.
    base: Any = module.base_model
    module.forward = base.__call__
    try:
        yield
    finally:
        del module.forward


def _cut(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    output.logits = output.logits[:, -named["input_ids"].shape[1] :]
    return output


def _count_positions(
    base: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> Arguments | None:
    """Number the attended positions, so that padding on the left shifts nothing."""
    mask = named.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return None
    given = named.get("inputs_embeds")
    length = (named["input_ids"] if given is None else given).shape[1]
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return arguments, {**named, "position_ids": positions}


class _LastAttended:
    """Shows the score layer of a decoder the last attended position only.

    transformers finds that position in the input ids, which PEFT replaces by embeddings.
    """

    def __init__(self) -> None:
        self._mask: torch.Tensor | None = None

    def remember(self, base: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._mask = named["attention_mask"] if named.get("inputs_embeds") is not None else None

    def choose(self, score: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._mask is None:
            return None
        hidden = arguments[0]
        places = torch.arange(self._mask.shape[1], device=hidden.device)
        last = (places * self._mask.to(hidden.device, torch.long)).argmax(-1)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return (hidden[rows, last].unsqueeze(1), *arguments[1:])
