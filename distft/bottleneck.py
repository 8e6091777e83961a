"""Bottleneck adapters as a PEFT method: importing this module registers them with PEFT.

After that `PeftModel.from_pretrained` loads a saved one like any other adapter. Houlsby et al.
2019 (arXiv 1902.00751) and Pfeiffer et al. 2020 (arXiv 2005.00247).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
INITIAL_SPREAD = 0.01
"""Standard deviation of the first weights (Houlsby et al., section 3.6); the last are zero."""

ATTENTION = (
    "attention.output.dense",
    "attention.out_lin",
    "self_attn.o_proj",
    "self_attn.out_proj",
    "encoder_attn.out_proj",
    "attn.c_proj",
    "SelfAttention.o",
    "EncDecAttention.o",
)
"""Ends of the names of the linear layer that closes an attention sublayer: BERT and its kin,
DistilBERT, Llama and its kin, BART and OPT, GPT-2, T5."""
FEED_FORWARD = (
    "output.dense",
    "ffn.lin2",
    "mlp.down_proj",
    "mlp.c_proj",
    "fc2",
    "DenseReluDense.wo",
)
"""The same of a feed-forward sublayer."""


class BottleneckType(str, enum.Enum):  # noqa: UP042 - as PEFT's, whose names it reads from str()
    """The type of these adapters: PEFT's own list is closed, its tables of types are not."""

    BOTTLENECK_ADAPTER = "BOTTLENECK_ADAPTER"


PEFT_TYPE = BottleneckType.BOTTLENECK_ADAPTER


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc]  # PEFT has no types
    """What adapter_config.json holds."""

    target_modules: set[str] | str | None = field(default=None)
    """Linear layers that an adapter follows."""
    exclude_modules: set[str] | str | None = field(default=None)
    """Layers left out; for PEFT's own checks."""
    reduction_factor: int = field(default=16)
    """Width of the layer over that of the bottleneck."""
    non_linearity: str = field(default="relu")
    """One of ACTIVATIONS."""
    ln_before: bool = field(default=False)
    """A LayerNorm before the bottleneck."""
    modules_to_save: list[str] | None = field(default=None)
    """Modules trained and saved whole."""

    def __post_init__(self) -> None:
        """Name the type."""
        super().__post_init__()
        self.peft_type = PEFT_TYPE


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]  # PEFT has no types
    """A linear layer with adapters behind it, inside the sublayer's residual connection.

    Args:
        base_layer: A Linear, or a Conv1D (GPT-2).
        adapter_name: PEFT's name of the adapter.
        config: Its settings.
    """

    adapter_layer_names = ("bottleneck_norm", "bottleneck_down", "bottleneck_up")
    # Methods of PEFT's class, which has no types.
    set_adapter: Any
    _move_adapter_to_device_of_base_layer: Any

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self.bottleneck_norm = nn.ModuleDict()
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self._activations: dict[str, nn.Module] = {}
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter that changes nothing yet.

        Args:
            adapter_name: Its name.
            config: Its settings.
        """
        base: Any = self.base_layer
        width = base.out_features if isinstance(base, nn.Linear) else base.nf
        inner = max(1, width // config.reduction_factor)
        if config.ln_before:
            self.bottleneck_norm[adapter_name] = nn.LayerNorm(width)
        down, up = nn.Linear(width, inner), nn.Linear(inner, width)
        nn.init.normal_(down.weight, std=INITIAL_SPREAD)
        nn.init.zeros_(down.bias)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self._activations[adapter_name] = ACTIVATIONS[config.non_linearity]()
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the layer's output plus what each active adapter makes of it."""
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        active: list[str] = [] if self.disable_adapters else self.active_adapters  # type: ignore[assignment]  # a property of PEFT's
        for name in active:
            if name not in self.bottleneck_down:
                continue
            down: Any = self.bottleneck_down[name]
            up = self.bottleneck_up[name]
            # An adapter of float32 may stand on a base of bfloat16.
            hidden = result.to(down.weight.dtype)
            if name in self.bottleneck_norm:
                hidden = self.bottleneck_norm[name](hidden)
            result = result + up(self._activations[name](down(hidden))).to(result.dtype)
        return result


class BottleneckModel(BaseTuner):  # type: ignore[misc]  # PEFT has no types
    """Puts the adapters into a model; they cannot be merged: they are not linear."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, Any] = {}  # noqa: RUF012 - BaseTuner's own form

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
        else:
            layer = BottleneckLayer(target, adapter_name, peft_config)
            self._replace_module(parent, target_name, layer, target)


def places(model: nn.Module, *, after_attention: bool) -> list[str]:
    """Return the linear layers that close the sublayers of a model.

    Args:
        model: A transformers model.
        after_attention: Those of attention too, not only of the feed-forward sublayers.

    Returns:
        Their names in the model's order; none for an unknown architecture.
    """
    found = []
    for name, module in model.named_modules():
        if any(True for _ in module.children()):
            continue
        if name.endswith(tuple(f".{end}" for end in ATTENTION)):
            if after_attention:
                found.append(name)
        elif name.endswith(tuple(f".{end}" for end in FEED_FORWARD)):
            found.append(name)
    return found


PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = BottleneckConfig
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = BottleneckModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = BottleneckModel.prefix
