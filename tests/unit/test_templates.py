"""Every chat template marks the answers, and the prompt it makes is what training has seen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from distft import chat, hf
from distft.config_file import parse
from distft.config_sections import ModelConfig
from distft.data.resolve import detect, prepared_key
from distft.errors import ConfigError
from distft.plugin import EncodeContext, tasks, templates

TEMPLATES = templates()
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Say a."},
    {"role": "assistant", "content": "a \u4f60"},
    {"role": "user", "content": "Say b."},
    {"role": "assistant", "content": "b\nin two lines"},
]


@pytest.fixture(scope="module")
def able(chat_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that has the special tokens of every template."""
    folder = tmp_path_factory.mktemp("able")
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(chat_llama)))
    tokens = sorted({token for each in TEMPLATES.values() for token in each.tokens})
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.save_pretrained(folder)
    shutil.copy(chat_llama / "config.json", folder)
    return folder


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_and_their_ends_are_trained_and_nothing_else(able: Path, name: str) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(able)), name)
    sample = tasks()["sft"].encode({"messages": TURNS}, tokenizer, EncodeContext(512))
    trained = tokenizer.decode([int(label) for label in sample.labels if label != -100])
    end = TEMPLATES[name].end or "</s>"
    assert tokenizer.eos_token == end
    assert trained.replace(" a", "a").replace(" b", "b") == f"a \u4f60{end}b\nin two lines{end}"
    text = tokenizer.decode(sample.input_ids)
    assert all(message["content"] in text for message in TURNS)
    assert text == chat.render(tokenizer, TURNS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_blocks_agree_with_rendering_turn_by_turn(able: Path, name: str) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(able)), name)
    row = {"messages": TURNS}
    assert chat._by_generation_blocks(tokenizer, row) == chat._turn_by_turn(tokenizer, row)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_beginning_of_what_was_trained(able: Path, name: str) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(able)), name)
    for answered in (2, 4):
        prompt = chat.render(tokenizer, TURNS[:answered], prompt=True)
        assert chat.render(tokenizer, TURNS).startswith(prompt)
        after = chat.render(tokenizer, TURNS)[len(prompt) :]
        assert after.lstrip().startswith(TURNS[answered]["content"])


def test_a_tokenizer_without_the_tokens_is_refused_and_told_what_it_can_take(
    chat_llama: Path,
) -> None:
    needs = r"chatml needs the tokens <\|im_start\|>, <\|im_end\|>"
    with pytest.raises(ConfigError, match=needs) as caught:
        hf.load_tokenizer(ModelConfig(id=str(chat_llama)), "chatml")
    assert "It can take alpaca, vicuna, zephyr," in caught.value.hint


def test_the_template_goes_with_the_exported_tokenizer(able: Path, tmp_path: Path) -> None:
    hf.load_tokenizer(ModelConfig(id=str(able)), "chatml").save_pretrained(tmp_path)
    shutil.copy(able / "config.json", tmp_path)
    again = hf.load_tokenizer(ModelConfig(id=str(tmp_path)))
    assert (again.chat_template, again.eos_token) == (TEMPLATES["chatml"].text, "<|im_end|>")


def config(model: Path, data: dict[str, Any], **keys: Any) -> Any:
    return parse({"model": str(model), "data": data, **keys})


def test_other_data_are_prepared_for_another_template(able: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n' * 9, encoding="utf-8")
    sft = tasks()["sft"]
    keys = {
        prepared_key(config(able, {"train": str(file), **more}, task="sft"), sft, "alpaca")
        for more in ({}, {"template": "chatml"}, {"template": "zephyr"}, {"train_on_prompt": True})
    }
    assert len(keys) == 4


def test_what_only_conversations_have_is_refused_elsewhere(able: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a", "label": "b"}\n' * 9, encoding="utf-8")
    for key, value in (("template", "chatml"), ("train_on_prompt", True)):
        for task in ({}, {"task": "seq_cls"}):
            with pytest.raises(ConfigError, match=f"data.{key}: task seq_cls reads no convers"):
                detect(config(able, {"train": str(file), key: value}, **task))
    with pytest.raises(ConfigError, match="unknown template 'chatlm'; did you mean chatml"):
        config(able, {"train": str(file), "template": "chatlm"})
