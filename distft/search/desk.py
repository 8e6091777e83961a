"""The desk of a study: hands out trials, takes their reports, decides, and closes them.

It knows no executor: Ray Tune pulls at it, and so does a test in process.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from distft import plugin
from distft.config import RunConfig
from distft.errors import ConfigError, PlanError, SearchError
from distft.plan import Plan
from distft.records import Metrics, TrialRecord
from distft.redact import hidden
from distft.run_dir import first_record, with_peak, with_result
from distft.search.sample import METHOD, Sample
from distft.search.setting import COSTS, Goal, Setting, plan_trial, rung_steps
from distft.search.study import Study
from distft.train.job import Order

ATTEMPTS = 3
"""How often a trial is started when its process is lost; what it raises itself is never tried
again."""
_PEAK = "peak_memory_bytes"
MOST_REFUSED = 100
"""Refused trials in a row after which the constraints are taken to leave nothing."""


class Launch(NamedTuple):
    """A trial an executor is to start."""

    number: int
    order: Order
    config: RunConfig


class Source(Protocol):
    """Where the configurations of a study's trials come from."""

    name: Literal["search", "confirm"]

    def more(self) -> bool:
        """Return whether another trial is to be asked for."""
        ...

    def configure(self, number: int, trial: Any) -> tuple[Sample, RunConfig]:
        """Return what a trial draws, and the configuration that makes."""
        ...

    def over(self) -> str:
        """Return why running trials are to stop now, or nothing."""
        ...


class Desk:
    """Hands out the trials of one study.

    Args:
        study: Where they are kept.
        source: Where their configurations come from.
        setting: What they share.
        goals: The objectives, the deciding one first.
        changed: Called whenever a record changed.
    """

    def __init__(
        self,
        study: Study,
        source: Source,
        setting: Setting,
        goals: list[Goal],
        changed: Callable[[], None],
    ) -> None:
        self._study, self._source, self._setting = study, source, setting
        self._goals, self._changed = goals, changed
        self._records = {record.number: record for record in study.records()}
        self._again = study.running()
        self._out: set[int] = set()
        self._twins: dict[int, int] = {}
        self._last_step: dict[int, int] = {}
        self._refused = 0
        self.error: Exception | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits to."""
        return not self._out and not self._again

    def records(self) -> list[TrialRecord]:
        """Return all records, by number."""
        return [self._records[number] for number in sorted(self._records)]

    def next(self) -> Launch | None:
        """Return the next trial to start.

        Returns:
            None when there is none now; `finished` says whether there may be one later.

        Raises:
            SearchError: Different samples came to one configuration, or nothing keeps the
                constraints.
        """
        while self._again or (not self._source.over() and self._source.more()):
            number = self._again.pop(0) if self._again else None
            trial = self._study.ask() if number is None else self._study.again(number)
            launch = self._open(trial)
            if launch is not None:
                return launch
        return None

    def finished(self) -> bool:
        """Return whether nothing runs and no trial is left to start."""
        return self.idle and (bool(self._source.over()) or not self._source.more())

    def _open(self, trial: Any) -> Launch | None:
        number = trial.number
        sample, config = self._source.configure(number, trial)
        held = self._records.get(number)
        record = held or TrialRecord(
            study=self._source.name,
            number=number,
            state="running",
            method=sample[METHOD],
            params=sample,
            config_hash=self._setting.hash(config),
            seed=config.train.seed,
        )
        self._records[number] = record
        if record.state != "running":
            # Killed after the record was kept and before the study was told.
            self._study.tell(record, record.values or None)
            return None
        stopped = bool(record.rungs) and not record.rungs[-1]["kept"]
        if stopped or self._same(record):
            if stopped:
                self._close(record, "pruned", record.reason)
            return None
        try:
            config, plan = plan_trial(self._setting, config)
            self._keep_limits(number, plan)
        except (PlanError, ConfigError) as error:
            self._refuse(record, error)
            return None
        self._refused = 0
        return self._launch(record, config, plan)

    def _launch(self, record: TrialRecord, config: RunConfig, plan: Plan) -> Launch:
        setting = self._setting
        assert setting.manifest is not None
        run = first_record(
            config, record.config_hash, plan, setting.manifest, dict(setting.versions)
        )
        trial = {"study": record.study, "number": record.number, "params": record.params}
        adapter = plugin.methods()[record.method].adapter
        saved = plan.trainable_params if adapter else plan.params
        width = 2 if config.model.dtype == "bfloat16" else 4
        self._update(record, run=run.model_copy(update={"trial": trial}), saved_bytes=saved * width)
        self._out.add(record.number)
        self._last_step[record.number] = plan.total_steps
        order = Order(
            config=hidden(config.dump()),
            plan=plan,
            run_dir=self._folder(record),
            data_root=setting.data_root,
            config_hash=record.config_hash,
            rungs=rung_steps(plan, self._study.rung_samples),
        )
        return Launch(record.number, order, config)

    def _folder(self, record: TrialRecord) -> Path:
        name = f"{record.number:05d}"
        if record.study == "confirm":
            name = f"confirm-{name}"
        return self._setting.folder / "trials" / name

    def _same(self, record: TrialRecord) -> bool:
        """Take over the result of a trial with the same configuration, or wait for it."""
        for other in self.records():
            if other.config_hash != record.config_hash or other.number == record.number:
                continue
            if other.params != record.params:
                raise SearchError(
                    f"Trials {other.number} and {record.number} drew different values and came to "
                    f"one configuration: {_difference(other.params, record.params)} changes "
                    "nothing that is learnt.",
                    "Take it out of tune.space.",
                )
            if other.reused_from is not None or other.state == "refused":
                continue
            record = self._update(record, reused_from=other.number)
            if other.state == "running":
                self._twins[record.number] = other.number
            else:
                self._take_over(record, other)
            return True
        return False

    def _take_over(self, record: TrialRecord, other: TrialRecord) -> None:
        taken = ("value", "values", "curve", "rungs", "samples", "saved_bytes", "run")
        record = self._update(record, **{key: getattr(other, key) for key in taken})
        self._study.copy_reports(other.number, record.number)
        assert other.state in ("complete", "pruned", "failed")
        self._close(record, other.state, f"the result of trial {other.number}")

    def _keep_limits(self, number: int, plan: Plan) -> None:
        values = {
            "trainable_params": float(plan.trainable_params),
            "peak_memory": float(plan.memory.total_bytes),
        }
        broken = self._study.limit(number, values)
        if broken:
            raise PlanError(f"It breaks the constraint {broken}.")

    def _refuse(self, record: TrialRecord, error: PlanError | ConfigError) -> None:
        self._refused += 1
        self._close(record, "refused", str(error))
        if self._refused >= MOST_REFUSED:
            raise SearchError(
                f"{MOST_REFUSED} trials in a row were refused, the last one because: {error}",
                "Loosen tune.constraints, or search smaller methods.",
            )

    def report(self, number: int, report: Metrics, elapsed_s: float) -> bool:
        """Take an evaluation of a running trial.

        Args:
            number: Of the trial.
            report: `step`, `samples`, metrics prefixed `eval_` and, where it was measured,
                `peak_memory_bytes`.
            elapsed_s: Seconds the trial worked for it.

        Returns:
            Whether the trial is to stop; it is closed then.
        """
        record = self._records[number]
        if record.state != "running":
            return True
        reason = self._unusable(report)
        if reason:
            self.fail(number, SearchError(reason).as_dict())
            return True
        goal = self._goals[0]
        point = {k: v for k, v in report.items() if _is_number(v) and k != _PEAK}
        point["value"] = float(report[goal.metric])
        curve = [p for p in record.curve if p["samples"] < point["samples"]] + [point]
        changes: dict[str, Any] = {
            "curve": curve,
            "samples": point["samples"],
            "duration_s": record.duration_s + elapsed_s,
            "run": record.run and with_peak(record.run, report.get(_PEAK)),
        }
        if point["samples"]:
            best = max if goal.greater_is_better else min
            changes["value"] = best(p["value"] for p in curve if p["samples"])
            decision = self._study.report(number, point["samples"], changes["value"])
            # What was decided before a process was lost stays decided.
            held = {rung["rung"] for rung in record.rungs}
            if decision is not None and decision.rung not in held:
                changes["rungs"] = [*record.rungs, asdict(decision)]
                if not decision.kept:
                    place = f"rank {decision.rank} of {decision.of}"
                    reason = f"stopped at rung {decision.rung + 1}: {place}"
        record = self._records[number] = record.model_copy(update=changes)
        # A trial that has done all its steps is not stopped any more: only its end is to come.
        if report["step"] < self._last_step[number]:
            reason = reason or self._source.over()
        record = self._update(record, reason=reason)
        if reason:
            self._close(record, "pruned", reason)
        return bool(reason)

    def end(self, number: int, result: Metrics, elapsed_s: float) -> None:
        """Close a trial that came to its end.

        Args:
            number: Of the trial.
            result: What eval.json holds.
            elapsed_s: Seconds the trial worked since its last report.
        """
        record = self._records[number]
        if record.state != "running" or record.run is None:
            return
        duration_s = record.duration_s + elapsed_s
        run = with_result(record.run, result, duration_s)
        run.status = "completed"
        planned, built = run.model.trainable_params, result["trainable_params"]
        # A head that the model's files lack is drawn anew and trained; no plan can see that.
        said = "" if built == planned else f"the plan says {planned} trained parameters"
        run.model = run.model.model_copy(update={"trainable_params": built})
        record = self._update(record, run=run, duration_s=duration_s)
        self._close(record, "complete", said)

    def fail(self, number: int, error: Mapping[str, Any]) -> None:
        """Close a trial that raised.

        Args:
            number: Of the trial.
            error: As `DistftError.as_dict` gives it.
        """
        record = self._records[number]
        if record.state == "running":
            if record.run is not None:
                changed = {"status": "failed", "error": dict(error)}
                record = self._update(record, run=record.run.model_copy(update=changed))
            self._close(record, "failed", str(error["message"]))

    def lose(self, number: int, reason: str, attempts: int = 1) -> None:
        """Start a trial again whose process was lost, or close it when that was the last attempt.

        Args:
            number: Of the trial.
            reason: What became of the process.
            attempts: 0 where the trial had not begun there.
        """
        record = self._records[number]
        if record.state != "running":
            return
        if record.attempts + attempts > ATTEMPTS:
            self.fail(number, SearchError(f"process lost {ATTEMPTS} times: {reason}").as_dict())
            return
        self._out.discard(number)
        self._update(record, attempts=record.attempts + attempts)
        self._again.append(number)

    def _close(
        self,
        record: TrialRecord,
        state: Literal["complete", "pruned", "failed", "refused"],
        reason: str,
    ) -> None:
        values = (record.values or self._values(record)) if state == "complete" else None
        run = record.run
        if run is not None and record.reused_from is None:
            status = "pruned" if state == "pruned" else run.status
            trial = {**(run.trial or {}), "rungs": record.rungs}
            run = run.model_copy(update={"status": status, "trial": trial})
        record = self._update(record, state=state, reason=reason, values=values or [], run=run)
        self._study.tell(record, values)
        self._out.discard(record.number)
        # A trial keeps no model; its checkpoints served the case that its process was lost.
        shutil.rmtree(self._folder(record) / "checkpoints", ignore_errors=True)
        self._changed()
        for twin in [n for n, of in self._twins.items() if of == record.number]:
            del self._twins[twin]
            self._take_over(self._records[twin], record)

    def _values(self, record: TrialRecord) -> list[float]:
        assert record.value is not None
        assert record.run is not None
        costs = {
            "trainable_params": float(record.run.model.trainable_params),
            "peak_memory": float(record.run.peak_memory_bytes.get("measured", 0)),
            "duration_s": record.duration_s,
        }
        values = []
        for goal in self._goals:
            if goal.metric in COSTS:
                values.append(costs[goal.metric])
            else:
                best = max if goal.greater_is_better else min
                values.append(best(p[goal.metric] for p in record.curve if p["samples"]))
        return values

    def _unusable(self, report: Metrics) -> str:
        """Return what is wrong with an evaluation's objectives, or nothing."""
        for metric in [goal.metric for goal in self._goals if goal.metric not in COSTS]:
            value: Any = report.get(metric)
            if not _is_number(value):
                known = sorted(k for k, v in report.items() if k[:5] == "eval_" and _is_number(v))
                return f"{metric} is not measured; allowed: {', '.join(known)}"
            if not math.isfinite(value):
                return f"{metric} is {value} at step {report['step']}"
        return ""

    def _update(self, record: TrialRecord, **changes: Any) -> TrialRecord:
        changed = record.model_copy(update=changes)
        self._records[record.number] = changed
        if changed.state == "running":
            self._study.save(changed)
            self._changed()
        return changed


def _difference(one: Sample, other: Sample) -> str:
    differing = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
    return ", ".join(differing)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
