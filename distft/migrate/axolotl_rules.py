"""axolotl: rules of the keys whose meaning hangs on their value or on other keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from distft import plugin
from distft.migrate import axolotl_data, shared_rules, zero
from distft.migrate.rules import (
    OFF,
    Outcome,
    Rule,
    Theirs,
    decided,
    mapped,
    missing,
    names,
    wrong,
)

_SPEAKERS = {
    "user": {"human", "user"},
    "assistant": {"gpt", "assistant"},
    "system": {"system"},
    "tool": {"tool"},
}
_STARTS = (True, False, "gaussian", "orthogonal", "olora", "pissa")


def method(theirs: Theirs) -> str:
    """Return the fine-tuning method that their keys come to."""
    name = theirs.get("adapter")
    if name == "lora" and (theirs.get("load_in_4bit") or theirs.get("load_in_8bit")):
        return "qlora"
    return str(name or "full")


def adapter(value: Any, theirs: Theirs) -> Outcome:
    """Return the method."""
    if value not in ("lora", "qlora", ""):
        return wrong("distft carries over lora, qlora and training without an adapter")
    return mapped(method__name=method(theirs))


def lora(key: str) -> Rule:
    """Return the rule of a key that LoRA and QLoRA read."""
    return shared_rules.of(method, shared_rules.LORA, key)


def model_type(value: Any, theirs: Theirs) -> Outcome:
    """Return whether the model writes text."""
    if str(value).endswith("ForCausalLM"):
        return mapped("tasks sft and causal_lm take it")
    return wrong("distft carries over causal language models; `distft tasks` lists the others")


def load_in_4bit(value: Any, theirs: Theirs) -> Outcome:
    """Return whether the base is stored in 4 bits."""
    if not value:
        return mapped(OFF)
    if method(theirs) != "qlora":
        return wrong("on a base in 4 bits distft trains LoRA only: adapter: qlora")
    return mapped(method__quant_type="nf4")


def load_in_8bit(value: Any, theirs: Theirs) -> Outcome:
    """Return whether the base is stored in 8 bits."""
    if not value or theirs.get("load_in_4bit"):
        return mapped(OFF) if not value else missing("load_in_4bit is set, too")
    if method(theirs) != "qlora":
        return wrong("on a base in 8 bits distft trains LoRA only: adapter: lora")
    return mapped(method__quant_type="int8")


def bnb_config(value: Any, theirs: Theirs) -> Outcome:
    """Return how the 4-bit base is stored."""
    ours = {"bnb_4bit_use_double_quant": "method.use_double_quant"}
    rest = sorted(set(value) - set(ours)) if isinstance(value, Mapping) else [str(value)]
    if method(theirs) != "qlora" or not isinstance(value, Mapping):
        return missing("read with adapter qlora only")
    sets = {ours[key]: one for key, one in value.items() if key in ours}
    if rest:
        return Outcome("decided", f"without {', '.join(rest)}", sets)
    return Outcome("mapped", "", sets)


def target_modules(value: Any, theirs: Theirs) -> Outcome:
    """Return beside which modules an adapter goes."""
    if method(theirs) not in shared_rules.LORA:
        return missing(f"method {method(theirs)} does not read it")
    if theirs.get("lora_target_linear"):
        return missing("lora_target_linear takes all linear layers")
    chosen = value if value == "all-linear" else names(value)
    return mapped(method__target_modules=chosen)


def target_linear(value: Any, theirs: Theirs) -> Outcome:
    """Return whether an adapter goes beside all linear layers."""
    if not value:
        return mapped(OFF)
    if method(theirs) not in shared_rules.LORA:
        return missing(f"method {method(theirs)} does not read it")
    return mapped(method__target_modules="all-linear")


def init_lora_weights(value: Any, theirs: Theirs) -> Outcome:
    """Return how LoRA begins."""
    if method(theirs) != "lora":
        return missing(f"method {method(theirs)} has no init_lora_weights")
    if value in _STARTS or re.fullmatch(r"pissa_niter_[1-9][0-9]*", str(value)):
        return mapped(method__init_lora_weights=value)
    return wrong("distft begins with true, false, gaussian, orthogonal, pissa or olora")


def special_tokens(value: Any, theirs: Theirs) -> Outcome:
    """Return what becomes of tokens with a part in the model."""
    if isinstance(value, Mapping) and set(value) <= {"pad_token"}:
        return missing("padding is told by the attention mask: any token may pad")
    return missing("the tokenizer stays that of the model; data.template ends answers as it does")


def bf16(value: Any, theirs: Theirs) -> Outcome:
    """Return what is in bfloat16: there the frozen base, and what is computed."""
    if value is False:
        return mapped(OFF)
    undivided = theirs.get("ray_num_workers", 1) > 1 and zero.stage(theirs) == 0
    said = "auto there: where the cards have it; " if value == "auto" else ""
    if method(theirs) in shared_rules.LORA and not undivided:
        return decided(
            f"{said}the frozen base in bfloat16, the adapter in float32",
            train__bf16=True,
            model__dtype="bfloat16",
        )
    return decided(
        f"{said}computed in bfloat16; weights and optimizer stay float32", train__bf16=True
    )


def automatic_bf16(value: Any, theirs: Theirs) -> Outcome:
    """Return what is in bfloat16 where they do not say."""
    if any(theirs.get(key) for key in ("fp16", "bfloat16", "float16", "fp8")):
        return mapped()
    return bf16("auto", theirs)


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
    if isinstance(value, bool):
        return mapped(train__gradient_checkpointing=value)
    return decided("activations are not offloaded here", train__gradient_checkpointing=True)


def evals_per_epoch(value: Any, theirs: Theirs) -> Outcome:
    """Return when to evaluate."""
    if value in (0, 1):
        return mapped(train__eval_strategy="epoch" if value else "no")
    return missing("the steps of an epoch are known once rows are counted: set train.eval_steps")


def val_set_size(value: Any, theirs: Theirs) -> Outcome:
    """Return the share of eval rows."""
    return shared_rules.held_back(value, theirs) if value else nothing_held_back(value, theirs)


def nothing_held_back(value: Any, theirs: Theirs) -> Outcome:
    """Return what is held back where they hold back nothing."""
    return shared_rules.nothing_held_back(theirs, "test_datasets")


def shuffle(value: Any, theirs: Theirs) -> Outcome:
    """Return whether rows are shuffled."""
    if value:
        return mapped("the order is shuffled, the same for the same seed")
    return wrong("rows come in a shuffled order, the same for the same seed")


def tracker(name: str) -> Rule:
    """Return the rule of a key that sends metrics to a tracker."""

    def rule(value: Any, theirs: Theirs) -> Outcome:
        if not value:
            return mapped(OFF)
        if name not in plugin.trackers():
            return missing(f"report_to has {', '.join(plugin.trackers())}")
        wanted = [one for one in plugin.trackers() if _wants(one, theirs)]
        return mapped(report_to=wanted)

    return rule


def _wants(name: str, theirs: Theirs) -> bool:
    keys = (f"use_{name}", f"{name}_project", f"{name}_tracking_uri")
    return any(theirs.get(key) for key in keys)


def train_on_inputs(value: Any, theirs: Theirs) -> Outcome:
    """Return whether questions are learnt, too."""
    if axolotl_data.pretraining(theirs):
        return missing("texts are no conversations")
    return mapped(data__train_on_prompt=value)


def chat_template(value: Any, theirs: Theirs) -> Outcome:
    """Return how conversations are written."""
    if axolotl_data.pretraining(theirs):
        return missing("texts are no conversations")
    if value == "jinja":
        return wrong("save the template with the model's tokenizer")
    name = str(value).removeprefix("tokenizer_default_fallback_")
    if name == value and name in plugin.templates():
        return mapped(data__template=name)
    return decided("the model's own chat template; `distft templates` lists the named ones")


def roles(value: Any, theirs: Theirs) -> Outcome:
    """Return whether speakers bear names that our formats know."""
    for role, said in value.items() if isinstance(value, Mapping) else ():
        if set(names(said)) - _SPEAKERS.get(role, set()):
            return wrong(f"{role} may be {', '.join(sorted(_SPEAKERS.get(role, {'nobody'})))}")
    return mapped("as format messages or sharegpt has them")


def roles_to_train(value: Any, theirs: Theirs) -> Outcome:
    """Return whether the answers are learnt, and nothing else."""
    if set(names(value)) <= _SPEAKERS["assistant"]:
        return mapped("answers are learnt, as here")
    return wrong("distft learns answers, or with data.train_on_prompt everything")


def train_on_end(value: Any, theirs: Theirs) -> Outcome:
    """Return whether the end of each answer is learnt."""
    if value == "turn":
        return mapped("the end of each answer is learnt, as here")
    return missing("the end of each answer is learnt")
