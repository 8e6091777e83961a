"""Classification of texts or pairs of texts: any number of labels each, a sigmoid per label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distft import scoring, texts
from distft.plugin import EncodeContext, Encoded, LossSettings, Row, Task, VariantConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase


class MultilabelClsConfig(VariantConfig):
    """Keys of `task: {name: multilabel_cls}`."""

    name: str = "multilabel_cls"
    """The task."""
    class_weights: scoring.ClassWeights = None
    """Weight of each label's presence in the training loss (`pos_weight` of
    BCEWithLogitsLoss), never in an evaluation: `balanced`, which is rows without the label / rows
    with it, or {label: weight}, where a label left out weighs 1."""


def _finish(
    row: Row, tokens: texts.Tokens, tokenizer: PreTrainedTokenizerBase, context: EncodeContext
) -> Encoded:
    held = row.get("labels")
    labels = [] if held is None else [float(name in held) for name in context.labels]
    parts = texts.parts(row, tokenizer)
    return texts.sample(parts, tokens, tokenizer, context.cutoff_len, labels)


_encode = texts.Whole(texts.parts, _finish)


def _check(config: VariantConfig, names: Sequence[str]) -> None:
    assert isinstance(config, MultilabelClsConfig)
    scoring.check_class_weights(config.class_weights, names)


def _class_weights(
    config: VariantConfig, names: Sequence[str], counts: Sequence[int], rows: int
) -> list[float] | None:
    assert isinstance(config, MultilabelClsConfig)
    # A label that all rows hold, or none, has no other side to balance.
    balanced = [(rows - count) / count if 0 < count < rows else 1.0 for count in counts]
    return scoring.class_weights(config.class_weights, names, balanced)


def _losses(logits: torch.Tensor, labels: torch.Tensor, settings: LossSettings) -> torch.Tensor:
    """Return one loss per element, 0 for a dummy's."""
    from torch.nn import functional

    given = ~labels.isnan()
    wanted = labels.nan_to_num(0.0)
    smooth = wanted * (1 - settings.label_smoothing) + settings.label_smoothing / 2
    weights = settings.class_weights
    losses = functional.binary_cross_entropy_with_logits(
        logits.float(),
        smooth,
        pos_weight=None if weights is None else weights.to(logits.device),
        reduction="none",
    )
    return losses * given


def _loss(logits: torch.Tensor, labels: torch.Tensor, settings: LossSettings) -> torch.Tensor:
    return _losses(logits, labels, settings).sum()


def _score(
    logits: torch.Tensor, labels: torch.Tensor, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    return {
        "loss_sum": _losses(logits, labels, LossSettings()).sum(-1),
        "num_targets": (~labels.isnan()).sum(-1),
        "label": labels.nan_to_num(0.0).long(),
        "prediction": (logits > 0).long(),
    }


def _metrics(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    label, prediction = columns["label"], columns["prediction"]
    return {
        "loss": float(columns["loss_sum"].sum() / columns["num_targets"].sum()),
        **scoring.class_metrics(label, prediction, names, ["micro", "macro"]),
        "subset_accuracy": float((label == prediction).all(-1).mean()),
        "label_accuracy": float((label == prediction).mean()),
        "rows": len(label),
    }


def _predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    context: EncodeContext,
    config: VariantConfig,
) -> list[dict[str, Any]]:
    def answer(encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        said = texts.logits(model, tokenizer, encoded)
        return [
            {
                "prediction": [
                    name for name, one in zip(context.labels, row, strict=True) if one > 0
                ],
                "scores": {
                    name: round(float(p), 6)
                    for name, p in zip(context.labels, row.sigmoid(), strict=True)
                },
            }
            for row in said
        ]

    return texts.answers(
        rows, lambda row: _encode({**row, "labels": None}, tokenizer, context), answer
    )


TASK = Task(
    name="multilabel_cls",
    summary="text classification, any number of labels per text or pair of texts",
    source="Zhang and Zhou 2014, A review on multi-label learning algorithms: binary relevance",
    config=MultilabelClsConfig,
    rows=("multi_labelled_text",),
    auto_class="AutoModelForSequenceClassification",
    peft_type="SEQ_CLS",
    new_head=True,
    labels="vector",
    headline="f1_micro",
    key=texts.key,
    # One stratum per combination would leave most rows alone in theirs.
    stratum=lambda row: min(row["labels"], default=None),
    classes=lambda row: tuple(row["labels"]),
    check=_check,
    class_weights=_class_weights,
    encode=_encode,
    num_targets=len,
    loss=_loss,
    score=_score,
    metrics=_metrics,
    predict=_predict,
)
