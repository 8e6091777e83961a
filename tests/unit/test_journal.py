"""The journal of a run: however often it was killed, each step stands there once, with its ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distft.data.order import StepPlan, plan_steps
from distft.data.pack import Budget
from distft.train.journal import Journal

ROWS = (7, 0, 5, 11)
STEPS = 14

Kill = tuple[int, int, tuple[int, int, int, int], bool]
"""Workers, the checkpoint that is left, how far each got past it, whether a line is torn."""


def plans(world: int, rank: int, start: int) -> list[StepPlan]:
    found = plan_steps(
        seed=3,
        row_groups=ROWS,
        lengths=lambda ids: np.asarray(ids) % 5 + 1,
        global_batch_size=4,
        budget=Budget(micro_batch_tokens=20),
        world_size=world,
        rank=rank,
        start_step=start,
        total_steps=STEPS,
    )
    return list(found)


def work(run_dir: Path, world: int, start: int | None, ends: Sequence[int]) -> None:
    """Journal as the workers of a run do, each to its own step."""
    journals = [Journal(run_dir, rank, start) for rank in range(world)]
    for rank, (journal, end) in enumerate(zip(journals, ends, strict=False)):
        for plan in plans(world, rank, start or 0)[: max(0, end - (start or 0))]:
            journal.samples(plan.step + 1, plan.ids)
            journal.metrics({"step": plan.step + 1, "loss": 1.0})


def joined(run_dir: Path) -> Mapping[int, list[int]]:
    steps: dict[int, list[int]] = {}
    for path in (run_dir / "logs").glob("samples-rank-*.jsonl"):
        mine = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["step"] for line in mine] == sorted({line["step"] for line in mine})
        for line in mine:
            steps.setdefault(line["step"], []).extend(line["sample_ids"])
    return {step: sorted(ids) for step, ids in sorted(steps.items())}


kills = st.tuples(
    st.sampled_from([1, 2, 4]),
    st.integers(0, STEPS),
    st.tuples(*[st.integers(0, STEPS)] * 4),
    st.booleans(),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(history=st.lists(kills, max_size=4), world=st.sampled_from([1, 2, 4]))
def test_killed_anywhere_and_continued_by_any_number_the_log_is_the_unbroken_one(
    tmp_path: Path, history: list[Kill], world: int
) -> None:
    shutil.rmtree(tmp_path)
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    work(unbroken, 1, None, [STEPS])
    start: int | None = None
    for workers, checkpoint, past, torn in history:
        left = max(checkpoint, start or 0)
        work(killed, workers, start, [min(STEPS, left + more) for more in past])
        if torn:
            with (killed / "logs" / "samples-rank-00000.jsonl").open("a") as file:
                file.write('{"step": 1, "sample_i')
        start = left or None
    work(killed, world, start, [STEPS] * world)
    assert joined(killed) == joined(unbroken)
    logged = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").open()]
    assert logged == list(range(1, STEPS + 1))


def test_a_line_torn_by_the_kill_is_dropped_not_glued_to_the_next(tmp_path: Path) -> None:
    work(tmp_path, 1, None, [3])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    work(tmp_path, 1, 2, [3])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2, 3]
