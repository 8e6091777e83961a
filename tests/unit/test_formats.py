"""Raw rows of every shape -> canonical rows, or a reason that names the field."""

from __future__ import annotations

from typing import Any

import pytest

from distft.config_sections import DataConfig
from distft.data.resolve import fitting
from distft.plugin import UnusableRow, formats

FORMATS = formats()


def read(name: str, raw: dict[str, Any], **columns: str) -> dict[str, Any]:
    form = FORMATS[name]
    return form.read(raw, {**form.columns, **columns})


KEYS: dict[str, set[str]] = {
    "labelled_text": {"text", "label"},
    "multi_labelled_text": {"text", "labels"},
    "rated_text": {"text", "value"},
    "tagged_words": {"words", "tags"},
    "plain_text": {"text"},
    "text_to_text": {"source", "target"},
    "conversation": {"messages"},
}
OPTIONAL = {"pair", "tools"}


def detected(*rows: dict[str, Any], **columns: str) -> list[str]:
    """The formats that fit rows of a file, without a task to choose among them."""
    data = DataConfig(train="rows.jsonl", columns=columns)
    able = [form for form in FORMATS.values() if set(columns) <= set(form.columns)]
    return fitting(rows, able, data)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_example_is_read_and_detected_by_its_own_format_alone(name: str) -> None:
    form = FORMATS[name]
    row = form.read(form.example, form.columns)
    assert set(row) - OPTIONAL == KEYS[form.row]
    assert form.target in form.columns
    assert detected(dict(form.example)) == [name]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_row_to_predict_needs_no_target_and_lacks_a_reason_for_nothing_else(name: str) -> None:
    form = FORMATS[name]
    inputs = {key: value for key, value in form.example.items() if key != form.columns[form.target]}
    if form.row == "plain_text" or form.target in ("messages", "conversations"):
        with pytest.raises(UnusableRow, match=f"'{form.target}' is missing"):
            form.read(inputs, form.columns)
        return
    row = form.read(inputs, form.columns)
    if form.row == "conversation":
        assert row["messages"][-1]["role"] == "user"
    else:
        missing = KEYS[form.row] - {"text", "words", "source"}
        assert [row[key] for key in missing] == [None]


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"text": "a", "label": "x"}, ["classification"]),
        ({"text": "a", "label": 3}, ["classification"]),
        ({"text": "a", "label": True}, ["classification"]),
        ({"text": "a", "label": "v1.2"}, ["classification"]),
        ({"text": "a", "label": 3.5}, ["scored"]),
        ({"text": "a", "label": "3.5"}, ["scored"]),
        ({"text": "a", "label": "-2.5e-3"}, ["scored"]),
        ({"text": "a", "pair": "b", "label": "x"}, ["text_pair"]),
        ({"text": "a", "pair": "b", "label": 0.25}, ["scored"]),
        ({"text": "a", "labels": ["x"]}, ["multilabel"]),
        ({"text": "a", "labels": "x,y"}, ["multilabel"]),
        ({"text": "a"}, ["text"]),
        # A label under another name must not turn its texts into a corpus.
        ({"text": "a", "stars": 5}, []),
        # 4.0 may be a class that lost its type in a table, or a measure.
        ({"text": "a", "label": 4.0}, []),
        ({"text": "a", "label": "4.0"}, []),
        ({"text": "a", "label": None}, []),
        ({"text": "a", "label": "x", "labels": ["x"]}, ["classification", "multilabel"]),
        ({"tokens": ["a"], "ner_tags": [3]}, ["ner"]),
        ({"tokens": ["a"], "ner_tags": ["O"], "text": "a"}, ["ner"]),
        ({"conversations": [{"role": "user", "content": "a"}]}, []),
        ({"messages": [], "conversations": [{"from": "human"}]}, ["messages", "sharegpt"]),
    ],
)
def test_detection_is_sure_or_says_so(row: dict[str, Any], names: list[str]) -> None:
    assert detected(row) == names


def test_detection_looks_at_all_first_rows() -> None:
    whole, half = {"text": "a", "label": 4.0}, {"text": "a", "label": 3.5}
    assert detected(whole, half, whole) == ["scored"]
    assert detected({"text": "a", "label": "4"}, {"text": "a", "label": "3.5"}) == [
        "classification",
        "scored",
    ]


def test_detection_follows_renamed_columns() -> None:
    row = {"premise": "a", "hypothesis": "b", "gold": "x"}
    columns = {"text": "premise", "pair": "hypothesis", "label": "gold"}
    assert detected(row, **columns) == ["text_pair"]
    assert detected({**row, "gold": 0.5}, **columns) == ["scored"]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("good", "good"),
        (" \u597d ", "\u597d"),
        (3, "3"),
        (-1, "-1"),
        (True, "true"),
        (False, "false"),
        (None, None),
        ("", None),
    ],
)
def test_labels_become_text(value: object, label: str | None) -> None:
    row = read("classification", {"text": "\u7535\u5f71\u5f88\u597d", "label": value})
    assert row == {"text": "\u7535\u5f71\u5f88\u597d", "label": label}


def test_a_label_may_be_absent() -> None:
    assert read("classification", {"text": "a"})["label"] is None


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"label": "x"}, "'text' is missing"),
        ({"text": None, "label": "x"}, "'text' is missing"),
        ({"text": " \u3000\n", "label": "x"}, "'text' is empty"),
        ({"text": 5, "label": "x"}, "'text' must be text, got int"),
        ({"text": "a", "label": 0.5}, "'label' must be text, a whole number or true/false"),
        ({"text": "a", "label": ["x"]}, "'label'.*got list"),
    ],
)
def test_classification_refuses(raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRow, match=reason):
        read("classification", raw)


def test_renamed_columns_are_read_and_named_in_reasons() -> None:
    columns = {"text": "review", "label": "stars"}
    assert read("classification", {"review": "a", "stars": 5}, **columns) == {
        "text": "a",
        "label": "5",
    }
    with pytest.raises(UnusableRow, match="'review' is missing"):
        read("classification", {"text": "a"}, **columns)


@pytest.mark.parametrize("kind", ["text_pair", "classification", "multilabel", "scored"])
def test_text_is_kept_as_it_is(kind: str) -> None:
    text = " \u0645\u0631\u062d\u0628\u0627 \U0001f600\x00 \u4f60\u597d\u200f\r\n"
    assert read(kind, {"text": text, "pair": text})["text"] == text


def test_text_pair() -> None:
    row = {"text": "a", "pair": "b", "label": 1}
    assert read("text_pair", row) == {"text": "a", "pair": "b", "label": "1"}
    for pair, reason in ((None, "'pair' is missing"), (" ", "'pair' is empty"), (3, "got int")):
        with pytest.raises(UnusableRow, match=reason):
            read("text_pair", {**row, "pair": pair})


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (["a", "b"], ["a", "b"]),
        (["b", "a", "b"], ["b", "a"]),
        ([3, True], ["3", "true"]),
        ([], []),
        ("a | b|c d", ["a", "b", "c d"]),
        ("a;b", ["a", "b"]),
        ("a, b", ["a", "b"]),
        ("a", ["a"]),
        (None, None),
        (" ", None),
    ],
)
def test_any_number_of_labels(value: object, labels: list[str] | None) -> None:
    assert read("multilabel", {"text": "t", "labels": value}) == {"text": "t", "labels": labels}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "must be a list of labels, or text with .*, got int"),
        ({"a": 1}, "got dict"),
        (["a", None], "a label that is null or empty"),
        (["a", ""], "a label that is null or empty"),
        ("a,,b", "a label that is null or empty"),
        ([["a"]], "'labels' must be text, a whole number or true/false, got list"),
        ("drama, romantic|comedy", "holds | and ,"),
    ],
)
def test_multilabel_refuses(value: object, reason: str) -> None:
    with pytest.raises(UnusableRow, match=reason.replace("|", r"\|")):
        read("multilabel", {"text": "t", "labels": value})


@pytest.mark.parametrize(
    ("value", "number"),
    [(3.5, 3.5), (4, 4.0), ("-3.5", -3.5), (" 1e-3 ", 0.001), ("7", 7.0), (None, None), ("", None)],
)
def test_scores_become_numbers(value: object, number: float | None) -> None:
    assert read("scored", {"text": "a", "label": value}) == {"text": "a", "value": number}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("3,5", "must be a number such as 3.5, got text"),
        ("good", "must be a number such as 3.5, got text"),
        (True, "must be a number, got bool"),
        ([1.0], "must be a number, got list"),
        (float("nan"), "must be a finite number"),
        ("inf", "must be a finite number"),
        (10**400, "must be a finite number"),
        (-4e38, "must be a finite number below 3.4e38"),
    ],
)
def test_scored_refuses(value: object, reason: str) -> None:
    with pytest.raises(UnusableRow, match=reason):
        read("scored", {"text": "a", "label": value})


def test_scored_takes_a_second_text() -> None:
    row = {"text": "a", "pair": "b", "label": 0.5}
    assert read("scored", row) == {"text": "a", "pair": "b", "value": 0.5}
    with pytest.raises(UnusableRow, match="'pair' is empty"):
        read("scored", {**row, "pair": ""})


@pytest.mark.parametrize(
    ("tokens", "tags", "reason"),
    [
        (None, ["O"], "'tokens' is missing"),
        ("Ada", ["O"], "'tokens' must be a list of words"),
        (["Ada", 3], ["O", "O"], "'tokens' must be a list of words"),
        ([], [], "'tokens' holds no word"),
        (["", " "], ["O", "O"], "'tokens' holds no word"),
        (["Ada"], "O", "'ner_tags' must be a list of tags, got str"),
        (["Ada"], [1], "holds numbers: write each tag's name, such as B-PER"),
        (["Ada"], [None], "'ner_tags' must hold tags as text"),
        (["Ada"], [" "], "'ner_tags' must hold tags as text"),
        (["Ada", "."], ["O"], "differ in length"),
    ],
)
def test_ner_refuses(tokens: object, tags: object, reason: str) -> None:
    with pytest.raises(UnusableRow, match=reason):
        read("ner", {"tokens": tokens, "ner_tags": tags})


def test_source_target_and_text() -> None:
    assert read("source_target", {"source": "a", "target": "b"}) == {"source": "a", "target": "b"}
    assert read("text", {"text": "a", "url": "x"}) == {"text": "a"}
    with pytest.raises(UnusableRow, match="'source' is empty"):
        read("source_target", {"source": " ", "target": "b"})
    with pytest.raises(UnusableRow, match="'target' must be text, got list"):
        read("source_target", {"source": "a", "target": ["b"]})
