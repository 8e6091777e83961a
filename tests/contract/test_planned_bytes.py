"""The bytes a plan counts for a base in fewer bits, against what bitsandbytes really holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distft import plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.errors import ConfigError
from distft.states import count, model_states
from distft.train.model import builder


@pytest.fixture(scope="module")
def wide_llama(chat_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of one block whose layers are wide enough for scales to weigh little."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide-llama")
    tokenizer = AutoTokenizer.from_pretrained(chat_llama)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(15)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=1,
        num_attention_heads=8,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def config_of(folder: Path, method: dict[str, Any]) -> RunConfig:
    return parse(
        {
            "name": "bytes",
            "model": {"id": str(folder), "dropout": 0.0},
            "task": "sft",
            "data": {"train": "none"},
            "method": method,
        }
    )


def size_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def stored(layer: nn.Module) -> tuple[int, int]:
    """Weights that a layer stands for, and the bytes of what it stores with all scales."""
    weight: Any = layer.weight
    if hasattr(weight, "SCB"):
        return weight.numel(), size_bytes(weight.data) + size_bytes(weight.SCB)
    state = weight.quant_state
    held = size_bytes(weight.data) + size_bytes(state.absmax)
    if state.nested:
        held += size_bytes(state.state2.absmax) + size_bytes(state.offset)
    return state.shape.numel(), held


def quantized(module: nn.Module) -> list[nn.Module]:
    from bitsandbytes.nn import modules

    kinds = (modules.Linear4bit, modules.Linear8bitLt)
    found = [one for one in module.modules() if isinstance(one, kinds)]
    # LoRA's layers are kinds of these too and hold the one they wrap.
    return [one for one in found if not hasattr(one, "base_layer")]


@pytest.mark.parametrize(
    "keys",
    [
        {"quant_type": "nf4"},
        {"quant_type": "nf4", "use_double_quant": False},
        {"quant_type": "fp4"},
        {"quant_type": "int8"},
    ],
    ids=["nf4", "nf4 with float32 scales", "fp4", "int8"],
)
def test_a_plan_counts_the_bytes_that_are_held(wide_llama: Path, keys: dict[str, Any]) -> None:
    config = config_of(wide_llama, {"name": "qlora", **keys})
    method = plugin.methods()["qlora"]
    planned = method.quantization(config.method)
    assert planned is not None
    module = builder(config, [])(None)
    layers = quantized(module)
    assert len(layers) == 7
    weights, held = map(sum, zip(*map(stored, layers), strict=True))
    counts = count(config, [])
    assert counts.quantizable == weights == 4 * 512 * 512 + 3 * 512 * 1024
    # Of int8 a float32 scale a row is left out: 4 bytes for at least 512 weights.
    assert held == pytest.approx(weights * planned.bytes_per_param, rel=0.008)
    others = sum(
        size_bytes(one)
        for name, one in module.named_parameters()
        if not any(one is layer.weight for layer in layers)
    )
    total = model_states(config, counts, stage=0, world=1, device="cpu")[0]
    assert total == pytest.approx(held + others, rel=0.005)


def test_conv1d_layers_of_gpt2_are_stored_in_fewer_bits_and_planned_so(
    tmp_path: Path, chat_llama: Path
) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(chat_llama)
    tokenizer.save_pretrained(tmp_path)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=64, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    run = config_of(tmp_path, {"name": "qlora"})
    weights = sum(stored(layer)[0] for layer in quantized(builder(run, [])(None)))
    assert count(run, []).quantizable == weights == 2 * 12 * 64 * 64


def test_a_width_without_a_block_is_refused(tmp_path: Path, chat_llama: Path) -> None:
    """An odd width whose only blocks near the wanted size are of one input turns nothing."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    AutoTokenizer.from_pretrained(chat_llama).save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=47,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    oft = {"name": "oft", "oft_block_size": 4}
    with pytest.raises(ConfigError, match=r"no block size near 4 divides the width of .*down_proj"):
        count(config_of(tmp_path, oft), [])
    kept = {**oft, "target_modules": ["q_proj", "v_proj"]}
    assert count(config_of(tmp_path, kept), []).trainable > 0
