"""Conversations -> token ids by a chat template, with the answers marked and kept.

What is an answer the template itself says, never a search in the text: by its generation blocks
(`{% generation %}` of transformers) where it has them, else by rendering turn by turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distft import plugin
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
    import jinja2

    try:
        text = _apply(tokenizer, messages, tools, tokenize=False, add_generation_prompt=prompt)
    except jinja2.TemplateError as error:
        raise UnusableRow(f"the chat template refuses this conversation: {error}") from error
    return str(text)


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
        ConfigError: There is no template.
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


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    **settings: Any,
) -> Any:
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{tokenizer.name_or_path} has no chat template, which task sft needs.",
            "Set data.template (see `distft templates`), or take an instruction-tuned model.",
        )
    return tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tools=[dict(tool) for tool in tools] or None,
        **settings,
    )


def _check_shown(tokenizer: PreTrainedTokenizerBase, row: Row) -> None:
    """Refuse a row whose tools or tool results the template would leave out without a word."""
    messages, tools = row["messages"], row.get("tools", ())
    if tools and render(tokenizer, messages, tools) == render(tokenizer, messages):
        raise UnusableRow("the chat template does not show the row's tools")
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            before = render(tokenizer, messages[:i], tools)
            if render(tokenizer, messages[: i + 1], tools) == before:
                raise UnusableRow("the chat template does not show what a tool returned")


def _tokens(tokenizer: PreTrainedTokenizerBase, row: Row) -> tuple[list[int], list[bool]]:
    if row["messages"][0]["role"] == "assistant":
        raise UnusableRow("the conversation begins with the assistant: there is no prompt")
    template = tokenizer.chat_template
    if isinstance(template, str) and _GENERATION.search(template):
        return _by_generation_blocks(tokenizer, row)
    return _turn_by_turn(tokenizer, row)


def _by_generation_blocks(
    tokenizer: PreTrainedTokenizerBase, row: Row
) -> tuple[list[int], list[bool]]:
    import jinja2

    try:
        found = _apply(
            tokenizer,
            row["messages"],
            row.get("tools", ()),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
    except jinja2.TemplateError as error:
        raise UnusableRow(f"the chat template refuses this conversation: {error}") from error
    return list(found["input_ids"]), [bool(one) for one in found["assistant_masks"]]


def _turn_by_turn(tokenizer: PreTrainedTokenizerBase, row: Row) -> tuple[list[int], list[bool]]:
    text = render(tokenizer, row["messages"], row.get("tools", ()))
    batch = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = batch["input_ids"], batch["offset_mapping"]
    answers = [False] * len(ids)
    ends = set(tokenizer.all_special_ids)
    for start, stop in _answer_spans(tokenizer, row, text):
        inside = [i for i, (a, b) in enumerate(offsets) if start <= a < stop and b > a]
        closing = [i for i in inside if ids[i] in ends]
        # What the template writes after the end of the turn (a line break) is not an answer.
        for i in inside if not closing else range(inside[0], closing[-1] + 1):
            answers[i] = True
    return list(ids), answers


def _answer_spans(tokenizer: PreTrainedTokenizerBase, row: Row, text: str) -> list[tuple[int, int]]:
    messages, tools = row["messages"], row.get("tools", ())
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:i], tools, prompt=True)
        last = i + 1 == len(messages)
        after = text if last else render(tokenizer, messages[: i + 1], tools)
        if not (text.startswith(after) and after.startswith(before)):
            raise UnusableRow("the chat template does not render this conversation turn by turn")
        spans.append((len(before), len(after)))
    return spans


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
