"""Instruction tuning: the model's own chat template, loss on the assistant's answers only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from distft.errors import ConfigError
from distft.plugin import (
    EncodeContext,
    Encoded,
    LossSettings,
    Row,
    Task,
    UnusableRow,
    VariantConfig,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

_NOTHING_ASKED = "field 'messages' holds no message to answer"


class SftConfig(VariantConfig):
    """Keys of `task: {name: sft}`."""

    name: str = "sft"
    """The task."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest answer `distft predict` generates, in tokens."""


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    *,
    prompt: bool = False,
) -> str:
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{tokenizer.name_or_path} has no chat template, which task sft needs.",
            "Take an instruction-tuned model, whose tokenizer brings its template.",
        )
    plain = [dict(message) for message in messages]
    return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=prompt))


def _answer_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], text: str
) -> list[tuple[int, int]]:
    """Find each answer's characters by rendering turn by turn, never by string search."""
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if i == 0:
            raise UnusableRow("the conversation begins with the assistant: there is no prompt")
        before = _render(tokenizer, messages[:i], prompt=True)
        after = _render(tokenizer, messages[: i + 1])
        if not (text.startswith(after) and after.startswith(before)):
            raise UnusableRow("the chat template does not render this conversation turn by turn")
        spans.append((len(before), len(after)))
    return spans


def _encode(row: Row, tokenizer: PreTrainedTokenizerBase, context: EncodeContext) -> Encoded:
    messages = row["messages"]
    text = _render(tokenizer, messages)
    batch = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = batch["input_ids"], batch["offset_mapping"]
    labels = [-100] * len(ids)
    ends = set(tokenizer.all_special_ids)
    for start, stop in _answer_spans(tokenizer, messages, text):
        inside = [i for i, (a, b) in enumerate(offsets) if start <= a < stop and b > a]
        closing = [i for i in inside if ids[i] in ends]
        # What the template writes after the end of the turn (a line break) is not an answer.
        for i in inside if not closing else range(inside[0], closing[-1] + 1):
            labels[i] = ids[i]
    truncated = len(ids) > context.cutoff_len
    ids, labels = ids[: context.cutoff_len], labels[: context.cutoff_len]
    if not _num_targets(labels):
        raise UnusableRow(
            "the answer lies beyond cutoff_len" if truncated else "there is no answer to train on"
        )
    return Encoded(ids, labels, truncated)


def _num_targets(labels: Sequence[float]) -> int:
    return sum(1 for label in labels[1:] if label != -100)


def _token_losses(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from torch.nn import functional

    # Logits at a position predict the token after it.
    targets = labels[:, 1:]
    shifted = logits[:, :-1].float()
    losses = functional.cross_entropy(
        shifted.flatten(0, 1),
        targets.flatten(),
        reduction="none",
        ignore_index=-100,
        label_smoothing=label_smoothing,
    )
    return losses.view_as(targets), shifted, targets


def _loss(logits: torch.Tensor, labels: torch.Tensor, settings: LossSettings) -> torch.Tensor:
    return _token_losses(logits, labels, settings.label_smoothing)[0].sum()


def _score(
    logits: torch.Tensor, labels: torch.Tensor, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    losses, shifted, targets = _token_losses(logits, labels, 0.0)
    trained = targets != -100
    return {
        "loss_sum": losses.sum(-1),
        "num_targets": trained.sum(-1),
        "num_correct": ((shifted.argmax(-1) == targets) & trained).sum(-1),
    }


def _metrics(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    import numpy as np

    targets = columns["num_targets"].sum()
    loss = float(columns["loss_sum"].sum() / targets)
    return {
        "loss": loss,
        "perplexity": float(np.exp(loss)),
        "token_accuracy": float(columns["num_correct"].sum() / targets),
        "targets": int(targets),
        "rows": len(columns["num_targets"]),
    }


def _predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    context: EncodeContext,
    config: VariantConfig,
) -> list[dict[str, Any]]:
    import torch

    assert isinstance(config, SftConfig)
    asked = [_without_answer(row["messages"]) for row in rows]
    prompts = [_render(tokenizer, messages, prompt=True) for messages in asked if messages]
    if not prompts:
        return [{"error": _NOTHING_ASKED} for _ in asked]
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
    device = next(model.parameters()).device
    with torch.inference_mode():
        ids = model.generate(  # type: ignore[operator]  # generate lives on the transformers class
            input_ids=batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            max_new_tokens=config.max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    texts = iter(
        tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    )
    return [
        {"prediction": next(texts).strip()} if messages else {"error": _NOTHING_ASKED}
        for messages in asked
    ]


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
    num_targets=_num_targets,
    loss=_loss,
    score=_score,
    metrics=_metrics,
    predict=_predict,
)
