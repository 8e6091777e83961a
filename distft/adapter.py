"""What every weight-based PEFT method shares: where it goes, how it is attached and saved."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from distft import heads
from distft.errors import ConfigError
from distft.plugin import Quantization, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INITIAL = "_distft_initial"
"""Attribute of an attached model: the adapter it began with, where the base gave a part of its own
weights to it, by the names of a saved adapter."""

_SUBTRACTED = ("pissa", "olora")
"""Starts of `init_lora_weights` that take the adapter's first product out of the base weights."""


def linear_layers(model: PreTrainedModel, task: Task) -> list[str]:
    """Return the names of the linear layers that an adapter goes beside.

    Args:
        model: A transformers model.
        task: A new head is trained whole, so it gets no adapter; nor does any output layer.

    Returns:
        In the model's order.
    """
    from transformers.pytorch_utils import Conv1D

    last, whole = model.get_output_embeddings(), heads.trained_whole(model, task)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not last
        and not heads.is_inside(name, whole)
    ]


def quantized_layers(model: PreTrainedModel, task: Task) -> list[str]:
    """Return the names of the linear layers that a base in fewer bits stores so.

    Args:
        model: A transformers model.
        task: A new head is trained, and so is a pooler that the files may lack.

    Returns:
        In the model's order.
    """
    names = linear_layers(model, task)
    return [name for name in names if not (task.new_head and ".pooler." in f".{name}")]


def quantization_arguments(
    quantization: Quantization, model: nn.Module, layers: Sequence[str], dtype: torch.dtype
) -> dict[str, Any]:
    """Return what `from_pretrained` takes to store some layers in fewer bits.

    Args:
        quantization: Of the method.
        model: A model of the same architecture.
        layers: Which layers (`quantized_layers`); no other is.
        dtype: In which 4-bit layers multiply.

    Returns:
        The keyword argument.
    """
    from transformers.pytorch_utils import Conv1D

    settings = copy.deepcopy(quantization.settings)
    named = model.named_modules()
    linear = {name for name, module in named if isinstance(module, nn.Linear | Conv1D)}
    settings.llm_int8_skip_modules = sorted(linear - set(layers))
    settings.bnb_4bit_compute_dtype = dtype
    return {"quantization_config": settings}


def keep_layout(model: nn.Module) -> None:
    """Have 4-bit layers multiply with their weights as they are stored, whatever the CPU.

    Where a CPU has AVX512-BF16, bitsandbytes 0.50.2 (`nn/modules.py`, `Linear4bit.forward`) turns a
    layer's weights into another layout the first time it evaluates: scales are rounded to bfloat16,
    inputs too, no gradient passes the layer from then on, and an output whose size 32 does not
    divide is refused.

    Args:
        model: Just loaded; its 4-bit layers are changed, where it has any.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def take_quantization(config: Any) -> dict[str, Any]:
    """Move the quantization out of a saved configuration: its base's files are not quantized.

    Args:
        config: Of transformers; loses its `quantization_config`.

    Returns:
        Keyword arguments for `from_pretrained`, which then quantizes the weights it reads.
    """
    from transformers.quantizers.auto import AutoQuantizationConfig

    stored = config.__dict__.pop("quantization_config", None)
    if stored is None:
        return {}
    return {"quantization_config": AutoQuantizationConfig.from_dict(stored)}


def narrowing_layers(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the linear layers that give fewer numbers than they take, as a feed-forward ends.

    Args:
        model: A transformers model.
        names: Of the layers to look at.

    Returns:
        Some of the names, in their order.
    """
    found = []
    for name in names:
        layer = model.get_submodule(name)
        # A Conv1D (GPT-2) has nx inputs and nf outputs.
        inputs, outputs = (
            (layer.in_features, layer.out_features)
            if isinstance(layer, nn.Linear)
            else (layer.nx, layer.nf)
        )
        if int(inputs) > int(outputs):  # type: ignore[arg-type]  # nn.Module gives anything
            found.append(name)
    return found


def norm_layers(model: PreTrainedModel, task: Task) -> list[str]:
    """Return the names of the normalisation layers outside a new head, whatever the architecture.

    Args:
        model: A transformers model.
        task: A new head is trained whole anyway.

    Returns:
        In the model's order: LayerNorm, RMSNorm and their kin that have weights.
    """
    whole = heads.trained_whole(model, task)
    return [
        name
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        and any(True for _ in module.parameters(recurse=False))
        and not heads.is_inside(name, whole)
    ]


def attach(model: PreTrainedModel, wanted: Any, task: Task) -> nn.Module:
    """Attach a PEFT adapter; a new head is trained and saved with it.

    Args:
        model: A transformers model; changed in place.
        wanted: A configuration of PEFT's; its task, a new head and `all-linear` are filled in.
        task: Decides the head.

    Returns:
        The model to train.

    Raises:
        ConfigError: PEFT refuses the configuration.
    """
    import peft

    wanted.task_type = task.peft_type
    wanted.modules_to_save = heads.trained_whole(model, task) or None
    if getattr(wanted, "target_modules", None) == "all-linear":
        wanted.target_modules = set(linear_layers(model, task))
    empty = any(parameter.is_meta for parameter in model.parameters())
    given = getattr(wanted, "init_lora_weights", True)
    subtracted = isinstance(given, str) and given.startswith(_SUBTRACTED)
    if subtracted and empty:
        # A count needs no values: decomposing every weight of a large model takes an hour.
        wanted.init_lora_weights = True
    try:
        with warnings.catch_warnings():
            # PEFT warns of layers whose width it cannot tell, as norms, of Conv1D, which it then
            # treats rightly, and of OFT's blocks where it takes the nearest size, as our docs say.
            for message in ("Unsupported layer type", "fan_in_fan_out", "Invalid `oft_block_size`"):
                warnings.filterwarnings("ignore", message)
            adapted: nn.Module = peft.get_peft_model(model, wanted)
    except (ValueError, TypeError) as error:
        text = str(error).splitlines()[0]
        key = "method.target_modules" if "target module" in text.lower() else "method"
        raise ConfigError(f"{key}: {text}") from error
    if subtracted and not empty:
        first = peft.get_peft_model_state_dict(adapted)
        kept = {name: t.detach().cpu().clone() for name, t in first.items() if ".lora_" in name}
        setattr(adapted, INITIAL, kept)
    return adapted


def check_patterns(module: nn.Module, patterns: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that every pattern names a layer that has an adapter.

    Args:
        module: What `attach` returned.
        patterns: Key of the configuration -> pattern -> value.

    Raises:
        ConfigError: A pattern names none; PEFT would pass over it.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import get_pattern_key

    inner = module.get_base_model()  # type: ignore[operator]  # of PEFT
    layers = [name for name, child in inner.named_modules() if isinstance(child, BaseTunerLayer)]
    for key, pattern in patterns.items():
        used = {get_pattern_key(list(pattern), name) for name in layers}
        unused = [name for name in pattern if name not in used]
        if unused:
            raise ConfigError(
                f"method.{key}: {unused[0]!r} matches no layer that has an adapter.",
                f"Such layers are {', '.join(layers[:3])}.",
            )


def plain_lora(folder: Path, initial: Mapping[str, torch.Tensor]) -> None:
    """Rewrite a saved adapter whose base gave it a part of its weights for the untouched base.

    The base holds W - s B0 A0 and the trained model W + s (B A - B0 A0), which is a plain adapter
    of twice the rank, [B, -B0] [A; A0], with the same scale s. PEFT's own conversion
    (`path_initial_model_for_weight_conversion`) would drop a trained head.

    Args:
        folder: What `save_pretrained` wrote; changed in place.
        initial: The adapter before training, by the names of the saved one.
    """
    path, about = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    saved = load_file(path)
    for name, first in initial.items():
        if ".lora_A." in name:
            saved[name] = torch.cat([saved[name], first.to(saved[name])], dim=0)
        elif ".lora_B." in name:
            saved[name] = torch.cat([saved[name], -first.to(saved[name])], dim=1)
    save_file(saved, path, metadata={"format": "pt"})
    config = json.loads(about.read_text(encoding="utf-8"))
    # The scale is alpha / r, with use_rslora alpha / sqrt(r).
    more = math.sqrt(2) if config["use_rslora"] else 2
    config |= {
        "init_lora_weights": True,
        "r": config["r"] * 2,
        "lora_alpha": config["lora_alpha"] * more,
        "rank_pattern": {key: rank * 2 for key, rank in config["rank_pattern"].items()},
        "alpha_pattern": {key: alpha * more for key, alpha in config["alpha_pattern"].items()},
    }
    about.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
