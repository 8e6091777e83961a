"""Methods on GPT-2, whose layers are Conv1D: linear layers that store their weight transposed."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distft import hf, plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.errors import ConfigError
from distft.plugin import LossSettings
from distft.train.model import builder
from distft.train.optimizer import build_optimizer

METHODS, TASK = plugin.methods(), plugin.tasks()["causal_lm"]
FACTS = {
    path.stem: runpy.run_path(str(path))
    for path in sorted((Path(__file__).parent / "facts").glob("*.py"))
}
CORPUS = [
    "the",
    "film",
    "is",
    "was",
    "good",
    "great",
    "fine",
    "bad",
    "poor",
    "dull",
    "plain",
    "story",
    "and",
    "acting",
]
VOCABULARY, HIDDEN, INNER, POSITIONS = 2 + len(CORPUS), 24, 40, 64
LINEAR = {
    "attn.c_attn": (HIDDEN, 3 * HIDDEN),
    "attn.c_proj": (HIDDEN, HIDDEN),
    "mlp.c_fc": (HIDDEN, INNER),
    "mlp.c_proj": (INNER, HIDDEN),
}
"""Layers of a block -> inputs and outputs."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "oft": ({"name": "oft"}, r"oft turns the input of Linear layers only; those of gpt2 .* Conv1D"),
    "oft-c_attn": ({"name": "oft", "target_modules": ["c_attn"]}, r"target_modules: .*Conv1D"),
    "olora": (
        {"name": "lora", "init_lora_weights": "olora"},
        r"olora cannot begin beside .*transformer\.h\.0\.attn\.c_attn, a Conv1D",
    ),
    "loha": ({"name": "peft", "peft_type": "LOHA"}, r"target_modules: .*Conv1D'> not supported"),
    "lily": ({"name": "peft", "peft_type": "LILY"}, r"peft_type: Lily does not support .*Conv1D"),
}
CASES: dict[str, dict[str, Any]] = {
    **{
        name: {"name": name, **FACTS[name]["SETTINGS"]}
        for name in METHODS
        if name not in ("oft", "peft")
    },
    "dora": {"name": "lora", "r": 4, "use_dora": True},
    "orthogonal": {"name": "lora", "r": 4, "init_lora_weights": "orthogonal"},
    "pissa": {"name": "lora", "r": 4, "init_lora_weights": "pissa"},
    "ia3-all": {"name": "ia3", "target_modules": "all-linear"},
    "int8": {"name": "qlora", "quant_type": "int8"},
    "randlora": {"name": "peft", "peft_type": "RANDLORA", "options": {"r": 4}},
}
COUNTED = [name for name in CASES if name in METHODS and name not in ("bitfit", "freeze")]


def sizes() -> dict[str, int]:
    """Parameters of the tiny GPT-2 by place, from its published shapes alone."""
    shapes = LINEAR.values()
    block = sum(inputs * outputs + outputs for inputs, outputs in shapes) + 2 * 2 * HIDDEN
    return {
        "hidden": HIDDEN,
        "values": HIDDEN,
        "embeddings": (VOCABULARY + POSITIONS) * HIDDEN,
        "block": block,
        "sublayers": 4,
        "after": 2 * HIDDEN,
        # The output layer is the embeddings' own.
        "head": 0,
        "whole": 0,
        "block_lora": sum(inputs + outputs for inputs, outputs in shapes),
        "after_lora": 0,
        "block_linears": len(LINEAR),
        "block_outputs": sum(outputs for _, outputs in shapes),
        "after_linears": 0,
        "after_outputs": 0,
        # PEFT's choice: queries, keys and values are one layer; the input of the last.
        "block_ia3": 3 * HIDDEN + INNER,
        "norms": 2 * (2 * 2 * HIDDEN) + 2 * HIDDEN,
    }


EVERY = {f"transformer.h.{block}.{layer}" for block in (0, 1) for layer in LINEAR}
ADAPTED = {
    **dict.fromkeys(("lora", "dora", "pissa", "qlora", "vera", "adalora", "randlora"), EVERY),
    "ia3": {name for name in EVERY if name.endswith(("attn.c_attn", "mlp.c_proj"))},
    "ia3-all": EVERY,
    "bottleneck_adapter": {name for name in EVERY if name.endswith("c_proj")},
    "ln_tuning": {"transformer.ln_f"}
    | {f"transformer.h.{block}.{norm}" for block in (0, 1) for norm in ("ln_1", "ln_2")},
}
"""Where an adapter stands."""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer GPT-2, and a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("gpt2")
    words = {word: i for i, word in enumerate(["<eos>", "<unk>", *CORPUS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<eos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(15)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_inner=INNER,
        n_layer=2,
        n_head=2,
        n_positions=POSITIONS,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def config_of(folder: Path, method: dict[str, Any]) -> RunConfig:
    return parse(
        {
            "name": "contract",
            "model": {"id": str(folder), "dropout": 0.0},
            "task": TASK.name,
            "data": {"train": "none"},
            "method": method,
            "train": {"weight_decay": 0.0},
        }
    )


INPUTS = {
    "input_ids": torch.arange(2, 14).reshape(2, 6),
    "attention_mask": torch.ones(2, 6, dtype=torch.long),
}


def says(module: nn.Module) -> torch.Tensor:
    logits: torch.Tensor = module.eval()(**INPUTS).logits
    return logits.detach()


@pytest.mark.parametrize("case", ADAPTED)
def test_adapters_stand_on_these_layers_and_no_others(case: str, gpt2: Path) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner: Any = builder(config_of(gpt2, CASES[case]), [])(None)
    layers = inner.get_base_model().named_modules()
    assert {name for name, layer in layers if isinstance(layer, BaseTunerLayer)} == ADAPTED[case]


def test_methods_on_the_models_own_weights_train_these(gpt2: Path) -> None:
    trained = {}
    for method in ("bitfit", "freeze"):
        module = builder(config_of(gpt2, CASES[method]), [])(None)
        trained[method] = {name for name, p in module.named_parameters() if p.requires_grad}
    last = {name for name, _ in module.named_parameters() if name.startswith("transformer.h.1.")}
    norms = {f"{name}.bias" for name in ADAPTED["ln_tuning"]}
    assert trained["freeze"] == last
    assert trained["bitfit"] == norms | {f"{name}.bias" for name in EVERY}


@pytest.mark.parametrize("method", COUNTED)
def test_trainable_parameters_are_counted_by_hand(method: str, gpt2: Path) -> None:
    config = config_of(gpt2, CASES[method])
    empty = hf.build_meta(config.model, TASK, [])
    with torch.device("meta"):
        attached = METHODS[method].attach(empty, config.method, TASK)
    by_hand = FACTS[method]["trained"](sizes(), TASK)
    for module in (attached, builder(config, [])(None)):
        assert sum(p.numel() for p in module.parameters() if p.requires_grad) == by_hand


@pytest.mark.parametrize("case", CASES)
def test_it_learns_and_is_the_same_when_loaded_and_merged(
    case: str, gpt2: Path, tmp_path: Path
) -> None:
    config = config_of(gpt2, CASES[case])
    method = config.method.name
    module: Any = builder(config, [])(None)
    before = copy.deepcopy(dict(module.named_parameters()))
    optimizer = build_optimizer(module, config, FACTS[method]["LEARNING_RATE"])
    losses = []
    for step in range(4):
        loss = TASK.loss(module(**INPUTS).logits, INPUTS["input_ids"], LossSettings())
        losses.append(loss.item())
        if step < 3:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0], losses
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in before.items() if p.requires_grad}
    hf.save_folder(module, config.model, tmp_path)
    said = says(module)
    torch.testing.assert_close(says(hf.load_folder(tmp_path, TASK)), said, atol=2e-5, rtol=1e-5)
    if METHODS[method].merges:
        torch.testing.assert_close(says(module.merge_and_unload()), said, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["lora", "dora", "orthogonal", "pissa", "ia3", "adalora", "vera"])
def test_attaching_changes_nothing_that_is_said(case: str, gpt2: Path) -> None:
    base = says(hf.load_model(config_of(gpt2, {"name": "full"}).model, TASK, [], seed=1))
    said = says(builder(config_of(gpt2, CASES[case]), [])(None))
    assert base.abs().max() > 0.1, "a model that says nothing proves nothing"
    torch.testing.assert_close(said, base, atol=1e-5, rtol=0)


def test_conv1d_is_stored_in_fewer_bits_the_right_way_round(gpt2: Path) -> None:
    base = says(hf.load_model(config_of(gpt2, {"name": "full"}).model, TASK, [], seed=1))
    module: Any = builder(config_of(gpt2, CASES["int8"]), [])(None)
    stored = {
        p.dtype for name, p in module.named_parameters() if name.endswith("base_layer.weight")
    }
    assert stored == {torch.int8}
    # Rounded, no more: a transposed weight would say something else altogether.
    assert (says(module) - base).abs().max() < 0.05 * base.abs().max()


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("empty", [True, False])
def test_what_conv1d_cannot_have_is_refused(case: str, empty: bool, gpt2: Path) -> None:
    """Already when the plan counts parameters, on a model without values."""
    raw, message = REFUSED[case]
    config = config_of(gpt2, raw)
    if not empty:
        with pytest.raises(ConfigError, match=message):
            builder(config, [])(None)
        return
    model = hf.build_meta(config.model, TASK, [])
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        METHODS[config.method.name].attach(model, config.method, TASK)
