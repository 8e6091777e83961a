"""Text to text with an encoder and a decoder: translation, summaries, answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from distft import scoring, texts
from distft.plugin import EncodeContext, Encoded, Row, Task, VariantConfig

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


class Seq2SeqConfig(VariantConfig):
    """Keys of `task: {name: seq2seq}`."""

    name: str = "seq2seq"
    """The task."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest answer `distft predict` generates, in tokens."""
    num_beams: Annotated[int, Field(ge=1)] = 1
    """Beams that `distft predict` searches with; 1 takes the likeliest token each time."""


def _source(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str]:
    return (row["source"],)


def _finish(
    row: Row, tokens: texts.Tokens, tokenizer: PreTrainedTokenizerBase, context: EncodeContext
) -> Encoded:
    parts = _source(row, tokenizer)
    source = texts.sample(parts, tokens, tokenizer, context.cutoff_len, [])
    target = row.get("target")
    if target is None:
        return source
    asked = {"text_target": target, "verbose": False}
    labels = list(tokenizer(**asked)["input_ids"])
    truncated = len(labels) > context.cutoff_len
    if truncated:
        cut = tokenizer(**asked, truncation=True, max_length=context.cutoff_len)
        labels = list(cut["input_ids"])
    return Encoded(source.input_ids, labels, source.truncated or truncated)


_encode = texts.Whole(_source, _finish)


def _predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    context: EncodeContext,
    config: VariantConfig,
) -> list[dict[str, Any]]:
    assert isinstance(config, Seq2SeqConfig)

    def answer(encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        said = texts.generate(
            model, tokenizer, encoded, config.max_new_tokens, num_beams=config.num_beams
        )
        return [{"prediction": one} for one in said]

    return texts.answers(
        rows, lambda row: _encode({**row, "target": None}, tokenizer, context), answer
    )


TASK = Task(
    name="seq2seq",
    summary="text to text with an encoder and a decoder, loss on the target",
    source="T5 (Raffel et al. 2020), section 2",
    config=Seq2SeqConfig,
    rows=("text_to_text",),
    auto_class="AutoModelForSeq2SeqLM",
    peft_type="SEQ_2_SEQ_LM",
    new_head=False,
    labels="sequence",
    headline="token_accuracy",
    key=lambda row: str(row["source"]),
    encode=_encode,
    num_targets=scoring.token_targets,
    loss=scoring.token_loss,
    score=scoring.token_scores,
    metrics=scoring.token_metrics,
    predict=_predict,
    reference=lambda row: (row, str(row["target"])),
)
