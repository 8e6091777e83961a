"""The learning curves of a study, with its rungs and how each trial ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go

from distft.report import study_document as told
from distft.report.figures import Figure, framed, ring
from distft.report.show import Document, number
from distft.report.study_marks import (
    GREY,
    RED,
    hover,
    in_view,
    key,
    left_out,
    marks,
    outside,
    plain,
)

Curve = tuple[told.Trial, list[int], list[float]]


def curves(content: Document) -> Figure | None:
    """Return the learning curves of all trials of the search, or None before there are any.

    Args:
        content: The report's document.

    Returns:
        The figure: colour = method, dotted = stopped early, a cross where one failed.
    """
    drawn = list(_drawn(content))
    if not drawn:
        return None
    goal = told.goal(content)
    best, ended = _told_best(content, drawn), _told_ends(content, drawn)
    every = [value for _, _, values in drawn for value in values]
    view = in_view(every, told.lower_wins(content["study"]))
    leaving = sum(outside(view, values) > 0 for _, _, values in drawn)
    words = Figure(
        "figure-curves",
        f"{goal[0].upper()}{goal[1:]} on the eval rows while training",
        f"{ended} {best}{left_out(leaving, 'curve runs partly', 'curves run partly')}",
        wide=True,
    )
    traces = [
        *_legend(content, drawn),
        *(_line(content, curve) for curve in drawn),
        *_ends(content, drawn),
    ]
    end = max([content["study"]["samples_per_trial"], *(x[-1] for _, x, _ in drawn)])
    shapes, notes = _rungs(content)
    return framed(
        words,
        traces,
        {"title": {"text": "training samples"}, "range": [0, 1.02 * end], "tickformat": ",~r"},
        {"range": view, "title": {"text": plain(goal)}},
        hovermode="closest",
        shapes=shapes,
        annotations=notes,
    )


def _drawn(content: Document) -> Iterator[Curve]:
    for _, trial in told.of_study(content, "search"):
        points = [
            (line.get("samples") or 0, line["value"])
            for line in trial["curve"]
            if isinstance(line.get("value"), int | float)
        ]
        if points and trial["reused_from"] is None:
            yield trial, [x for x, _ in points], [y for _, y in points]


def _line(content: Document, curve: Curve) -> go.Scatter:
    trial, x, y = curve
    mark = marks(content)[trial["method"]]
    chosen = trial["number"] == content["study"]["recommended"]
    stopped = trial["state"] in ("pruned", "failed")
    return go.Scatter(
        x=x,
        y=y,
        mode="lines+markers",
        legendgroup=plain(trial["method"]),
        showlegend=False,
        text=[hover(trial)] * len(x),
        hovertemplate="%{text}<br>%{y:.4g} after %{x:,} samples<extra></extra>",
        opacity=0.75 if stopped else 1,
        line={
            "color": mark.colour,
            "width": 4 if chosen else 2,
            "dash": "dot" if stopped else "solid",
        },
        marker={"color": mark.colour, "symbol": mark.symbol, "size": 7},
    )


def _legend(content: Document, drawn: list[Curve]) -> Iterator[go.Scatter]:
    shown = {trial["method"] for trial, _, _ in drawn}
    for method, mark in marks(content).items():
        if method in shown:
            look = {"color": mark.colour, "symbol": mark.symbol, "size": 7}
            trace = key(plain(method), look, {"color": mark.colour, "width": 2})
            yield trace.update(legendgroup=plain(method))
    if any(trial["state"] == "pruned" for trial, _, _ in drawn):
        yield key("stopped early", {}, {"color": GREY, "width": 2, "dash": "dot"})
    if content["study"]["policy"].get("rungs"):
        yield key("rung", {}, {"color": GREY, "width": 1, "dash": "dash"})


def _ends(content: Document, drawn: list[Curve]) -> Iterator[go.Scatter]:
    kinds = (("failed", "x", RED), ("running", "circle-open", GREY))
    for state, symbol, colour in kinds:
        ends = [(trial, x[-1], y[-1]) for trial, x, y in drawn if trial["state"] == state]
        if ends:
            yield go.Scatter(
                x=[x for _, x, _ in ends],
                y=[y for _, _, y in ends],
                name=state,
                mode="markers",
                text=[hover(trial) for trial, _, _ in ends],
                hovertemplate="%{text}<extra></extra>",
                cliponaxis=False,
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "size": 11,
                    "line": {"width": 2, "color": colour},
                },
            )
    for trial, x, y in drawn:
        if trial["number"] == content["study"]["recommended"]:
            yield ring(x[-1], y[-1], "recommended")


def _rungs(content: Document) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    study = content["study"]
    places = [share * study["samples_per_trial"] for share in study["policy"].get("rungs") or []]
    shapes = [
        {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "layer": "below",
         "line": {"color": GREY, "width": 1, "dash": "dash"}}
        for x in places
    ]  # fmt: skip
    notes = [
        {"x": x, "yref": "paper", "y": 1, "xanchor": "left", "yanchor": "top", "xshift": 1,
         "text": str(i), "showarrow": False, "font": {"size": 11}}
        for i, x in enumerate(places, start=1)
    ]  # fmt: skip
    return shapes, notes


def _told_ends(content: Document, drawn: list[Curve]) -> str:
    states = Counter(trial["state"] for trial, _, _ in drawn)
    stopped = Counter(
        decision["rung"] + 1
        for trial, _, _ in drawn
        for decision in trial["rungs"]
        if not decision["kept"]
    )
    at = ", ".join(f"{count} at rung {rung}" for rung, count in sorted(stopped.items()))
    said = [
        f"{states[state]} {verb}"
        for state, verb in (
            ("complete", f"ran all {number(content['study']['samples_per_trial'])} samples"),
            ("pruned", f"stopped early ({at})" if at else "stopped early"),
            ("failed", "failed"),
            ("running", "still running" if len(drawn) > 1 else "is still running"),
        )
        if states[state]
    ]
    if len(drawn) == 1:
        return f"The only trial {said[0].removeprefix('1 ')}."
    return f"{len(drawn)} trials: {', '.join(said)}."


def _told_best(content: Document, drawn: list[Curve]) -> str:
    lower = told.lower_wins(content["study"])
    pick = min if lower else max
    trial, _, _ = pick(drawn, key=lambda curve: pick(curve[2]))
    value, samples = pick(
        ((y, x) for one, xs, ys in drawn if one is trial for x, y in zip(xs, ys, strict=True)),
        key=lambda pair: pair[0],
    )
    word = "Lowest" if lower else "Highest"
    return (
        f"{word}: {number(value)} after {number(samples)} samples, trial {trial['number']} "
        f"({told.described(trial)})."
    )
