"""Raw rows of every shape -> canonical rows, or a reason that names the field."""

from __future__ import annotations

from typing import Any

import pytest

from distft.plugin import UnusableRow, formats

FORMATS = formats()


def read(name: str, raw: dict[str, Any], **columns: str) -> dict[str, Any]:
    form = FORMATS[name]
    return form.read(raw, {**form.columns, **columns})


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_example_is_read_and_detected_by_its_own_format_alone(name: str) -> None:
    form = FORMATS[name]
    row = form.read(form.example, form.columns)
    assert set(row) == ({"text", "label"} if form.row == "labelled_text" else {"messages"})
    assert form.target in form.columns
    detected = [f.name for f in FORMATS.values() if f.detect(form.example, f.columns)]
    assert detected == [name]


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


def test_alpaca_with_everything() -> None:
    raw = {
        "instruction": "\u7ffb\u8bd1",
        "input": "\u4f60\u597d",
        "output": "Hello",
        "system": "Be brief.",
        "history": [["Hi", "Hello!"]],
    }
    assert read("alpaca", raw)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "\u7ffb\u8bd1\n\u4f60\u597d"},
        {"role": "assistant", "content": "Hello"},
    ]


def test_alpaca_with_nulls_and_no_answer() -> None:
    raw = {"instruction": "Say hi", "input": None, "history": None, "system": ""}
    assert read("alpaca", raw)["messages"] == [{"role": "user", "content": "Say hi"}]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"output": "x"}, "'instruction' is missing or empty"),
        ({"instruction": ["a"], "output": "x"}, "'instruction' must be text, got list"),
        ({"instruction": "a", "input": 3, "output": "x"}, "'input' must be text"),
        ({"instruction": "a", "output": {}}, "'output' must be text"),
        ({"instruction": "a", "output": "x", "history": "hi"}, "'history' must be a list"),
        ({"instruction": "a", "output": "x", "history": [["hi"]]}, "'history' must be a list"),
        ({"instruction": "a", "output": "x", "history": [["hi", 3]]}, "'history' must be a list"),
    ],
)
def test_alpaca_refuses(raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRow, match=reason):
        read("alpaca", raw)


def test_messages_keeps_roles_and_content_only() -> None:
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "\u95ee", "name": "u"},
        {"role": "assistant", "content": "\u7b54"},
    ]
    assert read("messages", {"messages": turns})["messages"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "\u95ee"},
        {"role": "assistant", "content": "\u7b54"},
    ]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (None, "'messages' is missing"),
        ("hi", "'messages' must be a list.*got str"),
        ([], "'messages' is empty"),
        (["hi"], "a list with str"),
        ([{"content": "a"}], "role None; allowed: system, user, assistant"),
        ([{"role": "tool", "content": "a"}], "role 'tool'"),
        ([{"role": "user", "content": ""}], "'content' is missing"),
        ([{"role": "user", "content": [{"type": "text"}]}], "'content'.*not text"),
        ([{"role": "assistant", "content": "a", "tool_calls": [{}]}], "'tool_calls'"),
        (
            [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
            "system message may only come first",
        ),
    ],
)
def test_messages_refuses(turns: object, reason: str) -> None:
    with pytest.raises(UnusableRow, match=reason):
        read("messages", {"messages": turns})
