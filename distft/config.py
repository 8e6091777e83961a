"""The configuration of a run, key by key. The field docs are the help and the JSON schema.

Every key a user may write is declared here or in the method's and task's own file. `None` means
"derive it": `plan` does, and says why.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from distft import plugin

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
DEFAULT_METHOD = "lora"

_LEARNS_THE_SAME = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "global_batch_size",
    "gradient_checkpointing",
    "logging_steps",
    "save_steps",
    "save_total_limit",
)
"""Keys of `train` that may change when a run is continued: a step holds the same samples."""

Share = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Paths = Text | Annotated[list[Text], Field(min_length=1)]


VARIANT_KEYS = "variant_keys"
"""Type of the validation error that carries the errors of a method's or task's own keys."""


def variants(section: str) -> Mapping[str, plugin.Method | plugin.Task]:
    """Return what `method` or `task` may name.

    Args:
        section: `method` or `task`.

    Returns:
        The variants by name.
    """
    return plugin.methods() if section == "method" else plugin.tasks()


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the known word nearest to this one, or nothing.

    Args:
        word: What was written.
        known: What is allowed.

    Returns:
        Text to append to a message; empty when nothing is near.
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


class Section(BaseModel):
    """Base of the sections; unknown keys and implicit conversions are errors."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelConfig(Section):
    """Which pre-trained model."""

    id: Text
    """Hub id, folder of a saved model, or `asset:NAME` (a model that comes inside a package)."""
    revision: str | None = None
    """Hub commit, tag or branch; pin a commit for a run that can be repeated."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in memory; `train.bf16` alone computes in bfloat16 and keeps float32."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Sets every dropout rate of the model's own configuration; default: as it was pre-trained."""
    trust_remote_code: bool = False
    """Runs Python code that came with the model. Recorded in the run."""


class DataConfig(Section):
    """Which rows, and how they are read."""

    train: Paths
    """File, glob or list of them; or `asset:NAME`."""
    eval: Share | Paths = 0.1
    """Rows for choosing (early stopping, best checkpoint): files, or a share of `train`."""
    test: Share | Paths = 0.1
    """Rows seen once, at the end: files, or a share of `train`."""
    format: str | None = None
    """One of `distft formats`; default: detected from the first rows."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role -> column name where yours differ, such as {text: review, label: stars}."""
    cutoff_len: Annotated[int, Field(ge=8)] | None = None
    """Longest sample in tokens; longer ones are truncated and counted. Default: 512 or the
    model's own limit, whichever is smaller."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Use only the first so many usable training rows."""
    on_bad_row: Literal["skip", "error"] = "skip"
    """skip: count and list unusable rows in the manifest; error: stop at the first."""

    @field_validator("format")
    @classmethod
    def _format_is_known(cls, name: str | None) -> str | None:
        known = plugin.formats()
        if name is not None and name not in known:
            raise ValueError(
                f"unknown format {name!r}{nearest(name, known)}; allowed: {', '.join(known)}"
            )
        return name


class TrainConfig(Section):
    """How it is trained; Hugging Face spelling."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; default: the method's own."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the training rows; `max_steps` wins."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps."""
    per_device_train_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Samples of one worker's micro-batch; default: what one accumulation step needs, at most 8."""
    per_device_eval_batch_size: Annotated[int, Field(ge=1)] = 16
    """Samples of one worker's evaluation batch."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] | None = None
    """Micro-batches per optimizer step and worker; default: what `global_batch_size` needs."""
    global_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Samples of one optimizer step over all workers; default 16, or the product of the others."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.06
    """Optimizer steps of linear warm-up; below 1: a share of all steps."""
    optim: Literal["adamw_torch", "sgd"] = "adamw_torch"
    """Optimizer; sgd uses `sgd_momentum`."""
    sgd_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled for AdamW, L2 for sgd; never on biases and norms."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's decay of the second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's term against division by zero."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Global gradient norm to clip at; 0 is off."""
    label_smoothing_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of probability spread over all classes; training loss only, never evaluation."""
    bf16: bool = False
    """Compute in bfloat16 (autocast); weights and optimizer stay as `model.dtype` says."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seeds new weights, data order and dropout."""
    eval_strategy: Literal["no", "steps", "epoch"] = "steps"
    """When to evaluate besides the start and the end."""
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between evaluations; default: a fifth of the run."""
    save_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between checkpoints; default: with every evaluation."""
    save_total_limit: Annotated[int, Field(ge=1)] = 2
    """Checkpoints kept; the best one is kept besides."""
    logging_steps: Annotated[int, Field(ge=1)] = 5
    """Optimizer steps between lines of metrics.jsonl."""
    metric_for_best_model: str | None = None
    """Evaluation metric that picks the best checkpoint; default: the task's objective."""
    greater_is_better: bool | None = None
    """Direction of that metric; default: down for losses, up for others."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many evaluations in a row without a better one; default: never."""

    @field_validator("eval_strategy", mode="before")
    @classmethod
    def _yaml_no(cls, value: Any) -> Any:
        # YAML 1.1 reads a bare `no`, which is Hugging Face's spelling, as false.
        return "no" if value is False else value


class ShapeConfig(Section):
    """A cluster as numbers, so that `plan` needs no hardware."""

    nodes: Annotated[int, Field(ge=1)] = 1
    """Machines."""
    cpus: Annotated[int, Field(ge=1)] = 8
    """CPU cores of a node."""
    memory: str = "16GiB"
    """Main memory of a node, such as 64GiB."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """Graphics cards of a node."""
    gpu_memory: str = "80GiB"
    """Memory of one graphics card."""


class ClusterConfig(Section):
    """Where it runs. None of it changes what is learnt, so none of it is in the config hash."""

    address: str | None = None
    """Ray address (`auto`, `ray://host:10001`); default: a local Ray that ends with the run."""
    num_workers: Annotated[int, Field(ge=1)] = 1
    """Training processes."""
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    """CPUs Ray reserves for each."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | None = None
    """Graphics cards of each; default: 1 where the cluster has them."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """DeepSpeed ZeRO stage; default: the lowest that fits."""
    offload: Literal["none", "cpu"] = "none"
    """cpu: optimizer states live in main memory (ZeRO 1-3)."""
    shape: ShapeConfig | None = None
    """Plan for this cluster instead of the one at hand."""


class RunConfig(Section):
    """Everything a user may set."""

    name: str = ""
    """Name of the run and its directory; default: the file's stem."""
    output_dir: Text = "runs"
    """Folder of the run directories; on a cluster, storage every node sees."""
    report_to: list[Literal["tensorboard"]] = Field(default_factory=list)
    """Trackers besides metrics.jsonl."""
    model: ModelConfig
    """The model; `model: X` is short for `model: {id: X}`."""
    task: Any = None
    """The task and its own keys; `task: X` is short for `task: {name: X}`; default: from the
    data."""
    data: DataConfig
    """The data."""
    method: Any = None
    """The fine-tuning method and its own keys; `method: X` is short for `method: {name: X}`;
    default: lora."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    """Training."""
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    """Workers and memory."""

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError(
                "a name becomes a directory: lower-case letters, digits, '.', '_' and '-', "
                "beginning with a letter or digit, at most 63 characters"
            )
        return name

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        full = dict(raw)
        if isinstance(full.get("model"), str):
            full["model"] = {"id": full["model"]}
        for key in ("method", "task"):
            if isinstance(full.get(key), str):
                full[key] = {"name": full[key]}
        method = {} if full.get("method") is None else full["method"]
        if isinstance(method, Mapping):
            full["method"] = {"name": DEFAULT_METHOD, **method}
        return full

    @field_validator("method", "task", mode="before")
    @classmethod
    def _variants(cls, value: Any, info: Any) -> Any:
        known = variants(info.field_name)
        if value is None or isinstance(value, plugin.VariantConfig):
            return value
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise ValueError(
                f"must be a name or a mapping with a name; allowed: {', '.join(known)}"
            )
        if value["name"] not in known:
            raise ValueError(
                f"unknown {info.field_name} {value['name']!r}{nearest(value['name'], known)}; "
                f"allowed: {', '.join(known)}"
            )
        try:
            return known[value["name"]].config.model_validate(dict(value))
        except ValidationError as error:
            # Raised as it is, pydantic would flatten it to text and lose which key is wrong.
            raise PydanticCustomError(
                VARIANT_KEYS, "its keys are wrong", {"errors": error.errors()}
            ) from error

    @property
    def run_dir(self) -> Path:
        """The directory of this run."""
        return Path(self.output_dir) / self.name

    def dump(self) -> dict[str, Any]:
        """Return the configuration as plain data that `load` reads back."""
        plain = self.model_dump()
        for key in ("method", "task"):
            value = getattr(self, key)
            plain[key] = value.model_dump() if isinstance(value, BaseModel) else value
        return plain

    def hash(self, data_key: str, global_batch_size: int) -> str:
        """Return the hash of what is learnt: not of names, paths, workers or how a step is cut.

        Args:
            data_key: Key of the prepared data, which stands for the paths and split settings.
            global_batch_size: Samples of a step; where it is derived, it depends on the workers.

        Returns:
            16 hexadecimal digits.
        """
        plain = self.dump()
        for key in ("name", "output_dir", "report_to", "cluster", "data"):
            del plain[key]
        for key in _LEARNS_THE_SAME:
            del plain["train"][key]
        text = json.dumps([plain, data_key, global_batch_size], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
