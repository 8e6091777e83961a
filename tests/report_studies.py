"""Study directories as a search leaves them at any moment, for the tests of its report.

Learning curves come from a seeded model with a best learning rate per method; the decisions at the
rungs are the policy's own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from distft.config_file import parse
from distft.records import (
    Candidate,
    DataRecord,
    ModelRecord,
    RunRecord,
    StudyRecord,
    TrialRecord,
    write_json,
    write_text,
)
from distft.search.policy import Policy, decide

RUNS = runpy.run_path(str(Path(__file__).parent / "report_runs.py"))
POLICY = Policy(rungs=(0.1, 0.25, 0.5), keep=(0.6, 0.5, 0.5))
BUDGET, FULL, BATCH, EVERY = 960, 2_400, 16, 48
PARAMS = 22_713_216
BEST_RATE = {"full": 9e-5, "freeze": 6e-4, "lora": 1.1e-3}
FLOOR = {"full": 0.662, "freeze": 0.742, "lora": 0.660}
SPACE: dict[str, dict[str, Any]] = {
    "full": {"train.learning_rate": {"low": 1e-6, "high": 3e-4, "log": True}},
    "freeze": {
        "train.learning_rate": {"low": 1e-5, "high": 3e-3, "log": True},
        "method.layers": [1, 2, 3],
    },
    "lora": {
        "train.learning_rate": {"low": 1e-5, "high": 3e-3, "log": True},
        "method.r": [2, 4, 8, 16, 32, 64],
    },
}
OTHER = {"train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}}
IMPORTANCES = {
    "all": {"method.name": 0.21, "train.learning_rate": 0.79},
    "lora": {"train.learning_rate": 0.91, "method.r": 0.09},
    "freeze": {"train.learning_rate": 0.83, "method.layers": 0.17},
}
TOLERANCE = 0.0108
TOLERANCE_FROM = "one standard error of the difference, pooled over 2 candidates with 2 seeds each"
STATUS = {"winner": "completed", "failed": "failed", "refused": "completed"}
REASONS = {
    "failed": "the loss is not finite at step 14: nan. Lower train.learning_rate.",
    "refused": "trainable_params: 22,713,216 is above the constraint trainable_params <= 20M",
}


def trained(method: str, params: dict[str, Any]) -> int:
    """Return the trained parameters of a configuration."""
    head = 1_155
    if method == "full":
        return PARAMS + head
    if method == "freeze":
        return int(1_774_464 * params.get("method.layers", 1) + head)
    return int(27_648 * params.get("method.r", 8) + head)


def quality(method: str, params: dict[str, Any], samples: float, noise: float = 0.0) -> float:
    """Return the loss of a configuration after so many samples."""
    off = math.log10(params["train.learning_rate"] / BEST_RATE.get(method, 1e-4))
    rank = params.get("method.r", 8)
    floor = FLOOR.get(method, 0.7) + 0.10 * off * off + 0.012 * abs(math.log2(rank / 8)) / 3
    if off > 0.45:  # it diverges
        return 1.1 + 1.9 * off * min(1.0, samples / 300) + noise
    return floor + (1.1 - floor) * math.exp(-samples / (260 * (1 + max(0.0, -off)))) + noise


class Simulation:
    """Makes the trials of one study, one after the other."""

    def __init__(
        self, methods: tuple[str, ...], names: list[str], greater: bool, seed: int
    ) -> None:
        self.methods, self.names, self.greater = methods, names, greater
        self.random = np.random.default_rng(seed)
        self.curves: list[list[tuple[int, float]]] = []

    def sample(self, number: int) -> tuple[str, dict[str, Any]]:
        method = self.methods[number % len(self.methods)]
        space = SPACE.get(method, OTHER)
        params: dict[str, Any] = {"method.name": method}
        for path, values in space.items():
            if isinstance(values, list):
                params[path] = values[int(self.random.integers(len(values)))]
            elif number < len(self.methods):
                params[path] = BEST_RATE.get(method, 1e-4) * 0.6
            else:
                low, high = math.log(values["low"]), math.log(values["high"])
                params[path] = float(np.exp(self.random.uniform(low, high)))
        return method, params

    def run(self, number: int, state: str, end: int = BUDGET) -> TrialRecord:
        """Run one trial of the search; a failed or a running one ends after `end` samples."""
        method, params = self.sample(number)
        noise = [float(n) for n in self.random.normal(0, 0.006, BUDGET // EVERY + 1)]
        sign = -1 if self.greater else 1
        curve: list[tuple[int, float]] = []
        rungs: list[dict[str, Any]] = []
        for i in range(BUDGET // EVERY + 1):
            samples = i * EVERY
            if state in ("failed", "running") and samples > end:
                break
            loss = quality(method, params, samples, noise[i] if i else 0.0)
            curve.append((samples, sign * self.shown(loss)))
            judged = i and state == "complete"
            decision = decide(POLICY, BUDGET, curve, self.curves) if judged else None
            if decision:
                found = dataclasses.asdict(decision)
                rungs.append({**found, "value": sign * found["value"]})
            if decision and not decision.kept:
                state = "pruned"
                break
        self.curves.append(curve)
        values = [sign * value for _, value in curve]
        best = max(values) if self.greater else min(values)
        reason = REASONS["failed"] if state == "failed" else ""
        if state == "pruned":
            last = rungs[-1]
            reason = f"rank {last['rank']} of {last['of']} at rung {last['rung'] + 1}"
        samples = curve[-1][0]
        return self.record(
            number,
            state,
            method,
            params,
            value=best,
            curve=[
                {"samples": s, "step": s // BATCH, "value": v, self.names[0]: v}
                for (s, _), v in zip(curve, values, strict=True)
            ],
            rungs=rungs,
            samples=samples,
            duration_s=2.1 + samples * (0.031 if method == "full" else 0.022),
            reason=reason,
        )

    def ended(self, number: int, phase: str, started: int, troubles: bool) -> TrialRecord:
        """Return one trial as it stands in this phase of a study."""
        if phase == "refused" or (troubles and number == 6):
            method, params = self.sample(number)
            return self.record(number, "refused", method, params, reason=REASONS["refused"])
        if troubles and number == 4:
            return self.run(number, "failed", 144)
        if phase == "search" and number >= started - 2:
            return self.run(number, "running", 192)
        trial = self.run(number, "complete")
        return trial.model_copy(update={"attempts": 2}) if troubles and number == 10 else trial

    def shown(self, loss: float) -> float:
        """Return the objective for a loss: itself, or an accuracy."""
        return 1.1 - loss / 1.6 if self.greater else loss

    def record(
        self, number: int, state: str, method: str, params: dict[str, Any], **more: Any
    ) -> TrialRecord:
        count = trained(method, params)
        study, seed = more.pop("study", "search"), more.pop("seed", 42)
        config = parse(
            {
                "name": f"trial-{number}",
                "model": "asset:minilm-l6",
                "data": {"train": "asset:vader-amazon"},
                "task": "seq_cls",
                "train": {"learning_rate": params["train.learning_rate"], "seed": seed},
            }
        ).dump()
        own = {path.split(".")[1]: v for path, v in params.items() if path.startswith("method.")}
        config["method"] = own
        adapter = method not in ("full", "freeze")
        run = RunRecord(
            name=f"trial-{number}",
            status={"complete": "completed", "pruned": "pruned", "failed": "failed"}.get(
                state, "interrupted"
            ),
            config_hash=f"{abs(hash((method, str(params), seed))):016x}"[:16],
            config=config,
            data=DataRecord(manifest="4be1f0c29a77d3e5", rows={"train": 2_972}, tokens={}),
            model=ModelRecord(id="asset:minilm-l6", params=PARAMS + 1_155, trainable_params=count),
            world_size=1,
            zero_stage=0,
            seeds={"train": seed},
            versions={"distft": "0.1.0"},
            started="2026-11-22T18:30:04+00:00",
            duration_s=more.get("duration_s", 0.0),
            peak_memory_bytes={"planned": 4 * PARAMS + 12 * count}
            | ({"measured": 812_000_000 + 17 * count} if state in ("complete", "pruned") else {}),
            trial={"study": "quickstart", "number": number},
        )
        return TrialRecord.model_validate(
            {
                "study": study,
                "number": number,
                "state": state,
                "method": method,
                "params": params,
                "config_hash": run.config_hash,
                "seed": seed,
                "saved_bytes": 4 * (count if adapter else PARAMS + 1_155),
                "run": run,
                **more,
            }
        )


def several(trial: TrialRecord, objective: tuple[str, ...]) -> TrialRecord:
    """Return a trial with a value for each of several objectives."""
    if trial.value is None or trial.run is None:
        return trial
    known = {
        "trainable_params": float(trial.run.model.trainable_params),
        "peak_memory": float(trial.run.peak_memory_bytes["planned"]),
        "duration_s": trial.duration_s,
    }
    values = [trial.value, *(known[name] for name in objective[1:])]
    return trial.model_copy(update={"values": values})


def _candidates(
    simulation: Simulation, trials: list[TrialRecord], sign: int
) -> tuple[list[Candidate], list[TrialRecord]]:
    found = [t for t in trials if t.state == "complete" and t.value is not None]
    ranked = sorted(found, key=lambda t: sign * (t.value or 0))
    pool, seen = [], set()
    for trial in ranked:
        if trial.reused_from is None and trial.method not in seen:
            pool.append(trial)
            seen.add(trial.method)
    candidates, confirmations = [], []
    for trial in pool[:2]:
        values = []
        for seed in (43, 44):
            loss = quality(
                trial.method, trial.params, FULL, float(simulation.random.normal(0, 0.004))
            )
            values.append(simulation.shown(loss))
            confirmations.append(
                simulation.record(
                    len(confirmations),
                    "complete",
                    trial.method,
                    trial.params,
                    study="confirm",
                    seed=seed,
                    value=values[-1],
                    samples=FULL,
                    duration_s=61.5,
                )
            )
        assert trial.value is not None
        assert trial.run is not None
        candidates.append(
            Candidate(
                trial=trial.number,
                method=trial.method,
                params=trial.params,
                search_value=trial.value,
                seeds=[43, 44],
                values=values,
                mean=float(np.mean(values)),
                spread=float(np.std(values, ddof=1)),
                cost=[
                    float(trial.run.peak_memory_bytes["planned"]),
                    float(trial.run.model.trainable_params),
                ],
                within_tolerance=True,
            )
        )
    best = min(sign * (one.mean or 0) for one in candidates)
    candidates = [
        one.model_copy(update={"within_tolerance": sign * (one.mean or 0) - best <= TOLERANCE})
        for one in candidates
    ]
    return candidates, confirmations


def write_study(
    study_dir: Path,
    *,
    phase: str = "winner",
    trials: int = 16,
    methods: tuple[str, ...] = ("full", "freeze", "lora"),
    objective: tuple[str, ...] = ("eval_loss",),
    greater: bool = False,
    troubles: bool = True,
    error: dict[str, Any] | None = None,
    seed: int = 30,
) -> StudyRecord:
    """Write a study directory: study.json, trials.jsonl and, at its end, the winner's run.

    Args:
        study_dir: Made here; its name becomes the study's.
        phase: empty, search, confirm, winner (done), failed, refused (every trial was).
        trials: How many the study may run.
        methods: Searched over.
        objective: Metric names; further ones get the trained parameters.
        greater: Whether the first objective is better when greater.
        troubles: Let trials fail, be refused, be reused and be restarted.
        error: Of a failed study.
        seed: Of the curves.

    Returns:
        The record written.
    """
    study_dir.mkdir(parents=True, exist_ok=True)
    simulation = Simulation(methods, list(objective), greater, seed)
    sign = -1 if greater else 1
    started = {"empty": 0, "search": trials // 2, "failed": trials // 2}.get(phase, trials)
    made = [simulation.ended(number, phase, started, troubles) for number in range(started)]
    made = [
        reused(made, number) if troubles and number == 9 else t for number, t in enumerate(made)
    ]
    if len(objective) > 1:
        made = [several(trial, objective) for trial in made]
    valued = [trial for trial in made if trial.value is not None]
    candidates: list[Candidate] = []
    confirmations: list[TrialRecord] = []
    if phase in ("winner", "confirm") and valued:
        candidates, confirmations = _candidates(simulation, made, sign)
    if phase == "confirm":
        candidates, confirmations = [], confirmations[:1]
    within = [one for one in candidates if one.within_tolerance]
    recommended = min(within, key=lambda one: one.cost).trial if within else None
    record = StudyRecord(
        name=study_dir.name,
        status=STATUS.get(phase, "running"),
        config_hash="1f0c29a77d3e54be",
        config=study_config(study_dir.name, trials, methods),
        objective=list(objective),
        greater_is_better=[greater, *[False] * (len(objective) - 1)],
        samples_per_trial=BUDGET,
        full_samples=FULL,
        policy={"name": "successive_halving", "rungs": POLICY.rungs, "keep": POLICY.keep},
        space={method: SPACE.get(method, OTHER) for method in methods},
        max_concurrent=2,
        workers_per_trial=1,
        threads_per_worker=1,
        counts=counted(made),
        limits={"trials": float(trials), "wall_s": 3_600.0},
        spent={
            "trials": float(started),
            "wall_s": sum(t.duration_s for t in made) / 2,
            "samples": float(sum(t.samples for t in made)),
        },
        ended_by="trials" if started == trials else "",
        best_trial=min(valued, key=lambda t: sign * (t.value or 0)).number if valued else None,
        candidates=candidates,
        tolerance=TOLERANCE if candidates else None,
        tolerance_from=TOLERANCE_FROM if candidates else "",
        recommended=recommended,
        importances=IMPORTANCES if len(valued) > 4 and set(methods) == set(SPACE) else {},
        winner="winner" if recommended is not None else None,
        versions={"distft": "0.1.0", "torch": "2.13.0", "optuna": "5.0.0", "ray": "2.60.0"},
        started="2026-11-22T18:29:04+00:00",
        duration_s=301.4 if started else 0.4,
        error=error,
    )
    rewrite(study_dir, record, [*made, *confirmations])
    if recommended is not None:
        RUNS["write_run"](study_dir / "winner")
    return record


def study_config(name: str, trials: int, methods: tuple[str, ...]) -> dict[str, Any]:
    """Return the config of a study as given."""
    tune: dict[str, Any] = {"num_trials": trials}
    if set(methods) <= set(SPACE):
        tune["methods"] = list(methods)
    given = {
        "name": name,
        "model": "asset:minilm-l6",
        "data": {"train": "asset:vader-amazon"},
        "task": "seq_cls",
        "tune": tune,
    }
    return parse(given).dump()


def counted(trials: list[TrialRecord]) -> dict[str, int]:
    """Return the counts of a study's record."""
    states = Counter(trial.state for trial in trials)
    counts = {s: states[s] for s in ("complete", "pruned", "failed", "refused", "running")}
    return {**counts, "reused": sum(trial.reused_from is not None for trial in trials)}


def reused(trials: list[TrialRecord], number: int) -> TrialRecord:
    """Return a trial that drew the first one's configuration again."""
    return trials[0].model_copy(update={"number": number, "reused_from": 0})


def rewrite(study_dir: Path, record: StudyRecord, trials: list[TrialRecord]) -> None:
    """Write study.json and trials.jsonl as the driver of a study does."""
    lines = "".join(json.dumps(trial.model_dump()) + "\n" for trial in trials)
    write_text(study_dir / "trials.jsonl", lines)
    write_json(study_dir / "study.json", record.model_dump())
