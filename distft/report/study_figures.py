"""The figures of a study: learning curves, response to the learning rate, importance, Pareto."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import plotly.graph_objects as go

from distft.report import study_document as told
from distft.report.figures import Figure, framed, ring
from distft.report.show import Document, duration, number, percent, size
from distft.report.study_curves import curves
from distft.report.study_marks import (
    GREY,
    Mark,
    Point,
    in_view,
    left_out,
    marks,
    outside,
    plain,
    scattered,
)

MOST_PARAMETERS = 8
NARROW_METHODS = 6
"""Most methods of a figure of half the page's width."""


@dataclass(frozen=True)
class Cost:
    """What a trial's quality is weighed against."""

    id: str
    name: str
    unit: str
    of: Callable[[told.Trial], float | None]
    """In the unit, or None where the trial has none."""
    text: Callable[[float], str]
    """From the unit."""
    lower_wins: bool = True


def figures(content: Document) -> list[Figure]:
    """Return the figures of a study.

    Args:
        content: The report's document.

    Returns:
        Those for which there is something to see.
    """
    drawn = [curves(content), response(content), importances(content)]
    drawn.extend(pareto(content, cost) for cost in _costs(content))
    return [figure for figure in drawn if figure]


def response(content: Document) -> Figure | None:
    """Return the value of each trial over its learning rate, or None where that was not searched.

    Args:
        content: The report's document.

    Returns:
        The figure; points of trials stopped early are open.
    """
    points = [
        Point(rate, trial["value"], trial)
        for _, trial in _valued(content)
        if isinstance(rate := trial["params"].get(told.LEARNING_RATE), int | float) and rate > 0
    ]
    if len({point.x for point in points}) < 2:
        return None
    values = [point.y for point in points]
    view = in_view(values, told.lower_wins(content["study"]))
    goal = told.goal(content)
    words = Figure(
        "figure-learning-rate",
        f"{goal[0].upper()}{goal[1:]} over the learning rate",
        " ".join(_best_rates(content, points)) + _cut_off(view, values),
        wide=_needs_width(points),
    )
    return framed(
        words,
        [*scattered(points, content), *_chosen(content, points)],
        {"title": {"text": "learning rate"}, "type": "log", "exponentformat": "power"},
        {"range": view, "title": {"text": plain(goal)}},
        hovermode="closest",
    )


def _needs_width(points: list[Point]) -> bool:
    # A legend of more would leave a narrow figure no room.
    return len({point.trial["method"] for point in points}) > NARROW_METHODS


def _cut_off(view: list[float], values: list[float]) -> str:
    return left_out(outside(view, values), "trial lies", "trials lie")


def _valued(content: Document) -> Iterator[tuple[int, told.Trial]]:
    for i, trial in told.of_study(content, "search"):
        if trial["value"] is not None and trial["state"] in ("complete", "pruned"):
            yield i, trial


def _best_rates(content: Document, points: list[Point]) -> Iterator[str]:
    pick = min if told.lower_wins(content["study"]) else max
    for method in marks(content):
        own = [point for point in points if point.trial["method"] == method]
        if own:
            best = pick(own, key=lambda point: point.y)
            rates = sorted(point.x for point in own)
            said = f"{number(best.y)} at {told.setting(best.x)}"
            tried = f"{told.setting(rates[0])} to {told.setting(rates[-1])}"
            yield (
                f"{method}: {said}."
                if len(own) == 1
                else (f"{method}: best {said}, tried from {tried}.")
            )


def _chosen(content: Document, points: list[Point]) -> Iterator[go.Scatter]:
    for point in points:
        if point.trial["number"] == content["study"]["recommended"]:
            yield ring(point.x, point.y, "recommended")


def importances(content: Document) -> Figure | None:
    """Return how much of the variation each parameter explains, or None where it is not known.

    Args:
        content: The report's document.

    Returns:
        The figure: bars per parameter, all methods together and each on its own.
    """
    scopes = {
        scope: {path: share for path, share in shares.items() if share is not None}
        for scope, shares in content["study"]["importances"].items()
    }
    most: dict[str, float] = {}
    for shares in scopes.values():
        for path, share in shares.items():
            most[path] = max(most.get(path, 0.0), share)
    paths = sorted(most, key=lambda path: most[path])[-MOST_PARAMETERS:]
    if not paths:
        return None
    colours = {"all": Mark(GREY, ""), **marks(content)}
    traces = [
        go.Bar(
            x=[shares.get(path) for path in paths],
            y=[plain(told.parameter(path)) for path in paths],
            name="all methods" if scope == "all" else plain(scope),
            orientation="h",
            marker={"color": colours.get(scope, Mark(GREY, "")).colour},
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
        for scope, shares in reversed(scopes.items())
        if shares
    ]
    title = f"What the {told.goal(content)} depends on"
    words = Figure("figure-importances", title, " ".join(_shares(scopes)))
    return framed(
        words,
        traces,
        {"title": {"text": "share of the variation explained"}, "tickformat": ".0%",
         "rangemode": "tozero"},
        {"automargin": True, "ticklabelstandoff": 6},
        hovermode="closest",
        bargap=0.3,
        legend_traceorder="reversed",
    )  # fmt: skip


def _shares(scopes: dict[str, dict[str, float]]) -> Iterator[str]:
    for scope, shares in scopes.items():
        ranked = sorted(shares.items(), key=lambda pair: -pair[1])[:MOST_PARAMETERS]
        said = ", ".join(f"{told.parameter(path)} {percent(share)}" for path, share in ranked)
        if said:
            yield f"{'All methods' if scope == 'all' else scope}: {said}."


def pareto(content: Document, cost: Cost) -> Figure | None:
    """Return quality against a cost with the front drawn, or None where there is no choice to see.

    Args:
        content: The report's document.
        cost: What quality is weighed against.

    Returns:
        The figure; the front joins whole trials that no other one beats in both.
    """
    # Those stopped early had fewer samples: their values are not comparable.
    points = [
        Point(price, trial["value"], trial)
        for _, trial in _valued(content)
        if trial["state"] == "complete" and (price := cost.of(trial)) is not None
    ]
    if len({point.x for point in points}) < 2:
        return None
    front = _front(points, cost.lower_wins, told.lower_wins(content["study"]))
    goal = told.goal(content)
    values = [point.y for point in points]
    view = in_view(values, told.lower_wins(content["study"]))
    said = ", ".join(
        f"trial {point.trial['number']} ({point.trial['method']}) {number(point.y)} at "
        f"{cost.text(point.x)}"
        for point in front
    )
    words = Figure(
        f"figure-pareto-{cost.id}",
        f"{goal[0].upper()}{goal[1:]} against {cost.name}",
        f"On the front, where none is better in both: {said}. Only trials that ran "
        f"to their end are shown.{_cut_off(view, values)}",
        wide=_needs_width(points),
    )
    spread = max(point.x for point in points) / max(min(point.x for point in points), 1e-9)
    return framed(
        words,
        [_front_line(front), *scattered(points, content), *_chosen(content, points)],
        {"title": {"text": cost.name + (f" ({cost.unit})" if cost.unit else "")},
         "type": "log" if spread > 20 else "linear", "exponentformat": "SI"},
        {"range": view, "title": {"text": plain(goal)}},
        hovermode="closest",
    )  # fmt: skip


def _front(points: list[Point], cheap_wins: bool, lower_wins: bool) -> list[Point]:
    cost_sign, value_sign = (1 if cheap_wins else -1), (1 if lower_wins else -1)
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (cost_sign * one.x, value_sign * one.y)):
        if not front or value_sign * point.y < value_sign * front[-1].y:
            front.append(point)
    return front


def _front_line(front: list[Point]) -> go.Scatter:
    return go.Scatter(
        x=[point.x for point in front],
        y=[point.y for point in front],
        name="front",
        mode="lines",
        hoverinfo="skip",
        line={"color": GREY, "width": 1.5, "shape": "hv"},
    )


def _costs(content: Document) -> Iterator[Cost]:
    yield _memory_cost(content)
    yield Cost("params", "trained parameters", "", _trained, number)
    study = content["study"]
    for k, name in enumerate(study["objective"]):
        if k and name not in ("peak_memory", "trainable_params"):
            unit, text = ("s", duration) if name == "duration_s" else ("", number)
            plain_name = "duration" if name == "duration_s" else told.goal(content, k)
            lower = told.lower_wins(study, k)
            yield Cost(f"objective-{k}", plain_name, unit, _Objective(k), text, lower)


@dataclass(frozen=True)
class _Objective:
    """Takes one of several objectives from a trial."""

    index: int

    def __call__(self, trial: told.Trial) -> float | None:
        values = trial["values"]
        return values[self.index] if self.index < len(values) else None


def _memory_cost(content: Document) -> Cost:
    planned = [_planned(trial) or 0 for trial in content["trials"]]
    unit, factor = ("GiB", 2**30) if max(planned, default=0) >= 2**30 else ("MiB", 2**20)

    def of(trial: told.Trial) -> float | None:
        value = _planned(trial)
        return value / factor if value else None

    name = "planned memory of a worker"
    return Cost("memory", name, unit, of, lambda value: size(value * factor))


def _planned(trial: told.Trial) -> float | None:
    return trial["run"]["peak_memory_bytes"].get("planned") if trial["run"] else None


def _trained(trial: told.Trial) -> float | None:
    return trial["run"]["model"]["trainable_params"] if trial["run"] else None
