"""An Optuna study: its storage is the only truth of a search.

Every trial's record and curve are its user attributes, written before `tell`. The sampler is made
anew for every ask, seeded by (study seed, trial number): a continued study proposes what the
unbroken one would have (one long-lived seeded sampler does not).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from distft import run_dir
from distft.errors import ConfigError
from distft.records import TrialRecord
from distft.search.policy import Decision, Policy, decide
from distft.space import Limit

JOURNAL = "study.journal"
RECORD = "record"
"""User attribute: the trial's TrialRecord as plain data."""

_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "refused": TrialState.PRUNED,
}

logging.getLogger("optuna").setLevel(logging.ERROR)
# group and multivariate are experimental, and wanted: the space is conditional on the method.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class Told(NamedTuple):
    """How a trial ends."""

    state: Literal["complete", "pruned", "failed", "refused"]
    reason: str = ""


def open_storage(study_dir: Path, url: str | None) -> BaseStorage:
    """Return the storage of a study; what a killed process left half-written there is mended.

    Args:
        study_dir: Holds the journal file; this process must be its only writer.
        url: Any storage Optuna knows; None: the journal file.

    Returns:
        The storage.

    Raises:
        ConfigError: The URL cannot be opened, or the journal is damaged.
    """
    if url is not None:
        try:
            return get_storage(url)
        except Exception as error:
            raise ConfigError(
                f"tune.storage cannot be opened: {type(error).__name__}.",
                "See Optuna's storage URLs, such as sqlite:///study.db.",
            ) from error
    path = study_dir / JOURNAL
    _mend(path)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"{path} is damaged: {error}.", "Add --fresh to begin the study again."
        ) from error


def _mend(path: Path) -> None:
    """Remove a dead writer's lock and half a last line: Optuna would wait, and refuse the file."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if path.is_file():
        text = path.read_bytes()
        if not text.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)


class _Rungs(optuna.pruners.BasePruner):
    """The stopping policy as Optuna calls it; what it decided last is kept for the record."""

    def __init__(self, policy: Policy, budget_samples: int, sign: float) -> None:
        self._policy, self._budget, self._sign = policy, budget_samples, sign
        self.last: Decision | None = None

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial stops where it stands."""
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        curves = [self._curve(other) for other in others]
        self.last = decide(self._policy, self._budget, self._curve(trial), curves)
        return self.last is not None and not self.last.kept

    def _curve(self, trial: FrozenTrial) -> list[tuple[int, float]]:
        points = sorted(trial.intermediate_values.items())
        return [(samples, self._sign * value) for samples, value in points]


@dataclass(frozen=True)
class Settings:
    """What a study is, besides its trials."""

    greater_is_better: Sequence[bool]
    """Direction of each objective."""
    sampler: str
    """`tune.sampler`."""
    seed: int
    """With a trial's number it seeds the sampler."""
    startup: int
    """Trials drawn at random before tpe and gp model anything."""
    policy: Policy | None
    """Stops trials at rungs; None: never."""
    budget_samples: int
    """Samples of one trial."""
    limits: Sequence[Limit] = ()
    """Constraints the sampler learns from."""


class Study:
    """One Optuna study of distft: asks, reports, tells, and reads its trials back.

    Args:
        storage: Where it is kept.
        name: Its name there.
        settings: What it is.
    """

    def __init__(self, storage: BaseStorage, name: str, settings: Settings) -> None:
        self._settings = settings
        self._several = len(settings.greater_is_better) > 1
        self._sign = sign = -1.0 if settings.greater_is_better[0] else 1.0
        self._rungs = (
            None
            if settings.policy is None
            else _Rungs(settings.policy, settings.budget_samples, sign)
        )
        directions = [
            StudyDirection.MAXIMIZE if greater else StudyDirection.MINIMIZE
            for greater in settings.greater_is_better
        ]
        self._study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=directions,
            sampler=self._make_sampler(0),
            pruner=self._rungs or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self._live: dict[int, Trial] = {}

    @property
    def attributes(self) -> dict[str, Any]:
        """User attributes of the study itself."""
        found: dict[str, Any] = self._study.user_attrs
        return found

    def note(self, key: str, value: Any) -> None:
        """Keep a user attribute of the study."""
        self._study.set_user_attr(key, value)

    def enqueue(self, parameters: Mapping[str, Any], **attributes: Any) -> None:
        """Put a trial with given parameters first in line."""
        self._study.enqueue_trial(dict(parameters), user_attrs=attributes)

    def enqueued(self) -> int:
        """Return how many trials wait in line."""
        return len(self._trials(TrialState.WAITING))

    def ask(self) -> Trial:
        """Return the next trial, which is running from now on."""
        waiting = self._trials(TrialState.WAITING)
        number = waiting[0].number if waiting else len(self._trials())
        self._study.sampler = self._make_sampler(number)
        trial = self._study.ask()
        assert trial.number == number
        self._live[number] = trial
        return trial

    def running(self) -> list[int]:
        """Return the numbers of the trials that have not ended."""
        return [trial.number for trial in self._trials(TrialState.RUNNING)]

    def again(self, number: int) -> Trial:
        """Return a running trial of an earlier process; it draws what it drew before."""
        if number not in self._live:
            frozen = self._trials()[number]
            self._study.sampler = self._make_sampler(number)
            self._live[number] = Trial(self._study, frozen._trial_id)
        return self._live[number]

    @property
    def rung_samples(self) -> list[float]:
        """Samples at which trials are compared."""
        policy = self._settings.policy
        shares = () if policy is None else policy.rungs
        return [share * self._settings.budget_samples for share in shares]

    def limit(self, number: int, values: Mapping[str, float]) -> str:
        """Tell the sampler how far a trial is above each constraint.

        Args:
            number: Of the running trial.
            values: What its plan says, by the names of `distft.space.LIMITED`.

        Returns:
            The constraints it breaks, as they were written; empty when it keeps all.
        """
        broken = []
        trial = self._live[number]
        for limit in self._settings.limits:
            above = values[limit.name] / limit.most - 1
            if limit.text not in trial.constraints:
                trial.set_constraint(limit.text, above)
            if above > 0:
                broken.append(f"{limit.text} (it has {values[limit.name]:,.0f})")
        return ", ".join(broken)

    def report(self, number: int, samples: int, value: float) -> Decision | None:
        """Keep a value of a running trial.

        Args:
            number: Of the trial.
            samples: It has trained on.
            value: Of the first objective.

        Returns:
            What the policy decided, if the trial stands at a rung.
        """
        if self._several or not math.isfinite(value):
            return None
        trial = self._live[number]
        if samples not in self._trials()[number].intermediate_values:
            trial.report(value, samples)
        if self._rungs is None:
            return None
        trial.should_prune()
        decision = self._rungs.last
        # The policy counts down; a reader sees the value as it was measured.
        return decision and replace(decision, value=self._sign * decision.value)

    def copy_reports(self, source: int, number: int) -> None:
        """Give a running trial the values that another one has reported.

        Args:
            source: The other one.
            number: Of the running trial.
        """
        trials = self._trials()
        held = trials[number].intermediate_values
        for samples, value in trials[source].intermediate_values.items():
            if samples not in held:
                self._live[number].report(value, samples)

    def save(self, record: TrialRecord) -> None:
        """Keep a trial's record as it is now."""
        self._live[record.number].set_user_attr(RECORD, record.model_dump())

    def tell(self, record: TrialRecord, values: Sequence[float] | None) -> None:
        """Close a trial with its record.

        Args:
            record: Kept first, so that a closed trial always has one.
            values: The objectives of a complete trial, all finite.
        """
        self.save(record)
        state = _STATES.get(record.state, TrialState.FAIL)
        trial = self._live.pop(record.number)
        self._study.tell(trial, values if state is TrialState.COMPLETE else None, state)

    def records(self) -> list[TrialRecord]:
        """Return the records of all trials that were ever started, by number."""
        kept = [trial.user_attrs.get(RECORD) for trial in self._trials()]
        return [TrialRecord.model_validate(record) for record in kept if record is not None]

    def user_attributes(self, number: int) -> dict[str, Any]:
        """Return the user attributes of a trial."""
        return dict(self._trials()[number].user_attrs)

    def all_user_attributes(self) -> list[dict[str, Any]]:
        """Return the user attributes of every trial, by number."""
        return [dict(trial.user_attrs) for trial in self._trials()]

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _make_sampler(self, number: int) -> BaseSampler:
        digest = hashlib.sha256(json.dumps([self._settings.seed, number]).encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        if self._settings.sampler == "tpe":
            return TPESampler(
                seed=seed,
                multivariate=not self._several,
                group=not self._several,
                constant_liar=True,
                n_startup_trials=self._settings.startup,
            )
        if self._settings.sampler == "gp":
            return GPSampler(seed=seed, n_startup_trials=self._settings.startup)
        if self._settings.sampler == "nsga2":
            return NSGAIISampler(seed=seed, population_size=max(4, self._settings.startup))
        return RandomSampler(seed=seed)


def check_same(study: Study, config_hash: str, name: str) -> None:
    """Remember which configuration a study is of, or refuse another one.

    Args:
        study: New or continued.
        config_hash: Of the search.
        name: For the message.

    Raises:
        PlanError: The study was made with another configuration.
    """
    held = study.attributes.get("config_hash")
    if held is None:
        study.note("config_hash", config_hash)
    else:
        run_dir.check_same(f"The study {name} exists with", held, config_hash)
