"""A run's report speaks of what its task counts: classes, labels or entities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distft.report.results import classes, comparison, errors
from distft.tasks.regression import TASK

PER_CLASS = {"a": {"precision": 1.0, "recall": 0.5, "f1": 0.6667, "support": 4}}


def document(tuned: dict[str, Any]) -> dict[str, Any]:
    base = {key: value for key, value in tuned.items() if key == "eval_per_class"}
    return {"run": {}, "evaluations": {"test": {"tuned": tuned, "base": base | tuned}}}


@pytest.mark.parametrize(
    ("metrics", "title", "one", "counted"),
    [
        ({"eval_confusion": {"labels": ["a"], "matrix": [[4]]}}, "Classes", "class", "rows"),
        ({"eval_entities": 4}, "Entities", "kind of entity", "entities"),
        ({"eval_label_accuracy": 0.5}, "Labels", "label", "rows with it"),
    ],
)
def test_the_table_per_class_says_what_it_counts(
    metrics: dict[str, Any], title: str, one: str, counted: str
) -> None:
    section = classes(document({"eval_per_class": PER_CLASS, **metrics}))
    assert section is not None
    assert section.title == title
    table = section.tables[0]
    assert (table.head[0], table.head[-1]) == (one, counted)
    assert [cell.text for cell in table.rows[0]] == [
        "a",
        "1.000",
        "0.5000",
        "0.6667",
        "0.6667",
        "4",
    ]


def test_what_training_cannot_move_has_no_change() -> None:
    tuned = {"eval_mse": 0.5, "eval_mean_mse": 2.0, "eval_spearman": 0.7, "eval_rows": 9}
    (table,) = comparison(document(tuned)).tables
    assert {row[0].text: row[-1].text for row in table.rows} == {
        "MSE": "0",
        "MSE of the mean": "-",
        "Spearman correlation": "0",
        "rows": "-",
    }


def test_errors_of_predicted_numbers_are_told_by_share_of_the_rows() -> None:
    section = errors(document({"eval_error_quantiles": {"50 %": 0.25, "100 %": 2.0}}))
    assert section is not None
    rows = [[cell.text for cell in row] for row in section.tables[0].rows]
    assert rows == [["50 %", "0.2500", "0.2500"], ["100 %", "2.000", "2.000"]]
    assert errors(document({"eval_loss": 1.0})) is None


def test_error_quantiles_are_those_of_the_absolute_errors() -> None:
    columns = {
        "label": np.zeros(5),
        "prediction": np.array([-4.0, 1.0, 0.0, 3.0, -2.0]),
        "loss_sum": np.ones(5),
        "num_targets": np.ones(5),
    }
    found = TASK.metrics(columns, [])["error_quantiles"]
    assert found == {
        "25 %": 1.0,
        "50 %": 2.0,
        "75 %": 3.0,
        "90 %": pytest.approx(3.6),
        "100 %": 4.0,
    }
