"""Keys of transformers' TrainingArguments, which the programs pass on: ours, or why not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from distft import plugin
from distft.config import NAME_PATTERN
from distft.migrate import zero
from distft.migrate.rules import (
    OFF,
    Outcome,
    Rule,
    Theirs,
    absent,
    decided,
    mapped,
    missing,
    names,
    one_of,
    refused,
    same,
    whole_steps,
)

_OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"), "adamw_torch"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), "adamw_torch"),
    **dict.fromkeys(("paged_adamw_32bit", "adamw_apex_fused"), "adamw_torch"),
}
_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine_with_restarts": "cosine",
    "cosine_with_min_lr": "cosine",
    "polynomial": "linear",
}
_TAKEN_OVER = "a step is that many micro-batches on each of cluster.num_workers"
_SHARDED = (
    "distft divides with DeepSpeed ZeRO: the plan takes the lowest stage that fits; "
    "cluster.zero_stage=3 divides what FSDP full_shard does"
)
_NO_HUB = "distft uploads nothing"
_RESUMES = "the same command continues a run by itself; --fresh begins again"
_LAUNCHER = "Ray Train starts the workers"


def _optimizer(value: Any, theirs: Theirs) -> Outcome:
    if value == "sgd":
        return decided("there without momentum", train__optim="sgd", train__sgd_momentum=0.0)
    return missing("distft has adamw_torch, which is taken, and sgd")


def _schedule(value: Any, theirs: Theirs) -> Outcome:
    return missing("distft has constant, linear, which is taken, and cosine")


def _warmup(value: Any, theirs: Theirs) -> Outcome:
    if theirs.get("lr_scheduler_type", theirs.get("lr_scheduler")) == "constant":
        return decided("constant has no warm-up there", train__warmup_steps=0)
    return mapped("below 1 a share of all steps", train__warmup_steps=value)


def _max_steps(value: Any, theirs: Theirs) -> Outcome:
    if isinstance(value, int) and value <= 0:
        return mapped("unset there: epochs decide")
    return mapped(train__max_steps=value)


def _metric(value: Any, theirs: Theirs) -> Outcome:
    return mapped(train__metric_for_best_model=str(value).removeprefix("eval_"))


def _when(value: Any, theirs: Theirs) -> Outcome:
    # YAML 1.1 reads a bare `no` as false.
    name = "no" if value is False else str(value)
    return mapped(train__eval_strategy=name)


def output_dir(value: Any, theirs: Theirs) -> Outcome:
    """Return where a run is written: our directory is a folder and, below it, the run's name."""
    path = PurePosixPath(str(value))
    name = re.sub(r"[^a-z0-9._-]+", "-", path.name.lower()).strip("-._")[:63] or "run"
    assert NAME_PATTERN.fullmatch(name)
    folder = str(path.parent)
    return decided(
        "a run is written to output_dir/name",
        output_dir="runs" if folder == "." else folder,
        name=name,
    )


def report_to(value: Any, theirs: Theirs) -> Outcome:
    """Return which trackers metrics go to."""
    wanted = [name for name in names(value or "") if name != "none"]
    known = [name for name in wanted if name in plugin.trackers()]
    if len(known) < len(wanted):
        return decided(f"distft has {', '.join(plugin.trackers())}", report_to=known)
    return mapped(report_to=known)


def _fp16(value: Any, theirs: Theirs) -> Outcome:
    if value is False:
        return mapped(OFF)
    return missing("no float16 here: weights stay float32; set train.bf16 where the cards have it")


KEYS: Mapping[str, Rule] = {
    # training
    "learning_rate": same("train.learning_rate"),
    "num_train_epochs": same("train.num_train_epochs"),
    "max_steps": _max_steps,
    "per_device_train_batch_size": same("train.per_device_train_batch_size"),
    "per_device_eval_batch_size": same("train.per_device_eval_batch_size"),
    "gradient_accumulation_steps": same("train.gradient_accumulation_steps", _TAKEN_OVER),
    "lr_scheduler_type": one_of(
        "train.lr_scheduler_type", _SCHEDULES, "the nearest shape", _schedule
    ),
    "lr_scheduler_kwargs": absent("the schedules here have no settings"),
    "warmup_ratio": _warmup,
    "warmup_steps": _warmup,
    "optim": one_of(
        "train.optim", _OPTIMIZERS, "AdamW with float32 states: more memory than 8 bits", _optimizer
    ),
    "optim_args": absent("train.adam_* and train.sgd_momentum are all there is"),
    "weight_decay": same("train.weight_decay"),
    "adam_beta1": same("train.adam_beta1"),
    "adam_beta2": same("train.adam_beta2"),
    "adam_epsilon": same("train.adam_epsilon"),
    "max_grad_norm": same("train.max_grad_norm"),
    "label_smoothing_factor": refused("tasks sft and causal_lm smooth no labels here"),
    "seed": same("train.seed"),
    "data_seed": absent("train.seed seeds the order, too"),
    "neftune_noise_alpha": refused("no noise is added to embeddings here"),
    "fp16": _fp16,
    "tf32": absent("torch's own setting is kept"),
    "torch_compile": absent("models are not compiled"),
    "gradient_checkpointing": same("train.gradient_checkpointing"),
    "gradient_checkpointing_kwargs": absent("it is never reentrant here"),
    # evaluation, checkpoints, records
    "eval_strategy": _when,
    "evaluation_strategy": _when,
    "eval_steps": whole_steps("train.eval_steps"),
    "save_strategy": absent("a checkpoint goes with every evaluation, or train.save_steps"),
    "save_steps": whole_steps("train.save_steps"),
    "save_total_limit": same("train.save_total_limit", "the best one is kept besides"),
    "save_only_model": absent("a checkpoint always holds what continues the run"),
    "save_safetensors": absent("weights are always safetensors"),
    "logging_steps": whole_steps("train.logging_steps"),
    "logging_first_step": absent("logged every train.logging_steps"),
    "load_best_model_at_end": absent("the best checkpoint is always what a run ends with"),
    "metric_for_best_model": _metric,
    "greater_is_better": same("train.greater_is_better"),
    "output_dir": output_dir,
    "overwrite_output_dir": absent(_RESUMES),
    "resume_from_checkpoint": absent(_RESUMES),
    "run_name": absent("a run is named after its output_dir"),
    "report_to": report_to,
    "push_to_hub": absent(_NO_HUB),
    "hub_model_id": absent(_NO_HUB),
    "hub_strategy": absent(_NO_HUB),
    "hub_token": absent(_NO_HUB),
    # rows
    "group_by_length": absent("micro-batches are always cut by tokens, similar lengths together"),
    "dataloader_num_workers": absent("Ray Data feeds the workers"),
    "dataloader_pin_memory": absent("Ray Data feeds the workers"),
    "dataloader_prefetch_factor": absent("Ray Data feeds the workers"),
    "dataloader_drop_last": absent("no row is dropped: the last step may be short"),
    "remove_unused_columns": absent("only the columns of data.format are read"),
    # workers
    "deepspeed": zero.rule,
    "fsdp": absent(_SHARDED),
    "fsdp_config": absent(_SHARDED),
    "ddp_timeout": absent(_LAUNCHER),
    "ddp_find_unused_parameters": absent(_LAUNCHER),
    "ddp_bucket_cap_mb": absent(_LAUNCHER),
    "local_rank": absent(_LAUNCHER),
    "ray_num_workers": same("cluster.num_workers"),
    "ray_run_name": absent("a run is named after its output_dir"),
    "ray_storage_path": absent("output_dir is the storage; on a cluster every node must see it"),
}
