"""Instruction tuning: the model's own chat template, loss on the assistant's answers only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from distft import scoring, texts
from distft.errors import ConfigError
from distft.plugin import (
    EncodeContext,
    Encoded,
    Row,
    Task,
    UnusableRow,
    VariantConfig,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


class SftConfig(VariantConfig):
    """Keys of `task: {name: sft}`."""

    name: str = "sft"
    """The task."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest answer `distft predict` generates, in tokens."""


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    prompt: bool = False,
) -> str:
    import jinja2

    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{tokenizer.name_or_path} has no chat template, which task sft needs.",
            "Take an instruction-tuned model, whose tokenizer brings its template.",
        )
    plain = [dict(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            plain,
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=prompt,
        )
    except jinja2.TemplateError as error:
        raise UnusableRow(f"the chat template refuses this conversation: {error}") from error
    return str(text)


def _check_shown(tokenizer: PreTrainedTokenizerBase, row: Row) -> None:
    """Refuse a row whose tools or tool results the template would leave out without a word."""
    messages, tools = row["messages"], row.get("tools", ())
    if tools and _render(tokenizer, messages, tools) == _render(tokenizer, messages):
        raise UnusableRow("the chat template does not show the row's tools")
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            before = _render(tokenizer, messages[:i], tools)
            if _render(tokenizer, messages[: i + 1], tools) == before:
                raise UnusableRow("the chat template does not show what a tool returned")


def _answer_spans(tokenizer: PreTrainedTokenizerBase, row: Row, text: str) -> list[tuple[int, int]]:
    """Find each answer's characters by rendering turn by turn, never by string search."""
    messages, tools = row["messages"], row.get("tools", ())
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if i == 0:
            raise UnusableRow("the conversation begins with the assistant: there is no prompt")
        before = _render(tokenizer, messages[:i], tools, prompt=True)
        after = _render(tokenizer, messages[: i + 1], tools)
        if not (text.startswith(after) and after.startswith(before)):
            raise UnusableRow("the chat template does not render this conversation turn by turn")
        spans.append((len(before), len(after)))
    return spans


def _encode(row: Row, tokenizer: PreTrainedTokenizerBase, context: EncodeContext) -> Encoded:
    _check_shown(tokenizer, row)
    text = _render(tokenizer, row["messages"], row.get("tools", ()))
    batch = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = batch["input_ids"], batch["offset_mapping"]
    labels = [scoring.IGNORED] * len(ids)
    ends = set(tokenizer.all_special_ids)
    for start, stop in _answer_spans(tokenizer, row, text):
        inside = [i for i, (a, b) in enumerate(offsets) if start <= a < stop and b > a]
        closing = [i for i in inside if ids[i] in ends]
        # What the template writes after the end of the turn (a line break) is not an answer.
        for i in inside if not closing else range(inside[0], closing[-1] + 1):
            labels[i] = ids[i]
    truncated = len(ids) > context.cutoff_len
    ids, labels = ids[: context.cutoff_len], labels[: context.cutoff_len]
    if not scoring.next_token_targets(labels):
        raise UnusableRow(
            "the answer lies beyond cutoff_len" if truncated else "there is no answer to train on"
        )
    return Encoded(ids, labels, truncated)


def _predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    context: EncodeContext,
    config: VariantConfig,
) -> list[dict[str, Any]]:
    assert isinstance(config, SftConfig)

    def encode_one(row: Row) -> Encoded:
        messages = _without_answer(row["messages"])
        if not messages:
            raise UnusableRow("field 'messages' holds no message to answer")
        prompt = _render(tokenizer, messages, row.get("tools", ()), prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        if texts.positions_left(model, ids) < 1:
            raise UnusableRow("the prompt leaves the model no position for an answer")
        return Encoded(ids, [])

    def answer(encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        said = texts.generate(model, tokenizer, encoded, config.max_new_tokens)
        return [{"prediction": one} for one in said]

    return texts.answers(rows, encode_one, answer)


def _reference(row: Row) -> tuple[Row, str]:
    """Return the conversation up to its last answer, and that answer."""
    messages = row["messages"]
    answered = max(i for i, each in enumerate(messages) if each["role"] == "assistant")
    prompt = _without_answer(messages[: answered + 1])
    # Of several messages in a row the first: the model ends its turn after one.
    return {**row, "messages": prompt}, str(messages[len(prompt)]["content"])


def _without_answer(messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return the messages up to the last that is not the assistant's."""
    kept = list(messages)
    while kept and kept[-1]["role"] == "assistant":
        kept.pop()
    return kept


TASK = Task(
    name="sft",
    summary="instruction tuning on conversations, loss on the answers only",
    source="InstructGPT (Ouyang et al. 2022), section 3.5, step 1",
    config=SftConfig,
    rows=("conversation",),
    auto_class="AutoModelForCausalLM",
    peft_type="CAUSAL_LM",
    new_head=False,
    labels="tokens",
    headline="token_accuracy",
    key=lambda row: json.dumps(row["messages"], ensure_ascii=False, sort_keys=True),
    encode=_encode,
    num_targets=scoring.next_token_targets,
    loss=scoring.next_token_loss,
    score=scoring.next_token_scores,
    metrics=scoring.token_metrics,
    predict=_predict,
    reference=_reference,
)
