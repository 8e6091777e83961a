"""Losses, scores and metrics that several tasks share. Loads torch and scikit-learn when called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from distft.errors import ConfigError, nearest

if TYPE_CHECKING:
    import numpy as np
    import torch

    from distft.plugin import LossSettings

IGNORED = -100
"""Label of what is not trained on."""


def _named(weights: object) -> object:
    """Turn keys that YAML reads as numbers or true/false into the labels they stand for."""
    if not isinstance(weights, dict):
        return weights
    return {str(k).lower() if isinstance(k, bool) else str(k): v for k, v in weights.items()}


ClassWeights = Annotated[
    Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None, BeforeValidator(_named)
]
"""What a configuration says of the weights of classes."""


def token_losses(
    logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the cross-entropy of every position.

    Args:
        logits: (B, T, classes or vocabulary).
        targets: (B, T), what stands or is wanted at each position; -100: nothing.
        label_smoothing: Share of probability spread over all classes.

    Returns:
        (B, T) in float32; 0 where nothing is wanted.
    """
    from torch.nn import functional

    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(),
        targets.flatten(),
        reduction="none",
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
    )
    return losses.view_as(targets)


def token_targets(labels: Sequence[float]) -> int:
    """Return how many of a sample's labels are trained on."""
    return len(labels) - labels.count(IGNORED)


def token_loss(logits: torch.Tensor, labels: torch.Tensor, settings: LossSettings) -> torch.Tensor:
    """Return the summed training loss of labels that stand where they are predicted."""
    return token_losses(logits, labels, settings.label_smoothing).sum()


def token_scores(
    logits: torch.Tensor, labels: torch.Tensor, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return the columns that `token_metrics` reads.

    Args:
        logits: As for `token_losses`.
        labels: Its targets.
        names: Of classes; not used.

    Returns:
        `loss_sum`, `num_targets` and `num_correct`, one value per row.
    """
    wanted = labels != IGNORED
    return {
        "loss_sum": token_losses(logits, labels).sum(-1),
        "num_targets": wanted.sum(-1),
        "num_correct": ((logits.argmax(-1) == labels) & wanted).sum(-1),
    }


def next_token_targets(labels: Sequence[float]) -> int:
    """Return how many of a sample's labels are trained on; nothing predicts the first."""
    return token_targets(labels) - int(len(labels) > 0 and labels[0] != IGNORED)


def next_token_loss(
    logits: torch.Tensor, labels: torch.Tensor, settings: LossSettings
) -> torch.Tensor:
    """Return the summed training loss; logits at a position predict the token after it."""
    return token_loss(logits[:, :-1], labels[:, 1:], settings)


def next_token_scores(
    logits: torch.Tensor, labels: torch.Tensor, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return what `token_scores` does; logits at a position predict the token after it."""
    return token_scores(logits[:, :-1], labels[:, 1:], names)


def token_metrics(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of models of language; every token counts alike.

    Args:
        columns: What `token_scores` gave, of all rows.
        names: Of classes; not used.

    Returns:
        `loss, perplexity, token_accuracy, targets, rows`.
    """
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


def class_metrics(
    label: np.ndarray, prediction: np.ndarray, names: Sequence[str], averages: Sequence[str]
) -> dict[str, Any]:
    """Return precision, recall and F1, averaged and per class; 0 where they are undefined.

    Args:
        label: Class ids (rows), or 0 and 1 (rows, classes).
        prediction: Of the same form.
        names: Class names in id order; a class that no row holds counts too.
        averages: scikit-learn's names, such as `macro`.

    Returns:
        `precision_A, recall_A, f1_A` for each average A, and `per_class`.
    """
    from sklearn.metrics import precision_recall_fscore_support

    found: dict[str, Any] = {}
    wanted = {"labels": list(range(len(names))), "zero_division": 0}
    for average in averages:
        precision, recall, f1, _ = precision_recall_fscore_support(
            label, prediction, average=average, **wanted
        )
        found |= {
            f"precision_{average}": float(precision),
            f"recall_{average}": float(recall),
            f"f1_{average}": float(f1),
        }
    each = zip(*precision_recall_fscore_support(label, prediction, **wanted), strict=True)
    found["per_class"] = {
        name: {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(support),
        }
        for name, (precision, recall, f1, support) in zip(names, each, strict=True)
    }
    return found


def check_class_weights(wanted: str | Mapping[str, float] | None, names: Sequence[str]) -> None:
    """Refuse weights of classes that are not learnt.

    Args:
        wanted: `balanced`, or the weights of some classes, or nothing.
        names: Classes of the training rows.

    Raises:
        ConfigError: A weight is given for a class that the training rows do not hold.
    """
    for name in wanted if isinstance(wanted, Mapping) else ():
        if name not in names:
            raise ConfigError(
                f"task.class_weights: the training rows hold no class {name!r}"
                f"{nearest(name, names)}; they hold {', '.join(names)}.",
                "Name classes as they stand in the data; what is not named weighs 1.",
            )


def class_weights(
    wanted: str | Mapping[str, float] | None, names: Sequence[str], balanced: Sequence[float]
) -> list[float] | None:
    """Return the weight of every class in the training loss.

    Args:
        wanted: `balanced`, or the weights of some classes (the others weigh 1), or nothing.
        names: Class names in id order.
        balanced: The weight of each where all are to be balanced.

    Returns:
        One weight per class, or None.

    Raises:
        ConfigError: A weight is given for a class that the training rows do not hold.
    """
    if wanted is None:
        return None
    if isinstance(wanted, str):
        return list(balanced)
    check_class_weights(wanted, names)
    return [float(wanted.get(name, 1.0)) for name in names]
