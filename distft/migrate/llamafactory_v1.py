"""LLaMA-Factory's trainer v1: its keys -> ours, or why not. A new key is one line of `KEYS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from distft.migrate import datasets, shared_rules, trainer_keys, zero
from distft.migrate import llamafactory_rules as older
from distft.migrate.datasets import Rows
from distft.migrate.rules import (
    OFF,
    Outcome,
    Program,
    Rule,
    Theirs,
    absent,
    decided,
    mapped,
    names,
    refused,
    same,
    wrong,
)

_SPEED = "kernels and attention are transformers' own choice"
_BATCHES = "micro-batches are always cut by tokens, with little padding"
_AFTER = "of `distft predict`, after training"
_EXPORT = "`distft export RUN DIR --merge` writes models"
_FORMATS = {"alpaca": "alpaca", "sharegpt": "sharegpt"}
_MAKES_ROWS = "holds no rows that distft reads"


def method(theirs: Theirs) -> str:
    """Return the fine-tuning method that their keys come to."""
    name = str(theirs.get("peft_config.name", "full"))
    return "qlora" if name == "lora" and theirs.get("quant_config.name") else name


def _of(key: str, *methods: str) -> Rule:
    return shared_rules.of(method, methods, key)


def _peft(value: Any, theirs: Theirs) -> Outcome:
    if value not in ("lora", "freeze"):
        return wrong("distft carries over lora, freeze and training without peft_config")
    return mapped(method__name=method(theirs))


def _quantized(value: Any, theirs: Theirs) -> Outcome:
    if value not in ("auto", "bnb"):
        return wrong("distft quantizes with bitsandbytes (bnb)")
    if method(theirs) != "qlora":
        return wrong("on a quantized base distft trains LoRA only")
    return mapped("method qlora")


def _bits(value: Any, theirs: Theirs) -> Outcome:
    kinds = {4: "nf4", 8: "int8"}
    if value not in kinds:
        return wrong("distft stores a base in 4 or 8 bits")
    return mapped(method__quant_type=kinds[value])


def _targets(value: Any, theirs: Theirs) -> Outcome:
    chosen = names(value)
    return mapped(method__target_modules="all-linear" if chosen == ["all"] else chosen)


def _divided(value: Any, theirs: Theirs) -> Outcome:
    if value == "deepspeed":
        return mapped("see dist_config.config_file")
    return trainer_keys.KEYS["fsdp"](value, theirs)


def _bf16(value: Any, theirs: Theirs) -> Outcome:
    if value is False:
        return mapped(OFF)
    if method(theirs) in shared_rules.LORA:
        return decided(
            "the frozen base in bfloat16, the adapter in float32",
            train__bf16=True,
            model__dtype="bfloat16",
        )
    return decided("computed in bfloat16; weights and optimizer stay float32", train__bf16=True)


def _rows(value: Any, theirs: Theirs, key: str) -> Outcome:
    found = theirs.find(str(value))
    if found is None or found.suffix not in (".yaml", ".yml"):
        return wrong(
            "there is no such YAML of data sets here; rows in their own format, without converter, "
            "distft does not read"
        )
    try:
        info = yaml.safe_load(found.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        info = None
    if not isinstance(info, Mapping) or not info:
        return wrong("the file names no data sets")
    sets: list[Rows] = []
    for name, entry in info.items():
        form = _FORMATS.get(str(entry.get("converter"))) if isinstance(entry, Mapping) else None
        if form is None:
            return wrong(f"{name} {_MAKES_ROWS}: converter alpaca or sharegpt makes some")
        sets.append(_set(str(name), entry, form, theirs))
    return datasets.outcome(key, sets)


def _set(name: str, entry: Mapping[str, Any], form: str, theirs: Theirs) -> Rows:
    notes = [
        f"{name}: all rows, there {key} {entry[key]}"
        for key in ("size", "weight")
        if entry.get(key)
    ]
    path = str(entry.get("path"))
    if entry.get("source", "hf_hub") == "hf_hub":
        return Rows(name, datasets.hub(path), form, notes=(*notes, datasets.HUB_FILES))
    found = theirs.find(path)
    if found is None:
        notes.append(f"{name}: {path} is not on this machine")
    return Rows(name, path if found is None else datasets.local(found), form, notes=notes)


def _sets(key: str) -> Rule:
    return lambda value, theirs: _rows(value, theirs, key)


def _exports(value: Any, theirs: Theirs) -> Outcome:
    return wrong(_EXPORT)


def _of_lora(key: str, default: float) -> Rule:
    """Return the rule of a default of LoRA's that is not ours."""
    return lambda value, theirs: (
        shared_rules.unset(f"method.{key}", default)(value, theirs)
        if method(theirs) in shared_rules.LORA
        else mapped()
    )


def _no_rows(value: Any, theirs: Theirs) -> Outcome:
    return wrong("it names no rows to train on")


KEYS: Mapping[str, Rule] = {
    **trainer_keys.KEYS,
    # model
    "model": shared_rules.model,
    "trust_remote_code": same("model.trust_remote_code"),
    "model_class": lambda value, theirs: (
        mapped("tasks sft and causal_lm take it")
        if value == "llm"
        else wrong("distft carries over language models (llm)")
    ),
    "template": older.template,
    "flash_attn": absent(_SPEED),
    "kernel_config.name": absent(_SPEED),
    "kernel_config.include_kernels": absent(_SPEED),
    "init_config.name": absent("the model is read by every worker, under ZeRO-3 divided"),
    # method
    "peft_config.name": _peft,
    "peft_config.r": _of("r", *shared_rules.LORA),
    "peft_config.lora_alpha": _of("lora_alpha", *shared_rules.LORA),
    "peft_config.lora_dropout": _of("lora_dropout", *shared_rules.LORA),
    "peft_config.use_rslora": _of("use_rslora", *shared_rules.LORA),
    "peft_config.use_dora": _of("use_dora", *shared_rules.LORA),
    "peft_config.target_modules": _targets,
    "peft_config.modules_to_save": refused("beside an adapter distft trains new heads only"),
    "peft_config.freeze_trainable_layers": _of("trainable_layers", "freeze"),
    "peft_config.freeze_trainable_modules": older.freeze_modules,
    "peft_config.freeze_extra_modules": refused("method freeze trains blocks, or modules by name"),
    "peft_config.cast_trainable_params_to_fp32": absent("what is trained is always float32"),
    "peft_config.adapter_name_or_path": refused(
        "distft starts from a model: merge that adapter into it first, and name the merged one"
    ),
    "peft_config.export_dir": _exports,
    "peft_config.export_size": absent(_EXPORT),
    "peft_config.infer_dtype": absent(_EXPORT),
    "quant_config.name": _quantized,
    "quant_config.quantization_bit": _bits,
    # data
    "train_dataset": _sets("train"),
    "eval_dataset": _sets("eval"),
    "cutoff_len": same("data.cutoff_len"),
    "batching_strategy": absent(_BATCHES),
    "batching_workers": absent(_BATCHES),
    # training
    "micro_batch_size": same("train.per_device_train_batch_size"),
    "global_batch_size": same("train.global_batch_size"),
    "bf16": _bf16,
    "enable_activation_checkpointing": same("train.gradient_checkpointing"),
    "full_determinism": absent("a step is the same for the same seed"),
    "save_epochs": absent("a checkpoint goes with every evaluation, or train.save_steps"),
    "save_ckpt_as_hf": absent("`distft export` writes models"),
    "dist_config.name": _divided,
    "dist_config.config_file": zero.rule,
    "dist_config.dcp_path": absent("weights are read as safetensors"),
    "dist_config.cp_mode": absent("no context parallelism: samples stay whole"),
    "dist_config.cp_size": absent("no context parallelism: samples stay whole"),
    "sample_backend": absent(_AFTER),
    "max_new_tokens": absent(_AFTER),
}

IMPLIED: Mapping[str, Rule] = {
    "train_dataset": _no_rows,
    "(stage)": lambda value, theirs: decided("it trains on answers", task="sft"),
    "peft_config.name": lambda value, theirs: decided(
        "no peft_config: every parameter is trained", method__name="full"
    ),
    "peft_config.lora_alpha": _of_lora("lora_alpha", 16),
    "peft_config.lora_dropout": _of_lora("lora_dropout", 0.05),
    "learning_rate": shared_rules.unset("train.learning_rate", 1e-4),
    "micro_batch_size": shared_rules.unset("train.per_device_train_batch_size", 1),
    "lr_scheduler_config": lambda value, theirs: decided(
        "constant, without warm-up, unless set there",
        train__lr_scheduler_type="constant",
        train__warmup_steps=0,
    ),
    "cutoff_len": shared_rules.unset("data.cutoff_len", 2048),
    "bf16": _bf16,
    "enable_activation_checkpointing": shared_rules.unset("train.gradient_checkpointing", True),
    "eval_dataset": lambda value, theirs: shared_rules.nothing_held_back(theirs, "eval_dataset"),
    "(number of workers)": shared_rules.workers,
}
"""What a key that is missing means there."""

PROGRAM = Program(
    name="LLaMA-Factory (v1)",
    signs=("model", "model_class", "train_dataset", "peft_config", "dist_config"),
    keys=KEYS,
    implied=IMPLIED,
)
