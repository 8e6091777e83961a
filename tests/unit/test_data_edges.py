"""Data at the edges: rare classes, one row, one class, no token, every script, very long rows.

Preparing data and planning them decide with the same code; the plan needs no Ray.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distft import hf
from distft.config import RunConfig
from distft.config_file import parse
from distft.config_sections import DataConfig, ModelConfig
from distft.data import source, stats
from distft.data.assign import Dropped, Survey, decide, labels_of
from distft.data.resolve import detect
from distft.data.stats import sample_stats
from distft.data.survey import Reading, RowReader, key_of
from distft.data.tokenize import encode_row
from distft.errors import ConfigError, DataError
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


def config(model: Path, train: Path, task: str = "seq_cls", **data: Any) -> RunConfig:
    return parse({"model": str(model), "task": task, "data": {"train": str(train), **data}})


def split(rows: list[tuple[str, str]], seed: int = 0, **data: Any) -> tuple[Survey, list[str]]:
    """Rows of text and label as preparation splits them, and the classes it finds."""
    survey = Survey("rows.csv", "train")
    for i, (text, label) in enumerate(rows):
        survey.add(i + 1, key_of(text), label, [label])
    settings = DataConfig(train="rows.csv", **data)
    decide([survey], settings, seed, Dropped())
    return survey, labels_of([survey], tasks()["seq_cls"], settings)


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_one_row_is_trained_on_and_of_two_is_not_lost_to_both_shares(seed: int) -> None:
    rows = [(f"text {i}", "common") for i in range(200)]
    rows += [("alone", "rare"), ("first", "pair"), ("second", "pair")]
    survey, labels = split(rows, seed)
    fates = Counter((label, fate) for (_, label), fate in zip(rows, survey.fates, strict=True))
    assert labels == ["common", "pair", "rare"]
    assert fates["rare", "train"] == 1
    assert fates["pair", "train"] >= 1
    assert fates["common", "eval"] + fates["pair", "eval"] == 20


@pytest.mark.parametrize("seed", range(5))
def test_a_row_with_the_only_one_of_its_classes_is_trained_on(seed: int) -> None:
    survey = Survey("rows.jsonl", "train")
    for i in range(60):
        names = ["O", "B-PER"] if i % 3 else ["O"]
        survey.add(i + 1, key_of(str(i)), None, [*names, f"B-ONCE{i}"] if i % 10 == 0 else names)
    settings = DataConfig(train="rows.jsonl", eval=0.25, test=0.25)
    decide([survey], settings, seed, Dropped())
    assert [survey.fates[i] for i in range(0, 60, 10)] == ["train"] * 6
    assert len(labels_of([survey], tasks()["token_cls"], settings)) == 8
    assert 24 <= survey.fates.count("eval") + survey.fates.count("test") <= 30


def test_a_row_of_a_test_file_stays_there_and_its_class_is_refused() -> None:
    train, test = Survey("t.jsonl", "train"), Survey("s.jsonl", "test")
    for i in range(20):
        train.add(i + 1, key_of(str(i)), None, ["O", "B-PER"])
    test.add(1, key_of("held out"), None, ["B-ODD"])
    settings = DataConfig(train="t.jsonl", test="s.jsonl")
    decide([train, test], settings, 0, Dropped())
    assert test.fates == ["test"]
    with pytest.raises(DataError, match=r"s\.jsonl:1: label 'B-ODD' in the test rows is never"):
        labels_of([train, test], tasks()["token_cls"], settings)


def test_a_split_may_lack_classes_that_training_has(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"text": f"film {i}", "label": "abc"[i % 3]} for i in range(30)]
    train = write(tmp_path / "t.jsonl", rows)
    one_class = write(tmp_path / "e.jsonl", [{"text": f"eval {i}", "label": "a"} for i in range(4)])
    stats = sample_stats(config(tiny_bert, train, eval=str(one_class)))
    assert stats.labels == ["a", "b", "c"]
    assert stats.rows["eval"] == 4


def test_training_may_not_lack_a_class_of_another_split(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"text": f"film {i}", "label": "abc"[i % 3]} for i in range(30)]
    train = write(tmp_path / "t.jsonl", rows)
    test = write(tmp_path / "s.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": "d"}])
    with pytest.raises(DataError, match=r"s\.jsonl:2: label 'd' in the test rows is never seen"):
        sample_stats(config(tiny_bert, train, test=str(test)))


def weighted(folder: Path, model: Path, task: str) -> RunConfig:
    """Rows of the classes good, bad and maybe long, with a weight for one that is misspelt."""
    key = "label" if task == "seq_cls" else "labels"
    labels: list[Any] = ["good", "bad"] if task == "seq_cls" else [["good"], ["bad", "long"]]
    rows = [{"text": f"film {i}", key: labels[i % 2]} for i in range(40)]
    chosen = tasks()[task].config.model_validate({"name": task, "class_weights": {"goood": 2.0}})
    made = config(model, write(folder / "t.jsonl", rows), task)
    return made.model_copy(update={"task": chosen})


@pytest.mark.parametrize("task", ["seq_cls", "multilabel_cls"])
def test_a_weight_of_a_class_that_training_lacks_is_refused_at_a_look(
    tmp_path: Path, tiny_bert: Path, task: str
) -> None:
    with pytest.raises(ConfigError, match="no class 'goood'; did you mean good") as caught:
        sample_stats(weighted(tmp_path, tiny_bert, task))
    assert caught.value.exit_code == 2


def test_what_was_not_read_may_hold_the_class(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_MIN_CHUNK_BYTES", 512)
    monkeypatch.setattr(stats, "_READ_BYTES", 1)
    assert sample_stats(weighted(tmp_path, tiny_bert, "seq_cls")).labels == ["bad", "good"]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 1, 2, 10], ["0", "1", "2", "10"]),
        ([True, False], ["false", "true"]),
        (["1", 1, "-1"], ["-1", "1"]),
        (["\u597d", "\U0001f600", ARABIC], [ARABIC, "\u597d", "\U0001f600"]),
    ],
)
def test_labels_of_any_kind_get_ids(
    tmp_path: Path, tiny_bert: Path, labels: list[Any], names: list[str]
) -> None:
    rows = [{"text": f"film {i}", "label": labels[i % len(labels)]} for i in range(40)]
    assert sample_stats(config(tiny_bert, write(tmp_path / "t.jsonl", rows))).labels == names


def test_one_row_cannot_be_shared_out_and_says_so(tmp_path: Path, chat_llama: Path) -> None:
    train = write(tmp_path / "t.jsonl", [{"instruction": "say it", "output": "it"}])
    with pytest.raises(DataError, match="No row is left for eval") as caught:
        sample_stats(config(chat_llama, train, "sft"))
    assert "files or larger shares" in caught.value.hint


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("sft", {"instruction": "say it", "output": "it"}),
        ("regression", {"text": "a film", "label": 3.5}),
        ("causal_lm", {"text": "a film"}),
    ],
)
def test_one_row_a_split_is_enough(
    tmp_path: Path, chat_llama: Path, task: str, row: dict[str, Any]
) -> None:
    first = next(key for key in row)
    names = ("t", "e", "s")
    t, e, s = (
        write(tmp_path / f"{name}.jsonl", [{**row, first: f"{row[first]} {name}"}])
        for name in names
    )
    stats = sample_stats(config(chat_llama, t, task, eval=str(e), test=str(s)))
    assert stats.rows == {"train": 1, "eval": 1, "test": 1}


def test_one_class_is_nothing_to_learn(tmp_path: Path, tiny_bert: Path) -> None:
    train = write(tmp_path / "t.jsonl", [{"text": f"film {i}", "label": 1} for i in range(30)])
    with pytest.raises(DataError, match=r"hold 1 class \(1\); at least 2"):
        sample_stats(config(tiny_bert, train))


@pytest.mark.parametrize("text", ["\x00\x01\ufffd", "[PAD] [PAD] [PAD]", "[CLS]", "\u200b\u200d"])
def test_a_text_without_a_token_is_refused(tiny_bert: Path, text: str) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(tiny_bert)))
    assert tokenizer(text)["input_ids"], "the frame alone is no sample"
    for task, row in (("seq_cls", {"label": "a"}), ("regression", {"value": 1.0})):
        found = encode_row(
            {"text": text, **row}, tasks()[task], tokenizer, EncodeContext(64, ["a", "b"])
        )
        assert found == "the row has no token, or special ones only"


def test_a_text_of_unknown_words_is_a_text(tiny_bert: Path) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(tiny_bert)))
    row = {"text": SCRIPTS["emoji"], "label": "a"}
    found = encode_row(row, tasks()["seq_cls"], tokenizer, EncodeContext(64, ["a"]))
    assert isinstance(found, Encoded)


def readings(path: Path, name: str) -> list[Reading]:
    reader = RowReader(name, formats()[name].columns)
    return [r for file in source.scan([path]) for c in file.chunks for r in reader.read(c)]


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
        "causal_lm": {"text": text},
        "sft": {"messages": turns},
        "token_cls": {"words": [text, "end"], "tags": ["O", "O"]},
    }
    for name, row in rows.items():
        found = encode_row(row, tasks()[name], tokenizer, EncodeContext(64, ["O", "a"]))
        assert isinstance(found, Encoded), f"{name}: {found}"
        assert (len(found.input_ids), found.truncated) == (64, True), name


def test_a_question_of_100_000_characters_leaves_no_answer(chat_llama: Path) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(chat_llama)))
    turns = [{"role": "user", "content": "w" * 100_000}, {"role": "assistant", "content": "a"}]
    found = encode_row({"messages": turns}, tasks()["sft"], tokenizer, EncodeContext(64))
    assert found == "the answer lies beyond cutoff_len"


def test_null_columns_cost_their_row_only(tmp_path: Path) -> None:
    rows = [{"text": None, "label": "a"}, {"text": "x", "label": None}, {"text": "y", "label": "b"}]
    assert [
        reading.reason for reading in readings(write(tmp_path / "t.jsonl", rows), "classification")
    ] == [
        "field 'text' is missing",
        "field 'label' is missing or empty",
        "",
    ]


@pytest.mark.parametrize(
    ("task", "label", "name"),
    [
        ("regression", 4, "scored"),
        ("regression", "4.0", "scored"),
        ("seq_cls", "4.0", "classification"),
    ],
)
def test_a_named_task_settles_what_its_rows_leave_open(
    tmp_path: Path, tiny_bert: Path, task: str, label: object, name: str
) -> None:
    train = write(tmp_path / "t.jsonl", [{"text": "a", "label": label}] * 3)
    assert detect(config(tiny_bert, train, task)) == (name, task)


def test_a_corpus_with_other_fields_is_read_for_a_task_that_asks_for_text(
    tmp_path: Path, tiny_bert: Path
) -> None:
    train = write(tmp_path / "t.jsonl", [{"text": "a", "url": "b"}])
    assert detect(config(tiny_bert, train, "masked_lm")) == ("text", "masked_lm")
    unnamed = parse({"model": str(tiny_bert), "data": {"train": str(train)}})
    with pytest.raises(ConfigError, match="text, url and fit no format"):
        detect(unnamed)


def test_plain_text_fits_two_tasks_and_asks_which(tmp_path: Path, tiny_bert: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="rows of format text: causal_lm, masked_lm"):
        detect(parse({"model": str(tiny_bert), "data": {"train": str(path)}}))
