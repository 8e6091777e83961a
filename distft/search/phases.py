"""The phases of a study: search, confirm the best with further seeds, recommend; and its files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from optuna.storages import BaseStorage

from distft.config import RunConfig
from distft.errors import SearchError
from distft.records import Candidate, StudyRecord, TrialRecord, write_json, write_text
from distft.run_dir import with_this_job
from distft.search.budget import TRIALS, budget_of
from distft.search.choose import candidates, ranked, recommend
from distft.search.desk import Desk
from distft.search.sample import Sample, Space, draw, effective, grid, parameters, priors
from distft.search.setting import Setting, goals, limits, policy_of
from distft.search.study import Settings, Study, check_same

Execute = Callable[[Desk, Setting], None]
"""Runs a desk's trials until it is finished."""

_PUBLISH_S = 1.0
_WALL = "wall_s"


class Search:
    """A study from its first trial to its recommendation.

    Args:
        storage: Of the study; the only truth.
        setting: What its trials share.
        space: What is drawn from.
        config_hash: Of the search (see `RunConfig.search_hash`).
    """

    def __init__(
        self, storage: BaseStorage, setting: Setting, space: Space, config_hash: str
    ) -> None:
        config = setting.config
        self._setting, self._space, self._hash = setting, space, config_hash
        self._goals = goals(config)
        self._budget = budget_of(config.tune)
        self._policy = policy_of(config, setting.trial_samples)
        self._confirmed: list[TrialRecord] = []
        self._candidates: list[Candidate] = []
        self._chosen: tuple[float | None, str, int | None] = (None, "", None)
        self._ended_by = ""
        self._published = 0.0
        self._started = time.monotonic()
        greater = [goal.greater_is_better for goal in self._goals]
        settings = Settings(
            greater_is_better=greater,
            sampler=config.tune.sampler,
            seed=config.train.seed,
            startup=2 * len(space.methods),
            policy=self._policy,
            budget_samples=setting.trial_samples,
            limits=limits(config),
        )
        further = replace(
            settings, greater_is_better=greater[:1], sampler="random", policy=None, limits=()
        )
        self._search = Study(storage, config.name, settings)
        self._confirm = Study(storage, f"{config.name} confirmation", further)
        check_same(self._search, config_hash, config.name)
        self._earlier_s = float(self._search.attributes.get(_WALL, 0.0))
        self._began = self._search.attributes.get("started") or _now()
        self._search.note("started", self._began)
        self._jobs = with_this_job(self._search.attributes.get("jobs", []))
        self._search.note("jobs", self._jobs)
        self._desk = Desk(self._search, _Sampled(self), setting, self._goals, self._changed)

    # What the sampled source asks for.

    @property
    def setting(self) -> Setting:
        """What the trials share."""
        return self._setting

    @property
    def space(self) -> Space:
        """What is drawn from."""
        return self._space

    def spent(self) -> dict[str, float]:
        """Return what the search has spent, by limit."""
        return self._budget.spent(self._desk.records(), self._wall_s())

    def over(self) -> str:
        """Return which limit other than the number of trials is reached, or nothing."""
        ended = self._budget.ended_by(self.spent())
        return ended if ended != TRIALS else ""

    def more(self) -> bool:
        """Return whether another trial is to be asked for."""
        if self.setting.config.tune.sampler == "grid" and not self._search.enqueued():
            return False
        return self.spent()[TRIALS] < self._budget.limits[TRIALS]

    def run(self, execute: Execute) -> None:
        """Search, confirm, recommend; continue where the storage stands.

        Args:
            execute: Runs a desk's trials.

        Raises:
            SearchError: No trial came to a value, or none of those confirmed.
        """
        self._enqueue()
        self._execute(self._desk, execute)
        self._ended_by = self._budget.ended_by(self.spent())
        self._search.note(_WALL, self._wall_s())
        best = ranked(self._desk.records(), self._goals[0].greater_is_better)
        if not best:
            raise SearchError("No trial came to a value.", self._why_none())
        chosen = best[: self.setting.config.tune.confirm]
        if len(chosen) < 2:
            few = self.setting.config.tune.confirm < 2
            why = "tune.confirm asks for none" if few else "one configuration came to a value"
            self._chosen = (None, why, best[0].number)
            return
        confirming = _Further(self, self._confirm, chosen)
        desk = Desk(self._confirm, confirming, self.setting, self._goals[:1], self._changed)
        self._candidates = candidates(chosen, {})
        self._confirmed = desk.records()
        self._execute(desk, execute)
        self._confirmed = desk.records()
        self._recommend(chosen)

    def _execute(self, desk: Desk, execute: Execute) -> None:
        if not desk.finished():
            execute(desk, self.setting)
        if desk.error is not None:
            raise desk.error

    def _enqueue(self) -> None:
        if self._search.attributes.get("enqueued"):
            return
        config = self.setting.config
        first = grid(self._space) if config.tune.sampler == "grid" else priors(self._space, config)
        # A process that was killed here has put some of them in line already.
        for sample in first[self._search.enqueued() :]:
            self._search.enqueue(parameters(self._space, sample))
        self._search.note("enqueued", True)

    def _why_none(self) -> str:
        reasons = [record.reason for record in self._desk.records() if record.reason]
        return f"The last reason: {reasons[-1]}" if reasons else ""

    def _recommend(self, chosen: list[TrialRecord]) -> None:
        by_trial: dict[int, dict[int, float]] = {}
        for record in self._confirmed:
            if record.state == "complete" and record.value is not None:
                of = self._confirm.user_attributes(record.number)["of"]
                by_trial.setdefault(of, {})[record.seed] = record.value
        found, tolerance, said, number = recommend(
            candidates(chosen, by_trial),
            self._goals[0].greater_is_better,
            self.setting.config.tune.tolerance,
        )
        if number is None:
            raise SearchError(
                "No seed of the confirmed configurations came to a value.",
                f"The last reason: {self._confirmed[-1].reason}",
            )
        self._candidates, self._chosen = found, (tolerance, said, number)

    @property
    def recommended(self) -> TrialRecord | None:
        """The search trial whose configuration is recommended."""
        number = self._chosen[2]
        return None if number is None else self.trial(number)

    def trial(self, number: int) -> TrialRecord:
        """Return the record of a search trial."""
        return next(record for record in self._desk.records() if record.number == number)

    def winner(self) -> RunConfig:
        """Return the configuration of the recommended trial at full budget."""
        assert self.recommended is not None
        config = self.setting.config
        return effective(config, self.recommended.params, name=f"{config.name}-winner"[:63])

    def _wall_s(self) -> float:
        return self._earlier_s + time.monotonic() - self._started

    # What others read.

    def _changed(self) -> None:
        if time.monotonic() - self._published >= _PUBLISH_S:
            self._search.note(_WALL, self._wall_s())
            self.publish()

    def publish(self, **changes: Any) -> StudyRecord:
        """Write study.json and trials.jsonl from the storage.

        Args:
            **changes: Further fields of the record.

        Returns:
            The record.
        """
        trials = [*self._desk.records(), *self._confirmed]
        lines = "".join(trial.model_dump_json() + "\n" for trial in trials)
        record = self._record().model_copy(update=changes)
        write_text(self.setting.folder / "trials.jsonl", lines)
        write_json(self.setting.folder / "study.json", record.model_dump())
        self._published = time.monotonic()
        return record

    @cached_property
    def _importances(self) -> dict[str, dict[str, float]]:
        # Once, when the search is over, and only then: scikit-learn takes seconds to import.
        from distft.search.importance import importances

        return importances(self._desk.records(), self._goals[0].greater_is_better)

    def _record(self) -> StudyRecord:
        setting, records = self._setting, self._desk.records()
        best = ranked(records, self._goals[0].greater_is_better)
        policy: Mapping[str, Any] = {} if self._policy is None else asdict(self._policy)
        running = [r.run for r in records if r.run is not None]
        tolerance, said, number = self._chosen
        return StudyRecord(
            name=setting.config.name,
            status="running",
            config_hash=self._hash,
            config=setting.config.dump(),
            objective=[goal.metric for goal in self._goals],
            greater_is_better=[goal.greater_is_better for goal in self._goals],
            samples_per_trial=setting.trial_samples,
            full_samples=setting.full_samples,
            policy={"name": "successive_halving" if policy else "none", **policy},
            space=self._space.plain(),
            max_concurrent=setting.concurrent,
            workers_per_trial=running[-1].world_size if running else 1,
            threads_per_worker=setting.threads,
            counts=_counts(records),
            limits=dict(self._budget.limits),
            spent=self.spent(),
            ended_by=self._ended_by,
            best_trial=best[0].number if best else None,
            candidates=self._candidates,
            tolerance=tolerance,
            tolerance_from=said,
            recommended=number,
            importances=self._importances if self._ended_by else {},
            versions=dict(setting.versions),
            started=self._began,
            duration_s=self._wall_s(),
            jobs=self._jobs,
        )


class _Sampled:
    """Trials that the sampler draws, as far as the budget goes."""

    name: Literal["search", "confirm"] = "search"

    def __init__(self, search: Search) -> None:
        self._search = search

    def more(self) -> bool:
        """Return whether the number of trials is not reached."""
        return self._search.more()

    def over(self) -> str:
        """Return why running trials stop now."""
        ended = self._search.over()
        return f"the budget ended: {ended}" if ended else ""

    def configure(self, number: int, trial: Any) -> tuple[Sample, RunConfig]:
        """Return what the trial draws, and its configuration."""
        setting = self._search.setting
        sample = draw(self._search.space, trial)
        train = setting.search_train(sample)
        return sample, effective(setting.config, sample, name=f"trial-{number:05d}", **train)


class _Further:
    """Further seeds of the best configurations, at full budget."""

    name: Literal["search", "confirm"] = "confirm"

    def __init__(self, search: Search, study: Study, chosen: list[TrialRecord]) -> None:
        self._search, self._setting, self._study = search, search.setting, study
        asked = {(a["of"], a["seed"]) for a in study.all_user_attributes() if "of" in a}
        tune, first = self._setting.config.tune, self._setting.config.train.seed
        for seed in range(first + 1, first + 1 + tune.confirm_seeds):
            for trial in chosen:
                if (trial.number, seed) not in asked:
                    study.enqueue({}, of=trial.number, seed=seed)

    def more(self) -> bool:
        """Return whether a seed waits."""
        return self._study.enqueued() > 0

    def over(self) -> str:
        """Return nothing: the budget is the search's."""
        return ""

    def configure(self, number: int, trial: Any) -> tuple[Sample, RunConfig]:
        """Return the confirmed sample, and its configuration with the seed."""
        attributes = self._study.user_attributes(number)
        sample = self._search.trial(attributes["of"]).params
        train = {**self._setting.confirm_train(sample), "seed": attributes["seed"]}
        name = f"confirm-{number:05d}"
        return sample, effective(self._setting.config, sample, name=name, **train)


def _counts(records: list[TrialRecord]) -> dict[str, int]:
    counts = dict.fromkeys(("complete", "pruned", "failed", "refused", "reused", "running"), 0)
    for record in records:
        counts[record.state] += 1
        counts["reused"] += record.reused_from is not None
    return counts


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
