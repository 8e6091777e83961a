"""Ways to spend a search's steps, played on recorded runs: what they cost and which run they pick.

`stopping` is what the executors do. `promoting` needs trials that pause and continue later, which
they cannot; it is there to be compared with.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from distft.search.policy import Curve, Policy, decide, reached, smoothed
from distft.search.recorded import Recording


@dataclass(frozen=True)
class Outcome:
    """What a search came to."""

    samples: int
    """Trained on, over all its trials."""
    pick: int
    """Number of the run it recommends."""


Play = Callable[[Recording, Sequence[int]], Outcome]
"""(recorded runs, numbers of those in the pool in order of arrival) -> outcome."""


def stopping(policy: Policy, workers: int) -> Play:
    """Return the search that stops trials at rungs and starts the next one.

    Args:
        policy: When.
        workers: Trials side by side; each takes the time it was recorded with.

    Returns:
        The search; a trial whose loss is not finite ends there, as it does live.
    """

    def play(recording: Recording, order: Sequence[int]) -> Outcome:
        waiting = list(reversed(order))
        seen: dict[int, list[tuple[int, float]]] = {}
        events: list[tuple[float, int, int, float]] = []

        def start(clock_s: float) -> None:
            if waiting:
                number = waiting.pop()
                seen[number] = []
                follow(number, clock_s)

        def follow(number: int, started_s: float) -> None:
            run = recording.runs[number]
            samples = run.curve[len(seen[number])][0]
            due_s = started_s + run.seconds * samples / recording.budget_samples
            # Equal times: the trial that was started first reports first.
            heapq.heappush(events, (due_s, list(seen).index(number), number, started_s))

        for _ in range(workers):
            start(0.0)
        while events:
            clock_s, _, number, started_s = heapq.heappop(events)
            curve, mine = recording.runs[number].curve, seen[number]
            mine.append(curve[len(mine)])
            others = [other for each, other in seen.items() if each != number]
            decision = decide(policy, recording.budget_samples, mine, others)
            stopped = decision is not None and not decision.kept
            if stopped or len(mine) == len(curve) or not math.isfinite(mine[-1][1]):
                start(clock_s)
            else:
                follow(number, started_s)
        return _outcome(recording, seen, policy.smooth)

    return play


def promoting(policy: Policy) -> Play:
    """Return synchronous successive halving: all trials pause at a rung, the best ones continue.

    Args:
        policy: Rungs and shares.

    Returns:
        The search; Jamieson and Talwalkar 2016, arXiv 1502.07943.
    """

    def play(recording: Recording, order: Sequence[int]) -> Outcome:
        return _outcome(recording, _promoted(policy, recording, order), policy.smooth)

    return play


def hyperband(eta: int, least: float) -> Play:
    """Return Hyperband: successive halving in brackets that begin at different rungs.

    Args:
        eta: One in so many is promoted.
        least: Smallest share of the budget a trial gets.

    Returns:
        The search; Li et al. 2018, arXiv 1603.06560, the pool dealt to the brackets in proportion
        to their sizes.
    """
    deepest = math.floor(math.log(1 / least) / math.log(eta) + 1e-9)
    brackets = [
        Policy(tuple(eta**-step for step in range(depth, 0, -1)), (1 / eta,) * depth)
        for depth in range(deepest, -1, -1)
    ]
    sizes = [
        math.ceil((deepest + 1) / (depth + 1) * eta**depth) for depth in range(deepest, -1, -1)
    ]

    def play(recording: Recording, order: Sequence[int]) -> Outcome:
        ends = [round(len(order) * sum(sizes[: i + 1]) / sum(sizes)) for i in range(len(sizes))]
        seen: dict[int, Curve] = {}
        for bracket, start, end in zip(brackets, [0, *ends], ends, strict=False):
            seen |= _promoted(bracket, recording, order[start:end])
        return _outcome(recording, seen, 0.0)

    return play


def whole(count: int | None = None) -> Play:
    """Return the search that trains runs to the end and takes the one with the least final loss.

    Args:
        count: The first so many of the pool; None: all of it.

    Returns:
        The search.
    """

    def play(recording: Recording, order: Sequence[int]) -> Outcome:
        seen = {number: recording.runs[number].curve for number in order[:count]}
        pick = _outcome(recording, seen, 0.0).pick
        return Outcome(recording.budget_samples * len(seen), pick)

    return play


def _promoted(policy: Policy, recording: Recording, order: Sequence[int]) -> dict[int, Curve]:
    """Return the part of each run's curve that was trained."""
    budget = recording.budget_samples
    seen: dict[int, Curve] = {}
    going = {number: recording.runs[number].curve for number in order}
    for rung, share in enumerate(policy.keep):
        reports = {number: reached(policy, budget, going[number], rung) for number in going}
        # A run whose report jumps over this rung is compared at the next one.
        parts = {number: going[number][:count] for number, count in reports.items() if count}
        ranked = sorted(parts, key=lambda n: smoothed(parts[n], policy.smooth * budget))
        for number in ranked[max(1, math.floor(share * len(ranked) + 1e-9)) :]:
            seen[number] = parts[number]
            del going[number]
    return seen | going


def _outcome(recording: Recording, seen: Mapping[int, Curve], smooth: float) -> Outcome:
    """Recommend, of the runs that got furthest, the one with the least smoothed last loss."""

    def standing(number: int) -> tuple[bool, int, float]:
        value = smoothed(seen[number], smooth * recording.budget_samples)
        return not math.isfinite(value), -seen[number][-1][0], value

    return Outcome(
        sum(_samples(recording, each, seen[each]) for each in seen), min(seen, key=standing)
    )


def _samples(recording: Recording, number: int, curve: Curve) -> int:
    """Return what a curve cost; the last report of a whole one may come a little before its end."""
    whole_run = len(curve) == len(recording.runs[number].curve) and math.isfinite(curve[-1][1])
    return recording.budget_samples if whole_run else min(curve[-1][0], recording.budget_samples)
