"""Language modelling on plain text: every token is predicted from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from distft import scoring, texts
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


class CausalLmConfig(VariantConfig):
    """Keys of `task: {name: causal_lm}`."""

    name: str = "causal_lm"
    """The task."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest continuation `distft predict` generates, in tokens."""


@lru_cache(maxsize=1)
def _end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    # transformers looks it up anew for every row, a tenth of the time that a short one takes.
    end: int | None = tokenizer.eos_token_id
    return end


def _finish(
    row: Row, tokens: texts.Tokens, tokenizer: PreTrainedTokenizerBase, context: EncodeContext
) -> Encoded:
    ids, end = tokens.ids, _end(tokenizer)
    # Where texts end is learnt too; most tokenizers leave the mark to the caller.
    if end is not None and ids[-1:] != [end]:
        ids = [*ids, end]
    kept = ids if len(ids) <= context.cutoff_len else ids[: context.cutoff_len]
    return Encoded(kept, kept, len(ids) > len(kept))


def _predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    context: EncodeContext,
    config: VariantConfig,
) -> list[dict[str, Any]]:
    assert isinstance(config, CausalLmConfig)

    def encode_one(row: Row) -> Encoded:
        # A text is continued at its end: of one that is too long the beginning is left out.
        ids = tokenizer(row["text"], verbose=False)["input_ids"]
        if not ids:
            raise UnusableRow("the text has no token")
        # One position at least is for what is written.
        spare = min(context.cutoff_len, len(ids) + texts.positions_left(model, ids) - 1)
        return Encoded(ids[-spare:], [])

    def answer(encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        said = texts.generate(model, tokenizer, encoded, config.max_new_tokens)
        return [{"prediction": one} for one in said]

    return texts.answers(rows, encode_one, answer)


TASK = Task(
    name="causal_lm",
    summary="language modelling on plain text, loss on every token",
    source="GPT (Radford et al. 2018), section 3.1",
    config=CausalLmConfig,
    rows=("plain_text",),
    auto_class="AutoModelForCausalLM",
    peft_type="CAUSAL_LM",
    new_head=False,
    labels="tokens",
    packs=True,
    headline="perplexity",
    key=lambda row: str(row["text"]),
    encode=texts.Whole(texts.parts, _finish),
    num_targets=scoring.next_token_targets,
    loss=scoring.next_token_loss,
    score=scoring.next_token_scores,
    metrics=scoring.token_metrics,
    predict=_predict,
)
