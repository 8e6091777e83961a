"""What a search costs besides training: 32 trials of 4 reports that train nothing.

distft (journal storage, TPE, rungs, warm processes) and a stock `tune.Tuner` over a function
(OptunaSearch, ASHA) take turns on one local Ray, two trials side by side. `marginal` is what a
trial adds: seconds from the first report to the end of the study, over the trials; before it lies
the start of the first processes. `whole` is all of it, Ray's own start not counted; `driver` is the
processor time of this process, which other load does not change. Nothing is asserted about time;
the numbers go to build/bench/overhead.json.
"""

from __future__ import annotations

import json
import os
import runpy
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SIM = runpy.run_path(str(ROOT / "tests" / "search_sim.py"))
REPEATS = int(os.environ.get("REPEATS", "3"))
TRIALS, REPORTS, CONCURRENT = 32, 4, 2


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    import ray

    ray.init(num_cpus=CONCURRENT + 1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def no_op() -> type:
    """Return what distft's trials are started with: it reports at the rungs, and ends."""
    from ray import tune

    class NoOp(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
        def setup(self, config: dict[str, Any]) -> None:
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            plan = new_config["order"]["plan"]
            steps = [*new_config["order"]["rungs"], plan["total_steps"]]
            self.left = iter(steps)
            self.plan, self.rate = plan, plan["learning_rate"]
            return True

        def step(self) -> dict[str, Any]:
            for step in self.left:
                samples = step * self.plan["global_batch_size"]
                report = {"step": step, "samples": samples, "eval_loss": self.rate + 1 / step}
                return {"report": json.dumps(report), "elapsed_s": 0.0}
            metrics = {"eval_loss": self.rate}
            result = {"baseline": metrics, "final": metrics, "best": metrics, "test": {}}
            result |= {"step": self.plan["total_steps"], "best_step": self.plan["total_steps"]}
            result |= {"peak_memory_bytes": 1, "tokens_per_s": 1.0}
            result["trainable_params"] = self.plan["trainable_params"]
            return {"result": json.dumps(result), "elapsed_s": 0.0, "done": True}

        def release(self) -> None:
            pass

    return NoOp


def distft_study(folder: Path, model: Path) -> dict[str, Any]:
    from distft.search.phases import Search
    from distft.search.sample import build_space, effective, priors
    from distft.search.setting import plan_trial
    from distft.search.study import open_storage
    from distft.search.tune import execute

    tune = {
        "num_trials": TRIALS,
        "confirm": 0,
        "space": {"method.trainable_layers": [1, 2]},
        "policy": {
            "name": "successive_halving",
            "rungs": [0.25, 0.5, 0.75],
            "keep": [1 / 3] * (REPORTS - 1),
        },
    }
    setting = SIM["make_setting"](folder, model, tune, concurrent=CONCURRENT)
    space = build_space(setting.config)
    for sample in priors(space, setting.config):
        # What the libraries of the methods load once is not a trial's.
        plan_trial(setting, effective(setting.config, sample, name="warm-up"))
    began, cpu_s = time.perf_counter(), time.process_time()
    search = Search(open_storage(folder, None), setting, space, "hash")
    first_s: list[float] = []

    def run(desk: Any, given: Any) -> None:
        report = desk.report

        def noted(*arguments: Any) -> bool:
            first_s.append(time.perf_counter())
            return bool(report(*arguments))

        desk.report = noted
        execute(desk, given, trainable=no_op())

    search.run(run)
    ended = time.perf_counter()
    counts = search.publish().counts
    assert counts["complete"] + counts["pruned"] == TRIALS
    return told(began, first_s, ended, cpu_s) | {"counts": counts}


def stock_study(folder: Path, model: Path) -> dict[str, Any]:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    def objective(config: dict[str, Any]) -> None:
        for step in range(1, REPORTS + 1):
            tune.report({"loss": config["learning_rate"] + 1 / step})

    first_s: list[float] = []

    class Noted(tune.Callback):  # type: ignore[misc]  # Ray ships no types
        def on_trial_result(self, *arguments: Any, **others: Any) -> None:
            first_s.append(time.perf_counter())

    tuner = tune.Tuner(
        tune.with_resources(objective, {"cpu": 1}),
        param_space={
            "method": tune.choice(["full", "freeze", "lora"]),
            "learning_rate": tune.loguniform(1e-6, 3e-3),
            "r": tune.choice([2, 4, 8, 16, 32, 64]),
        },
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            search_alg=OptunaSearch(seed=42),
            scheduler=ASHAScheduler(max_t=REPORTS, grace_period=1, reduction_factor=3),
            num_samples=TRIALS,
            max_concurrent_trials=CONCURRENT,
        ),
        run_config=tune.RunConfig(
            name="stock", storage_path=str(folder), verbose=0, callbacks=[Noted()]
        ),
    )
    began, cpu_s = time.perf_counter(), time.process_time()
    results = tuner.fit()
    ended = time.perf_counter()
    assert len(results) == TRIALS
    assert not results.errors
    return told(began, first_s, ended, cpu_s)


def told(began: float, reports: list[float], ended: float, cpu_s: float) -> dict[str, Any]:
    return {
        "driver_cpu_s": time.process_time() - cpu_s,
        "whole_s": ended - began,
        "marginal_s": (ended - reports[0]) / TRIALS,
        "reports": len(reports),
    }


@pytest.mark.timeout(3000)
def test_overhead_of_a_trial(tmp_path: Path, tiny_bert: Path, local_ray: None) -> None:
    sides: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
        "distft": distft_study,
        "stock": stock_study,
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    # Ray gives each worker OMP_NUM_THREADS=1; nothing here computes.
    cpus, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"\n{cpus} CPUs, load {load:.1f}, 1 thread a process, {TRIALS} trials of {REPORTS}")
    for repeat in range(REPEATS):
        for name, study in sides.items():
            folder = tmp_path / f"{name}-{repeat}"
            folder.mkdir()
            done = study(folder, tiny_bert)
            found[name].append({**done, "load": os.getloadavg()[0]})
            print(
                f"{name:7} {done['marginal_s']:.3f} s a trial, {done['whole_s']:.1f} s whole, "
                f"{done['driver_cpu_s']:.1f} s driver, {done['reports']} reports"
            )
            target = ROOT / "build" / "bench" / "overhead.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps({"cpus": cpus, "runs": found}, indent=1) + "\n")
    for key, said in (("marginal_s", "a trial"), ("whole_s", "whole"), ("driver_cpu_s", "driver")):
        ours, stock = (statistics.median(run[key] for run in found[name]) for name in sides)
        print(f"{said}: {ours:.3f} s beside {stock:.3f} s, {stock / ours:.1f}x (medians)")
