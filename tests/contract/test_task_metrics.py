"""Weights and metrics of tasks against what scikit-learn and seqeval say."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from distft import plugin
from distft.errors import ConfigError
from distft.plugin import LossSettings

TASKS = plugin.tasks()


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def weights_of(name: str, wanted: Any, names: list[str], counts: list[int], rows: int) -> Any:
    task = TASKS[name]
    config = task.config.model_validate({"name": name, "class_weights": wanted})
    task.check(config, names)
    return task.class_weights(config, names, counts, rows)


def test_balanced_weights_are_sklearns() -> None:
    """The figures are what scikit-learn 1.9.1 gave outside this repository."""
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 7 + [1] * 2 + [2])
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    ours = weights_of("seq_cls", "balanced", ["a", "b", "c"], [7, 2, 1], 10)
    assert ours == pytest.approx(theirs.tolist())
    assert ours == pytest.approx([0.47619047619047616, 1.6666666666666667, 3.3333333333333335])
    assert weights_of("seq_cls", "balanced", ["a", "b"], [4, 0], 4) == [0.5, 1.0]


def test_a_balanced_label_weighs_as_much_present_as_absent() -> None:
    """The ratio of scikit-learn's weights of the two sides is what `pos_weight` asks for."""
    from sklearn.utils.class_weight import compute_class_weight

    held = (numbers(50, 3) > torch.tensor([-1.0, 0.2, 1.2])).numpy().astype(int)
    counts = held.sum(0).tolist()
    ours = weights_of("multilabel_cls", "balanced", list("abc"), counts, 50)
    for column, weight in zip(held.T, ours, strict=True):
        absent, present = compute_class_weight("balanced", classes=np.arange(2), y=column)
        assert weight == pytest.approx(present / absent)
    assert weights_of("multilabel_cls", "balanced", ["a", "b", "c"], [8, 2, 0], 8) == [1, 3, 1]


@pytest.mark.parametrize("name", ["seq_cls", "multilabel_cls"])
def test_given_weights_and_unknown_classes(name: str) -> None:
    assert weights_of(name, None, ["a", "b"], [1, 1], 2) is None
    assert weights_of(name, {"b": 3}, ["a", "b"], [1, 1], 2) == [1.0, 3.0]
    assert weights_of(name, {1: 2.0}, ["0", "1"], [1, 1], 2) == [1.0, 2.0]
    assert weights_of(name, {True: 2.0}, ["false", "true"], [1, 1], 2) == [1.0, 2.0]
    with pytest.raises(ConfigError, match="no class 'goood'; did you mean good"):
        weights_of(name, {"goood": 1.0}, ["bad", "good"], [1, 1], 2)


def test_class_weights_change_the_training_loss_only() -> None:
    weights = torch.tensor([1.0, 3.0, 0.5])
    settings = LossSettings(class_weights=weights)
    logits, labels = numbers(6, 3), torch.tensor([0, 1, 2, 1, -100, 0])
    task = TASKS["seq_cls"]
    each = task.score(logits, labels, ["a", "b", "c"])["loss_sum"]
    wanted = sum(each[i] * weights[label] for i, label in enumerate(labels) if label >= 0)
    assert task.loss(logits, labels, settings).item() == pytest.approx(float(wanted), rel=1e-5)
    many, held = TASKS["multilabel_cls"], torch.tensor([[1.0, 0.0, 1.0]] * 6)
    p = logits.double().sigmoid()
    by_hand = -(weights * held * p.log() + (1 - held) * (1 - p).log()).sum()
    assert many.loss(logits, held, settings).item() == pytest.approx(by_hand.item(), rel=1e-5)
    plain = -(held * p.log() + (1 - held) * (1 - p).log()).sum()
    assert many.score(logits, held, [])["loss_sum"].sum().item() == pytest.approx(
        plain.item(), rel=1e-5
    )


def scored(name: str, logits: torch.Tensor, labels: torch.Tensor, names: list[str]) -> Any:
    task = TASKS[name]
    columns = {k: v.numpy() for k, v in task.score(logits, labels, names).items()}
    with warnings.catch_warnings():
        # What is undefined is decided here and is no warning of scikit-learn's or SciPy's.
        warnings.simplefilter("error")
        return task.metrics(columns, names)


def said(ids: list[int], classes: int) -> torch.Tensor:
    """Logits whose largest is that of the class."""
    return torch.nn.functional.one_hot(torch.tensor(ids), classes) * 9.0


def test_seq_cls_metrics_on_fixed_predictions() -> None:
    """The figures are scikit-learn's, computed outside this repository."""
    true, guess = [0, 1, 2, 2, 1, 0, 0, 3, 1, 2, 2], [0, 2, 2, 1, 1, 0, 2, 0, 1, 2, 2]
    found = scored("seq_cls", said(guess, 4), torch.tensor(true), list("abcd"))
    assert found["accuracy"] == pytest.approx(0.6363636363636364)
    assert found["precision_macro"] == pytest.approx(0.4833333333333333)
    assert found["recall_macro"] == pytest.approx(0.5208333333333333)
    assert found["f1_macro"] == pytest.approx(0.5)
    assert found["confusion"]["matrix"] == [[2, 0, 1, 0], [0, 2, 1, 0], [0, 1, 3, 0], [1, 0, 0, 0]]
    assert [found["per_class"][name]["f1"] for name in "abcd"] == pytest.approx([2 / 3] * 3 + [0])


def test_multilabel_metrics_on_fixed_predictions() -> None:
    """The figures are scikit-learn's, computed outside this repository; two rows hold no label."""
    true = [[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
    guess = [[1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 1, 0], [1, 1, 0]]
    logits = torch.tensor(guess) * 8.0 - 4
    found = scored("multilabel_cls", logits, torch.tensor(true, dtype=torch.float), list("abc"))
    assert found["precision_micro"] == pytest.approx(0.5714285714285714)
    assert found["recall_micro"] == pytest.approx(0.6666666666666666)
    assert found["f1_micro"] == pytest.approx(0.6153846153846154)
    assert found["precision_macro"] == pytest.approx(0.4444444444444444)
    assert found["recall_macro"] == pytest.approx(0.5)
    assert found["f1_macro"] == pytest.approx(0.4666666666666666)
    assert found["subset_accuracy"] == pytest.approx(0.16666666666666666)
    assert found["label_accuracy"] == pytest.approx(0.7222222222222222)


def test_regression_metrics_on_fixed_predictions() -> None:
    """The figures are scikit-learn's and SciPy's, computed outside this repository."""
    true, guess = [1.0, 2.5, 4.0, 0.5, 3.0, 3.0], [1.5, 2.0, 3.5, 1.0, 4.0, 2.5]
    found = scored("regression", torch.tensor(guess)[:, None], torch.tensor(true)[:, None], [])
    assert found["mse"] == pytest.approx(0.375)
    assert found["mae"] == pytest.approx(0.5833333333333334)
    assert found["r2"] == pytest.approx(0.7452830188679245)
    assert found["pearson"] == pytest.approx(0.8660423188386662)
    assert found["spearman"] == pytest.approx(0.898645105261295)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("guess", [0, 1])
def test_a_split_of_one_class_has_finite_metrics(rows: int, guess: int) -> None:
    labels = torch.zeros(rows, dtype=torch.long)
    found = scored("seq_cls", said([guess] * rows, 3), labels, list("abc"))
    assert (found["accuracy"], found["majority_accuracy"]) == (1.0 - guess, 1.0)
    assert found["f1_macro"] == pytest.approx((1 - guess) / 3)
    held = torch.zeros(rows, 3)
    many = scored("multilabel_cls", held - 1, held, list("abc"))
    assert (many["f1_micro"], many["subset_accuracy"]) == (0.0, 1.0)
    names = ["B-X", "I-X", "O"]
    words = scored("token_cls", *tagged([("O O", "O O")] * rows, names), names)
    assert (words["entity_f1"], words["token_accuracy"], words["entities"]) == (0.0, 1.0, 0)
    json.dumps([found, many, words], allow_nan=False)


def test_constant_numbers_have_finite_metrics() -> None:
    constant = torch.full((5, 1), 2.0)
    found = scored("regression", numbers(5, 1), constant, [])
    assert (found["r2"], found["pearson"], found["spearman"], found["mean_mse"]) == (0, 0, 0, 0)
    assert found["mse"] > 0
    json.dumps(found, allow_nan=False)


Learnt = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Labels, the logits of a model that knows them, and those of one that does not."""
LEARNT: dict[str, Learnt] = {
    "seq_cls": (torch.tensor([0, 1, 2, 1]), said([0, 1, 2, 1], 3), said([1, 0, 0, 0], 3)),
    "multilabel_cls": (
        torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
        torch.tensor([[9.0, -9.0, 9.0], [-9.0, 9.0, -9.0]]),
        torch.tensor([[-9.0, 9.0, -9.0], [9.0, -9.0, 9.0]]),
    ),
    "regression": (
        torch.tensor([[1.0], [2.0], [4.0]]),
        torch.tensor([[1.1], [2.0], [4.0]]),
        torch.tensor([[5.0], [2.0], [0.0]]),
    ),
    "causal_lm": (
        torch.tensor([[0, 1, 2]]),
        said([1, 2, 0], 3)[None],
        said([2, 0, 1], 3)[None],
    ),
}


@pytest.mark.parametrize("name", LEARNT)
def test_every_metric_goes_the_way_a_search_takes_it(name: str) -> None:
    labels, good, bad = LEARNT[name]
    names = list("abc")
    known, unknown = scored(name, good, labels, names), scored(name, bad, labels, names)
    differing = [
        metric
        for metric, value in known.items()
        if isinstance(value, float) and value != unknown[metric]
    ]
    assert {"loss", TASKS[name].headline} <= set(differing)
    for metric in differing:
        better = known[metric] > unknown[metric]
        assert plugin.greater_is_better(f"eval_{metric}") is better, metric


def test_multilabel_metrics_are_sklearns() -> None:
    from sklearn import metrics

    logits = numbers(40, 4)
    logits[:, 3] -= 20
    labels = (numbers(4, 40).T > 0.3).float()
    found = scored("multilabel_cls", logits, labels, list("abcd"))
    truth, guess = labels.numpy(), (logits > 0).numpy()
    for average in ("micro", "macro"):
        for key, function in (
            ("precision", metrics.precision_score),
            ("recall", metrics.recall_score),
            ("f1", metrics.f1_score),
        ):
            theirs = function(truth, guess, average=average, zero_division=0)
            assert found[f"{key}_{average}"] == pytest.approx(theirs)
    assert found["subset_accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess))
    assert found["label_accuracy"] == pytest.approx(1 - metrics.hamming_loss(truth, guess))
    assert found["per_class"]["d"]["f1"] == 0.0
    assert found["per_class"]["a"]["support"] == truth[:, 0].sum()


def test_regression_metrics_by_definition() -> None:
    said, true = numbers(30, 1), numbers(2, 30)[1][:, None]
    found = scored("regression", said, true, [])
    x, y = said[:, 0].double().numpy(), true[:, 0].double().numpy()
    error = x - y
    assert found["mse"] == pytest.approx((error**2).mean()) == pytest.approx(found["loss"])
    assert found["rmse"] == pytest.approx(math.sqrt((error**2).mean()))
    assert found["mae"] == pytest.approx(np.abs(error).mean())
    assert found["r2"] == pytest.approx(1 - (error**2).sum() / ((y - y.mean()) ** 2).sum())
    assert found["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    ranks = np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1]
    assert found["spearman"] == pytest.approx(ranks)
    assert found["mean_mse"] == pytest.approx(y.var())
    constant = scored("regression", torch.zeros(5, 1), numbers(5, 1), [])
    assert (constant["pearson"], constant["spearman"]) == (0.0, 0.0)


TAGGED = [
    ("B-PER I-PER O B-LOC O", "B-PER I-PER O B-LOC O"),
    ("B-PER I-PER O B-LOC O", "B-PER O O B-PER O"),
    ("I-ORG I-ORG O O B-ORG", "B-ORG I-ORG O O O"),
    ("B-LOC B-LOC I-LOC O O", "B-LOC I-LOC I-LOC O O"),
    ("B-PER I-LOC O O O", "B-PER I-PER O O I-LOC"),
    ("O O O O O", "O O B-LOC I-LOC O"),
    ("O O O B-PER I-PER", "O O O B-PER I-PER"),
    ("I-PER O O B-LOC", "I-PER I-PER O I-LOC"),
    ("B-ORG I-ORG B-ORG", "B-ORG I-PER B-ORG"),
    ("B-LOC", "I-LOC"),
]
"""(true tags, predicted tags): I- without B-, a kind that changes inside, spans that touch, spans
at the end of a row before one that goes on with I-, and rows cut short."""
TAGS = ["B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER", "O"]


SEQEVAL: dict[str, Any] = {
    "precision": 0.4375,
    "recall": 0.4375,
    "f1": 0.4375,
    "f1_macro": 0.4554334554334554,
    "accuracy": 0.6976744186046512,
    "per_class": {
        "LOC": {"precision": 0.5, "recall": 0.42857142857142855, "f1": 0.4615384615384615}
        | {"support": 7},
        "ORG": {"precision": 0.6666666666666666, "recall": 0.5, "f1": 0.5714285714285715}
        | {"support": 4},
        "PER": {"precision": 0.2857142857142857, "recall": 0.4, "f1": 0.3333333333333333}
        | {"support": 5},
    },
}
"""What seqeval 1.2.2 says of TAGGED in its default mode, computed outside this repository."""


def tagged(pairs: list[tuple[str, str]], names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels with an ignored position before, between and after the words."""
    logits = torch.zeros(len(pairs), 11, len(names))
    labels = torch.full((len(pairs), 11), -100)
    for row, (true, said) in enumerate(pairs):
        for word, (one, other) in enumerate(zip(true.split(), said.split(), strict=True)):
            labels[row, 2 * word + 1] = names.index(one)
            logits[row, 2 * word + 1, names.index(other)] = 9.0
    return logits, labels


def test_entity_metrics_are_those_of_seqeval() -> None:
    found = scored("token_cls", *tagged(TAGGED, TAGS), TAGS)
    assert found["entity_precision"] == pytest.approx(SEQEVAL["precision"])
    assert found["entity_recall"] == pytest.approx(SEQEVAL["recall"])
    assert found["entity_f1"] == pytest.approx(SEQEVAL["f1"])
    assert found["entity_f1_macro"] == pytest.approx(SEQEVAL["f1_macro"])
    assert found["token_accuracy"] == pytest.approx(SEQEVAL["accuracy"])
    for kind, figures in SEQEVAL["per_class"].items():
        assert found["per_class"][kind] == pytest.approx(figures)


def test_tags_without_prefix_are_one_word_each() -> None:
    names = ["NOUN", "VERB"]
    found = scored("token_cls", *tagged([("NOUN NOUN VERB", "NOUN VERB VERB")], names), names)
    assert found["entity_f1"] == found["token_accuracy"] == pytest.approx(2 / 3)
    assert found["per_class"]["NOUN"]["support"] == 2
