"""Conversations -> token ids by a chat template, with the answers marked and kept.

What is an answer the template itself says, never a search in the text: by its generation blocks
(`{% generation %}` of transformers) where it has them, else by rendering turn by turn.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from distft import plugin, texts
from distft.errors import ConfigError
from distft.plugin import Row, UnusableRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def use_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Have a tokenizer write conversations by a named template, and end answers as it does.

    Args:
        tokenizer: Changed in place.
        name: One of `distft templates`.

    Raises:
        ConfigError: The tokenizer lacks a special token of the template.
    """
    template = plugin.templates()[name]
    known = set(tokenizer.get_vocab())
    lacking = [token for token in template.tokens if token not in known]
    if lacking:
        able = [each.name for each in plugin.templates().values() if known >= set(each.tokens)]
        raise ConfigError(
            f"data.template: {name} needs the tokens {', '.join(lacking)}, which the tokenizer of "
            f"{tokenizer.name_or_path} lacks.",
            f"It can take {', '.join(able)}, or leave data.template out for the model's own.",
        )
    tokenizer.chat_template = template.text
    if template.end is not None:
        tokenizer.eos_token = template.end


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    prompt: bool = False,
) -> str:
    """Return a conversation as the model reads it.

    Args:
        tokenizer: With a chat template.
        messages: Of the conversation.
        tools: What the assistant may call.
        prompt: End with what begins an answer.

    Returns:
        The text.

    Raises:
        ConfigError: There is no template.
        UnusableRow: The template refuses this conversation.
    """
    return _rendered(tokenizer, [messages], tools, prompt=prompt)[0]


def encode(
    tokenizer: PreTrainedTokenizerBase, row: Row, cutoff_len: int
) -> tuple[list[int], list[bool], bool]:
    """Return the tokens of a conversation, shortened where it is too long so that answers stay.

    The oldest exchanges go first, then the middle of the longest message that is no answer; only
    an answer that is too long by itself is cut, at its end, and leaves its question half the room.

    Args:
        tokenizer: With a chat template.
        row: `messages` and, where the assistant may call them, `tools`.
        cutoff_len: Most tokens.

    Returns:
        (ids, which of them belong to answers, whether anything was cut).

    Raises:
        ConfigError: There is no template, or the tokenizer is a slow one.
        UnusableRow: The template does not show all of it, or refuses it.
    """
    _check_shown(tokenizer, row)
    ids, answers = _tokens(tokenizer, row)
    if len(ids) <= cutoff_len:
        return ids, answers, False
    shorter = row
    while len(ids) > cutoff_len and (later := _without_oldest_exchange(shorter)) is not None:
        shorter = later
        ids, answers = _tokens(tokenizer, shorter)
    if len(ids) > cutoff_len:
        ids, answers = _tokens(tokenizer, _with_shorter_prompt(tokenizer, shorter, cutoff_len))
    return ids[:cutoff_len], answers[:cutoff_len], True


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    tools: Sequence[Mapping[str, Any]],
    *,
    prompt: bool = False,
) -> list[str]:
    """Return each of some conversations as the model reads it; see `render`."""
    if not conversations:
        return []
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{tokenizer.name_or_path} has no chat template, which task sft needs.",
            "Set data.template (see `distft templates`), or take an instruction-tuned model.",
        )
    settings = {"tokenize": False, "add_generation_prompt": prompt}
    found: list[str] = _apply(tokenizer.apply_chat_template, conversations, tools, **settings)
    return found


def _apply(
    write: Callable[..., Any],
    conversations: Sequence[Sequence[Message]],
    tools: Sequence[Mapping[str, Any]],
    **settings: Any,
) -> Any:
    """Return what a function of transformers makes of conversations by a template."""
    import jinja2

    # Messages without what is None, as `apply_chat_template` has a template see them.
    given = [
        [{key: message[key] for key in message if message[key] is not None} for message in each]
        for each in conversations
    ]
    try:
        return write(given, tools=[dict(tool) for tool in tools] or None, **settings)
    except jinja2.TemplateError as error:
        raise UnusableRow(f"the chat template refuses this conversation: {error}") from error


def _check_shown(tokenizer: PreTrainedTokenizerBase, row: Row) -> None:
    """Refuse a row whose tools or tool results the template would leave out without a word."""
    messages, tools = row["messages"], row.get("tools", ())
    results = [i for i, message in enumerate(messages) if message["role"] == "tool"]
    if not (tools or results):
        return
    ends = {end for i in results for end in (i, i + 1)} | ({len(messages)} if tools else set())
    found = _rendered(tokenizer, [messages[:end] for end in ends], tools)
    shown = dict(zip(ends, found, strict=True))
    if tools and shown[len(messages)] == render(tokenizer, messages):
        raise UnusableRow("the chat template does not show the row's tools")
    if any(shown[i] == shown[i + 1] for i in results):
        raise UnusableRow("the chat template does not show what a tool returned")


def _tokens(tokenizer: PreTrainedTokenizerBase, row: Row) -> tuple[list[int], list[bool]]:
    if row["messages"][0]["role"] == "assistant":
        raise UnusableRow("the conversation begins with the assistant: there is no prompt")
    template = tokenizer.chat_template
    if isinstance(template, str) and _has_generation_blocks(template):
        return _by_generation_blocks(tokenizer, row)
    return _turn_by_turn(tokenizer, row)


@cache
def _has_generation_blocks(template: str) -> bool:
    return _GENERATION.search(template) is not None


def _by_generation_blocks(
    tokenizer: PreTrainedTokenizerBase, row: Row
) -> tuple[list[int], list[bool]]:
    """Return what `apply_chat_template` of transformers does with `return_assistant_tokens_mask`.

    Its call is taken apart: it makes Python objects of much that nobody asks for.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    messages, tools = row["messages"], row.get("tools", ())
    asked: dict[str, Any] = {"return_assistant_tokens_mask": True}
    if texts.has_own(tokenizer, "apply_chat_template"):
        asked |= {"tokenize": True, "return_dict": True}
        found = _apply(tokenizer.apply_chat_template, [messages], tools, **asked)
        return list(found["input_ids"][0]), [bool(one) for one in found["assistant_masks"][0]]
    asked |= {"chat_template": tokenizer.chat_template, **tokenizer.special_tokens_map}
    rendered, blocks = _apply(render_jinja_template, [messages], tools, **asked)
    ids, places = texts.place(rendered[0], tokenizer)
    answers = [False] * len(ids)
    for start, stop in blocks[0]:
        first, last = places.char_to_token(start), places.char_to_token(stop - 1)
        if first is None:
            break
        behind = last + 1 if last else len(ids)
        answers[first:behind] = [True] * (behind - first)
    return ids, answers


def _turn_by_turn(tokenizer: PreTrainedTokenizerBase, row: Row) -> tuple[list[int], list[bool]]:
    text, spans = _answer_spans(tokenizer, row)
    ids, places = texts.place(text, tokenizer)
    answers = [False] * len(ids)
    ends = set(tokenizer.all_special_ids)
    # Tokens stand in the order of the text.
    offsets = places.offsets
    for start, stop in spans:
        first, behind = bisect_left(offsets, (start,)), bisect_left(offsets, (stop,))
        inside = [i for i in range(first, behind) if offsets[i][1] > offsets[i][0]]
        closing = [i for i in inside if ids[i] in ends]
        # What the template writes after the end of the turn (a line break) is not an answer.
        for i in inside if not closing else range(inside[0], closing[-1] + 1):
            answers[i] = True
    return ids, answers


def _answer_spans(
    tokenizer: PreTrainedTokenizerBase, row: Row
) -> tuple[str, list[tuple[int, int]]]:
    """Return a conversation as the model reads it, and where in it the answers stand."""
    messages, tools = row["messages"], row.get("tools", ())
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    ends = [i + 1 for i in answers if i + 1 < len(messages)]
    text, *after = _rendered(tokenizer, [messages, *(messages[:end] for end in ends)], tools)
    # Nothing stands behind a last answer.
    after += [text] * (len(answers) - len(after))
    before = _rendered(tokenizer, [messages[:i] for i in answers], tools, prompt=True)
    spans = []
    for begin, end in zip(before, after, strict=True):
        if not (text.startswith(end) and end.startswith(begin)):
            raise UnusableRow("the chat template does not render this conversation turn by turn")
        spans.append((len(begin), len(end)))
    return text, spans


def _without_oldest_exchange(row: Row) -> Row | None:
    """Return the conversation from its second question on, behind the system's message if any.

    None where nothing would be left to answer.
    """
    messages = row["messages"]
    first = 1 if messages[0]["role"] == "system" else 0
    answered = False
    for i in range(first, len(messages)):
        if messages[i]["role"] == "user" and answered:
            rest = messages[i:]
            if any(message["role"] == "assistant" for message in rest):
                return {**row, "messages": [*messages[:first], *rest]}
            return None
        answered |= messages[i]["role"] == "assistant"
    return None


def _with_shorter_prompt(tokenizer: PreTrainedTokenizerBase, row: Row, cutoff_len: int) -> Row:
    """Return the conversation with as much of its longest questions as there is room for."""
    messages = [dict(message) for message in row["messages"]]
    shorter = {**row, "messages": messages}
    prompts = [message for message in messages if message["role"] != "assistant"]
    prompts.sort(key=lambda message: -len(message["content"]))
    wholes = [message["content"] for message in prompts]
    for message in prompts:
        message["content"] = ""
    answer_fits = len(_tokens(tokenizer, shorter)[0]) <= cutoff_len
    for message, whole in zip(prompts, wholes, strict=True):
        message["content"] = whole

    def fits() -> bool:
        ids, answers = _tokens(tokenizer, shorter)
        # An answer that must be cut anyway leaves its questions half of the room.
        return len(ids) <= cutoff_len if answer_fits else answers.count(False) <= cutoff_len // 2

    for message, whole in zip(prompts, wholes, strict=True):
        if fits():
            break
        kept, too_long = 0, len(whole)
        while too_long - kept > 1:
            middle = (kept + too_long) // 2
            message["content"] = _ends(whole, middle)
            kept, too_long = (middle, too_long) if fits() else (kept, middle)
        message["content"] = _ends(whole, kept)
    return shorter


def _ends(text: str, kept: int) -> str:
    """Return the beginning and the end of a text, `kept` characters together."""
    head = (kept + 1) // 2
    return text[:head] + text[len(text) - (kept - head) :]
