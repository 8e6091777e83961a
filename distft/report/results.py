"""The parts of a report that tell what came out: figures strip, comparison, classes, data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from distft.plugin import greater_is_better
from distft.records import Metrics
from distft.report.show import (
    NOTHING,
    Cell,
    Document,
    Section,
    Table,
    cell,
    duration,
    label,
    look_up,
    number,
    percent,
    pointer,
    size,
    words,
)


def tested_at(document: Document) -> str:
    """Return where the metrics on the test rows stand: in eval.json, else in the record."""
    return "/evaluations/test" if look_up(document, "/evaluations/test/tuned") else "/run/test"


def strip(document: Document) -> list[tuple[str, Cell]]:
    """Return the few numbers shown large, each with its name."""
    verdict, run = document["verdict"], document["run"]
    name = label(verdict["metric"])
    share = run["model"]["trainable_params"] / max(1, run["model"]["params"])
    shown = [
        (f"{name}, tuned", cell(document, "/verdict/tuned")),
        (f"{name}, base", cell(document, "/verdict/base")),
        ("most frequent class", cell(document, "/verdict/majority")),
        ("trained share", Cell(percent(share), share)),
        ("training time", cell(document, "/run/duration_s", duration)),
        ("tokens/s", cell(document, "/run/tokens_per_s", lambda value: f"{value:,.0f}")),
        ("peak memory", cell(document, "/run/peak_memory_bytes/measured", size)),
    ]
    return [(name, value) for name, value in shown if value.is_number]


def comparison(document: Document) -> Section:
    """Return base against tuned: on the test rows, and on the eval rows over the run."""
    tables = []
    test = tested_at(document)
    if look_up(document, f"{test}/tuned"):
        rows = [
            _compared(document, metric, f"{test}/base", f"{test}/tuned", test)
            for metric in _scalars(look_up(document, f"{test}/tuned"))
        ]
        has_majority = any(row[2].is_number for row in rows)
        head = ["metric", "base", "most frequent class", "tuned", "change"]
        tables.append(
            Table(
                "On the test rows, which nothing was chosen by",
                head if has_majority else [*head[:2], *head[3:]],
                rows if has_majority else [[*row[:2], *row[3:]] for row in rows],
            )
        )
    tables.extend(_over_the_run(document))
    return Section("compared", "Base against tuned", tables)


def _scalars(metrics: Any) -> Iterator[str]:
    for key, value in (metrics or {}).items():
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if plain and key.startswith("eval_") and key != "eval_majority_accuracy":
            yield key


def _compared(document: Document, metric: str, base: str, tuned: str, test: str) -> list[Cell]:
    before, after = cell(document, base + pointer(metric)), cell(document, tuned + pointer(metric))
    majority = cell(document, f"{test}/majority" + pointer(metric))
    if metric == "eval_accuracy" and not majority.is_number:
        majority = cell(document, f"{tuned}/eval_majority_accuracy")
    return [words(label(metric)), before, majority, after, _change(metric, before, after)]


def _change(metric: str, before: Cell, after: Cell) -> Cell:
    counts = ("rows", "targets", "tokens", "entities", "mean_mse")
    if not before.is_number or not after.is_number or metric.removeprefix("eval_") in counts:
        return Cell(NOTHING)
    change = after.value - before.value
    tone = "" if not change else ("good" if (change > 0) == greater_is_better(metric) else "bad")
    sign = "+" if change > 0 else ""
    return Cell(sign + number(change), change, tone=tone)


def _over_the_run(document: Document) -> Iterator[Table]:
    places = {"before": "baseline", "best": "best", "last": "final"}
    found = {}
    for name, key in places.items():
        path = f"/evaluations/{key}"
        path = path if look_up(document, path) else f"/run/{key}"
        if look_up(document, path):
            found[name] = path
    if not found:
        return
    metrics = _scalars(look_up(document, list(found.values())[-1]))
    rows = [
        [words(label(metric)), *(cell(document, path + pointer(metric)) for path in found.values())]
        for metric in metrics
    ]
    step = cell(document, found.get("best", "") + "/step")
    caption = "On the eval rows, which chose the best checkpoint"
    if step.is_number:
        steps = [step if name == "best" else Cell(NOTHING) for name in found]
        rows.append([words("step of the best checkpoint"), *steps])
    yield Table(caption, ["metric", *found], rows)


def classes(document: Document) -> Section | None:
    """Return the table per class and the confusion matrix, or None where there are no classes."""
    test = tested_at(document)
    tuned, base, where = f"{test}/tuned", f"{test}/base", "test rows"
    if not look_up(document, f"{tuned}/eval_per_class"):
        tuned, base, where = "/evaluations/best", "/evaluations/baseline", "eval rows"
    per_class = look_up(document, f"{tuned}/eval_per_class")
    if not per_class:
        return None
    title, one, counted = _counted(look_up(document, tuned))
    tables = [
        Table(
            f"Each {one} on the {where}, tuned model",
            [one, "precision", "recall", "F1", "F1 of the base", counted],
            [
                [
                    words(name),
                    *(
                        cell(document, tuned + pointer("eval_per_class", name, key))
                        for key in ("precision", "recall", "f1")
                    ),
                    cell(document, base + pointer("eval_per_class", name, "f1")),
                    cell(document, tuned + pointer("eval_per_class", name, "support")),
                ]
                for name in per_class
            ],
        )
    ]
    if matrix := _confusion(document, tuned, where):
        tables.append(matrix)
    return Section("classes", title, tables)


def errors(document: Document) -> Section | None:
    """Return how far predictions lie from the true values, or None where they are no numbers."""
    test = tested_at(document)
    quantiles = look_up(document, f"{test}/tuned/eval_error_quantiles")
    if not quantiles:
        return None
    rows = [
        [
            words(share),
            *(
                cell(document, f"{test}/{which}" + pointer("eval_error_quantiles", share))
                for which in ("base", "tuned")
            ),
        ]
        for share in quantiles
    ]
    caption = "So many of the test rows are at most so far from the true value"
    return Section(
        "errors", "Errors", [Table(caption, ["share of the rows", "base", "tuned"], rows)]
    )


def _counted(metrics: Metrics) -> tuple[str, str, str]:
    """Return the section's title, what a line of it is, and what its support counts."""
    if "eval_entities" in metrics:
        return "Entities", "kind of entity", "entities"
    if "eval_confusion" in metrics:
        return "Classes", "class", "rows"
    return "Labels", "label", "rows with it"


def _confusion(document: Document, tuned: str, where: str) -> Table | None:
    confusion = look_up(document, f"{tuned}/eval_confusion")
    if not confusion:
        return None
    rows = []
    for i, name in enumerate(confusion["labels"]):
        total = max(1, sum(confusion["matrix"][i]))
        counts = [
            replace(
                cell(document, tuned + pointer("eval_confusion", "matrix", i, j)),
                tone="good" if i == j else "bad",
                share=round(count / total, 3),
            )
            for j, count in enumerate(confusion["matrix"][i])
        ]
        rows.append([words(name), *counts])
    return Table(
        f"Confusion matrix on the {where}, tuned model",
        ["true class", *(str(name) for name in confusion["labels"])],
        rows,
        note="Rows: what it is; columns: what the model said. Shade: share of the row.",
        kind="matrix",
    )


def data(document: Document) -> Section:
    """Return what the run learnt from: rows and tokens per split, and what was left out."""
    run, plan = document["run"], document["plan"]
    rows = [
        [
            words(split),
            cell(document, pointer("run", "data", "rows", split)),
            cell(document, pointer("run", "data", "tokens", split)),
        ]
        for split in run["data"]["rows"]
    ]
    tables = [Table("Rows and tokens after cleaning", ["split", "rows", "tokens"], rows)]
    sets = [
        [
            words(one["name"]),
            cell(document, pointer("plan", "mix", i, "share"), percent),
            cell(document, pointer("plan", "mix", i, "rows")),
            cell(document, pointer("plan", "mix", i, "passes")),
        ]
        for i, one in enumerate(plan.get("mix") or ())
    ]
    if sets:
        note = (
            "A pass is one time through the rows of a set. Together the sets are the split train."
        )
        head = ["set", "share of the samples", "rows", "passes"]
        tables.append(Table("Training sets", head, sets, note))
    facts = [
        [words(name), cell(document, f"/plan/{key}")]
        for name, key in (
            ("tokens of a mean sample", "mean_tokens"),
            ("tokens of the longest sample", "max_tokens"),
        )
        if key in plan
    ]
    for key, name in (
        ("truncated", "truncated, {}"),
        ("dropped", "dropped: {}"),
        ("changed", "changed by cleaning: {}"),
    ):
        for which, count in (run["data"].get(key) or {}).items():
            if count:
                path = pointer("run", "data", key, which)
                facts.append([words(name.format(which)), cell(document, path)])
    if facts:
        tables.append(Table("Samples", ["what", "number"], facts))
    return Section("data", "Data", tables)
