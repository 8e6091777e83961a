"""Instruction tuning: the model's own chat template, loss on the assistant's answers only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from distft import chat, scoring, texts
from distft.plugin import (
    EncodeContext,
    Encoded,
    Row,
    Task,
    TrainsNothing,
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


def _encode(row: Row, tokenizer: PreTrainedTokenizerBase, context: EncodeContext) -> Encoded:
    ids, answers, truncated = chat.encode(tokenizer, row, context.cutoff_len)
    trained = [True] * len(ids) if context.train_on_prompt else answers
    labels = [one if wanted else scoring.IGNORED for one, wanted in zip(ids, trained, strict=True)]
    if not scoring.next_token_targets(labels):
        raise TrainsNothing(
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
        prompt = chat.render(tokenizer, messages, row.get("tools", ()), prompt=True)
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
    packs=True,
    headline="token_accuracy",
    key=lambda row: json.dumps(row["messages"], ensure_ascii=False, sort_keys=True),
    encode=_encode,
    num_targets=scoring.next_token_targets,
    loss=scoring.next_token_loss,
    score=scoring.next_token_scores,
    metrics=scoring.token_metrics,
    predict=_predict,
    ends=lambda tokenizer: set(tokenizer.all_special_ids),
    reference=_reference,
)
