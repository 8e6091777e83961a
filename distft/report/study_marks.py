"""How the trials of a study are drawn, the same in every figure: colour and symbol by method."""

from __future__ import annotations

import html
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from distft.report import study_document as told
from distft.report.figures import BLUE, ORANGE
from distft.report.show import Document

# Mid-tones that read on a light and on a dark card; green is the ring's, red the failures'.
COLOURS = (BLUE, ORANGE, "#9b6fd0", "#2a9a9a", "#cf5c93", "#8c8f2f", "#a8764e", "#7f8a94")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star", "hexagon", "cross")
RED, GREY = "#d0524a", "#7f8a94"


@dataclass(frozen=True)
class Mark:
    """How the trials of one method look."""

    colour: str
    symbol: str


@dataclass(frozen=True)
class Point:
    """One trial in a figure."""

    x: float
    y: float
    trial: told.Trial


def marks(content: Document) -> dict[str, Mark]:
    """Return the mark of each method, in the order of the space."""
    methods = [*content["study"]["space"], *(trial["method"] for trial in content["trials"])]
    return {
        # The ninth has the first one's colour and another symbol.
        method: Mark(COLOURS[i % len(COLOURS)], SYMBOLS[(i + i // len(COLOURS)) % len(SYMBOLS)])
        for i, method in enumerate(dict.fromkeys(methods))
    }


def plain(text: str) -> str:
    """Return text as plotly shows it literally: it reads a little HTML in names and hovers."""
    return html.escape(text)


def hover(trial: told.Trial) -> str:
    """Return what a trial is called when pointed at."""
    return plain(f"trial {trial['number']}: {told.described(trial)} ({told.state(trial)})")


def scattered(points: Sequence[Point], content: Document) -> list[go.Scatter]:
    """Return the points as traces: filled for whole trials, open for those stopped early.

    Args:
        points: Of any methods.
        content: The report's document.

    Returns:
        Per method its entry of the legend and its points; then what open points mean.
    """
    traces = []
    for method, mark in marks(content).items():
        own = [point for point in points if point.trial["method"] == method]
        if not own:
            continue
        whole = [point.trial["state"] == "complete" for point in own]
        look = {"color": mark.colour, "symbol": mark.symbol, "size": 9}
        traces.append(key(plain(method), look).update(legendgroup=plain(method)))
        traces.append(
            go.Scatter(
                x=[point.x for point in own],
                y=[point.y for point in own],
                legendgroup=plain(method),
                showlegend=False,
                mode="markers",
                text=[hover(point.trial) for point in own],
                hovertemplate="%{text}<br>%{y:.4g} at %{x:.4~g}<extra></extra>",
                cliponaxis=False,
                marker={
                    "color": mark.colour,
                    "symbol": [mark.symbol + ("" if one else "-open") for one in whole],
                    "size": 9,
                    "line": {"width": 1.5, "color": mark.colour},
                },
            )
        )
    if any(point.trial["state"] != "complete" for point in points):
        traces.append(key("stopped early", {"color": GREY, "symbol": "circle-open", "size": 9}))
    return traces


def key(name: str, marker: dict[str, Any], line: dict[str, Any] | None = None) -> go.Scatter:
    """Return an entry of the legend that draws nothing."""
    return go.Scatter(
        x=[None],
        y=[None],
        name=name,
        mode="+".join(["lines"] * bool(line) + ["markers"] * bool(marker)),
        line=line or {},
        marker={"line": {"width": 1.5, "color": marker.get("color")}, **marker},
        hoverinfo="skip",
    )


def in_view(values: Sequence[float], lower_wins: bool) -> list[float]:
    """Return the range of the value axis: everything but what is far worse than the rest.

    Args:
        values: Everything drawn; at least one.
        lower_wins: Which side the bad values are on.

    Returns:
        [low, high]. One diverged trial would otherwise press all others into one line. Far is more
        than twice the middle half's spread away from it (Tukey's fences, a little wider).
    """
    low, high = min(values), max(values)
    if len(values) >= 4:
        first, _, third = statistics.quantiles(values, n=4)
        reach = 2 * (third - first)
        if lower_wins:
            high = min(high, max(third + reach, low))
        else:
            low = max(low, min(first - reach, high))
    margin = 0.06 * ((high - low) or abs(high) or 1.0)
    return [low - margin, high + margin]


def outside(view: Sequence[float], values: Iterable[float]) -> int:
    """Return how many values lie outside a range."""
    return sum(not view[0] <= value <= view[1] for value in values)


def left_out(count: int, one: str, several: str) -> str:
    """Return a sentence about what the range cuts off; empty where it cuts off nothing."""
    return f" {count} {one if count == 1 else several} outside the picture." if count else ""
