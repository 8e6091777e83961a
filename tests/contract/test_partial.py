"""Methods that train a part of the model's own weights: what they choose, what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distft import hf, plugin
from distft.config_file import parse
from distft.config_sections import ModelConfig
from distft.errors import ConfigError

METHODS, TASKS = plugin.methods(), plugin.tasks()
LABELS = ["bad", "good", "plain"]


def trained(method: str, folder: Path, task: str, **keys: Any) -> set[str]:
    labels = LABELS if TASKS[task].classes else []
    model = hf.build_meta(ModelConfig(id=str(folder)), TASKS[task], labels)
    module = METHODS[method].attach(model, METHODS[method].config(**keys), TASKS[task])
    return {name for name, p in module.named_parameters() if p.requires_grad}


def test_freeze_takes_modules_by_name_or_by_its_end(chat_llama: Path) -> None:
    whole = trained("freeze", chat_llama, "sft", trainable_modules=["model.layers.1.mlp"])
    assert whole == {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    ends = trained("freeze", chat_llama, "sft", trainable_modules=["q_proj", "norm"])
    assert ends == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.norm.weight",
    }


def test_freeze_trains_a_new_head_beside_named_modules(tiny_bert: Path) -> None:
    names = trained("freeze", tiny_bert, "seq_cls", trainable_modules=["layer.0.output.LayerNorm"])
    assert names == {
        "bert.encoder.layer.0.output.LayerNorm.weight",
        "bert.encoder.layer.0.output.LayerNorm.bias",
        "classifier.weight",
        "classifier.bias",
    }


def test_a_name_that_matches_nothing_is_refused_with_those_near_it(chat_llama: Path) -> None:
    with pytest.raises(ConfigError, match="no module of the model is named 'q_porj'") as caught:
        trained("freeze", chat_llama, "sft", trainable_modules=["v_proj", "q_porj"])
    assert "q_proj" in caught.value.hint
    # A part of a name is no name: `proj` is the end of a word, not of a path.
    with pytest.raises(ConfigError, match="'proj'"):
        trained("freeze", chat_llama, "sft", trainable_modules=["proj"])


def test_layers_and_modules_exclude_each_other() -> None:
    method = {"name": "freeze", "trainable_layers": 1, "trainable_modules": ["mlp"]}
    raw = {"name": "x", "model": "m", "data": {"train": "f"}, "method": method}
    with pytest.raises(ConfigError, match="leave one of them out"):
        parse(raw)


def test_without_keys_freeze_trains_the_last_two_blocks(chat_llama: Path) -> None:
    unset = trained("freeze", chat_llama, "sft")
    assert unset == trained("freeze", chat_llama, "sft", trainable_layers=2)


@pytest.mark.parametrize("task", ["sft", "seq_cls"])
def test_bitfit_refuses_a_model_without_biases(task: str, chat_llama: Path) -> None:
    with pytest.raises(ConfigError, match="llama models have none") as caught:
        trained("bitfit", chat_llama, task)
    assert "ln_tuning" in caught.value.hint
