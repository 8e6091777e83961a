"""Ray Tune as the hands of a study: processes, resources, concurrency. The desk decides."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from distft.errors import DistftError, LostError, SearchError
from distft.launch.room import Watch
from distft.launch.trainer import loss_of_process
from distft.search.desk import Desk, Launch
from distft.search.setting import Setting
from distft.search.trainable import NotCleanError, TrialProcess

_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C is Python's: Tune's handler would end the process by itself.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # What Tune would restore from is never used: the study's storage is.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_THRESHOLD_S": "60",
    # The new output draws tables whatever the verbosity.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

_SECRETS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
"""Tune sends them to its trials, and Ray logs in plain what is sent; nodes have their own."""

_NO_MEMORY = re.compile("out of memory|can't allocate")
"""What torch says on a graphics card and on a CPU."""


def execute(desk: Desk, setting: Setting, trainable: type = TrialProcess) -> None:
    """Run a desk's trials on the connected cluster until it is finished.

    Args:
        desk: Hands out the trials and takes their reports.
        setting: Of the study: how many side by side, what each worker reserves.
        trainable: What is started for a trial; takes what `TrialProcess` takes, and says what it
            reserves as that does.

    Raises:
        SearchError: Tune itself failed; what trials raise is in their records.
    """
    os.environ.update(_QUIET)
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(_SECRETS)
    for name in ("ray.tune", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="distft-tune-") as storage:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_Hands(desk),
                scheduler=_Decisions(desk),
                num_samples=-1,
                max_concurrent_trials=setting.concurrent,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="study",
                storage_path=storage,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError as error:
            if desk.error is None:
                raise SearchError(f"Ray Tune failed: {error}") from error


def _config(launch: Launch) -> dict[str, Any]:
    return {
        "number": launch.number,
        "order": launch.order.model_dump(mode="json"),
        "cluster": launch.config.cluster.model_dump(),
    }


class _Hands(Searcher):  # type: ignore[misc]  # Ray ships no types
    """Gives Tune the desk's trials."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial; None: not now; FINISHED: never again."""
        launch = None
        try:
            launch = self._desk.next()
        except Exception as error:  # noqa: BLE001 - raised again where the search was called
            self._desk.error = error
        if self._desk.error is not None:
            return str(Searcher.FINISHED)
        if launch is not None:
            self._numbers[trial_id] = launch.number
            return _config(launch)
        return str(Searcher.FINISHED) if self._desk.finished() else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Close a trial that ended by itself; stopped and lost ones are the scheduler's."""
        number = self._numbers[trial_id]
        if result is not None and "result" in result:
            self._desk.end(number, json.loads(result["result"]), result["elapsed_s"])

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the study's storage is the only truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""

    def __deepcopy__(self, memo: object) -> _Hands:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Decisions(FIFOScheduler):  # type: ignore[misc]  # Ray ships no types
    """Asks the desk after each report whether a trial goes on."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk
        self._watch: Watch | None = None

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return Tune's own choice; end a study whose trials have no place any more."""
        trials = {trial.status: trial for trial in tune_controller.get_trials()}
        waiting = trials.get("PENDING")
        if waiting is None or "RUNNING" in trials:
            self._watch = None
        else:
            each = waiting.placement_group_factory.required_resources
            self._watch = self._watch or Watch(each, 1)
            try:
                self._watch.lacking()
            except LostError as error:
                self._desk.error = error
                raise tune.TuneError(str(error)) from error
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return Tune's word for what the desk decided."""
        number = trial.config["number"]
        report = json.loads(result["report"])
        if self._desk.error is None and not self._desk.report(number, report, result["elapsed_s"]):
            return str(TrialScheduler.CONTINUE)
        # Freed now, not when another trial needs the process.
        trial.temporary_state.ray_actor.release.remote()
        return str(TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Tell the desk what a trial raised, or that its process was lost."""
        number = trial.config["number"]
        what, error = loss_of_process(_error_of(trial))
        if isinstance(error, LostError):
            # No fault of the trial, which goes on when the study does.
            self._desk.error = error
            return
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        if isinstance(error, NotCleanError):
            self._desk.lose(number, reason, attempts=0)
        elif what == "lost":
            self._desk.lose(number, reason)
        elif isinstance(error, DistftError):
            self._desk.fail(number, error.as_dict())
        else:
            if what == "memory" or isinstance(error, MemoryError) or _NO_MEMORY.search(reason):
                reason = f"out of memory: {reason}"
            self._desk.fail(number, SearchError(reason).as_dict())

    def __deepcopy__(self, memo: object) -> _Decisions:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _error_of(trial: Any) -> BaseException:
    """Return what ended a trial, read here: Tune's own readers look where it comes later."""
    if trial.pickled_error_file is None:
        return SearchError(Path(trial.error_file).read_text(encoding="utf-8"))
    error: BaseException = pickle.loads(Path(trial.pickled_error_file).read_bytes())
    return error
