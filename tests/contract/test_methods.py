"""What every fine-tuning method promises, on every task and architecture it goes with.

The models are tiny and random: the point is which parameters exist, move and are counted.
"""

from __future__ import annotations

import copy
import itertools
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distft import compat, heads, hf, plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.config_sections import ModelConfig
from distft.data.shards import Sample
from distft.errors import ConfigError
from distft.plugin import EncodeContext, LossSettings, Method, Task
from distft.space import Range
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
    ("llama", "seq_cls"),
    ("llama", "sft"),
    ("llama", "causal_lm"),
]


def bert_sizes(task: str) -> dict[str, int]:
    """Parameters of the tiny BERT by place, from its published shapes alone."""
    vocabulary, hidden, inner, positions = 19, 24, 40, 64
    labels = {"seq_cls": len(LABELS), "regression": 1, "token_cls": len(TAGS)}[task]
    # The pooler: words are tagged without one.
    pooler = int(task != "token_cls")
    return {
        "hidden": hidden,
        "inner": inner,
        "values": hidden,
        "embeddings": (vocabulary + positions + 2) * hidden + 2 * hidden,
        "block": 4 * (hidden * hidden + hidden)
        + (hidden * inner + inner)
        + (inner * hidden + hidden)
        + 4 * hidden,
        "after": pooler * (hidden * hidden + hidden),
        "head": hidden * labels + labels,
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
    return {
        "hidden": hidden,
        "inner": inner,
        "values": values,
        "embeddings": vocabulary * hidden,
        "block": 2 * hidden * hidden + 2 * hidden * values + 3 * hidden * inner + 2 * hidden,
        "after": hidden,
        "head": hidden * (len(LABELS) if task == "seq_cls" else vocabulary),
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


SIZES = {"bert": bert_sizes, "llama": llama_sizes}


COMBINATIONS = [
    (architecture, task, method)
    for architecture, task in PLACES
    for method in METHODS
    if f"task={task}" not in compat.matrix()[method]
    and architecture in FACTS[method].get("ARCHITECTURES", SIZES)
]


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def combination(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    """An architecture, a task and a method that go together."""
    wanted: tuple[str, str, str] = request.param
    return wanted


@pytest.fixture
def place(combination, request: pytest.FixtureRequest) -> tuple[str, Task, Path]:
    """An architecture, a task and the folder of a tiny model."""
    architecture, task, _ = combination
    folder = request.getfixturevalue({"bert": "tiny_bert", "llama": "chat_llama"}[architecture])
    return architecture, TASKS[task], folder


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


def loss_of(module: nn.Module, task: Task, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    loss = task.loss(module(**inputs).logits, batch["labels"], LossSettings())
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
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
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
    for module in (built, saving):
        loss_of(module, place[1], batch).backward()
    theirs = dict(saving.named_parameters())
    for name, parameter in built.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(theirs[name].grad, parameter.grad, atol=1e-6, rtol=1e-4)


def variant_configs(section: str) -> list[Any]:
    known = METHODS if section == "method" else TASKS
    return [(section, name) for name in known]


@pytest.mark.parametrize(
    ("section", "name"), [*variant_configs("method"), *variant_configs("task")]
)
def test_config_survives_dump_and_parse(section: str, name: str) -> None:
    settings = FACTS[name]["SETTINGS"] if section == "method" else {}
    raw = {"name": "x", "model": "m", "data": {"train": "f"}, section: {"name": name, **settings}}
    config = parse(raw)
    again = parse(config.dump())
    assert again == config
    assert again.dump() == config.dump()
    assert getattr(again, section).model_dump() | settings == getattr(config, section).model_dump()


def with_values(name: str, values: dict[str, Any]) -> RunConfig:
    raw: dict[str, Any] = {"name": "x", "model": "m", "data": {"train": "f"}}
    raw["method"] = {"name": name}
    for dotted, value in values.items():
        section, key = dotted.split(".")
        raw.setdefault(section, {})[key] = value
    return parse(raw)


@pytest.mark.parametrize("name", METHODS)
def test_every_corner_of_a_search_space_is_a_valid_config(name: str) -> None:
    space = METHODS[name].space
    assert "train.learning_rate" in space
    axes = [
        [(key, value) for value in ((axis.low, axis.high) if isinstance(axis, Range) else axis)]
        for key, axis in space.items()
    ]
    for corner in itertools.product(*axes):
        config = with_values(name, dict(corner))
        for dotted, value in corner:
            section, key = dotted.split(".")
            assert getattr(getattr(config, section), key) == value


@pytest.mark.parametrize("name", METHODS)
@settings(deadline=None)
@given(data=st.data())
def test_every_point_of_a_search_space_is_a_valid_config(name: str, data: st.DataObject) -> None:
    values = {}
    for key, axis in METHODS[name].space.items():
        if isinstance(axis, Range):
            assert axis.low < axis.high
            assert axis.low > 0 or not axis.log
            values[key] = data.draw(st.floats(axis.low, axis.high), label=key)
        else:
            values[key] = data.draw(st.sampled_from(axis), label=key)
    config = with_values(name, values)
    assert parse(config.dump()) == config


@pytest.mark.parametrize("name", METHODS)
def test_the_default_rate_lies_in_the_space(name: str) -> None:
    axis = METHODS[name].space["train.learning_rate"]
    assert isinstance(axis, Range)
    assert axis.low <= METHODS[name].learning_rate <= axis.high


def test_every_method_has_its_facts() -> None:
    assert FACTS.keys() == METHODS.keys()


VARIANTS = [*METHODS.values(), *TASKS.values()]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variants_say_what_they_are_and_whence(variant: Method | Task) -> None:
    assert 10 <= len(variant.summary) <= 100
    assert not variant.summary.endswith(".")
    assert any(part.isdigit() and len(part) == 4 for part in _words(variant.source)), (
        "a source names its year"
    )
    for key, field in variant.config.model_fields.items():
        assert field.description, f"{variant.name}.{key} has no documentation"
    assert variant.config.model_fields["name"].default == variant.name


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text).split()


@pytest.mark.parametrize("form", plugin.formats().values(), ids=lambda form: form.name)
def test_formats_say_what_they_are_and_read_their_example(form: plugin.Format) -> None:
    assert 10 <= len(form.summary) <= 100
    assert form.target in form.columns
    row = form.read(form.example, form.columns)
    fitting = [task for task in TASKS.values() if form.row in task.rows]
    assert fitting, f"no task learns from {form.row} rows"
    for task in fitting:
        assert task.key(row)


@pytest.mark.parametrize("layers", [3, -3, 100])
def test_freeze_refuses_more_blocks_than_there_are(layers: int, tiny_bert: Path) -> None:
    task = TASKS["seq_cls"]
    model = hf.build_meta(ModelConfig(id=str(tiny_bert)), task, LABELS)
    chosen = METHODS["freeze"]
    with pytest.raises(ConfigError, match=rf"got {layers}, but the model has 2 blocks; .* -2 to 2"):
        chosen.attach(model, chosen.config(trainable_layers=layers), task)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("layers", "trained"), [(2, {0, 1}), (1, {1}), (-1, {0}), (-2, {0, 1}), (0, set())]
)
def test_freeze_counts_blocks_from_either_end(
    layers: int, trained: set[int], chat_llama: Path
) -> None:
    task = TASKS["sft"]
    model = hf.build_meta(ModelConfig(id=str(chat_llama)), task, [])
    chosen = METHODS["freeze"]
    module = chosen.attach(model, chosen.config(trainable_layers=layers), task)  # type: ignore[call-arg]
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
        chosen.attach(model, chosen.config(trainable_layers=0), task)  # type: ignore[call-arg]
    assert "method.trainable_layers=2" in caught.value.hint


def test_unknown_target_modules_are_refused(chat_llama: Path) -> None:
    chosen, task = METHODS["lora"], TASKS["sft"]
    model = hf.load_model(ModelConfig(id=str(chat_llama)), task, [], seed=1)
    with pytest.raises(ConfigError, match=r"method\.target_modules: .*no_such_layer"):
        chosen.attach(model, chosen.config(target_modules=["no_such_layer"]), task)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", METHODS)
def test_new_weights_inside_the_body_are_trained_too(
    name: str, tiny_bert: Path, tmp_path: Path
) -> None:
    """A body that was pre-trained without its pooler: random weights must not stay, nor be lost."""
    from transformers import AutoConfig, BertForMaskedLM

    BertForMaskedLM(AutoConfig.from_pretrained(tiny_bert)).save_pretrained(tmp_path)
    task, chosen = TASKS["seq_cls"], METHODS[name]
    model = hf.load_model(ModelConfig(id=str(tmp_path)), task, LABELS, seed=1)
    assert heads.trained_whole(model, task) == ["classifier", "bert.pooler.dense"]
    module = chosen.attach(model, chosen.config(), task)
    trained = {n for n, p in module.named_parameters() if p.requires_grad and "pooler" in n}
    assert len(trained) == 2, trained
    if chosen.adapter:
        assert all(".modules_to_save." in one for one in trained), "whole, so that it is saved"


def test_names_on_a_real_model(asset: Callable[[str], Path]) -> None:
    task = TASKS["seq_cls"]
    model = hf.load_model(ModelConfig(id=str(asset("minilm-l6"))), task, LABELS, seed=1)
    assert heads.trained_whole(model, task) == ["classifier"]
    blocks = hf.blocks(model)
    assert len(blocks) == 6
    assert blocks[-1] is model.get_submodule("bert.encoder.layer.5")
    lora = METHODS["lora"]
    adapted = lora.attach(model, lora.config(), task)
    # r 8; 6 blocks of 4 square and 2 widening layers, the pooler, and the head of 3 classes.
    by_hand = 8 * (6 * (4 * 2 * 384 + 2 * (384 + 1536)) + 2 * 384) + 3 * 384 + 3
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == by_hand
