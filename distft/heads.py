"""What a model ends in: which of it is new, and what every method therefore trains whole.

A weight is new when the model's files lack it. Elsewhere than in the head that is an error; in the
head it is drawn at random, so that no method may leave it frozen. Which weights are new is known of
a loaded model and of one on the meta device alike: `distft.hf` notes it on both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from distft.plugin import Task

Gather = Callable[["Sequence[nn.Parameter]"], AbstractContextManager[Any]]
"""Makes partitioned parameters (ZeRO-3) whole while the context lasts, and writes them back."""

_NEW = "_distft_new"
"""Attribute of a model: names of the parameters that its files lack."""


def head_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules behind the body, whether they are new or pre-trained.

    Args:
        model: A transformers model with a head.

    Returns:
        Names of direct children that have parameters, such as `classifier`, `cls` or `lm_head`.
    """
    body = model.base_model_prefix
    children = dict(model.named_children())
    if body not in children:
        # T5 keeps its stacks beside its output layer, without a module around them.
        last: Any = model.get_output_embeddings()
        return [name for name, child in children.items() if child is last]
    return [
        name
        for name, child in children.items()
        if name != body and any(True for _ in child.parameters())
    ]


def may_be_new(model: PreTrainedModel, name: str, task: Task) -> bool:
    """Return whether a weight that the files lack may be drawn at random.

    Args:
        model: A transformers model with a head.
        name: Of a parameter.
        task: One with a head of its own may also lack the pooler, which some bodies were
            pre-trained without. No task may lack the weight that writes tokens: a random one has
            forgotten the vocabulary.

    Returns:
        False: the weight must come from the files.
    """
    in_head = is_inside(name, head_modules(model))
    if task.new_head:
        return in_head or ".pooler." in f".{name}"
    writes = getattr(model.get_output_embeddings(), "weight", None)
    return in_head and _named(model)[name] is not writes


def is_uncertain(model: PreTrainedModel, task: Task) -> bool:
    """Return whether only the model's files can say what is new.

    Args:
        model: A transformers model with a head.
        task: The modules behind the body are new in any case where the task brings its own.

    Returns:
        True, for example, of a BERT for masked language modelling; False of a Llama.
    """
    given = head_modules(model) if task.new_head else []
    return any(
        may_be_new(model, name, task)
        for name, _ in model.named_parameters()
        if not is_inside(name, given)
    )


def note_new(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Note on a model which of its parameters are new.

    Args:
        model: A transformers model; gets an attribute, which copies of it have too.
        names: Of parameters, tied ones under any of their names.
    """
    setattr(model, _NEW, sorted(names))


def draw_new(model: PreTrainedModel, names: Iterable[str], seed: int, gather: Gather) -> None:
    """Draw weights that the files lack from (seed, name): the same whatever loads them, and how.

    Args:
        model: A transformers model; matrices become normal, biases 0, other vectors 1.
        names: Of parameters.
        seed: Of the draw.
        gather: How to make partitioned parameters whole.
    """
    import torch

    spread = getattr(model.config.get_text_config(), "initializer_range", None) or 0.02
    parameters = _named(model)
    for name in names:
        parameter = parameters[name]
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        with gather([parameter]), torch.no_grad():
            if parameter.dim() > 1:
                drawn = torch.empty(parameter.shape).normal_(0.0, spread, generator=generator)
                parameter.copy_(drawn)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def trained_whole(model: PreTrainedModel, task: Task) -> list[str]:
    """Return the names of the modules that every method trains, and an adapter saves, whole.

    Args:
        model: A transformers model before a method is attached.
        task: Decides whether the modules behind the body are the task's own.

    Returns:
        The task's own modules, and others that hold new weights and nothing else. A new bias beside
        a weight that is tied to the embeddings stands in no such module.
    """
    whole = head_modules(model) if task.new_head else []
    new = _new_parameters(model)
    for name in getattr(model, _NEW, []):
        owner = name.rpartition(".")[0]
        alone = all(id(p) in new for p in model.get_submodule(owner).parameters())
        if alone and not is_inside(owner, whole):
            whole.append(owner)
    return whole


def trained_parameters(model: PreTrainedModel, task: Task) -> list[nn.Parameter]:
    """Return the head's parameters that a method which trains the model's own weights must train.

    Args:
        model: A transformers model.
        task: Decides whether the modules behind the body are the task's own.

    Returns:
        Those of `trained_whole`, and every other new one.
    """
    modules = [model.get_submodule(name) for name in trained_whole(model, task)]
    found = {id(p): p for module in modules for p in module.parameters()}
    return list((found | _new_parameters(model)).values())


def is_inside(name: str, modules: Sequence[str]) -> bool:
    """Return whether a dotted name is one of some modules', or of something in them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _new_parameters(model: PreTrainedModel) -> dict[int, nn.Parameter]:
    named = _named(model)
    return {id(named[name]): named[name] for name in getattr(model, _NEW, [])}


def _named(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))
