"""What a method, a task, a format, a chat template and a tracker are, and how they are found.

A variant is one file: `distft/methods/lora.py` declares `METHOD = Method(...)`, a task file
`TASK`, a format file `FORMAT`, a template file `TEMPLATE`, a tracker file `TRACKER`. Nothing else
names it: help, tables, JSON schema and the contract tests all come from `collect`. Variant files
import no torch, transformers or peft at module level, so that listing them stays quick.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from distft.space import Values

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, Any]
"""A canonical row: what a format makes of a raw one and a task encodes (see `Task.row`)."""

Ending = Literal["completed", "stopped", "failed"]
"""How a run left its loop; a process that is killed says nothing."""

RowKind = Literal[
    "labelled_text",
    "multi_labelled_text",
    "rated_text",
    "tagged_words",
    "plain_text",
    "text_to_text",
    "conversation",
]
"""`labelled_text`: {"text": str, "label": str or None}; `multi_labelled_text`: {"text": str,
"labels": [str, ...] or None}, any number of them; `rated_text`: {"text": str, "value": float or
None}; these three may hold "pair", a second text; `tagged_words`: {"words": [str, ...], "tags":
[str, ...] or None}; `plain_text`: {"text": str}; `text_to_text`: {"source": str, "target": str or
None}; `conversation`: {"messages": [{"role": "system" | "user" | "assistant" | "tool", "content":
str}, ...]} and, where the assistant may call tools, "tools": [JSON schema of each, ...]; a call is
an assistant's message."""


class VariantConfig(BaseModel):
    """Base of every method's and task's own keys; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    name: str
    """Which variant this is: the stem of its file."""


class UnusableRow(Exception):  # noqa: N818 - not an error of the run: the row is counted and listed
    """A row that cannot be trained on; its text is the reason counted in the manifest."""


class TrainsNothing(UnusableRow):
    """A row that can be read and would yet add nothing to the loss."""


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


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a conversation is written for a model whose tokenizer says nothing better."""

    name: str
    summary: str
    source: str
    text: str
    """Jinja as `apply_chat_template` of transformers takes it, answers in generation blocks."""
    tokens: tuple[str, ...] = ()
    """Special tokens the tokenizer must have, or their text would fall into pieces."""
    end: str | None = None
    """The token that ends a turn; None: the tokenizer's end of sequence."""


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """What a tracker is told of a run when it begins or goes on."""

    name: str
    study: str | None
    """The study it is a trial or the winner of."""
    run_dir: Path
    output_dir: Path
    """Where a tracker that keeps all runs in one place may do so."""
    config: Mapping[str, Any]
    """As plain data, secrets hidden."""
    id: str | None = None
    """What the tracker called it before; None for a run it does not know yet."""


class Tracking(Protocol):
    """A run as a tracker keeps it; what its functions raise is counted and fails no run."""

    @property
    def id(self) -> str | None:
        """Kept in the run directory, so that a resumed run is one for the tracker too."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Keep the numbers of a line of metrics.jsonl."""

    def close(self, ending: Ending, summary: Mapping[str, float]) -> None:
        """Keep what the run came to, and let go of it."""


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """A place besides metrics.jsonl that keeps what runs measure; `report_to` names it."""

    name: str
    summary: str
    package: str
    """What must be installed, as it is imported; part of the extra `tracking`."""
    told_again: bool = False
    """A resumed run tells it the lines of earlier attempts too; it keeps each once by itself."""
    open: Callable[[Tracked], Tracking]
    """Begin a run, or go on with the one whose `id` is given."""


@dataclass(frozen=True)
class Encoded:
    """One tokenized sample."""

    input_ids: list[int]
    labels: Sequence[float]
    """See `Task.labels`."""
    truncated: bool = False
    second: int = 0
    """Where a second text begins, for a model that tells them apart by token type; 0: nowhere."""


@dataclass(frozen=True)
class EncodeContext:
    """What a task may know while it encodes a row."""

    cutoff_len: int
    """Most tokens a sample may have."""
    labels: Sequence[str] = ()
    """Class names in id order, from the training rows."""
    train_on_prompt: bool = False
    """Of a conversation all is trained on, not the answers only."""


@dataclass(frozen=True)
class LossSettings:
    """What changes the training loss and never an evaluation."""

    label_smoothing: float = 0.0
    class_weights: torch.Tensor | None = None
    """One weight per class, float32; None: all 1."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt: rows -> token ids -> logits -> loss, metrics and predictions."""

    name: str
    summary: str
    source: str
    config: type[VariantConfig]
    rows: tuple[RowKind, ...]
    """Kinds of rows it learns from."""
    auto_class: str
    """Name of the transformers Auto class that carries the head."""
    peft_type: str
    """PEFT's TaskType of that head."""
    new_head: bool
    """True: the task puts an untrained output layer on the pre-trained body, whatever the files
    hold; False: it takes theirs, and is new only where they lack it (see `distft.heads`)."""
    labels: Literal["class", "vector", "tokens", "sequence"]
    """`class`: one class id per sample; `vector`: as many numbers as the model has outputs;
    `tokens`: one id per token, -100 where nothing is trained (not shifted); `sequence`: the ids a
    decoder is to write. A dummy's labels are -100, in a vector NaN."""
    smooths: bool = True
    """False: what is learnt is no distribution over classes, so that no label can be smoothed."""
    num_outputs: int | None = None
    """Outputs of the head where they do not come from the data's classes."""
    packs: bool = False
    """True: a sample's tokens see those before them only, and its labels stand at its own tokens,
    so that several may share a row."""
    masks_tokens: bool = False
    """True: a share of the input is hidden in every step anew and only the hidden is trained."""
    objective: str = "eval_loss"
    greater_is_better: bool = False
    headline: str = ""
    """The metric shown beside the loss, without the `eval_` prefix."""
    key: Callable[[Row], str]
    """The input that must not stand in two splits."""
    stratum: Callable[[Row], str | None] = lambda row: None
    """The class a split keeps in proportion; None where there is none."""
    classes: Callable[[Row], Sequence[str]] | None = None
    """Names of the classes in a row; None: the task has no classes."""
    check: Callable[[VariantConfig, Sequence[str]], None] = lambda config, names: None
    """(config, class names) -> nothing. Raises ConfigError where keys do not fit the classes."""
    class_weights: Callable[
        [VariantConfig, Sequence[str], Sequence[int], int], list[float] | None
    ] = lambda config, names, counts, rows: None
    """(config, class names, how many training rows hold each, training rows) -> weight of each in
    the training loss."""
    encode: Callable[[Row, PreTrainedTokenizerBase, EncodeContext], Encoded]
    """Raises UnusableRow."""
    num_targets: Callable[[Sequence[float]], int]
    """labels of one sample -> how many terms it adds to the loss."""
    loss: Callable[[torch.Tensor, torch.Tensor, LossSettings], torch.Tensor]
    """(logits, labels, settings) -> loss summed over the trained targets, in float32."""
    score: Callable[[torch.Tensor, torch.Tensor, Sequence[str]], dict[str, torch.Tensor]]
    """(logits, labels, class names) -> columns, each with one value or array of a fixed shape per
    row; must hold `loss_sum` and `num_targets`."""
    metrics: Callable[[Mapping[str, np.ndarray], Sequence[str]], dict[str, Any]]
    """(all rows' columns, class names) -> metrics; exact whatever the world size was."""
    predict: Callable[
        [nn.Module, PreTrainedTokenizerBase, Sequence[Row], EncodeContext, VariantConfig],
        list[dict[str, Any]],
    ]
    """(model, tokenizer, rows, context, config) -> one JSON-able prediction per row, in order."""
    ends: Callable[[PreTrainedTokenizerBase], set[int]] | None = None
    """Tokenizer -> the ids of which one must end what is trained, or the model never learns to
    stop; None: nothing is written."""
    reference: Callable[[Row], tuple[Row, str]] | None = None
    """Row -> (what `predict` is to answer, the text it should answer with); None: a prediction is
    no text, or there is none that is right. Raises UnusableRow."""


def greater_is_better(metric: str) -> bool:
    """Return the direction of a metric by its name.

    Args:
        metric: Such as `eval_f1_macro`.

    Returns:
        False for losses, perplexity and errors.
    """
    return not metric.endswith(("loss", "perplexity", "mse", "mae"))


@dataclass(frozen=True)
class Pace:
    """How fast a parameter learns beside the others."""

    scale: float = 1.0
    """Its learning rate as a share of the run's."""
    start: float = 0.0
    """Share of the run's steps before which its rate is 0."""


class Allocator(Protocol):
    """Shares out a budget among an adapter's parts while it trains (one process, plain torch)."""

    def penalty(self) -> torch.Tensor:
        """Return what is added to the loss of a step."""
        ...

    def after_step(self, step: int) -> None:
        """Allocate anew after an optimizer step, counted from 0; the gradients are still there."""
        ...

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """Return what is known of a parameter besides its value."""
        ...

    def load_state(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what `state` gave; `tensors` holds more than that."""
        ...


@dataclass(frozen=True)
class Quantization:
    """A base model whose weights are stored in fewer bits."""

    settings: Any
    """What `from_pretrained(quantization_config=...)` takes."""
    bytes_per_param: float
    """Of a linear weight, with its scales."""


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
    searched: bool = False
    """True: a search tries it where `tune.methods` names none."""
    refuses: Callable[[VariantConfig], Mapping[str, str]] = lambda config: {}
    """config -> {setting it cannot be combined with: why}, such as `task=token_cls`,
    `cluster.zero_stage=3` or `train.gradient_checkpointing=true` (see `distft.compat`)."""
    virtual_tokens: Callable[[VariantConfig], int] = lambda config: 0
    """config -> positions of the model that the method takes for itself."""
    paces: Callable[[nn.Module, VariantConfig], Mapping[str, Pace]] = lambda module, config: {}
    """(what `attach` returned, config) -> pace of each parameter that has one of its own."""
    allocator: Callable[[nn.Module, VariantConfig, int], Allocator] | None = None
    """(what `attach` returned, config, steps of the run) -> what follows every step."""
    quantization: Callable[[VariantConfig], Quantization | None] = lambda config: None
    """config -> how the base model is stored; None: as `model.dtype` says."""


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


def templates() -> dict[str, Template]:
    """Return every chat template by name."""
    return collect("distft.templates", "TEMPLATE")


def trackers() -> dict[str, Tracker]:
    """Return every tracker by name."""
    return collect("distft.trackers", "TRACKER")
