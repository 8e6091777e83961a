"""A plan from what a config states: the model's shape and the size of the data, no file."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest

from distft import api, cli, hf, plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.config_sections import ModelConfig, ModelShapeConfig
from distft.errors import ConfigError, DataError, PlanError

CHAT_LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 258,
    "max_position_embeddings": 128,
}
"""Of the tiny Llama of the tests."""


def config_of(**sections: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "name": "stated",
        "model": {"id": "nobody/nothing", "shape": CHAT_LLAMA},
        "task": "sft",
        "data": {"train": "nowhere.jsonl", "assumed": {"rows": 1000, "mean_tokens": 60}},
        "method": "full",
    }
    for section, keys in sections.items():
        raw[section] = {**raw.get(section, {}), **keys} if isinstance(keys, dict) else keys
    return parse(raw)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is tried."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("offline")
def test_a_plan_needs_no_files_and_no_network() -> None:
    made = api.plan(config_of())
    assert made.params == 32_032
    assert made.rows == {"train": 800, "eval": 100, "test": 100}
    assert (made.mean_tokens, made.max_tokens, made.exact) == (60, 128, False)
    assert made.notes == ["rows and tokens are those of data.assumed: no data were read"]
    fewer = {"max_samples": 50, "eval": "e.jsonl", "cutoff_len": 64}
    made = api.plan(config_of(data=fewer))
    assert made.rows == {"train": 50, "eval": 0, "test": 100}
    assert made.max_tokens == 64


def test_a_stated_model_is_the_one_in_the_files(chat_llama: Path) -> None:
    task = plugin.tasks()["sft"]
    shape = ModelShapeConfig.model_validate(CHAT_LLAMA)
    stated = hf.build_meta(ModelConfig(id="nobody/nothing", shape=shape), task, [])
    held = hf.build_meta(ModelConfig(id=str(chat_llama)), task, [])
    assert [(name, p.shape) for name, p in stated.named_parameters()] == [
        (name, p.shape) for name, p in held.named_parameters()
    ]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_architecture_takes_every_size(kind: str) -> None:
    sizes = {**CHAT_LLAMA, "model_type": kind, "head_dim": 16, "tie_word_embeddings": True}
    shape = ModelShapeConfig.model_validate(sizes)
    config = hf.load_config(ModelConfig(id="nobody/nothing", shape=shape), stated=True)
    assert {key: getattr(config, key) for key in sizes} == sizes
    model = hf.build_meta(ModelConfig(id="n/n", shape=shape), plugin.tasks()["sft"], [])
    widths = {p.shape for name, p in model.named_parameters() if name.endswith("q_proj.weight")}
    assert widths == {(4 * 16, 32)}


def test_a_model_of_other_sizes_is_refused_where_it_is_loaded(chat_llama: Path) -> None:
    wrong = {**CHAT_LLAMA, "num_hidden_layers": 3, "vocab_size": 300}
    model = ModelConfig(id=str(chat_llama), shape=ModelShapeConfig.model_validate(wrong))
    with pytest.raises(ConfigError, match=r"model\.shape does not .*: num_hidden_layers 3"):
        hf.load_model(model, plugin.tasks()["sft"], [], seed=1)
    assert hf.max_positions(model, stated=True) == 128
    with pytest.raises(ConfigError, match=r"vocab_size 300 .*258"):
        hf.max_positions(model)
    right = ModelConfig(id=str(chat_llama), shape=ModelShapeConfig.model_validate(CHAT_LLAMA))
    assert hf.max_positions(right) == 128


def test_training_reads_the_data_and_the_model_whatever_is_assumed(
    chat_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(model={"id": str(chat_llama)})
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist"):
        api.train(config)
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]}
        for i in range(20)
    ]
    Path("nowhere.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    wrong = {**CHAT_LLAMA, "hidden_size": 64}
    with pytest.raises(ConfigError, match="hidden_size 64"):
        api.train(config_of(model={"id": str(chat_llama), "shape": wrong}))
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_the_shape_is_no_part_of_what_is_learnt() -> None:
    plain = config_of(model={"shape": None})
    assert plain.hash("key", 16) == config_of().hash("key", 16)
    assert plain.hash("key", 16) != config_of(model={"dropout": 0.1}).hash("key", 16)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"task": None}, r"task: with data\.assumed no data are read, so that the task must be"),
        ({"data": {"mix": {"g.jsonl": 0.1}}}, r"states the rows of data\.train only"),
        (
            {"data": {"assumed": {"rows": 9, "mean_tokens": 500}}},
            r"mean_tokens: got 500; .* at most 128",
        ),
        (
            {"data": {"assumed": {"rows": 1, "mean_tokens": 5}, "eval": 0.8}},
            r"rows: 1 leave nothing to train on beside data\.eval 0\.8",
        ),
        ({"data": {"cutoff_len": 129}}, "takes at most 128"),
        ({"data": {"format": "text"}}, "task sft learns from conversation rows"),
        ({"task": "seq_cls", "data": {"template": "chatml"}}, "reads no conversations"),
        ({"task": "masked_lm"}, "AutoModelForMaskedLM"),
    ],
)
def test_what_cannot_be_planned_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        api.plan(config_of(**sections))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"model_type": "bert"}, "must be 'llama', 'mistral', 'qwen2' or 'qwen3'"),
        ({"hidden_sise": 3}, "unknown key; did you mean hidden_size"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple of"),
        ({"hidden_size": 33}, "hidden_size 33 must be a multiple of num_attention_heads 4"),
        ({"num_hidden_layers": 0}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_shape_names_what_is_allowed(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(model={"shape": {**CHAT_LLAMA, **sizes}})


def test_training_here_what_was_planned_for_graphics_cards_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has graphics cards")
    monkeypatch.chdir(tmp_path)
    config = config_of(cluster={"num_workers": 8, "shape": {"gpus": 8}})
    for command in (api.train, api.tune):
        with pytest.raises(PlanError, match=r"plans 8 worker\(s\) on graphics cards; this machine"):
            command(config)
    Path("c.yaml").write_text(json.dumps(config.dump() | {"name": "c"}), encoding="utf-8")
    assert cli.main(["train", "c.yaml"]) == 3
    assert "cluster.address" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]
