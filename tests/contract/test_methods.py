"""What every fine-tuning method promises, on every task and architecture it goes with.

The models are tiny and random: the point is which parameters exist, move and are counted.
"""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distft import compat, hf, plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.config_sections import ModelConfig
from distft.data.shards import Sample
from distft.errors import ConfigError
from distft.plugin import EncodeContext, LossSettings, Method, Task
from distft.train.batch import make_collator
from distft.train.model import builder
from distft.train.optimizer import build_optimizer

METHODS = plugin.methods()
TASKS = plugin.tasks()
LABELS = ["bad", "good", "plain"]
TAGS = ["B-THING", "B-bad", "B-good", "B-plain", "I-THING", "I-bad", "I-good", "I-plain", "O"]
STEPS = 30

FACTS = {
    path.stem: runpy.run_path(str(path))
    for path in sorted((Path(__file__).parent / "facts").glob("*.py"))
}
"""Method -> what is known of it without distft: SETTINGS that differ from its defaults, so that
defaults cannot hide a fault, a LEARNING_RATE that suits the tiny models, `trained(sizes, task)`:
how many parameters it trains, and `declared(names, task)`: which. KEEPS_OUTPUT is False where
attaching changes what the model says, KEEPS_TOLERANCE how much rounding may change it,
ARCHITECTURES those it goes with where they are not all."""

PLACES = [
    ("bert", "seq_cls"),
    ("bert", "regression"),
    ("bert", "token_cls"),
    ("bert", "masked_lm"),
    ("llama", "seq_cls"),
    ("llama", "sft"),
    ("llama", "causal_lm"),
    ("t5", "seq2seq"),
]
SLOW = {("bert", "regression"), ("bert", "masked_lm"), ("llama", "seq_cls"), ("llama", "causal_lm")}
"""Places like one of the others, which the slow tests go through."""


def bert_sizes(task: str) -> dict[str, int]:
    """Parameters of the tiny BERT by place, from its published shapes alone."""
    vocabulary, hidden, inner, positions = 19, 24, 40, 64
    # The pooler: words are tagged, and written, without one.
    pooler = int(task in ("seq_cls", "regression"))
    if task == "masked_lm":
        # The files hold no head: a layer and a norm, and a bias beside the embeddings.
        whole = hidden * hidden + hidden + 2 * hidden
        new = whole + vocabulary
    else:
        labels = {"seq_cls": len(LABELS), "regression": 1, "token_cls": len(TAGS)}[task]
        whole = new = hidden * labels + labels
    block = (
        4 * (hidden * hidden + hidden)
        + (hidden * inner + inner)
        + (inner * hidden + hidden)
        + 4 * hidden
    )
    return {
        "hidden": hidden,
        "inner": inner,
        "values": hidden,
        "embeddings": (vocabulary + positions + 2) * hidden + 2 * hidden,
        "block": block,
        "last_block": block,
        "sublayers": 4,
        "after": pooler * (hidden * hidden + hidden),
        "head": new,
        # What is new because the files lack it, and of that what stands in modules of its own.
        "new": new,
        "whole": whole,
        # Sums of (inputs + outputs) of the linear layers, which is what a rank-1 update costs.
        "block_lora": 4 * (2 * hidden) + 2 * (hidden + inner),
        "after_lora": pooler * 2 * hidden,
        # Linear layers, and how many numbers go into them and come out.
        "block_linears": 6,
        "block_inputs": 5 * hidden + inner,
        "block_outputs": 4 * hidden + inner + hidden,
        "after_linears": pooler,
        "after_inputs": pooler * hidden,
        "after_outputs": pooler * hidden,
        # Keys, values, the input of the two output layers.
        "block_ia3": 2 * hidden + hidden + inner,
        "norms": 2 * hidden + 2 * (4 * hidden),
    }


def llama_sizes(task: str) -> dict[str, int]:
    """Parameters of the tiny Llama by place, from its published shapes alone."""
    vocabulary, hidden, inner, values = 258, 32, 48, 32 // 4 * 2
    block = 2 * hidden * hidden + 2 * hidden * values + 3 * hidden * inner + 2 * hidden
    new = hidden * len(LABELS) if task == "seq_cls" else 0
    return {
        "hidden": hidden,
        "inner": inner,
        "values": values,
        "embeddings": vocabulary * hidden,
        "block": block,
        "last_block": block,
        "sublayers": 4,
        "after": hidden,
        "head": new or hidden * vocabulary,
        "new": new,
        "whole": new,
        "block_lora": 2 * (2 * hidden) + 2 * (hidden + values) + 3 * (hidden + inner),
        "after_lora": 0,
        "block_linears": 7,
        "block_inputs": 6 * hidden + inner,
        "block_outputs": 2 * hidden + 2 * values + 2 * inner + hidden,
        "after_linears": 0,
        "after_inputs": 0,
        "after_outputs": 0,
        "block_ia3": 2 * values + inner,
        "norms": 2 * (2 * hidden) + hidden,
    }


def t5_sizes(task: str) -> dict[str, int]:
    """Parameters of the tiny T5 by place; a block is one of either stack."""
    vocabulary, hidden, inner, values, buckets, attention_heads = 17, 16, 24, 12, 8, 3
    attention = 4 * hidden * values + hidden
    feed_forward = 2 * hidden * inner + hidden
    return {
        "hidden": hidden,
        "inner": inner,
        "values": values,
        # Shared by encoder, decoder and output; each stack's first block has distances.
        "embeddings": vocabulary * hidden + 2 * buckets * attention_heads,
        "block": (attention + feed_forward) + (2 * attention + feed_forward),
        "last_block": 2 * attention + feed_forward,
        "sublayers": 2 * (2 + 3),
        "after": 2 * hidden,
        "head": 0,
        "new": 0,
        "whole": 0,
        "block_lora": 3 * 4 * (hidden + values) + 2 * 2 * (hidden + inner),
        "after_lora": 0,
        "block_linears": 3 * 4 + 2 * 2,
        "block_inputs": 3 * (3 * hidden + values) + 2 * (hidden + inner),
        "block_outputs": 3 * (3 * values + hidden) + 2 * (inner + hidden),
        "after_linears": 0,
        "after_inputs": 0,
        "after_outputs": 0,
        "block_ia3": 3 * 2 * values + 2 * inner,
        "norms": 2 * (2 + 3) * hidden + 2 * hidden,
    }


SIZES = {"bert": bert_sizes, "llama": llama_sizes, "t5": t5_sizes}
FOLDERS = {"bert": "tiny_bert", "llama": "chat_llama", "t5": "tiny_t5"}


COMBINATIONS = [
    (architecture, task, method)
    for architecture, task in PLACES
    for method in METHODS
    if f"task={task}" not in compat.matrix()[method]
    and architecture in FACTS[method].get("ARCHITECTURES", SIZES)
]


@pytest.fixture(
    params=[
        pytest.param(one, id="-".join(one), marks=[pytest.mark.slow] if one[:2] in SLOW else [])
        for one in COMBINATIONS
    ]
)
def combination(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    """An architecture, a task and a method that go together."""
    wanted: tuple[str, str, str] = request.param
    return wanted


@pytest.fixture
def place(combination, request: pytest.FixtureRequest) -> tuple[str, Task, Path]:
    """An architecture, a task and the folder of a tiny model."""
    architecture, task, _ = combination
    return architecture, TASKS[task], request.getfixturevalue(FOLDERS[architecture])


@pytest.fixture
def method(combination) -> Method:
    return METHODS[combination[2]]


def config_of(method: Method, task: Task, folder: Path, **train: Any) -> RunConfig:
    return parse(
        {
            "name": "contract",
            "model": {"id": str(folder), "dropout": 0.0},
            "task": task.name,
            "data": {"train": "none"},
            "method": {"name": method.name, **FACTS[method.name]["SETTINGS"]},
            "train": train,
        }
    )


@pytest.fixture
def config(method: Method, place: tuple[str, Task, Path]) -> RunConfig:
    return config_of(method, place[1], place[2], weight_decay=0.0)


@pytest.fixture
def labels(place: tuple[str, Task, Path]) -> list[str]:
    if place[1].name == "token_cls":
        return TAGS
    return LABELS if place[1].classes else []


@pytest.fixture
def built(config: RunConfig, labels: list[str]) -> nn.Module:
    return builder(config, labels)(None)


@pytest.fixture
def batch(
    config: RunConfig, labels: list[str], place: tuple[str, Task, Path], rows: Any
) -> dict[str, torch.Tensor]:
    task = place[1]
    tokenizer = hf.load_tokenizer(config.model)
    context = EncodeContext(64, labels)
    encoded = [task.encode(row, tokenizer, context) for row in rows[task.rows[0]]]
    samples = [
        Sample(i, np.array(one.input_ids), np.array(one.labels)) for i, one in enumerate(encoded)
    ]
    return make_collator(config, task, labels)(samples)


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in batch.items() if key != "labels"}


def loss_of(module: nn.Module, task: Task, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    loss = task.loss(module(**inputs_of(batch)).logits, batch["labels"], LossSettings())
    return loss / (batch["labels"] != -100).sum()


def test_declared_parameters_and_no_other_get_gradients_and_change(
    method: Method, place, config: RunConfig, built: nn.Module, batch
) -> None:
    task = place[1]
    declared = FACTS[method.name]["declared"](dict(built.named_parameters()).keys(), task)
    assert declared
    assert {name for name, p in built.named_parameters() if p.requires_grad} == declared
    before = copy.deepcopy(dict(built.named_parameters()))
    optimizer = build_optimizer(built, config, FACTS[method.name]["LEARNING_RATE"])
    losses = []
    for _ in range(STEPS):
        loss = loss_of(built, task, batch)
        loss.backward()
        with_gradient = {name for name, p in built.named_parameters() if p.grad is not None}
        assert with_gradient == declared
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    changed = {name for name, p in built.named_parameters() if not torch.equal(p, before[name])}
    assert changed == declared
    assert losses[-1] < 0.8 * losses[0], losses


def test_trainable_count_is_the_same_on_meta_built_and_by_hand(
    method: Method, place, config: RunConfig, built: nn.Module, labels: list[str]
) -> None:
    architecture, task, _ = place
    meta = hf.build_meta(config.model, task, labels)
    whole = sum(p.numel() for p in meta.parameters())
    assert all(p.is_meta for p in meta.parameters())
    with torch.device("meta"):
        attached = method.attach(meta, config.method, task)
    counts = {
        kind: sum(p.numel() for p in module.parameters() if p.requires_grad)
        for kind, module in {"meta": attached, "built": built}.items()
    }
    sizes = SIZES[architecture](task.name)
    by_hand = FACTS[method.name]["trained"](sizes, task)
    assert counts == {"meta": by_hand, "built": by_hand}
    assert whole == FACTS["full"]["trained"](sizes, task)


def test_attaching_changes_nothing_that_is_said(
    place, config: RunConfig, built: nn.Module, labels: list[str], batch
) -> None:
    base = hf.load_model(config.model, place[1], labels, seed=config.train.seed)
    inputs = inputs_of(batch)
    with torch.inference_mode():
        said = base.eval()(**inputs).logits
        adapted = built.eval()(**inputs).logits
    assert said.abs().max() > 0.01, "a model that says nothing proves nothing"
    facts = FACTS[config.method.name]
    if facts.get("KEEPS_OUTPUT", True):
        torch.testing.assert_close(adapted, said, atol=facts.get("KEEPS_TOLERANCE", 0.0), rtol=0)
    else:
        assert not torch.allclose(adapted, said, atol=1e-4)


def test_two_builds_are_equal(config: RunConfig, built: nn.Module, labels: list[str]) -> None:
    torch.manual_seed(999)
    again = dict(builder(config, labels)(None).named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in built.named_parameters())


def test_gradient_checkpointing_reaches_the_same_gradients(
    method: Method, place, built: nn.Module, labels: list[str], batch
) -> None:
    config = config_of(method, place[1], place[2], gradient_checkpointing=True)
    if compat.CHECKPOINTING in method.refuses(config.method):
        with pytest.raises(ValueError, match="gradient checkpointing"):
            builder(config, labels)(None)
        return
    saving = builder(config, labels)(None)
    # In float64 nothing is left of the order of sums; a quantized base computes in float32.
    exact = method.quantization(config.method) is None
    for module in (built, saving):
        if exact:
            module.double()
        loss_of(module, place[1], batch).backward()
    theirs = dict(saving.named_parameters())
    grads = {name: p.grad for name, p in built.named_parameters() if p.requires_grad}
    largest = max(float(grad.abs().max()) for grad in grads.values())
    atol, rtol = (1e-7, 1e-6) if exact else (5e-6 * largest, 1e-4)
    for name, grad in grads.items():
        torch.testing.assert_close(theirs[name].grad, grad, atol=atol, rtol=rtol)


@pytest.mark.parametrize("layers", [3, -3, 100])
def test_freeze_refuses_more_blocks_than_there_are(layers: int, tiny_bert: Path) -> None:
    task = TASKS["seq_cls"]
    model = hf.build_meta(ModelConfig(id=str(tiny_bert)), task, LABELS)
    chosen = METHODS["freeze"]
    with pytest.raises(ConfigError, match=rf"got {layers}, but the model has 2 blocks; .* -2 to 2"):
        chosen.attach(model, chosen.config(trainable_layers=layers), task)


@pytest.mark.parametrize(
    ("layers", "trained"), [(2, {0, 1}), (1, {1}), (-1, {0}), (-2, {0, 1}), (0, set())]
)
def test_freeze_counts_blocks_from_either_end(
    layers: int, trained: set[int], chat_llama: Path
) -> None:
    task = TASKS["sft"]
    model = hf.build_meta(ModelConfig(id=str(chat_llama)), task, [])
    chosen = METHODS["freeze"]
    module = chosen.attach(model, chosen.config(trainable_layers=layers), task)
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    assert {int(n.split(".layers.")[1].split(".")[0]) for n in names if ".layers." in n} == trained
    assert [n for n in names if ".layers." not in n] == ([] if layers else ["lm_head.weight"])


def test_head_only_on_shared_embeddings_is_refused(chat_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, LlamaForCausalLM

    shared = AutoConfig.from_pretrained(chat_llama, tie_word_embeddings=True)
    LlamaForCausalLM(shared).save_pretrained(tmp_path)
    hf.load_tokenizer(ModelConfig(id=str(chat_llama))).save_pretrained(tmp_path)
    chosen, task = METHODS["freeze"], TASKS["sft"]
    model = hf.build_meta(ModelConfig(id=str(tmp_path)), task, [])
    with pytest.raises(ConfigError, match="shares it with its input embeddings") as caught:
        chosen.attach(model, chosen.config(trainable_layers=0), task)
    assert "method.trainable_layers=2" in caught.value.hint


def test_unknown_target_modules_are_refused(chat_llama: Path) -> None:
    chosen, task = METHODS["lora"], TASKS["sft"]
    model = hf.load_model(ModelConfig(id=str(chat_llama)), task, [], seed=1)
    with pytest.raises(ConfigError, match=r"method\.target_modules: .*no_such_layer"):
        chosen.attach(model, chosen.config(target_modules=["no_such_layer"]), task)
