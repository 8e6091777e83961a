"""A configuration as a whole: its sections, its shorthands, and the hash of what is learnt.

Every key a user may write is declared here, in `config_sections`, `config_tune` or in the method's
and task's own file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from distft import plugin
from distft.config_sections import (
    ClusterConfig,
    DataConfig,
    ModelConfig,
    Section,
    Text,
    TrainConfig,
)
from distft.config_tune import TuneConfig
from distft.errors import nearest

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


class RunConfig(Section):
    """Everything a user may set."""

    name: str = ""
    """Name of the run and its directory; default: the file's stem."""
    output_dir: Text = "runs"
    """Folder of the run directories; on a cluster, storage every node sees."""
    report_to: list[str] | None = None
    """Trackers besides metrics.jsonl, such as [mlflow]; default: TensorBoard where it is installed,
    for trials of a search none."""
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
    tune: TuneConfig = Field(default_factory=TuneConfig)
    """The search; only `distft tune` reads it."""

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError(
                "a name becomes a directory: lower-case letters, digits, '.', '_' and '-', "
                "beginning with a letter or digit, at most 63 characters"
            )
        return name

    @field_validator("report_to")
    @classmethod
    def _trackers_are_known(cls, names: list[str] | None) -> list[str] | None:
        known = plugin.trackers()
        for name in names or ():
            if name not in known:
                raise ValueError(
                    f"unknown tracker {name!r}{nearest(name, known)}; allowed: {', '.join(known)}"
                )
        return names

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
        tune = full.get("tune")
        if isinstance(tune, Mapping) and isinstance(tune.get("policy"), str):
            full["tune"] = {**tune, "policy": {"name": tune["policy"]}}
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
            data_key: Key of the prepared data, which stands for the paths and split settings, not
                for the shares of what is mixed.
            global_batch_size: Samples of a step; where it is derived, it depends on the workers.

        Returns:
            16 hexadecimal digits.
        """
        plain = self.dump()
        for key in ("name", "output_dir", "report_to", "cluster", "data", "tune"):
            del plain[key]
        # What a model is planned with, and no part of it.
        del plain["model"]["shape"]
        for key in _LEARNS_THE_SAME:
            del plain["train"][key]
        if self.data.mix:
            # Not in the key: other shares of the same sets are drawn from the same prepared data.
            plain["mix"] = list(self.data.mix_shares)
        text = json.dumps([plain, data_key, global_batch_size], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def search_hash(self, config_hash: str) -> str:
        """Return the hash of what a search is: not of how long it goes on, nor of its storage.

        Args:
            config_hash: Of what it starts from.

        Returns:
            16 hexadecimal digits.
        """
        keys = ("methods", "space", "sampler", "policy", "objective", "constraints", "max_samples")
        text = json.dumps([config_hash, self.tune.model_dump(include=set(keys))], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
