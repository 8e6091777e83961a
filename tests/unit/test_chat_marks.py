"""Tokens and answers of a conversation are those of transformers, however odd the conversation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft import chat, hf
from distft.config_sections import ModelConfig
from distft.errors import ConfigError
from distft.plugin import Row, templates

TEMPLATES = [each for each in templates().values() if "{% generation %}" in each.text]
CONTENT_ALONE = (
    "{% for m in messages %}{{ m.role }} {% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    " {% endfor %}"
)
"""Its block may be empty, or begin and end where a tokenizer has no token."""
BARE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}a{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
"""A block of it may be the text's first token."""
SHOWS_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"
TOOLS = [{"name": "f", "description": "\u4f60 '<|im_end|>'"}]
ODD = (
    *("", " ", "\n", "\n\n ", "a", " The answer is 42.", "don't", "\t", "\u0007", "\u200b"),
    *("\ufeff", "\u00e9", "e\u0301\u0327", "\u0130", "\ufb01", "\u4f60\u597d", "\u0e33", "\u202e"),
    *("\u1112\u1161\u11ab", "\U0001f600", "\U0001f468\u200d\U0001f469", "\U0001f1e9\U0001f1ea"),
    *("<|im_end|>", "</s>", "[SEP]", "{{ x }}", "{% generation %}", "<|im_"),
)
SAID = st.lists(st.sampled_from(ODD), max_size=4).map("".join) | st.text(max_size=12)
CONVERSATIONS = st.tuples(
    st.lists(st.tuples(st.just("system"), SAID), max_size=1),
    st.tuples(st.just("user"), SAID),
    st.lists(st.tuples(st.sampled_from(["assistant", "assistant", "user"]), SAID), max_size=5),
).map(lambda parts: said(*parts[0], parts[1], *parts[2]))


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


TURNS = said(("user", "Say a."), ("assistant", "a"), ("user", "Say b."), ("assistant", "b \u4f60"))


def by_transformers(tokenizer: Any, row: Row) -> tuple[list[int], list[int]]:
    asked = {"return_dict": True, "return_assistant_tokens_mask": True}
    found = tokenizer.apply_chat_template(row["messages"], tools=row.get("tools") or None, **asked)
    return found["input_ids"], found["assistant_masks"]


@pytest.fixture(scope="module", params=["byte-level", "minilm-l6", "smollm2-135m-instruct"])
def tokenizer(
    request: pytest.FixtureRequest, chat_llama: Path, asset: Callable[[str], Path]
) -> Any:
    """One token a byte; no token for spaces, accents and more; many bytes a token."""
    folder = chat_llama if request.param == "byte-level" else asset(request.param)
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(folder)))
    tokens = sorted({token for each in TEMPLATES for token in each.tokens})
    tokenizer.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": tokens})
    return tokenizer


@settings(deadline=None, max_examples=40)
@given(messages=CONVERSATIONS, tools=st.sampled_from([[], TOOLS]))
def test_odd_conversations(
    tokenizer: Any, messages: list[dict[str, str]], tools: list[dict[str, str]]
) -> None:
    row = {"messages": messages, "tools": tools}
    # The file of MiniLM has the backend cut, and so does a call with a cut.
    tokenizer("a b c", truncation=True, max_length=2)
    for template in (CONTENT_ALONE, BARE, *(each.text for each in TEMPLATES)):
        tokenizer.chat_template = SHOWS_TOOLS + template
        ids, answers, _ = chat.encode(tokenizer, row, 100_000)
        assert (ids, answers) == by_transformers(tokenizer, row)


def test_a_call_of_a_tokenizers_own_is_used(chat_llama: Path) -> None:
    tokenizer: Any = hf.load_tokenizer(ModelConfig(id=str(chat_llama)), "vicuna")
    before, plain = by_transformers(tokenizer, {"messages": TURNS}), type(tokenizer)

    class Own(plain):  # type: ignore[misc, valid-type]  # its base is known at run time only
        def __call__(self, text: str, **settings: Any) -> Any:
            return super().__call__(text.replace("Say", "Do say"), **settings)

    tokenizer.__class__ = Own
    ids, answers = by_transformers(tokenizer, {"messages": TURNS})
    assert len(ids) > len(before[0])
    assert chat.encode(tokenizer, {"messages": TURNS}, 512)[:2] == (ids, answers)
    for tag in ("{% generation %}", "{% endgeneration %}"):
        tokenizer.chat_template = tokenizer.chat_template.replace(tag, "")
    assert chat.encode(tokenizer, {"messages": TURNS}, 512)[:2] == (ids, answers)


def test_an_own_way_to_write_conversations_is_used(chat_llama: Path) -> None:
    tokenizer: Any = hf.load_tokenizer(ModelConfig(id=str(chat_llama)), "vicuna")
    before, plain = by_transformers(tokenizer, {"messages": TURNS}), type(tokenizer)

    class Own(plain):  # type: ignore[misc, valid-type]  # its base is known at run time only
        def apply_chat_template(self, *given: Any, **settings: Any) -> Any:
            longer = self.chat_template.replace("message['content']", "message['content'] + '!'")
            return super().apply_chat_template(*given, chat_template=longer, **settings)

    tokenizer.__class__ = Own
    expected = by_transformers(tokenizer, {"messages": TURNS})
    assert len(expected[0]) > len(before[0])
    assert chat.encode(tokenizer, {"messages": TURNS}, 512)[:2] == expected


def test_a_slow_tokenizer_is_refused_with_what_to_do(chat_llama: Path) -> None:
    tokenizer: Any = hf.load_tokenizer(ModelConfig(id=str(chat_llama)), "vicuna")
    tokenizer.__class__ = type("Slow", (type(tokenizer),), {"is_fast": False})
    with pytest.raises(ConfigError, match="slow tokenizer") as caught:
        chat.encode(tokenizer, {"messages": TURNS}, 512)
    assert "tokenizer.json" in caught.value.hint
