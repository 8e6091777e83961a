"""Any other weight-based method of PEFT, by PEFT's own name and options."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from distft.errors import ConfigError
from distft.plugin import Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

# PEFT 0.21.2's types, and why a type is not to be had here.
_PROMPT = "it trains a prompt, not weights; see distft methods"
REFUSED = {
    "LORA": "it is method lora",
    "ADALORA": "it is method adalora",
    "IA3": "it is method ia3",
    "VERA": "it is method vera",
    "OFT": "it is method oft",
    "LN_TUNING": "it is method ln_tuning",
    "PROMPT_TUNING": "it is method prompt_tuning",
    "P_TUNING": "it is method p_tuning",
    "PREFIX_TUNING": "it is method prefix_tuning",
    "MULTITASK_PROMPT_TUNING": _PROMPT,
    "CPT": _PROMPT,
    "CARTRIDGE": _PROMPT,
    "ADAPTION_PROMPT": _PROMPT,
    "POLY": "it wants the task of every row in each forward pass",
    "XLORA": "it mixes adapters that were trained before",
    "SHADOW": "its layers pass on an object that transformers' blocks cannot use",
}
_NEEDS_VALUES = ("ADAMSS", "BOFT", "FROD", "SHIRA", "UNILORA")
"""They look at the weights while they are attached, so that they cannot be counted without."""


class PeftConfig(VariantConfig):
    """Keys of `method: {name: peft}`."""

    name: str = "peft"
    """The method."""
    peft_type: str = "LOHA"
    """PEFT's name of the method, such as LOHA, LOKR, BOFT, MISS or FOURIERFT."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keys of PEFT's configuration of that type, such as {r: 8}; target_modules is all-linear
    unless given."""


def _settings(config: PeftConfig) -> Any:
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {kind.value: settings for kind, settings in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = config.peft_type.upper()
    if kind not in known or kind in REFUSED:
        allowed = ", ".join(sorted(known.keys() - REFUSED))
        reason = f" ({REFUSED[kind]})" if kind in REFUSED else ""
        raise ConfigError(
            f"method.peft_type: got {config.peft_type!r}{reason}; allowed: {allowed}."
        )
    ours = {*peft.PeftConfig.__dataclass_fields__, "modules_to_save"}
    keys = known[kind].__dataclass_fields__.keys() - ours
    wrong = sorted(config.options.keys() - keys)
    if wrong:
        raise ConfigError(
            f"method.options: {kind} has no {wrong[0]!r}; allowed: {', '.join(sorted(keys))}."
        )
    targets = {"target_modules": "all-linear"} if kind != "TRAINABLE_TOKENS" else {}
    try:
        return known[kind](**(targets | config.options))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"method.options: {str(error).splitlines()[0]}") from error


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    import torch

    from distft import adapter

    assert isinstance(config, PeftConfig)
    wanted = _settings(config)
    place: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    empty = any(parameter.is_meta for parameter in model.parameters())
    if empty and config.peft_type.upper() in _NEEDS_VALUES:
        model.to_empty(device="cpu")
        place = torch.device("cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                # Of full rank and finite; which values they are does not change a count.
                parameter.normal_()
    try:
        with place:
            return adapter.attach(model, wanted, task)
    except NotImplementedError as error:
        # Some types say so of a layer that others refuse with a TypeError.
        raise ConfigError(f"method.peft_type: {error}") from error


def _refuses(config: VariantConfig) -> Mapping[str, str]:
    return {
        "cluster.zero_stage=3": "many of PEFT's types read the base weights whole while they are "
        "attached, and ZeRO-3 has divided them"
    }


METHOD = Method(
    name="peft",
    summary="any other weight-based method of PEFT, by its type and options",
    source="Mangrulkar et al. 2022 (PEFT), github.com/huggingface/peft",
    config=PeftConfig,
    learning_rate=1e-3,
    space={"train.learning_rate": Range(1e-5, 3e-2, log=True)},
    attach=_attach,
    adapter=True,
    merges=False,
    refuses=_refuses,
)
