"""Studies on a Ray that lives on: trials of several workers are freed, two studies stay apart."""

from __future__ import annotations

import re
import runpy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

STUDIES = runpy.run_path(str(Path(__file__).parents[1] / "tune_studies.py"))
write_config, command, of = STUDIES["write_config"], STUDIES["command"], STUDIES["of"]
wait_until, FREED_S = STUDIES["wait_until"], STUDIES["FREED_S"]

OURS = {"TrialProcess", "RayTrainWorker", "_Gate", "TrainController", "PlacementGroupCleaner"}
TIMEOUT_S = 900

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT_S)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with STUDIES["living_cluster"](8) as living:
        yield living


class Watch:
    """What each trial's workers hold, seen from outside while a study runs."""

    def __init__(self, cluster: Any, study_dir: Path) -> None:
        self._cluster, self._study_dir = cluster, study_dir
        self.workers: dict[int, set[int]] = {}
        self.groups: dict[int, set[str]] = {}
        self.pruned: dict[int, float] = {}
        self.freed_s: dict[int, float] = {}

    def look(self) -> None:
        states = self._states()
        running = [number for number, state in states.items() if state == "RUNNING"]
        now = time.monotonic()
        for number in running:
            pids = self._workers_of(number)
            if pids:
                self.workers.setdefault(number, set()).update(pids)
                self.groups.setdefault(number, set()).update(self._cluster.placement_groups(2))
        for number, state in states.items():
            if state == "PRUNED":
                self.pruned.setdefault(number, now)
        for number in self.pruned.keys() - self.freed_s.keys():
            held = {pid for pid in self.workers.get(number, ()) if psutil.pid_exists(pid)}
            if not held and not self.groups.get(number, set()) & self._cluster.placement_groups(2):
                self.freed_s[number] = time.monotonic() - self.pruned[number]

    def _states(self) -> dict[int, str]:
        if not (self._study_dir / "study.json").exists():
            return {}
        return {trial.number: trial.state.name for trial in STUDIES["journal"](self._study_dir)}

    def _workers_of(self, number: int) -> set[int]:
        folder = self._study_dir / "trials" / f"{number:05d}" / "logs"
        pids = STUDIES["processes"](self._cluster.process, "RayTrainWorker")
        logs = {pid: STUDIES["log_of"](pid) for pid in pids}
        return {pid for pid, log in logs.items() if log is not None and log.parent == folder}


def nothing_is_left(cluster: Any) -> None:
    took_s = wait_until(lambda: not cluster.placement_groups(), FREED_S, "placement groups")
    took_s += wait_until(lambda: not OURS & set(cluster.actors()), FREED_S, "actors")
    names = STUDIES["ACTORS"]
    took_s += wait_until(
        lambda: not STUDIES["processes"](cluster.process, *names), FREED_S, "processes"
    )
    print(f"nothing left {took_s:.1f} s after the command; actors: {cluster.actors()}")
    assert STUDIES["temporary"](cluster.temporary) == []


def test_a_stopped_trial_of_two_workers_is_freed(
    cluster: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    path = write_config(
        tmp_path,
        tiny_bert,
        cluster__address=cluster.address,
        tune__methods=["full"],
        tune__num_workers=2,
        tune__sampler="grid",
        tune__space={"train.learning_rate": [1e-3, 1e-6, 1e30, 1e-7]},
        tune__policy={"rungs": [0.3], "keep": [0.01]},
    )
    study_dir = tmp_path / "runs" / "study"
    watch = Watch(cluster, study_dir)
    with (tmp_path / "said").open("w") as said, command(tmp_path, "tune", path, said=said) as run:
        while run.poll() is None:
            watch.look()
            time.sleep(0.1)
    assert run.returncode == 0, (tmp_path / "said").read_text()
    nothing_is_left(cluster)
    watch.look()
    trials = of(study_dir)
    print([(t.number, t.state, t.attempts, t.reason) for t in trials])
    assert [trial.state for trial in trials] == ["complete", "pruned", "failed", "pruned"]
    assert re.search(r"loss of step \d+ is (nan|inf)", trials[2].reason)
    assert all(trial.run is not None and trial.run.world_size == 2 for trial in trials)
    assert watch.pruned.keys() == {1, 3}
    for number in watch.pruned:
        assert len(watch.workers[number]) == 2
        assert len(watch.groups[number]) == 1
        print(f"trial {number}: freed {watch.freed_s[number]:.1f} s after it was stopped")
        assert watch.freed_s[number] < FREED_S
    STUDIES["assert_ledger_is_the_journal"](study_dir)


def test_two_studies_at_once_do_not_disturb_each_other(
    cluster: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    path = write_config(
        tmp_path,
        tiny_bert,
        cluster__address=cluster.address,
        tune__num_trials=5,
        tune__policy={"rungs": [0.3], "keep": [0.5]},
        tune__space={"method.trainable_layers": [1, 2]},
        tune__confirm=2,
        tune__confirm_seeds=2,
    )
    names = ("left", "right")
    both = [command(tmp_path, "tune", path, f"name={name}", "--plain") for name in names]
    for process in both:
        with process:
            _, stderr = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, stderr
    results = []
    for name in names:
        study_dir = tmp_path / "runs" / name
        STUDIES["assert_ledger_is_the_journal"](study_dir)
        record = STUDIES["record"](study_dir)
        assert (record.name, record.status) == (name, "completed")
        trials = of(study_dir) + of(study_dir, "confirm")
        assert len(trials) == 5 + 4
        results.append([(t.params, t.state, t.values, t.value, t.rungs) for t in trials])
        results[-1].append((record.recommended, record.candidates))
    assert results[0] == results[1]
    nothing_is_left(cluster)
