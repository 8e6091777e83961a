"""Odd rows: no token, nothing to learn, every script, control characters, 100,000 characters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distft import hf
from distft.config_sections import ModelConfig
from distft.data import source
from distft.data.survey import Reading, RowReader
from distft.data.tokenize import encode_row
from distft.plugin import EncodeContext, Encoded, formats, tasks

ARABIC = "\u0645\u0631\u062d\u0628\u0627 \u200f\u0628\u0643"
SCRIPTS = {
    "Chinese": "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3000\u518d\u89c1",
    "emoji": "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7",
    "right to left": ARABIC,
    "NUL": "before\x00after",
    "combining": "e\u0301 is not \u00e9",
    "line separators": "one\u2028two\x85three\x0bfour",
}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def readings(path: Path, name: str) -> list[Reading]:
    reader = RowReader(name, formats()[name].columns)
    return [r for file in source.scan([str(path)]) for c in file.chunks for r in reader.read(c)]


@pytest.mark.parametrize("text", ["\x00\x01\ufffd", "[PAD] [PAD] [PAD]", "[CLS]", "\u200b\u200d"])
@pytest.mark.parametrize(
    ("task", "key", "row"),
    [
        ("seq_cls", "text", {"label": "a"}),
        ("multilabel_cls", "text", {"labels": []}),
        ("regression", "text", {"value": 1.0}),
        ("masked_lm", "text", {}),
        ("causal_lm", "text", {}),
        ("seq2seq", "source", {"target": "good"}),
        ("token_cls", "words", {"tags": ["a"]}),
    ],
)
def test_a_text_without_a_token_is_refused(
    tiny_bert: Path, task: str, key: str, row: dict[str, Any], text: str
) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(tiny_bert)))
    assert tokenizer(text)["input_ids"], "the frame alone is no sample"
    asked = {key: [text] if key == "words" else text, **row}
    found = encode_row(asked, tasks()[task], tokenizer, EncodeContext(64, ["a", "b"]))
    assert str(found) == "the row has no token, or special ones only"


def test_a_target_without_a_token_is_refused(tiny_bert: Path) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(tiny_bert)))
    row = {"source": "good", "target": "\x00"}
    found = encode_row(row, tasks()["seq2seq"], tokenizer, EncodeContext(64))
    assert str(found) == "the target has no token, or special ones only"


def test_a_text_with_nothing_to_mask_is_refused(tiny_bert: Path) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(tiny_bert)))
    row = {"text": SCRIPTS["emoji"]}
    assert set(tokenizer(row["text"])["input_ids"][1:-1]) == {tokenizer.unk_token_id}
    found = encode_row(row, tasks()["masked_lm"], tokenizer, EncodeContext(64))
    assert str(found) == "nothing in the row is trained on"


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        (
            "messages",
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]},
            "field 'messages': a message's 'content' is missing, empty or not text",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": ""}]},
            "field 'conversations': a turn's 'value' is missing, empty or not text",
        ),
        (
            "alpaca",
            {"instruction": "q", "output": ""},
            "field 'output' holds no answer (assistant turn) to learn",
        ),
        (
            "prompt_completion",
            {"prompt": "q", "completion": ""},
            "field 'completion' holds no answer (assistant turn) to learn",
        ),
        ("source_target", {"source": "q", "target": ""}, "field 'target' is missing or empty"),
        ("ner", {"tokens": [], "ner_tags": []}, "field 'tokens' holds no word"),
        ("text", {"text": ""}, "field 'text' is empty"),
    ],
)
def test_a_row_with_nothing_to_learn_is_counted(
    tmp_path: Path, name: str, row: dict[str, Any], reason: str
) -> None:
    (found,) = readings(write(tmp_path / "t.jsonl", [row]), name)
    assert (found.value, found.reason) == (None, reason)


def test_a_text_of_unknown_words_is_a_text(tiny_bert: Path) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(tiny_bert)))
    row = {"text": SCRIPTS["emoji"], "label": "a"}
    found = encode_row(row, tasks()["seq_cls"], tokenizer, EncodeContext(64, ["a"]))
    assert isinstance(found, Encoded)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
def test_every_script_is_read_as_written(tmp_path: Path, suffix: str, script: str) -> None:
    text, path = SCRIPTS[script], tmp_path / f"rows{suffix}"
    row = {"text": text, "label": "a"}
    if suffix.startswith(".json"):
        path.write_text(json.dumps(row if suffix == ".jsonl" else [row], ensure_ascii=False))
    else:
        mark = "\t" if suffix == ".tsv" else ","
        path.write_bytes(f'\ufefftext{mark}label\r\n"{text}"{mark}a\r\n'.encode())
    assert [reading.value for reading in readings(path, "classification")] == [row]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_learnt_as_written(chat_llama: Path, script: str) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(chat_llama)))
    text = SCRIPTS[script]
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    found = encode_row({"messages": turns}, tasks()["sft"], tokenizer, EncodeContext(512))
    assert isinstance(found, Encoded)
    trained = [int(label) for label in found.labels if label != -100]
    assert tokenizer.decode(trained) == f"{text}</s>"


@pytest.mark.parametrize("script", ["Chinese", "emoji", "right to left"])
def test_words_of_every_script_keep_their_tags(chat_llama: Path, script: str) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(chat_llama)))
    words = ["a", *SCRIPTS[script].split(" "), "b"]
    names = [f"T{i}" for i in range(len(words))]
    row = {"words": words, "tags": names}
    found = encode_row(row, tasks()["token_cls"], tokenizer, EncodeContext(512, names))
    assert isinstance(found, Encoded)
    assert [label for label in found.labels if label != -100] == list(range(len(words)))


@pytest.mark.parametrize("unit", ["word ", "\u4f60"])
def test_a_row_of_100_000_characters_is_cut_and_counted(chat_llama: Path, unit: str) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(chat_llama)))
    text = (unit * 100_000)[:100_000]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
    rows: dict[str, dict[str, Any]] = {
        "seq_cls": {"text": text, "label": "a"},
        "multilabel_cls": {"text": "short", "pair": text, "labels": ["a"]},
        "regression": {"text": text, "value": 1.0},
        "causal_lm": {"text": text},
        "sft": {"messages": turns},
        "seq2seq": {"source": text, "target": text},
        "token_cls": {"words": [text, "end"], "tags": ["O", "O"]},
    }
    assert set(rows) == set(tasks()) - {"masked_lm"}
    for name, row in rows.items():
        found = encode_row(row, tasks()[name], tokenizer, EncodeContext(64, ["O", "a"]))
        assert isinstance(found, Encoded), f"{name}: {found}"
        assert (len(found.input_ids), found.truncated) == (64, True), name


def test_masked_and_tagged_rows_of_100_000_words_are_cut_and_counted(tiny_bert: Path) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(tiny_bert)))
    words = ["film"] * 100_000
    masked = encode_row(
        {"text": " ".join(words)}, tasks()["masked_lm"], tokenizer, EncodeContext(64)
    )
    row = {"words": words, "tags": ["O"] * len(words)}
    tagged = encode_row(row, tasks()["token_cls"], tokenizer, EncodeContext(64, ["O"]))
    for found in (masked, tagged):
        assert isinstance(found, Encoded)
        assert (len(found.input_ids), found.truncated) == (64, True)
        assert sum(label != -100 for label in found.labels) == 62


def test_words_with_control_characters_keep_their_tags(chat_llama: Path) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(chat_llama)))
    row = {"words": ["a\x00b", "\x00", "", "c"], "tags": list("wxyz")}
    found = encode_row(row, tasks()["token_cls"], tokenizer, EncodeContext(64, list("wxyz")))
    assert isinstance(found, Encoded)
    # An empty word has no token to carry its tag.
    assert [label for label in found.labels if label != -100] == [0, 1, 3]


def test_a_question_of_100_000_characters_is_cut_and_its_answer_stays(chat_llama: Path) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(chat_llama)))
    turns = [
        {"role": "user", "content": "b" + "w" * 100_000 + "e"},
        {"role": "assistant", "content": "a"},
    ]
    found = encode_row({"messages": turns}, tasks()["sft"], tokenizer, EncodeContext(64))
    assert isinstance(found, Encoded)
    assert found.truncated
    asked = tokenizer.decode(found.input_ids)
    assert asked.startswith("<s>user:bw")
    assert asked.endswith("we</s><s>assistant:a</s>")
    assert len(found.input_ids) == 64


def test_null_columns_cost_their_row_only(tmp_path: Path) -> None:
    rows = [{"text": None, "label": "a"}, {"text": "x", "label": None}, {"text": "y", "label": "b"}]
    assert [
        reading.reason for reading in readings(write(tmp_path / "t.jsonl", rows), "classification")
    ] == [
        "field 'text' is missing",
        "field 'label' is missing or empty",
        "",
    ]
