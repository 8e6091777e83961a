"""Masked language modelling on plain text: the pre-training of encoders, carried on in a domain."""

from __future__ import annotations

from collections.abc import Sequence
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
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

MASKED_SHARE = 0.15
"""Of the tokens that are not special, asked for in every step (Devlin et al. 2019, 3.1)."""


class MaskedLmConfig(VariantConfig):
    """Keys of `task: {name: masked_lm}`."""

    name: str = "masked_lm"
    """The task."""
    top_k: Annotated[int, Field(ge=1)] = 5
    """How many tokens `distft predict` names for each mask."""


def _finish(
    row: Row, tokens: texts.Tokens, tokenizer: PreTrainedTokenizerBase, context: EncodeContext
) -> Encoded:
    if tokenizer.mask_token_id is None:
        raise ConfigError(
            f"The tokenizer of {tokenizer.name_or_path} has no mask token, which task masked_lm "
            "needs.",
            "Take an encoder such as BERT, or task causal_lm.",
        )
    parts = texts.parts(row, tokenizer)
    encoded = texts.sample(parts, tokens, tokenizer, context.cutoff_len, [])
    special = set(tokenizer.all_special_ids)
    labels = [scoring.IGNORED if one in special else one for one in encoded.input_ids]
    return Encoded(encoded.input_ids, labels, encoded.truncated)


_encode = texts.Whole(texts.parts, _finish)


def _num_targets(labels: Sequence[float]) -> int:
    maskable = scoring.token_targets(labels)
    return max(1, round(MASKED_SHARE * maskable)) if maskable else 0


def _predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    context: EncodeContext,
    config: VariantConfig,
) -> list[dict[str, Any]]:
    assert isinstance(config, MaskedLmConfig)
    top_k = config.top_k

    def encode_one(row: Row) -> Encoded:
        encoded = _encode(row, tokenizer, context)
        if tokenizer.mask_token_id not in encoded.input_ids:
            raise UnusableRow(f"the text holds no {tokenizer.mask_token} to fill")
        return encoded

    def answer(encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        said = texts.logits(model, tokenizer, encoded)
        return [
            _filled(one.input_ids, row, tokenizer, top_k)
            for one, row in zip(encoded, said, strict=True)
        ]

    return texts.answers(rows, encode_one, answer)


def _filled(
    ids: Sequence[int], logits: torch.Tensor, tokenizer: PreTrainedTokenizerBase, top_k: int
) -> dict[str, Any]:
    """Return the text with the likeliest token at each mask, and the candidates of each."""
    written, fills = list(ids), []
    for place, token in enumerate(ids):
        if token == tokenizer.mask_token_id:
            best = logits[place].softmax(-1).topk(min(top_k, logits.shape[-1]))
            written[place] = int(best.indices[0])
            fills.append(
                [
                    {"token": tokenizer.decode([int(one)]), "score": round(float(share), 6)}
                    for share, one in zip(best.values, best.indices, strict=True)
                ]
            )
    return {"prediction": tokenizer.decode(written, skip_special_tokens=True), "fills": fills}


TASK = Task(
    name="masked_lm",
    summary="masked language modelling on plain text, 15 % of the tokens hidden",
    source="BERT (Devlin et al. 2019), section 3.1; Gururangan et al. 2020 for domains",
    config=MaskedLmConfig,
    rows=("plain_text",),
    auto_class="AutoModelForMaskedLM",
    # PEFT knows no masked language models; this class hands outputs through as they are.
    peft_type="FEATURE_EXTRACTION",
    new_head=False,
    labels="tokens",
    masks_tokens=True,
    headline="perplexity",
    key=lambda row: str(row["text"]),
    encode=_encode,
    num_targets=_num_targets,
    loss=scoring.token_loss,
    score=scoring.token_scores,
    metrics=scoring.token_metrics,
    predict=_predict,
)
