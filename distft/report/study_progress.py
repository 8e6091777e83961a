"""A study at one moment, as lines and as one screen; what is new between two moments."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from distft.records import StudyRecord, TrialRecord
from distft.report import study_document as told
from distft.report.show import duration, label, number
from distft.report.study_settings import LIMITS

ENDED = ("complete", "pruned", "failed", "refused")
MOST_STATE = 32
"""Characters of a trial's state on the screen; the whole reason stands in the report."""
CONFIGURATION = "method and parameters"
TONES = {"complete": "green", "pruned": "yellow", "failed": "red", "refused": "red"}
LINES_AROUND = 11
"""Lines of a screen that are not rows of trials."""


@dataclass(frozen=True)
class Snapshot:
    """The files of a study as they were read."""

    record: StudyRecord
    trials: tuple[TrialRecord, ...]

    @property
    def phase(self) -> str:
        """`search`, `confirmation` or `winner`."""
        if self.record.recommended is not None:
            return "winner"
        confirming = any(trial.study == "confirm" for trial in self.trials)
        return "confirmation" if confirming or self.record.candidates else "search"

    @property
    def searched(self) -> list[TrialRecord]:
        """The trials of the search."""
        return [trial for trial in self.trials if trial.study == "search"]

    @property
    def goal(self) -> str:
        """What the first objective is called."""
        return label(self.record.objective[0]) if self.record.objective else "value"

    @property
    def best(self) -> TrialRecord | None:
        """The best trial of the search so far."""
        return next((t for t in self.searched if t.number == self.record.best_trial), None)

    def value(self, value: float | None) -> str:
        """Return a value of the first objective as text."""
        names = self.record.objective
        return "-" if value is None else told.how(names[0] if names else "")(value)

    def samples_of(self, trial: TrialRecord) -> int:
        """Return the samples a trial may train on."""
        record = self.record
        return record.full_samples if trial.study == "confirm" else record.samples_per_trial


def eta(snapshot: Snapshot) -> str:
    """Return how long the present phase still takes, or why that is not known.

    Args:
        snapshot: The study now.

    Returns:
        From the mean time of the trials that ended, those still to come and how many run side by
        side; never longer than the budget of wall time leaves.
    """
    kind = "confirm" if snapshot.phase == "confirmation" else "search"
    trials = [trial for trial in snapshot.trials if trial.study == kind]
    ended = [t for t in trials if t.state in ("complete", "pruned") and t.reused_from is None]
    running = [trial for trial in trials if trial.state == "running"]
    left = _left(snapshot, trials)
    if left is None and kind == "search":
        return "ETA unknown: no number of trials is set"
    if not ended:
        return "ETA known when a trial has ended"
    mean_s = sum(trial.duration_s for trial in ended) / len(ended)
    work_s = sum(max(0.0, mean_s - trial.duration_s) for trial in running) + mean_s * (left or 0)
    remaining_s = work_s / max(1, snapshot.record.max_concurrent)
    limits, spent = snapshot.record.limits, snapshot.record.spent
    if kind == "search" and "wall_s" in limits:
        remaining_s = min(remaining_s, max(0.0, limits["wall_s"] - spent.get("wall_s", 0.0)))
    return f"ETA {duration(remaining_s)} for the {snapshot.phase}"


def _left(snapshot: Snapshot, trials: list[TrialRecord]) -> int | None:
    """Return how many trials of the phase have not started, or None where that is open."""
    if snapshot.phase == "confirmation":
        tune = snapshot.record.config.get("tune") or {}
        chosen = len(snapshot.record.candidates) or int(tune.get("confirm") or 0)
        wanted = chosen * int(tune.get("confirm_seeds") or 0)
        return max(0, wanted - len(trials)) if wanted else None
    limits, spent = snapshot.record.limits, snapshot.record.spent
    bounds = []
    if "trials" in limits:
        bounds.append(limits["trials"] - len(trials))
    for key, used in (("samples", "samples"), ("gpu_s", "gpu_s")):
        ended = [trial for trial in trials if trial.state in ENDED]
        if key in limits and spent.get(used) and ended:
            each = spent[used] / len(ended)
            bounds.append((limits[key] - spent[used]) / each)
    return max(0, math.ceil(min(bounds))) if bounds else None


def headline(snapshot: Snapshot) -> str:
    """Return one line: phase, counts, best so far, time to come, budget left."""
    said = [f"{snapshot.phase}: {counted(snapshot)}", eta(snapshot), budget(snapshot)]
    if snapshot.best is not None:
        said.insert(1, f"best {told_best(snapshot)}")
    return "; ".join(part for part in said if part)


def counted(snapshot: Snapshot) -> str:
    """Return how many trials are in which state."""
    counts: Counter[str] = Counter(trial.state for trial in snapshot.searched)
    counts.update(reused=sum(trial.reused_from is not None for trial in snapshot.searched))
    states = ("running", "complete", "pruned", "failed", "refused", "reused")
    said = [f"{counts[s]} {told.STATES.get(s, s)}" for s in states if counts[s]]
    return ", ".join(said) or "no trial yet"


def told_best(snapshot: Snapshot) -> str:
    """Return the best trial so far in a few words."""
    best = snapshot.best
    if best is None:
        return "none yet"
    value = snapshot.value(best.value)
    return f"trial {best.number} {told.named(best.method, best.params)} {snapshot.goal} {value}"


def budget(snapshot: Snapshot) -> str:
    """Return what is spent of each limit."""
    limits, spent = snapshot.record.limits, snapshot.record.spent
    said = [
        f"{name} {show(spent.get(key, 0.0))} of {show(limits[key])}"
        for key, (name, show) in LIMITS.items()
        if key in limits
    ]
    return f"spent: {', '.join(said)}" if said else ""


def events(before: Snapshot | None, now: Snapshot) -> Iterator[str]:
    """Yield a line for each thing that happened between two moments.

    Args:
        before: The moment before; None at the start.
        now: The moment now.

    Yields:
        Trials started, rungs passed, trials ended, a new best one, a new phase.
    """
    known = {(trial.study, trial.number): trial for trial in before.trials} if before else {}
    for trial in now.trials:
        yield from _of_trial(known.get((trial.study, trial.number)), trial, now)
    best, was = now.best, before.best if before else None
    if best and best.value is not None and (was is None or was.value != best.value):
        yield f"best so far: {told_best(now)}"
    if before is not None and before.phase != now.phase:
        yield f"{before.phase} ended; {now.phase} begins"


def _of_trial(before: TrialRecord | None, trial: TrialRecord, now: Snapshot) -> Iterator[str]:
    name = f"trial {trial.number}" if trial.study == "search" else f"confirmation {trial.number}"
    if trial.reused_from is not None:
        if before is None:
            yield f"{name} not run: same configuration as trial {trial.reused_from}"
        return
    if before is None and trial.state != "refused":
        yield f"{name} started: {told.named(trial.method, trial.params)}"
    for rung in trial.rungs[len(before.rungs) if before else 0 :]:
        decision = "goes on" if rung["kept"] else "is stopped"
        yield (
            f"{name} {decision} at rung {rung['rung'] + 1} ({rung['samples']:,} samples): "
            f"{now.goal} {now.value(rung['value'])}, rank {rung['rank']} of {rung['of']}"
        )
    told_so = trial.state == "pruned" and trial.rungs and not trial.rungs[-1]["kept"]
    if trial.state in ENDED and not told_so and (before is None or before.state != trial.state):
        yield f"{name} {_ending(trial, now)}"


def _ending(trial: TrialRecord, now: Snapshot) -> str:
    reason = f": {' '.join(trial.reason.split())}" if trial.reason else ""
    if trial.state == "refused":
        return f"refused ({told.named(trial.method, trial.params)}){reason}"
    after = f"after {trial.samples:,} samples, {duration(trial.duration_s)}"
    if trial.state == "complete":
        return f"complete {after}: {now.goal} {now.value(trial.value)}"
    return f"{told.STATES.get(trial.state, trial.state)} {after}{reason}"


def screen(snapshot: Snapshot, height: int) -> RenderableType:
    """Return the whole view of a study as rich draws it.

    Args:
        snapshot: The study now.
        height: Lines of the terminal; rows that do not fit are counted.

    Returns:
        Head, trials, best so far, budget.
    """
    shown, hidden = _rows(snapshot, max(3, height - LINES_AROUND))
    table = RichTable(box=None, pad_edge=False, expand=False)
    numbers = ("trial", "samples", snapshot.goal)
    for name in ("trial", CONFIGURATION, "samples", snapshot.goal, "rungs", "state"):
        justify: Literal["left", "right"] = "right" if name in numbers else "left"
        # Columns of words give way in a narrow terminal, numbers stay whole.
        narrow = name in ("state", CONFIGURATION)
        widest = MOST_STATE if name == "state" else None
        table.add_column(Text(name), justify=justify, no_wrap=not narrow, max_width=widest)
    for trial in shown:
        table.add_row(*_row(trial, snapshot))
    title = Text(f"{snapshot.record.name}  {snapshot.phase}", style="bold")
    parts: list[RenderableType] = [title, Text(counted(snapshot)), Text(), table]
    if hidden:
        parts.append(Text(f"... and {hidden} more", style="dim"))
    parts += [Text(), Text(f"best so far: {told_best(snapshot)}", style="bold")]
    parts.append(Text("; ".join(part for part in (eta(snapshot), budget(snapshot)) if part)))
    return Group(*parts)


def _rows(snapshot: Snapshot, most: int) -> tuple[list[TrialRecord], int]:
    """Return the trials to show: running ones first, then the best; and how many not."""
    kind = "confirm" if snapshot.phase == "confirmation" else "search"
    trials = [trial for trial in snapshot.trials if trial.study == kind]
    greater = bool(snapshot.record.greater_is_better and snapshot.record.greater_is_better[0])

    def rank(trial: TrialRecord) -> tuple[float, ...]:
        value = trial.value if trial.value is not None else math.inf
        if trial.state == "running":
            return -1, trial.number
        order = ("complete", "pruned", "failed", "refused").index(trial.state)
        got = 0 if trial.state == "complete" else -trial.samples
        return order, got, -value if greater else value, trial.number

    return sorted(trials, key=rank)[:most], max(0, len(trials) - most)


def _row(trial: TrialRecord, snapshot: Snapshot) -> list[Text]:
    last = trial.curve[-1].get("value") if trial.curve else None
    shown = trial.value if trial.state in ENDED else last
    state = told.STATES.get(trial.state, trial.state)
    if trial.reused_from is not None:
        state = f"same as trial {trial.reused_from}"
    elif trial.state in ("failed", "refused") and trial.reason:
        state = f"{state}: {' '.join(trial.reason.split())}"
    marks = "".join("+" if rung["kept"] else "x" for rung in trial.rungs)
    style = "bold" if trial.number == snapshot.record.best_trial else ""
    return [
        Text(str(trial.number), style=style),
        _one_line(_brief(trial), style),
        Text(f"{number(trial.samples)}/{number(snapshot.samples_of(trial))}"),
        Text(snapshot.value(shown), style=style),
        Text(marks),
        _one_line(state, TONES.get(trial.state, "")),
    ]


def _brief(trial: TrialRecord) -> str:
    said = [
        f"{'lr' if path == told.LEARNING_RATE else told.parameter(path)} {_few_digits(value)}"
        for path, value in trial.params.items()
        if path != told.METHOD
    ]
    return ", ".join([trial.method, *said])


def _few_digits(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _one_line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
