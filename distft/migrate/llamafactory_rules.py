"""LLaMA-Factory: rules of the keys whose meaning hangs on their value or on other keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distft import plugin
from distft.migrate import datasets, llamafactory_data, shared_rules, zero
from distft.migrate.rules import OFF, Outcome, Rule, Theirs, decided, mapped, missing, names, wrong

_TASKS = {"sft": "sft", "pt": "causal_lm"}


def method(theirs: Theirs) -> str:
    """Return the fine-tuning method that their keys come to."""
    name = theirs.get("finetuning_type", "lora")
    return "qlora" if name == "lora" and theirs.get("quantization_bit") else str(name)


def pretraining(theirs: Theirs) -> bool:
    """Return whether texts are learnt, not answers."""
    return bool(theirs.get("stage", "sft") == "pt")


def stage(value: Any, theirs: Theirs) -> Outcome:
    """Return the task of a stage."""
    if value not in _TASKS:
        return wrong(
            "distft trains stages sft and pt; no reward models, preferences or reinforcement"
        )
    return mapped(task=_TASKS[value])


def no_training(value: Any, theirs: Theirs) -> Outcome:
    """Return why a config that trains nothing is refused."""
    if theirs.get("export_dir"):
        return wrong("not set: it exports a model, as `distft export RUN DIR --merge` does")
    return wrong(
        "not set: it trains nothing; `distft evaluate` and `distft predict` score and answer with "
        "a trained run"
    )


def no_rows(value: Any, theirs: Theirs) -> Outcome:
    """Return why a config that trains on nothing is refused."""
    return wrong("it names no rows to train on") if theirs.get("do_train") else mapped()


def do_train(value: Any, theirs: Theirs) -> Outcome:
    """Return that it trains."""
    return mapped("`distft train`") if value else no_training(value, theirs)


def finetuning_type(value: Any, theirs: Theirs) -> Outcome:
    """Return the method."""
    if value not in ("full", "freeze", "lora", "oft"):
        return wrong("distft carries over full, freeze, lora and oft")
    if value != "lora" and theirs.get("quantization_bit"):
        return wrong("on a quantized base distft trains LoRA only (method qlora)")
    return mapped(method__name=method(theirs))


def lora(key: str) -> Rule:
    """Return the rule of a key that LoRA and QLoRA read."""
    return shared_rules.of(method, shared_rules.LORA, key)


def targets(value: Any, theirs: Theirs) -> Outcome:
    """Return beside which modules an adapter goes."""
    if method(theirs) not in (*shared_rules.LORA, "oft"):
        return missing(f"method {method(theirs)} does not read it")
    chosen = names(value)
    return mapped(method__target_modules="all-linear" if chosen == ["all"] else chosen)


def alpha(value: Any, theirs: Theirs) -> Outcome:
    """Return the scale of LoRA that they take where none is set."""
    if method(theirs) not in shared_rules.LORA:
        return mapped()
    return decided("2 x lora_rank there", method__lora_alpha=2 * theirs.get("lora_rank", 8))


def pissa(value: Any, theirs: Theirs) -> Outcome:
    """Return how LoRA begins."""
    if not value:
        return mapped(OFF)
    if method(theirs) != "lora":
        return missing(f"method {method(theirs)} does not read it")
    rounds = theirs.get("pissa_iter", 16)
    name = "pissa" if rounds == -1 else f"pissa_niter_{rounds}"
    return mapped(method__init_lora_weights=name)


def pissa_iter(value: Any, theirs: Theirs) -> Outcome:
    """Return how LoRA begins, said by the rounds of PiSSA."""
    if not theirs.get("pissa_init"):
        return missing("read with pissa_init only")
    return pissa(True, theirs)


def bits(value: Any, theirs: Theirs) -> Outcome:
    """Return how the base is stored."""
    if method(theirs) != "qlora":
        return missing("see finetuning_type")
    if value == 8:
        return mapped(method__quant_type="int8")
    if value == 4:
        return mapped(method__quant_type=theirs.get("quantization_type", "nf4"))
    return wrong("distft stores a base in 4 or 8 bits (bitsandbytes)")


def bit_type(value: Any, theirs: Theirs) -> Outcome:
    """Return which 4-bit numbers the base is stored in."""
    if method(theirs) != "qlora" or theirs.get("quantization_bit") != 4:
        return missing("read with quantization_bit 4 only")
    return mapped(method__quant_type=value)


def bit_method(value: Any, theirs: Theirs) -> Outcome:
    """Return which library quantizes."""
    if value in ("bnb", "bitsandbytes"):
        return mapped("bitsandbytes, as here")
    return wrong("distft quantizes with bitsandbytes (bnb)")


def freeze_layers(value: Any, theirs: Theirs) -> Outcome:
    """Return which blocks are trained."""
    if method(theirs) != "freeze":
        return missing(f"method {method(theirs)} does not read it")
    return mapped(method__trainable_layers=value)


def freeze_modules(value: Any, theirs: Theirs) -> Outcome:
    """Return whether whole blocks are trained."""
    if names(value) == ["all"]:
        return mapped("whole blocks, as here")
    return missing(
        "method freeze trains blocks whole (trainable_layers), or modules by name in all blocks "
        "(trainable_modules)"
    )


def bf16(value: Any, theirs: Theirs) -> Outcome:
    """Return what is in bfloat16: there the base, not what is trained."""
    if not value:
        return mapped(OFF)
    undivided = theirs.get("ray_num_workers", 1) > 1 and zero.stage(theirs) == 0
    if method(theirs) in (*shared_rules.LORA, "oft") and not undivided:
        return decided(
            "the frozen base in bfloat16, the adapter in float32, as there",
            train__bf16=True,
            model__dtype="bfloat16",
        )
    return decided("computed in bfloat16; weights and optimizer stay float32", train__bf16=True)


def pure_bf16(value: Any, theirs: Theirs) -> Outcome:
    """Return what is in bfloat16 where nothing shall be in float32."""
    if not value:
        return mapped(OFF)
    return decided(
        "weights in bfloat16; DeepSpeed keeps float32 masters of what is trained, there none are "
        "kept",
        train__bf16=True,
        model__dtype="bfloat16",
    )


def checkpointing(value: Any, theirs: Theirs) -> Outcome:
    """Return whether activations are computed twice."""
    return mapped(train__gradient_checkpointing=not value)


def train_sets(value: Any, theirs: Theirs) -> Outcome:
    """Return the training rows."""
    try:
        sets = llamafactory_data.read(theirs, "dataset", pretraining(theirs))
    except llamafactory_data.UnusableError as error:
        return wrong(str(error))
    probs, mixed = theirs.get("interleave_probs"), theirs.get("mix_strategy", "concat") != "concat"
    if not mixed or len(sets) == 1:
        return datasets.outcome("train", sets)
    return datasets.outcome("train", sets, llamafactory_data.shares(probs, len(sets)))


def eval_sets(value: Any, theirs: Theirs) -> Outcome:
    """Return the eval rows."""
    try:
        return datasets.outcome(
            "eval", llamafactory_data.read(theirs, "eval_dataset", pretraining(theirs))
        )
    except llamafactory_data.UnusableError as error:
        return wrong(str(error))


def interleaved(value: Any, theirs: Theirs) -> Outcome:
    """Return how several sets come together; `dataset` has the shares."""
    if value == "concat":
        return mapped("one after the other, as here")
    return decided("sets are drawn from by exact shares: data.mix")


def max_samples(value: Any, theirs: Theirs) -> Outcome:
    """Return how many rows are used."""
    count = len(names(theirs.get("dataset", "")))
    if count <= 1:
        return mapped(data__max_samples=value)
    if theirs.get("mix_strategy", "concat") != "concat":
        return decided("of the first set only; the mixed ones stay whole", data__max_samples=value)
    return decided(
        f"there the first of each of {count} sets, here of all, beginning with the first set",
        data__max_samples=value * count,
    )


def val_size(value: Any, theirs: Theirs) -> Outcome:
    """Return the share of eval rows."""
    return shared_rules.held_back(value, theirs) if value else nothing_held_back(value, theirs)


def nothing_held_back(value: Any, theirs: Theirs) -> Outcome:
    """Return what is held back where they hold back nothing."""
    return shared_rules.nothing_held_back(theirs, "eval_dataset")


def template(value: Any, theirs: Theirs) -> Outcome:
    """Return how conversations are written."""
    if pretraining(theirs):
        return missing("texts are no conversations")
    if value in plugin.templates():
        return mapped(data__template=value)
    return decided("the model's own chat template; `distft templates` lists the named ones")


def conversations(key: str) -> Rule:
    """Return the rule of a key that is about conversations."""

    def rule(value: Any, theirs: Theirs) -> Outcome:
        if pretraining(theirs):
            return missing("texts are no conversations")
        return Outcome("mapped", "", {key: value})

    return rule


def packing(value: Any, theirs: Theirs) -> Outcome:
    """Return whether samples share rows."""
    if not value:
        return mapped(data__packing=False)
    if theirs.get("neat_packing"):
        return mapped("each sample sees itself only", data__packing=True)
    return decided("each sample sees itself only; there also those before it", data__packing=True)


def neat_packing(value: Any, theirs: Theirs) -> Outcome:
    """Return that samples share rows and do not see one another."""
    if not value:
        return mapped(OFF)
    return mapped("each sample sees itself only", data__packing=True)


def mask_history(value: Any, theirs: Theirs) -> Outcome:
    """Return whether earlier answers are learnt."""
    if not value:
        return mapped(OFF)
    return wrong("all answers of a conversation are learnt here, there only the last")


def early_stopping(value: Any, theirs: Theirs) -> Outcome:
    """Return when training stops early."""
    return mapped("evaluations without a better one", train__early_stopping_patience=value)


def swanlab(value: Any, theirs: Theirs) -> Outcome:
    """Return what becomes of a tracker that distft does not have."""
    if not value:
        return mapped(OFF)
    return missing(f"distft has {', '.join(plugin.trackers())}: report_to")


def ray_init(value: Any, theirs: Theirs) -> Outcome:
    """Return the address of a cluster."""
    address = value.get("address") if isinstance(value, Mapping) else None
    rest = "a runtime environment goes with the job that is submitted"
    return decided(rest, cluster__address=address) if address else missing(rest)
