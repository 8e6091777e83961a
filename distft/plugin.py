"""What a fine-tuning method, a task and a data format are, and how their files are found.

A variant is one file: `distft/methods/lora.py` declares `METHOD = Method(...)`, a task file
`TASK`, a format file `FORMAT`. Nothing else names it: help, tables, JSON schema and the contract
tests all come from `collect`. Variant files import no torch, transformers or peft at module
level, so that listing them stays quick.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from distft.space import Values

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, Any]
"""A canonical row: what a format makes of a raw one and a task encodes (see `Task.row`)."""

RowKind = Literal["labelled_text", "conversation"]
"""`labelled_text`: {"text": str, "label": str or None};
`conversation`: {"messages": [{"role": "system" | "user" | "assistant", "content": str}, ...]}."""


class VariantConfig(BaseModel):
    """Base of every method's and task's own keys; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    name: str
    """Which variant this is: the stem of its file."""


class UnusableRow(Exception):  # noqa: N818 - not an error of the run: the row is counted and listed
    """A row that cannot be trained on; its text is the reason counted in the manifest."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How raw rows of one shape become canonical rows."""

    name: str
    summary: str
    row: RowKind
    columns: Mapping[str, str]
    """Role -> default column name; `data.columns` renames them."""
    target: str
    """Role of the column that is learnt: without it a row serves prediction only."""
    example: Mapping[str, Any]
    """One raw row as it stands in a file; shown by `distft formats` and read by the tests."""
    detect: Callable[[Mapping[str, Any], Mapping[str, str]], bool]
    """(raw row, columns) -> whether this format can read it."""
    read: Callable[[Mapping[str, Any], Mapping[str, str]], Row]
    """(raw row, columns) -> canonical row. Raises UnusableRow naming the missing or wrong field."""


@dataclass(frozen=True)
class Encoded:
    """One tokenized sample."""

    input_ids: list[int]
    labels: list[int]
    """One class id, or one id per token with -100 where nothing is trained (not shifted)."""
    truncated: bool = False


@dataclass(frozen=True)
class EncodeContext:
    """What a task may know while it encodes a row."""

    cutoff_len: int
    """Most tokens a sample may have."""
    labels: Sequence[str] = ()
    """Class names in id order, from the training rows."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt: rows -> token ids -> logits -> loss, metrics and predictions."""

    name: str
    summary: str
    source: str
    config: type[VariantConfig]
    row: RowKind
    auto_class: str
    """Name of the transformers Auto class that carries the head."""
    peft_type: str
    """PEFT's TaskType of that head."""
    new_head: bool
    """True: the task puts an untrained output layer on the pre-trained body."""
    token_labels: bool
    """True: labels align with tokens; False: one label per sample."""
    objective: str = "eval_loss"
    greater_is_better: bool = False
    headline: str = ""
    """The metric shown beside the loss, without the `eval_` prefix."""
    key: Callable[[Row], str]
    """The input that must not stand in two splits."""
    stratum: Callable[[Row], str | None]
    """The class a split keeps in proportion; None where there is none."""
    encode: Callable[[Row, PreTrainedTokenizerBase, EncodeContext], Encoded]
    """Raises UnusableRow."""
    num_targets: Callable[[Sequence[int]], int]
    """labels of one sample -> how many terms it adds to the loss."""
    loss: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    """(logits, labels, label smoothing) -> loss summed over the trained targets, in float32."""
    score: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]
    """(logits, labels) -> one value per row and column; must hold `loss_sum` and `num_targets`."""
    metrics: Callable[[Mapping[str, np.ndarray], Sequence[str]], dict[str, Any]]
    """(all rows' columns, class names) -> metrics; exact whatever the world size was."""
    predict: Callable[
        [nn.Module, PreTrainedTokenizerBase, Sequence[Row], EncodeContext, VariantConfig],
        list[dict[str, Any]],
    ]
    """(model, tokenizer, rows, context, config) -> one JSON-able prediction per row, in order."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is trained: which parameters exist and move."""

    name: str
    summary: str
    source: str
    config: type[VariantConfig]
    learning_rate: float
    """Default peak learning rate, the prior of a search."""
    space: Mapping[str, Values]
    """Dotted config path -> range or choices of a search."""
    attach: Callable[[PreTrainedModel, VariantConfig, Task], nn.Module]
    """Freeze, wrap or extend the model in place; works on meta tensors; returns what to train."""
    adapter: bool
    """True: saved as a PEFT adapter beside the base; False: saved as a whole model."""
    merges: bool
    """True: an adapter that can be folded into the base weights."""
    refuses: Mapping[str, str] = field(default_factory=dict)
    """Name of a task or setting it cannot be combined with -> why."""


@cache
def collect(package: str, constant: str) -> dict[str, Any]:
    """Return {file stem: its constant} of a variant folder, sorted by name.

    Args:
        package: Dotted name of the folder, such as `distft.methods`.
        constant: Name every file of it declares, such as `METHOD`.

    Returns:
        The variants by file stem.

    Raises:
        TypeError: A file declares no such constant, or one whose name is not the file's stem.
    """
    folder: ModuleType = importlib.import_module(package)
    found: dict[str, Any] = {}
    for info in sorted(pkgutil.iter_modules(folder.__path__), key=lambda module: module.name):
        variant = getattr(importlib.import_module(f"{package}.{info.name}"), constant, None)
        if variant is None or variant.name != info.name:
            raise TypeError(f"{package}/{info.name}.py must declare {constant} named {info.name!r}")
        found[info.name] = variant
    return found


def methods() -> dict[str, Method]:
    """Return every fine-tuning method by name."""
    return collect("distft.methods", "METHOD")


def tasks() -> dict[str, Task]:
    """Return every task by name."""
    return collect("distft.tasks", "TASK")


def formats() -> dict[str, Format]:
    """Return every data format by name."""
    return collect("distft.formats", "FORMAT")
