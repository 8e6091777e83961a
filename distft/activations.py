"""The bytes that a micro-batch's forward and backward pass takes besides the model's states.

The pass runs on fake tensors of torch, which have sizes and no values: the model's own code says
what is kept, for every architecture and method. What it takes is what is alive at its peak:
activations kept for the backward pass (Korthikanti et al. 2022, arXiv 2205.05198, section 4, count
them by hand), the loss over the vocabulary in float32, and gradients on their way.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from distft import hf, plugin
from distft.config import RunConfig
from distft.plugin import LossSettings, Task
from distft.states import attached, count

_SHALLOW = (2, 3)
"""Blocks of the models that are tried where all blocks are alike: once the peak grows by what a
block keeps, every further one adds as much."""

_known: dict[tuple[Any, ...], int | None] = {}
"""What was found, by all that it depends on: the trials of a search differ in few of it."""


def activation_bytes(
    config: RunConfig, labels: Sequence[str], rows: int, tokens: int
) -> int | None:
    """Return the most bytes that a micro-batch takes besides weights, gradients and optimizer.

    Args:
        config: With its task resolved.
        labels: Class names in id order.
        rows: Of the micro-batch.
        tokens: Of each.

    Returns:
        Of one worker, with its longest samples; None where the model's code asks for values, which
        fake tensors do not have.
    """
    train = config.train
    key = (
        *(config.model.model_dump_json(), config.method.model_dump_json(), config.task.name),
        *(train.gradient_checkpointing, train.bf16, config.cluster.num_workers > 1),
        *(tuple(labels), rows, tokens),
    )
    if key not in _known:
        _known[key] = _activation_bytes(config, labels, rows, tokens)
    return _known[key]


def _activation_bytes(
    config: RunConfig, labels: Sequence[str], rows: int, tokens: int
) -> int | None:
    task, method = plugin.tasks()[config.task.name], plugin.methods()[config.method.name]
    if method.virtual_tokens(config.method):
        # PEFT puts them before a mask of one row a sample, which transformers asks for values.
        return None
    # It says as an error what is no error here: another architecture that needs values.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    whole = hf.load_config(config.model, task, labels, stated=True)
    try:
        if count(config, labels).alike:
            (two, two_kept), (three, three_kept) = (
                _pass_bytes(config, _cut(whole, depth), labels, (rows, tokens))
                for depth in _SHALLOW
            )
            depth: int = whole.get_text_config().num_hidden_layers
            if three - two >= three_kept - two_kept:
                return two + (three - two) * (depth - _SHALLOW[0])
            # In a shallow model something else is the peak, such as the gradient of a large
            # vocabulary: from which depth on the blocks are, only a deep one tells.
        return _pass_bytes(config, whole, labels, (rows, tokens))[0]
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return None


def _cut(whole: Any, depth: int) -> Any:
    config = copy.deepcopy(whole)
    text = config.get_text_config()
    text.num_hidden_layers = depth
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:depth]
    return config


def _pass_bytes(
    config: RunConfig, architecture: Any, labels: Sequence[str], size: tuple[int, int]
) -> tuple[int, int]:
    """Return the most bytes there are at a time, and those that the forward pass keeps."""
    task, method = plugin.tasks()[config.task.name], plugin.methods()[config.method.name]
    with torch.device("meta"):
        module = attached(hf.from_config(config.model, task, architecture), config, task)
    # DeepSpeed turns all of a model into bfloat16; PEFT alone keeps an adapter in float32.
    halved = config.model.dtype == "bfloat16" and (
        config.cluster.num_workers > 1 or not method.adapter
    )
    with FakeTensorMode():
        _fake(module, torch.bfloat16 if halved else None)
        batch = _batch(task, len(labels), *size)
        with Alive(module) as alive:
            wanted = batch.pop("labels")
            with torch.autocast("cpu", torch.bfloat16, enabled=config.train.bf16):
                logits = module(**batch).logits
            loss = task.loss(logits, wanted, LossSettings())
            kept = alive.bytes
            loss.backward()
        return alive.peak_bytes, kept


def _fake(module: nn.Module, dtype: torch.dtype | None) -> None:
    # Meta tensors have no kernels for attention, and autocast takes no notice of them.
    made: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    width = dtype if dtype and tensor.is_floating_point() else tensor.dtype
                    made[id(tensor)] = torch.empty(tensor.shape, dtype=width)
                    if isinstance(tensor, nn.Parameter):
                        made[id(tensor)] = nn.Parameter(made[id(tensor)], tensor.requires_grad)
                own[name] = made[id(tensor)]  # type: ignore[assignment]  # alike for alike
    for parameter in module.parameters():
        if parameter.requires_grad:
            # ZeRO takes a gradient away as soon as it is there; `distft.states` counts it.
            parameter.register_post_accumulate_grad_hook(_drop_gradient)


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _batch(task: Task, classes: int, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    # A mask of all pairs is what padding and packing come to inside transformers, which asks for
    # the values of any other.
    mask = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}
    if task.labels == "class":
        batch["labels"] = torch.zeros(rows, dtype=torch.long)
    elif task.labels == "vector":
        batch["labels"] = torch.zeros(rows, task.num_outputs or classes)
    elif task.labels == "sequence":
        batch["decoder_input_ids"] = ids.clone()
    return batch


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on and still in use.

    Args:
        module: Its own tensors are not counted.

    Attributes:
        bytes: Those there are.
        peak_bytes: The most there were at a time.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.peak_bytes = 0
        self.bytes = 0
        tensors = [*module.parameters(), *module.buffers()]
        self._held = {tensor.untyped_storage()._cdata: 0 for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._held:
                    self._held[storage._cdata] = storage.nbytes()
                    self.bytes += storage.nbytes()
                    self.peak_bytes = max(self.peak_bytes, self.bytes)
                    weakref.finalize(storage, self._free, storage._cdata)
        return made

    def _free(self, key: int) -> None:
        self.bytes -= self._held.pop(key)
