"""The bytes a plan counts against those that are really held: a base in fewer bits, activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distft import plugin
from distft.activations import Alive, activation_bytes
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


ROWS, TOKENS = 3, 48


def packed_rows(vocabulary: int) -> dict[str, torch.Tensor]:
    """Two samples in each row, as `Collator.packed` makes them."""
    half = torch.arange(TOKENS // 2)
    ids = torch.randint(vocabulary, (ROWS, TOKENS))
    return {"input_ids": ids, "position_ids": torch.cat([half, half]).expand(ROWS, -1)}


def padded_rows(vocabulary: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(ROWS, TOKENS, dtype=torch.long)
    mask[1, TOKENS // 2 :] = 0
    return {"input_ids": torch.randint(vocabulary, (ROWS, TOKENS)), "attention_mask": mask}


def really_taken(config: RunConfig, labels: list[str], batch: dict[str, torch.Tensor]) -> int:
    """The peak of a forward and backward pass of the real module, on real tensors."""
    task = plugin.tasks()[config.task.name]
    module = builder(config, labels)(None)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    ids = batch["input_ids"]
    wanted = torch.zeros(ROWS, dtype=torch.long) if task.labels == "class" else ids.clamp(max=1)
    if task.labels == "sequence":
        batch["decoder_input_ids"] = ids.clone()
    with Alive(module) as alive:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.train.bf16):
            logits = module(**batch).logits
        task.loss(logits, wanted, plugin.LossSettings()).backward()
    return alive.peak_bytes


def held(config: RunConfig, labels: list[str], batch: dict[str, torch.Tensor]) -> int:
    """What autograd itself says it keeps of the forward pass, without weights."""
    task = plugin.tasks()[config.task.name]
    module = builder(config, labels)(None)
    own = {one.untyped_storage().data_ptr() for one in [*module.parameters(), *module.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = module(**batch).logits
        task.loss(logits, batch["input_ids"], plugin.LossSettings())
    return sum(storage.nbytes() for storage in kept.values())


CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("chat_llama", "sft", {"name": "full"}, {}),
    ("chat_llama", "sft", {"name": "full"}, {"gradient_checkpointing": True}),
    ("chat_llama", "sft", {"name": "lora"}, {"gradient_checkpointing": True}),
    ("chat_llama", "sft", {"name": "lora"}, {"bf16": True}),
    ("chat_llama", "sft", {"name": "freeze", "trainable_layers": 1}, {}),
    ("tiny_bert", "seq_cls", {"name": "full"}, {}),
    ("tiny_bert", "token_cls", {"name": "ia3"}, {"gradient_checkpointing": True}),
    ("tiny_t5", "seq2seq", {"name": "full"}, {}),
]


def compare(folder: Path, task: str, method: dict[str, Any], train: dict[str, Any]) -> float:
    raw = config_of(folder, method).dump() | {"task": task}
    config = parse(raw | {"train": train})
    labels = ["a", "b"] if plugin.tasks()[task].classes else []
    torch.manual_seed(3)
    batch = (packed_rows if task == "sft" else padded_rows)(15)
    planned = activation_bytes(config, labels, ROWS, TOKENS)
    assert planned is not None
    return planned / really_taken(config, labels, batch)


@pytest.mark.parametrize(("model", "task", "method", "train"), CASES, ids=str)
def test_a_plan_counts_the_activations_that_are_held(
    request: pytest.FixtureRequest,
    model: str,
    task: str,
    method: dict[str, Any],
    train: dict[str, Any],
) -> None:
    """Fake tensors take the way of real ones; only how a mask comes about differs a little."""
    folder = request.getfixturevalue(model)
    assert compare(folder, task, method, train) == pytest.approx(1, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("train", [{}, {"gradient_checkpointing": True}, {"bf16": True}], ids=str)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_plan_counts_the_activations_of_pre_trained_models(
    asset: Callable[[str], Path], method: str, train: dict[str, Any]
) -> None:
    for name, task in (("smollm2-135m-instruct", "sft"), ("minilm-l6", "seq_cls")):
        assert compare(asset(name), task, {"name": method}, train) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_is_what_autograd_keeps_and_a_gradient(
    wide_llama: Path, *, checkpointing: bool
) -> None:
    raw = config_of(wide_llama, {"name": "full"}).dump()
    config = parse(raw | {"train": {"gradient_checkpointing": checkpointing}})
    batch = packed_rows(200)
    planned = activation_bytes(config, [], ROWS, TOKENS)
    kept = held(config, [], batch)
    # Beside it, on its way: the gradient of a weight, here of the widest, in float32.
    widest = 4 * 512 * 1024
    assert planned is not None
    assert kept < planned
    if not checkpointing:
        assert planned == pytest.approx(kept + widest, rel=0.05)


def test_what_needs_values_is_not_counted(chat_llama: Path) -> None:
    config = config_of(chat_llama, {"name": "prompt_tuning"})
    assert activation_bytes(config, [], ROWS, TOKENS) is None
