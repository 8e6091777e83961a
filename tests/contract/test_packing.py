"""Samples that share a row: each as if it were alone, on a real model and on many architectures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distft import hf, plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.data.shards import Sample
from distft.plugin import EncodeContext, LossSettings
from distft.train.batch import Collator, make_collator
from distft.train.inference_engine import InferenceEngine
from distft.train.model import builder
from distft.train.packing import problem

TEXTS = [
    "The film was a delight from its first minute to the last, and the music stays with you.",
    "No.",
    "I had hoped for more: the story never begins, the actors look lost, and the jokes are old.",
    "A quiet film.",
    "Some scenes are worth the price of the ticket; others are worth the price of leaving early.",
    "It rains in every scene and nobody owns an umbrella, which tells you all about the plot.",
    "Two hours well spent",
]
ANSWERS = [
    "A good one.",
    "A very short answer",
    "Yes",
    "Two, and a bit more than two.",
    "3",
    "No",
    "!",
]
TASK = plugin.tasks()["sft"]


def config_of(model: Path, method: str) -> RunConfig:
    raw = {"name": "x", "model": str(model), "data": {"train": "x"}, "task": "sft"}
    return parse({**raw, "method": method})


def collator_of(config: RunConfig) -> Collator:
    return make_collator(config, TASK, [])


@pytest.fixture(scope="module")
def real(asset: Callable[[str], Path]) -> tuple[nn.Module, Collator, list[Sample]]:
    """A pre-trained model with LoRA whose second half is not zero, and conversations."""
    config = config_of(asset("smollm2-135m-instruct"), "lora")
    module = builder(config, [])(None).eval()
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.004)
    tokenizer = hf.load_tokenizer(config.model)
    samples = []
    for i, (question, answer) in enumerate(zip(TEXTS, ANSWERS, strict=True)):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        encoded = TASK.encode({"messages": turns}, tokenizer, EncodeContext(cutoff_len=128))
        ids, labels = (np.array(one, np.int32) for one in (encoded.input_ids, encoded.labels))
        samples.append(Sample(i, ids, labels))
    return module, collator_of(config), samples


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return a sample's loss per target."""
    loss = TASK.loss(logits[None], labels[None], LossSettings())
    return float(loss) / TASK.num_targets(labels.tolist())


def cut_up(
    module: nn.Module, collate: Collator, samples: Sequence[Sample], rows: Sequence[int]
) -> list[float]:
    """Return each sample's loss out of packed rows."""
    batch = collate.packed(samples, rows)
    labels = batch.pop("labels")
    with torch.inference_mode():
        logits = module(**batch).logits
    losses, taken = [], iter(samples)
    for row, count in enumerate(rows):
        begin = 0
        for one in (next(taken) for _ in range(count)):
            end = begin + len(one.input_ids)
            losses.append(loss_of(logits[row, begin:end], labels[row, begin:end]))
            begin = end
    return losses


def test_packed_padded_and_alone_lose_the_same(real: Any) -> None:
    module, collate, samples = real
    alone, padded = [], []
    with torch.inference_mode():
        for one in samples:
            batch = collate([one])
            alone.append(loss_of(module(**batch).logits[0], batch["labels"][0]))
        batch = collate(samples)
        logits, labels = module(**batch).logits, batch["labels"]
        for i, one in enumerate(samples):
            padded.append(loss_of(logits[i, : len(one.input_ids)], labels[i, : len(one.input_ids)]))
    assert min(alone) > 0.1
    np.testing.assert_allclose(padded, alone, rtol=0, atol=1e-5)
    for rows in ([7], [1, 3, 1, 2]):
        packed = cut_up(module, collate, samples, rows)
        print(f"rows {rows}: {max(abs(np.array(packed) - np.array(alone))):.1e}")
        np.testing.assert_allclose(packed, alone, rtol=0, atol=1e-5)


def test_no_sample_sees_another(real: Any) -> None:
    """The gradient of one sample's loss with respect to another's input is exactly 0."""
    module, collate, samples = real
    for chosen in (0, 2):
        moved, others = gradients(module, collate, samples[:4], chosen)
        assert moved > 0
        assert others == 0


def gradients(
    module: nn.Module, collate: Collator, samples: Sequence[Sample], chosen: int
) -> tuple[float, float]:
    """Return the largest gradient of a sample's loss: at its own input, and at the others'."""
    batch = collate.packed(samples, [len(samples)])
    labels = batch.pop("labels")
    ends = np.cumsum([len(one.input_ids) for one in samples])
    begin, end = int(ends[chosen] - len(samples[chosen].input_ids)), int(ends[chosen])
    mine = torch.full_like(labels, -100)
    mine[:, begin:end] = labels[:, begin:end]
    seen: list[torch.Tensor] = []

    def keep(layer: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[0]

    hook = module.get_input_embeddings().register_forward_hook(keep)  # type: ignore[operator]
    try:
        TASK.loss(module(**batch).logits, mine, LossSettings()).backward()
    finally:
        hook.remove()
    assert seen[0].grad is not None
    each = seen[0].grad[0].abs().amax(-1)
    own = each[begin:end].max().item()
    each[begin:end] = 0
    return own, each.max().item()


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 258}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "intermediate_size": 48},
    "qwen2": {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 258},
    "gpt_neox": {**SIZES, "intermediate_size": 48},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 258},
    "mamba": {**SIZES, "state_size": 8},
}
CANNOT = {"opt": "", "bloom": "", "mamba": ""}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_found_before_training_is_true(architecture: str, chat_llama: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture])
    config.use_cache = False
    config.initializer_range = 0.2
    module = AutoModelForCausalLM.from_config(config).eval()
    collate = collator_of(config_of(chat_llama, "full"))
    found = problem(InferenceEngine(module, bf16=False), collate)
    print(architecture, found)
    random = np.random.default_rng(3)
    drawn = [random.integers(0, 256, length).astype(np.int32) for length in (7, 9, 4)]
    samples = [Sample(i, ids, ids) for i, ids in enumerate(drawn)]
    try:
        apart = gradients(module, collate, samples, 1)[1] == 0
        with torch.inference_mode():
            alone = []
            for ids in map(torch.from_numpy, drawn):
                alone.append(loss_of(module(input_ids=ids[None]).logits[0], ids.long()))
        same = np.allclose(cut_up(module, collate, samples, [3]), alone, atol=1e-4)
    except TypeError:
        apart = same = False
    assert (found is None) == (apart and same)
    assert (architecture in CANNOT) == (found is not None)
