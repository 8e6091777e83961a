"""Search policies scored on recorded runs: what they save, and what that costs in quality.

Protocol. The runs are split at random into halves, 20 times. On one half each kind of search
chooses its parameters from a small grid. Good are those with a mean regret at most 1 point above
full fidelity's: of the good ones that take at least 4x fewer steps than full fidelity the one with
the least regret; where there is none, the cheapest good one; where none is good, the one with the
least regret. On the other half it is scored; then the halves change places. A half is seen as 20
random pools of 16 runs (or of all runs of a smaller half) in random order of arrival, two trials
side by side. A pick is a search's finalist: of the runs that got furthest the one with the least
training loss, smoothed as the policy smooths. Random search trains as many runs of the pool to the
end as stop-at-rungs' steps pay for.

A grid is small and holds what is known beforehand, early cuts and a late one: among many schedules
the one that is best on 20 runs is not the one that is best on the next 20. The shipped policy
chooses nothing here. It was found on 40 recorded runs of PEFT methods on Llama-3.2-3B and on
tests/bench/curves, and the grids after them: only other runs score it, and them, quite unseen.
"""

from __future__ import annotations

import io
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.table import Table

from distft.search.policy import DEFAULT, Policy, for_budget
from distft.search.recorded import Recording, read
from distft.search.schedules import Play, hyperband, promoting, stopping, whole

SPLITS = 20
POOLS = 20
POOL_RUNS = 16
SEED = 0
WORKERS = 2
GOAL_RATIO = 4.0
GOAL_LOSS = 0.1
"""Of the share within one standard error. Choices go by regret, which fewer pools settle."""
GOOD_PT = 1.0
"""Regret above full fidelity's that a choice may have, in percentage points of accuracy."""

FULL = "full fidelity"
STOPPING = "stop-at-rungs"
SHIPPED = "stop-at-rungs, shipped"
PROMOTING = "pause-and-promote"
RANDOM = "random"

_RUNGS = tuple(
    (*early, late) for early, late in product(((0.05,), (0.1,), (0.05, 0.1)), (0.5, 0.6, 0.7))
)
"""Cut early and then late: between a fifth and a half of the budget ranks mislead most."""
_KEEP = (0.25, 0.34)


class Spread(BaseModel):
    """Standard deviations over the halves."""

    steps_ratio: float
    regret_pt: float
    within_1se: float


class Row(BaseModel):
    """One kind of search, scored on halves it did not choose on."""

    name: str
    steps_ratio: float
    """Steps of full fidelity divided by its steps."""
    regret_pt: float
    """Mean of the pool's best test accuracy less the pick's, in percentage points."""
    within_1se: float
    """Share of pools whose pick is within one standard error of the pool's best."""
    spread: Spread
    chosen: dict[str, int]
    """Parameters -> on how many halves they were chosen."""


class Replay(BaseModel):
    """What a replay found."""

    source: str
    runs: int
    failed: int
    steps: int
    test_n: int | None
    splits: int
    pools: int
    """Of each half."""
    pool_runs: int
    workers: int
    seed: int
    policies: list[Row]
    shipped_by_workers: dict[str, tuple[float, float, float]]
    """Trials side by side -> steps_ratio, regret_pt and within_1se of the shipped policy."""
    notes: list[str]

    def render(self) -> str:
        """Return the replay as a page of text."""
        table = Table(box=box.SIMPLE_HEAD)
        for head in ("search", "fewer steps", "regret, points", "within 1 SE", "chosen most often"):
            table.add_column(
                head, justify="left" if head in ("search", "chosen most often") else "right"
            )
        for row in self.policies:
            spread = row.spread
            most, times = max(row.chosen.items(), key=lambda item: item[1])
            table.add_row(
                row.name,
                f"{row.steps_ratio:.2f}x +- {spread.steps_ratio:.2f}",
                f"{row.regret_pt:.2f} +- {spread.regret_pt:.2f}",
                f"{row.within_1se:.1%} +- {100 * spread.within_1se:.1f}",
                f"{most} ({times} of {2 * self.splits})" if most else "",
            )
        text = io.StringIO()
        console = Console(file=text, width=110, markup=False, highlight=False)
        console.print(
            f"{self.source}: {self.runs} runs of {self.steps} steps ({self.failed} failed); "
            f"{self.splits} splits, {self.pools} pools of {self.pool_runs} from each half, "
            f"{self.workers} trials side by side; +- is one standard deviation over the halves"
        )
        console.print(table)
        for workers, (ratio, regret_pt, within) in self.shipped_by_workers.items():
            console.print(
                f"shipped policy, {workers} at a time: {ratio:.2f}x fewer steps, regret "
                f"{regret_pt:.2f} points, {within:.1%} within 1 SE"
            )
        for note in self.notes:
            console.print(note)
        return text.getvalue()


@dataclass(frozen=True)
class Score:
    """What a search came to on some pools."""

    steps_ratio: float
    regret_pt: float
    within_1se: float


def replay(path: Path, *, progress: Callable[[int, int], None] | None = None) -> Replay:
    """Return how search policies do on recorded runs.

    Args:
        path: JSON; see `distft.search.recorded`.
        progress: Called with (splits done, splits in all).

    Returns:
        A row for each kind of search.

    Raises:
        ConfigError: The file cannot be used; the text says why.
    """
    recording = read(path)
    families = _families(recording.budget_samples)
    shipped = for_budget(DEFAULT, recording.budget_samples)
    scores: dict[str, list[Score]] = {}
    chosen: dict[str, Counter[str]] = {}
    by_workers: dict[int, list[Score]] = {workers: [] for workers in (1, WORKERS, 2 * WORKERS)}
    for split in range(SPLITS):
        halves = _halves(recording, random.Random(f"{SEED} {split}"))
        for first, second in (halves, halves[::-1]):
            picks = _choose(recording, first, families)
            picks[RANDOM] = _as_dear(recording, first, picks[STOPPING][1])
            for name, (label, play) in picks.items():
                scores.setdefault(name, []).append(score(recording, second, play))
                chosen.setdefault(name, Counter())[label] += 1
            for workers, found in by_workers.items():
                found.append(score(recording, second, stopping(shipped, workers)))
        if progress is not None:
            progress(split + 1, SPLITS)
    rows = [_row(name, scores[name], chosen[name]) for name in (*families, RANDOM)]
    return Replay(
        source=path.name,
        runs=len(recording.runs),
        failed=recording.failed,
        steps=recording.steps,
        test_n=recording.test_rows,
        splits=SPLITS,
        pools=POOLS,
        pool_runs=min(POOL_RUNS, len(recording.runs) // 2),
        workers=WORKERS,
        seed=SEED,
        policies=rows,
        shipped_by_workers={
            str(workers): (mean.steps_ratio, mean.regret_pt, mean.within_1se)
            for workers, found in by_workers.items()
            for mean in [_mean(found)]
        },
        notes=_notes(recording, rows, scores),
    )


def score(recording: Recording, pools: Sequence[Sequence[int]], play: Play) -> Score:
    """Return what a search comes to on some pools.

    Args:
        recording: The runs.
        pools: Numbers of runs in order of arrival.
        play: The search.

    Returns:
        Means over the pools; the ratio is of all steps.
    """
    spent = whole_cost = within = 0
    regrets = []
    for pool in pools:
        outcome = play(recording, pool)
        best = max(recording.runs[number].test for number in pool)
        regret = best - recording.runs[outcome.pick].test
        error = math.sqrt(best * (1 - best) / recording.test_rows) if recording.test_rows else 0.0
        spent += outcome.samples
        whole_cost += recording.budget_samples * len(pool)
        within += regret <= error
        regrets.append(regret)
    return Score(whole_cost / spent, 100 * statistics.fmean(regrets), within / len(pools))


def _families(budget_samples: int) -> Mapping[str, list[tuple[str, Play]]]:
    """Return each kind of search with the parameters it may choose from."""
    policies = {
        f"rungs {' '.join(map(str, rungs))}, keep {keep}": Policy(
            rungs, (keep,) * len(rungs), DEFAULT.smooth
        )
        for rungs, keep in product(_RUNGS, _KEEP)
    }
    geometric = [
        (f"eta {eta}, least {least:g}", eta, least)
        for eta, least in product((2, 3, 4), (0.05, 0.1))
    ]
    return {
        STOPPING: [(label, stopping(policy, WORKERS)) for label, policy in policies.items()],
        SHIPPED: [("", stopping(for_budget(DEFAULT, budget_samples), WORKERS))],
        PROMOTING: [(label, promoting(policy)) for label, policy in policies.items()],
        "ASHA": [(label, stopping(_asha(eta, least), WORKERS)) for label, eta, least in geometric],
        "Hyperband": [(label, hyperband(eta, least)) for label, eta, least in geometric],
        FULL: [("", whole())],
    }


def _asha(eta: int, least: float) -> Policy:
    """Asynchronous successive halving that stops, as Optuna's pruner: arXiv 1810.05934."""
    rungs = []
    while least < 1 - 1e-9:
        rungs.append(least)
        least *= eta
    return Policy(tuple(rungs), (1 / eta,) * len(rungs))


def _halves(recording: Recording, draw: random.Random) -> tuple[list[list[int]], list[list[int]]]:
    numbers = draw.sample(range(len(recording.runs)), len(recording.runs))
    middle = len(numbers) // 2
    size = min(POOL_RUNS, middle)

    def pools(half: list[int]) -> list[list[int]]:
        return [draw.sample(half, size) for _ in range(POOLS)]

    return pools(numbers[:middle]), pools(numbers[middle:])


def _choose(
    recording: Recording,
    pools: Sequence[Sequence[int]],
    families: Mapping[str, list[tuple[str, Play]]],
) -> dict[str, tuple[str, Play]]:
    most_regret_pt = score(recording, pools, whole()).regret_pt + GOOD_PT

    def worth(choice: tuple[str, Play]) -> tuple[bool, bool, float, float]:
        found = score(recording, pools, choice[1])
        good, cheap = found.regret_pt <= most_regret_pt, found.steps_ratio >= GOAL_RATIO
        by_cost = good and not cheap
        return good, cheap and good, 0.0 if by_cost else -found.regret_pt, found.steps_ratio

    return {
        name: choices[0] if len(choices) == 1 else max(choices, key=worth)
        for name, choices in families.items()
    }


def _as_dear(recording: Recording, pools: Sequence[Sequence[int]], play: Play) -> tuple[str, Play]:
    """Return random search that trains as many runs to the end as this search's steps pay for."""
    count = max(1, round(len(pools[0]) / score(recording, pools, play).steps_ratio))
    return f"{count} runs to the end", whole(count)


def _row(name: str, found: list[Score], chosen: Counter[str]) -> Row:
    mean = _mean(found)
    return Row(
        name=name,
        steps_ratio=mean.steps_ratio,
        regret_pt=mean.regret_pt,
        within_1se=mean.within_1se,
        spread=Spread(
            steps_ratio=statistics.pstdev(each.steps_ratio for each in found),
            regret_pt=statistics.pstdev(each.regret_pt for each in found),
            within_1se=statistics.pstdev(each.within_1se for each in found),
        ),
        chosen=dict(chosen.most_common()),
    )


def _mean(found: list[Score]) -> Score:
    """Return the score over all pools of all splits: steps add up, so their ratio is harmonic."""
    return Score(
        statistics.harmonic_mean([each.steps_ratio for each in found]),
        statistics.fmean(each.regret_pt for each in found),
        statistics.fmean(each.within_1se for each in found),
    )


def _notes(
    recording: Recording, rows: Sequence[Row], scores: Mapping[str, list[Score]]
) -> list[str]:
    by_name = {row.name: row for row in rows}
    full, promoted = by_name[FULL], by_name[PROMOTING]
    notes = []
    if recording.test_rows is None:
        notes.append("The file has no test_n: within 1 SE counts only picks equal to the best.")
    for name in (SHIPPED, STOPPING):
        row = by_name[name]
        lost = full.within_1se - row.within_1se
        met = row.steps_ratio >= GOAL_RATIO and lost <= GOAL_LOSS
        notes.append(
            f"{name}: {row.steps_ratio:.2f}x fewer steps, within 1 SE {-100 * lost:+.1f} points "
            f"against {FULL}; goal ({GOAL_RATIO:g}x, {-100 * GOAL_LOSS:+g} at worst) "
            f"{'met' if met else 'missed'}."
        )
    stopped, halves = by_name[STOPPING], 2 * SPLITS
    cheaper = sum(
        one.steps_ratio > other.steps_ratio
        for one, other in zip(scores[PROMOTING], scores[STOPPING], strict=True)
    )
    wins = (
        cheaper > halves / 2
        and promoted.regret_pt <= stopped.regret_pt
        and promoted.within_1se >= stopped.within_1se
    )
    notes.append(
        f"{PROMOTING} {'wins' if wins else 'does not win in everything'} held out: cheaper than "
        f"{STOPPING} on {cheaper} of {halves} halves ({promoted.steps_ratio:.2f}x against "
        f"{stopped.steps_ratio:.2f}x), regret {promoted.regret_pt:.2f} against "
        f"{stopped.regret_pt:.2f} points, within 1 SE {promoted.within_1se:.1%} against "
        f"{stopped.within_1se:.1%}."
    )
    return notes
