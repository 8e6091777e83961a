"""The curves of a run as plotly figures.

Colours of the series are mid-tones that read on a light and on a dark page; text, grid and
background belong to the page's style sheet, so that a figure follows its theme, also in print.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import plotly.graph_objects as go

from distft.plugin import greater_is_better
from distft.report.document import is_evaluation
from distft.report.show import Document, label, look_up, number

BLUE, ORANGE, GREEN = "#3f83c8", "#d9772b", "#2f9e6b"


@dataclass(frozen=True)
class Figure:
    """One chart and its words."""

    id: str
    title: str
    summary: str
    """What the chart shows, for those who cannot see it; also its caption."""
    spec: dict[str, Any] = field(default_factory=dict)
    """data and layout as plotly.js reads them."""
    wide: bool = False
    """Whether it takes the whole width of a page."""


@dataclass(frozen=True)
class Series:
    """Points of one line."""

    name: str
    steps: list[int]
    values: list[float]
    colour: str
    markers: bool = False


def curves(document: Document) -> list[Figure]:
    """Return the figures of a run: loss, task metric, learning rate, gradient norm.

    Args:
        document: The report's document.

    Returns:
        Those for which there are at least two points.
    """
    metric = document["verdict"]["metric"]
    drawn = [
        _figure(
            document,
            "loss",
            "Loss",
            [
                _series(document, "loss", "training", BLUE),
                _series(document, "eval_loss", "eval rows", ORANGE, markers=True),
            ],
            "eval_loss",
        )
    ]
    if metric != "eval_loss":
        title = label(metric)
        drawn.append(
            _figure(
                document,
                "metric",
                title[0].upper() + title[1:] + " on the eval rows",
                [_series(document, metric, label(metric), ORANGE, markers=True)],
                metric,
            )
        )
    for key, title in (("learning_rate", "Learning rate"), ("grad_norm", "Gradient norm")):
        series = [_series(document, key, title.lower(), BLUE)]
        drawn.append(_figure(document, key, title, series))
    return [figure for figure in drawn if figure]


def _series(document: Document, key: str, name: str, colour: str, markers: bool = False) -> Series:
    points = [
        (line.get("step") or 0, line[key])
        for line in document["metrics"]
        if isinstance(line.get(key), int | float) and is_evaluation(line) is key.startswith("eval_")
    ]
    return Series(name, [p[0] for p in points], [p[1] for p in points], colour, markers)


def _figure(
    document: Document, name: str, title: str, series: Sequence[Series], best_of: str = ""
) -> Figure | None:
    drawn = [one for one in series if one.steps]
    if not any(len(one.steps) > 1 for one in drawn):
        return None
    traces = [_line(one) for one in drawn]
    summary = "; ".join(_summary(one, best_of) for one in drawn) + "."
    best = look_up(document, "/evaluations/best/step") or look_up(document, "/run/best/step")
    points = dict(zip(drawn[-1].steps, drawn[-1].values, strict=True))
    if best_of and best in points:
        traces.append(ring(best, points[best], "best checkpoint"))
        summary += f" The best checkpoint is step {best}."
    words = Figure(f"figure-{name}", title, summary)
    longest = max(max(one.steps) for one in drawn)
    return framed(
        words,
        traces,
        {"title": {"text": "optimizer step"}, "range": [0, 1.02 * longest]},
        {},
        hovermode="x unified",
    )


def framed(
    words: Figure,
    traces: Sequence[go.Scatter],
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    **layout: Any,
) -> Figure:
    """Return a figure with its chart, in the look all of them share.

    Args:
        words: The figure without a chart.
        traces: What is drawn.
        x: plotly's settings of the x axis.
        y: The same of the y axis.
        **layout: Further settings of plotly's layout.

    Returns:
        The figure.
    """
    figure = go.Figure(traces)
    with_legend = len(figure.data) > 1
    figure.update_layout(
        template="none",
        height=380 if words.wide else 300,
        margin={"l": 52, "r": 12, "t": 34 if with_legend else 12, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=with_legend,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        font={"size": 12},
        xaxis={"zeroline": False, **x},
        yaxis={"zeroline": False, "exponentformat": "power", "nticks": 6, **y},
        **layout,
    )
    return replace(words, spec=json.loads(figure.to_json()))


def _line(series: Series) -> go.Scatter:
    return go.Scatter(
        x=series.steps,
        y=series.values,
        name=series.name,
        mode="lines+markers" if series.markers else "lines",
        cliponaxis=False,
        line={"color": series.colour, "width": 2},
        marker={"color": series.colour, "size": 6},
    )


def ring(x: float, y: float, name: str) -> go.Scatter:
    """Return the mark of the one point that was chosen."""
    return go.Scatter(
        x=[x],
        y=[y],
        name=name,
        mode="markers",
        hoverinfo="skip",
        cliponaxis=False,
        marker={"color": GREEN, "size": 13, "symbol": "circle-open", "line": {"width": 3}},
    )


def _summary(series: Series, metric: str) -> str:
    first, last = series.values[0], series.values[-1]
    text = (
        f"{series.name} {number(first)} at step {series.steps[0]}, "
        f"{number(last)} at step {series.steps[-1]}"
    )
    text = text[0].upper() + text[1:]
    if not series.markers:
        return text
    pick = max if greater_is_better(metric) else min
    step, value = pick(zip(series.steps, series.values, strict=True), key=lambda point: point[1])
    return f"{text}, {'lowest' if pick is min else 'highest'} {number(value)} at step {step}"
