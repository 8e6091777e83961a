"""A number for a text or a pair of texts: squared error on a new head with one output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distft import texts
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


_SHARES = (25, 50, 75, 90, 100)
"""Percent of the rows, the nearest ones, whose largest error is told."""


class RegressionConfig(VariantConfig):
    """Keys of `task: {name: regression}`."""

    name: str = "regression"
    """The task."""


def _finish(
    row: Row, tokens: texts.Tokens, tokenizer: PreTrainedTokenizerBase, context: EncodeContext
) -> Encoded:
    value = row.get("value")
    if value is not None and not math.isfinite(value):
        raise UnusableRow("the number to learn is not finite")
    labels = [] if value is None else [float(value)]
    parts = texts.parts(row, tokenizer)
    return texts.sample(parts, tokens, tokenizer, context.cutoff_len, labels)


_encode = texts.Whole(texts.parts, _finish)


def _errors(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the squared error of every number, 0 for a dummy's."""
    given = ~labels.isnan()
    return (logits.float() - labels.nan_to_num(0.0)).square() * given


def _loss(logits: torch.Tensor, labels: torch.Tensor, settings: LossSettings) -> torch.Tensor:
    return _errors(logits, labels).sum()


def _score(
    logits: torch.Tensor, labels: torch.Tensor, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    return {
        "loss_sum": _errors(logits, labels).sum(-1),
        "num_targets": (~labels.isnan()).sum(-1),
        "label": labels[:, 0],
        "prediction": logits[:, 0].float(),
    }


def _metrics(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    import numpy as np
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    label = columns["label"].astype(np.float64)
    prediction = columns["prediction"].astype(np.float64)
    mse = float(mean_squared_error(label, prediction))
    # Undefined where one side is constant: such an answer tells nothing, which is 0.
    varies = bool(np.ptp(label) > 0 and np.ptp(prediction) > 0)
    return {
        "loss": float(columns["loss_sum"].sum() / columns["num_targets"].sum()),
        "mse": mse,
        "rmse": math.sqrt(mse),
        "mae": float(mean_absolute_error(label, prediction)),
        "r2": float(r2_score(label, prediction)) if np.ptp(label) > 0 else 0.0,
        "pearson": float(pearsonr(label, prediction).statistic) if varies else 0.0,
        "spearman": float(spearmanr(label, prediction).statistic) if varies else 0.0,
        "mean_mse": float(label.var()),
        "rows": len(label),
        "error_quantiles": {
            f"{share} %": float(np.percentile(abs(prediction - label), share)) for share in _SHARES
        },
    }


def _predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    context: EncodeContext,
    config: VariantConfig,
) -> list[dict[str, Any]]:
    def answer(encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        said = texts.logits(model, tokenizer, encoded)[:, 0]
        return [{"prediction": round(float(one), 6)} for one in said]

    return texts.answers(
        rows, lambda row: _encode({**row, "value": None}, tokenizer, context), answer
    )


TASK = Task(
    name="regression",
    summary="a number for a text or a pair of texts, by squared error",
    source="STS-B in GLUE (Wang et al. 2019), as BERT (Devlin et al. 2019) fine-tunes it",
    config=RegressionConfig,
    rows=("rated_text",),
    auto_class="AutoModelForSequenceClassification",
    peft_type="SEQ_CLS",
    new_head=True,
    labels="vector",
    smooths=False,
    num_outputs=1,
    headline="r2",
    key=texts.key,
    encode=_encode,
    num_targets=len,
    loss=_loss,
    score=_score,
    metrics=_metrics,
    predict=_predict,
)
