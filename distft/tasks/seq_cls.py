"""Classification of texts or pairs of texts: one label each, cross-entropy on a new head."""

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


class SeqClsConfig(VariantConfig):
    """Keys of `task: {name: seq_cls}`."""

    name: str = "seq_cls"
    """The task."""
    class_weights: scoring.ClassWeights = None
    """Weight of each class in the training loss, never in an evaluation: `balanced`, which is
    scikit-learn's rows / (classes * rows of the class), or {label: weight}, where a label left out
    weighs 1."""


def _finish(
    row: Row, tokens: texts.Tokens, tokenizer: PreTrainedTokenizerBase, context: EncodeContext
) -> Encoded:
    label = row.get("label")
    labels = [] if label is None else [context.labels.index(label)]
    parts = texts.parts(row, tokenizer)
    return texts.sample(parts, tokens, tokenizer, context.cutoff_len, labels)


_encode = texts.Whole(texts.parts, _finish)


def _check(config: VariantConfig, names: Sequence[str]) -> None:
    assert isinstance(config, SeqClsConfig)
    scoring.check_class_weights(config.class_weights, names)


def _class_weights(
    config: VariantConfig, names: Sequence[str], counts: Sequence[int], rows: int
) -> list[float] | None:
    assert isinstance(config, SeqClsConfig)
    # scikit-learn's: the mean over the training rows is 1, so that the loss keeps its scale.
    balanced = [rows / (len(names) * count) if count else 1.0 for count in counts]
    return scoring.class_weights(config.class_weights, names, balanced)


def _loss(logits: torch.Tensor, labels: torch.Tensor, settings: LossSettings) -> torch.Tensor:
    from torch.nn import functional

    weights = settings.class_weights
    return functional.cross_entropy(
        logits.float(),
        labels,
        weight=None if weights is None else weights.to(logits.device),
        reduction="sum",
        ignore_index=scoring.IGNORED,
        label_smoothing=settings.label_smoothing,
    )


def _score(
    logits: torch.Tensor, labels: torch.Tensor, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    from torch.nn import functional

    losses = functional.cross_entropy(logits.float(), labels, reduction="none", ignore_index=-100)
    return {
        "loss_sum": losses,
        "num_targets": (labels != scoring.IGNORED).long(),
        "label": labels,
        "prediction": logits.argmax(-1),
    }


def _metrics(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    import numpy as np
    from sklearn.metrics import confusion_matrix

    label, prediction = columns["label"], columns["prediction"]
    counts = np.bincount(label, minlength=len(names))
    matrix = confusion_matrix(label, prediction, labels=list(range(len(names))))
    return {
        "loss": float(columns["loss_sum"].sum() / columns["num_targets"].sum()),
        # With one label per text micro precision, recall and F1 are the accuracy.
        "accuracy": float((label == prediction).mean()),
        **scoring.class_metrics(label, prediction, names, ["macro"]),
        "majority_accuracy": float(counts.max() / counts.sum()),
        "rows": len(label),
        "confusion": {"labels": list(names), "matrix": matrix.tolist()},
    }


def _predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    context: EncodeContext,
    config: VariantConfig,
) -> list[dict[str, Any]]:
    def answer(encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        shares = texts.logits(model, tokenizer, encoded).softmax(-1)
        return [
            {
                "prediction": context.labels[int(share.argmax())],
                "scores": {
                    name: round(float(p), 6) for name, p in zip(context.labels, share, strict=True)
                },
            }
            for share in shares
        ]

    return texts.answers(
        rows, lambda row: _encode({**row, "label": None}, tokenizer, context), answer
    )


TASK = Task(
    name="seq_cls",
    summary="text classification, one label per text or pair of texts",
    source="BERT (Devlin et al. 2019), section 4.1: a linear layer on the pooled output",
    config=SeqClsConfig,
    rows=("labelled_text",),
    auto_class="AutoModelForSequenceClassification",
    peft_type="SEQ_CLS",
    new_head=True,
    labels="class",
    headline="accuracy",
    key=texts.key,
    stratum=lambda row: row["label"],
    classes=lambda row: (row["label"],),
    check=_check,
    class_weights=_class_weights,
    encode=_encode,
    num_targets=len,
    loss=_loss,
    score=_score,
    metrics=_metrics,
    predict=_predict,
)
