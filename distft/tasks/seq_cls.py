"""Text classification: one label per text, cross-entropy on a new head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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


class SeqClsConfig(VariantConfig):
    """Keys of `task: {name: seq_cls}`."""

    name: str = "seq_cls"
    """The task."""


def _encode(row: Row, tokenizer: PreTrainedTokenizerBase, context: EncodeContext) -> Encoded:
    ids = tokenizer(row["text"], truncation=False, verbose=False)["input_ids"]
    if not ids:
        raise UnusableRow("the text has no token")
    truncated = len(ids) > context.cutoff_len
    if truncated:
        # Tokenize again: the tokenizer knows where its closing special token belongs.
        ids = tokenizer(row["text"], truncation=True, max_length=context.cutoff_len)["input_ids"]
    label = row["label"]
    return Encoded(ids, [] if label is None else [context.labels.index(label)], truncated)


def _loss(logits: torch.Tensor, labels: torch.Tensor, settings: LossSettings) -> torch.Tensor:
    from torch.nn import functional

    return functional.cross_entropy(
        logits.float(),
        labels,
        reduction="sum",
        ignore_index=-100,
        label_smoothing=settings.label_smoothing,
    )


def _score(
    logits: torch.Tensor, labels: torch.Tensor, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    from torch.nn import functional

    losses = functional.cross_entropy(logits.float(), labels, reduction="none", ignore_index=-100)
    return {
        "loss_sum": losses,
        "num_targets": (labels != -100).long(),
        "label": labels,
        "prediction": logits.argmax(-1),
    }


def _metrics(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    import numpy as np
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    label, prediction = columns["label"], columns["prediction"]
    ids = list(range(len(names)))
    precision, recall, f1, support = precision_recall_fscore_support(
        label, prediction, labels=ids, zero_division=0
    )
    counts = np.bincount(label, minlength=len(names))
    return {
        "loss": float(columns["loss_sum"].sum() / columns["num_targets"].sum()),
        "accuracy": float((label == prediction).mean()),
        "precision_macro": float(precision.mean()),
        "recall_macro": float(recall.mean()),
        "f1_macro": float(f1.mean()),
        "majority_accuracy": float(counts.max() / counts.sum()),
        "rows": len(label),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(names)
        },
        "confusion": {
            "labels": list(names),
            "matrix": confusion_matrix(label, prediction, labels=ids).tolist(),
        },
    }


def _predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    context: EncodeContext,
    config: VariantConfig,
) -> list[dict[str, Any]]:
    import torch

    encoded = [_encode({**row, "label": None}, tokenizer, context).input_ids for row in rows]
    batch = tokenizer.pad({"input_ids": encoded}, return_tensors="pt")
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = model(
            input_ids=batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
        ).logits
    shares = logits.float().softmax(-1).cpu()
    return [
        {
            "prediction": context.labels[int(share.argmax())],
            "scores": {
                name: round(float(p), 6) for name, p in zip(context.labels, share, strict=True)
            },
        }
        for share in shares
    ]


TASK = Task(
    name="seq_cls",
    summary="text classification, one label per text",
    source="BERT (Devlin et al. 2019), section 4.1: a linear layer on the pooled output",
    config=SeqClsConfig,
    rows=("labelled_text",),
    auto_class="AutoModelForSequenceClassification",
    peft_type="SEQ_CLS",
    new_head=True,
    labels="class",
    headline="accuracy",
    key=lambda row: str(row["text"]),
    stratum=lambda row: row["label"],
    classes=lambda row: [row["label"]],
    encode=_encode,
    num_targets=len,
    loss=_loss,
    score=_score,
    metrics=_metrics,
    predict=_predict,
)
