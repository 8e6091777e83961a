"""Conversations of every shape -> messages, and how a chat template meets calls and tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distft import hf
from distft.config_sections import ModelConfig
from distft.plugin import EncodeContext, UnusableRow, formats, tasks

FORMATS = formats()


def read(name: str, raw: dict[str, Any], **columns: str) -> dict[str, Any]:
    form = FORMATS[name]
    return form.read(raw, {**form.columns, **columns})


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
        ({"output": "x"}, "'instruction' is missing"),
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


def test_prompt_completion_and_query_response() -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert read("prompt_completion", {"prompt": "a", "completion": "b"})["messages"] == said
    assert read("query_response", {"query": "a", "response": "b"})["messages"] == said
    raw = {"query": "c", "response": "d", "system": "s", "history": [["a", "b"]]}
    assert read("query_response", raw)["messages"] == [
        {"role": "system", "content": "s"},
        *said,
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("prompt_completion", {"completion": "b"}, "'prompt' is missing"),
        ("prompt_completion", {"prompt": [], "completion": "b"}, "'prompt' must be text, got list"),
        ("prompt_completion", {"prompt": "a", "completion": 3}, "'completion' must be text"),
        ("query_response", {"query": "", "response": "b"}, "'query' is empty"),
        ("query_response", {"query": "a", "history": ["b"]}, "'history' must be a list of"),
    ],
)
def test_one_exchange_refuses(name: str, raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRow, match=reason):
        read(name, raw)


def turn(speaker: str, value: object) -> dict[str, Any]:
    return {"from": speaker, "value": value}


CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'
TOOLS = [{"name": "weather", "description": "tells it", "parameters": {"type": "object"}}]
WITH_CALL = [
    turn("human", "Rain in Paris?"),
    turn("function_call", CALL),
    turn("observation", '{"rain": false}'),
    turn("gpt", "No."),
]


def test_sharegpt_with_calls_and_tools() -> None:
    row = read("sharegpt", {"conversations": WITH_CALL, "system": "S", "tools": str([])})
    assert row == {
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Rain in Paris?"},
            {"role": "assistant", "content": CALL},
            {"role": "tool", "content": '{"rain": false}'},
            {"role": "assistant", "content": "No."},
        ]
    }
    for tools in (TOOLS, json.dumps(TOOLS)):
        assert read("sharegpt", {"conversations": WITH_CALL, "tools": tools})["tools"] == TOOLS


def test_sharegpt_takes_both_spellings_and_a_call_as_an_object() -> None:
    turns = [
        turn("system", "S"),
        turn("user", "a"),
        turn("function_call", {"name": "f", "arguments": {"x": "\u00e9"}}),
        turn("tool", "1"),
        turn("assistant", "b"),
    ]
    messages = read("sharegpt", {"conversations": turns, "system": None, "tools": ""})["messages"]
    assert [message["role"] for message in messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert messages[2]["content"] == '{"name": "f", "arguments": {"x": "\u00e9"}}'


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({}, "'conversations' is missing"),
        ({"conversations": "hi"}, "must be a list of .*, got str"),
        ({"conversations": []}, "'conversations' is empty"),
        ({"conversations": ["hi"]}, "a list with str"),
        ({"conversations": [{"value": "a"}]}, "unknown or missing speaker None; allowed: human,"),
        ({"conversations": [turn("bing", "a")]}, "speaker 'bing'"),
        ({"conversations": [{"from": ["gpt"], "value": "a"}]}, "unknown or missing speaker"),
        ({"conversations": [turn("human", "")]}, "'value' is missing, empty or not text"),
        ({"conversations": [turn("human", {"a": 1})]}, "'value' is missing, empty or not text"),
        ({"conversations": [turn("function_call", "call it")]}, "must be JSON with the function's"),
        ({"conversations": [turn("function_call", "[]")]}, "must be JSON with the function's"),
        (
            {"conversations": [turn("human", "a"), turn("system", "b")]},
            "system turn may only come first",
        ),
        (
            {"conversations": [turn("system", "a"), turn("human", "b")], "system": "c"},
            "a system turn beside the row's system prompt",
        ),
        ({"conversations": WITH_CALL, "tools": "not JSON"}, "'tools' must be a list of tools"),
        ({"conversations": WITH_CALL, "tools": {"name": "f"}}, "'tools' must be a list of tools"),
        ({"conversations": WITH_CALL, "tools": ["f"]}, "'tools' must be a list of tools"),
    ],
)
def test_sharegpt_refuses(raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRow, match=reason):
        read("sharegpt", raw)


TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
ASK = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
SHOWS_TOOLS = "{% if tools %}<|tools|>{{ tools | tojson }}</s>{% endif %}" + TURNS + ASK
STRICT = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
)
SILENT = (
    "{% for m in messages %}{% if m.role != 'tool' %}<|{{ m.role }}|>{{ m.content }}</s>{% endif %}"
)


def encoded(folder: Path, template: str, row: dict[str, Any]) -> tuple[str, str]:
    """What the model reads of a row and what of it is trained."""
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(folder)))
    tokenizer.chat_template = template
    sample = tasks()["sft"].encode(row, tokenizer, EncodeContext(1024))
    trained = [int(label) for label in sample.labels if label != -100]
    return str(tokenizer.decode(sample.input_ids)), str(tokenizer.decode(trained))


def test_calls_and_answers_are_trained_results_and_tools_are_read(chat_llama: Path) -> None:
    row = read("sharegpt", {"conversations": WITH_CALL, "tools": TOOLS})
    text, trained = encoded(chat_llama, SHOWS_TOOLS, row)
    assert text.startswith('<|tools|>[{"name": "weather"')
    assert '<|tool|>{"rain": false}</s>' in text
    assert trained == f"{CALL}</s>No.</s>"


@pytest.mark.parametrize(
    ("template", "tools", "reason"),
    [
        (TURNS + ASK, TOOLS, "does not show the row's tools"),
        (SILENT + "{% endfor %}" + ASK, [], "does not show what a tool returned"),
        (STRICT + "{% endfor %}" + TURNS + ASK, [], "refuses this conversation: no tools"),
    ],
)
def test_what_a_template_cannot_say_is_refused(
    chat_llama: Path, template: str, tools: list[Any], reason: str
) -> None:
    row = read("sharegpt", {"conversations": WITH_CALL, "tools": tools})
    with pytest.raises(UnusableRow, match=reason):
        encoded(chat_llama, template, row)
