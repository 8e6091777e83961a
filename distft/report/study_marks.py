"""How the trials of a study are drawn, the same in every figure: colour and symbol by method."""

from __future__ import annotations

import html
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
        method: Mark(COLOURS[i % len(COLOURS)], SYMBOLS[i % len(SYMBOLS)])
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
        One trace per method, then one that explains open points where there are some.
    """
    traces = []
    for method, mark in marks(content).items():
        own = [point for point in points if point.trial["method"] == method]
        if not own:
            continue
        whole = [point.trial["state"] == "complete" for point in own]
        traces.append(
            go.Scatter(
                x=[point.x for point in own],
                y=[point.y for point in own],
                name=plain(method),
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
        mode="lines" if line else "markers",
        line=line or {},
        marker={"line": {"width": 1.5}, **marker},
        hoverinfo="skip",
    )


def in_view(kept: Iterable[float], all_values: Iterable[float]) -> tuple[list[float], int]:
    """Return a range of the value axis that shows what matters, and how many values leave it.

    Args:
        kept: Values that must be seen, such as those of the trials that ran to their end.
        all_values: Every value there is.

    Returns:
        [low, high] and the number of values outside; one diverged trial would otherwise press all
        others into one line.
    """
    every = list(all_values)
    seen = list(kept) or every
    low, high = min(seen), max(seen)
    room = (high - low) or abs(high) * 0.1 or 1.0
    # What lies close by is taken in, and then gets its margin.
    near = [value for value in every if low - room / 2 <= value <= high + room / 2]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.06 * ((high - low) or room)
    outside = sum(not low - margin <= value <= high + margin for value in every)
    return [low - margin, high + margin], outside


def left_out(count: int, one: str, several: str) -> str:
    """Return a sentence about what the range cuts off; empty where it cuts off nothing."""
    return f" {count} {one if count == 1 else several} outside the picture." if count else ""
