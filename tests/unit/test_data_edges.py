"""Data at the edges: rare classes, one row, one class, labels that a split lacks.

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
from distft.data.assign import Dropped, Survey, decide
from distft.data.labels import labels_of
from distft.data.resolve import detect
from distft.data.split import FATES
from distft.data.stats import sample_stats
from distft.data.survey import key_of
from distft.data.tokenize import encode_row
from distft.errors import ConfigError, DataError
from distft.plugin import EncodeContext, Encoded, tasks

ARABIC = "\u0645\u0631\u062d\u0628\u0627 \u200f\u0628\u0643"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(model: Path, train: Path, task: str = "seq_cls", **data: Any) -> RunConfig:
    return parse({"model": str(model), "task": task, "data": {"train": str(train), **data}})


def names(survey: Survey) -> list[str]:
    return [FATES[fate] for fate in survey.fates]


def split(rows: list[tuple[str, str]], seed: int = 0, **data: Any) -> tuple[list[str], list[str]]:
    """Rows of text and label as preparation splits them, and the classes it finds."""
    survey = Survey()
    survey.begin("rows.csv", "train")
    for i, (text, label) in enumerate(rows):
        survey.add(i + 1, key_of(text), label, [label])
    settings = DataConfig(train="rows.csv", **data)
    decide(survey, settings, seed, Dropped())
    return names(survey), labels_of(survey, tasks()["seq_cls"], settings)


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_one_row_is_trained_on_and_of_two_is_not_lost_to_both_shares(seed: int) -> None:
    rows = [(f"text {i}", "common") for i in range(200)]
    rows += [("alone", "rare"), ("first", "pair"), ("second", "pair")]
    found, labels = split(rows, seed)
    fates = Counter((label, fate) for (_, label), fate in zip(rows, found, strict=True))
    assert labels == ["common", "pair", "rare"]
    assert fates["rare", "train"] == 1
    assert fates["pair", "train"] >= 1
    assert fates["common", "eval"] + fates["pair", "eval"] == 20


@pytest.mark.parametrize("seed", range(5))
def test_a_row_with_the_only_one_of_its_classes_is_trained_on(seed: int) -> None:
    survey = Survey()
    survey.begin("rows.jsonl", "train")
    for i in range(60):
        tags = ["O", "B-PER"] if i % 3 else ["O"]
        survey.add(i + 1, key_of(str(i)), None, [*tags, f"B-ONCE{i}"] if i % 10 == 0 else tags)
    settings = DataConfig(train="rows.jsonl", eval=0.25, test=0.25)
    decide(survey, settings, seed, Dropped())
    fates = names(survey)
    assert fates[::10] == ["train"] * 6
    assert len(labels_of(survey, tasks()["token_cls"], settings)) == 8
    assert 24 <= fates.count("eval") + fates.count("test") <= 30


def test_a_row_of_a_test_file_stays_there_and_its_class_is_refused() -> None:
    survey = Survey()
    survey.begin("t.jsonl", "train")
    for i in range(20):
        survey.add(i + 1, key_of(str(i)), None, ["O", "B-PER"])
    survey.begin("empty.jsonl", "train")
    survey.begin("s.jsonl", "test")
    survey.add(1, key_of("held out"), None, ["B-ODD"])
    settings = DataConfig(train="t.jsonl", test="s.jsonl")
    decide(survey, settings, 0, Dropped())
    assert names(survey)[20:] == ["test"]
    assert [len(codes) for codes in survey.codes()] == [20, 0, 1]
    with pytest.raises(DataError, match=r"s\.jsonl:1: label 'B-ODD' in the test rows is never"):
        labels_of(survey, tasks()["token_cls"], settings)


def test_a_cap_is_for_data_train_and_mixed_classes_are_trained_on() -> None:
    survey = Survey()
    survey.begin("t.jsonl", "train")
    for i in range(40):
        survey.add(i + 1, key_of(str(i)), "ab"[i % 2], ["ab"[i % 2]])
    survey.begin("s.jsonl", "test")
    survey.add(1, key_of("held out"), "c", ["c"])
    survey.begin("g.jsonl", "mix1")
    for i in range(30):
        survey.add(i + 1, key_of(f"g{i % 20}"), "c", ["c"])
    settings = DataConfig(train="t.jsonl", test="s.jsonl", max_samples=10, mix={"g.jsonl": 0.5})
    dropped = Dropped()
    decide(survey, settings, 0, dropped)
    found = names(survey)
    assert (found[:40].count("train"), found[:40].count("eval")) == (10, 4)
    assert found[41:] == ["train"] * 20 + ["duplicate"] * 10
    assert survey.codes()[2] == bytes([4] * 20 + [0] * 10)
    assert dropped.counts == {"beyond_max_samples": 26, "duplicate": 10}
    assert labels_of(survey, tasks()["seq_cls"], settings) == ["a", "b", "c"]


def test_a_mixed_set_that_leaves_nothing_is_refused() -> None:
    survey = Survey()
    survey.begin("t.jsonl", "train")
    for i in range(10):
        survey.add(i + 1, key_of(str(i)), "")
    survey.begin("s.jsonl", "test")
    survey.add(1, key_of("held out"), "")
    survey.begin("g.jsonl", "mix1")
    survey.add(1, key_of("held out"), "")
    settings = DataConfig(train="t.jsonl", test="s.jsonl", mix={"g.jsonl": 0.5})
    said = r"data\.mix: g\.jsonl holds no usable row\. 1 rows were dropped; 1 of them: also_in_test"
    with pytest.raises(DataError, match=said):
        decide(survey, settings, 0, Dropped())


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
        ("seq2seq", {"source": "a film", "target": "ein Film"}),
        ("multilabel_cls", {"text": "a film", "labels": ["long", "good"]}),
        ("token_cls", {"id": "1", "tokens": ["a", "film"], "ner_tags": ["O", "B-WORK"]}),
    ],
)
def test_one_row_a_split_is_enough(
    tmp_path: Path, chat_llama: Path, task: str, row: dict[str, Any]
) -> None:
    def other(name: str) -> dict[str, Any]:
        if "tokens" in row:
            return {**row, "tokens": [name, *row["tokens"][1:]]}
        first = next(iter(row))
        return {**row, first: f"{row[first]} {name}"}

    t, e, s = (write(tmp_path / f"{name}.jsonl", [other(name)]) for name in "tes")
    stats = sample_stats(config(chat_llama, t, task, eval=str(e), test=str(s)))
    assert stats.rows == {"train": 1, "eval": 1, "test": 1}


def test_one_class_is_nothing_to_learn(tmp_path: Path, tiny_bert: Path) -> None:
    train = write(tmp_path / "t.jsonl", [{"text": f"film {i}", "label": 1} for i in range(30)])
    with pytest.raises(DataError, match=r"hold 1 class \(1\); at least 2"):
        sample_stats(config(tiny_bert, train))


def test_rows_without_any_label_are_learnt_as_such(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"text": f"film {i}", "labels": [["a"], ["b"], []][i % 3]} for i in range(30)]
    found = sample_stats(config(tiny_bert, write(tmp_path / "t.jsonl", rows), "multilabel_cls"))
    assert (found.labels, sum(found.rows.values())) == (["a", "b"], 30)
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(tiny_bert)))
    row = {"text": "the film", "labels": []}
    encoded = encode_row(row, tasks()["multilabel_cls"], tokenizer, EncodeContext(64, ["a", "b"]))
    assert isinstance(encoded, Encoded)
    assert encoded.labels == [0.0, 0.0]
    bare = write(tmp_path / "none.jsonl", [{"text": f"film {i}", "labels": []} for i in range(30)])
    with pytest.raises(DataError, match="No training row holds a label"):
        sample_stats(config(tiny_bert, bare, "multilabel_cls"))


def test_equal_numbers_can_be_learnt(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"text": f"film {i}", "label": 2.5} for i in range(30)]
    found = sample_stats(config(tiny_bert, write(tmp_path / "t.jsonl", rows), "regression"))
    assert sum(found.rows.values()) == 30


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
