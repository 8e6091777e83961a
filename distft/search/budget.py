"""What a search may spend, what it has spent, and whether it is over. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distft.config_tune import TuneConfig
from distft.records import TrialRecord

TRIALS, WALL, GPU, SAMPLES = "trials", "wall_s", "gpu_s", "samples"


@dataclass(frozen=True)
class Budget:
    """The limits that are set, by name; `trials` always is."""

    limits: Mapping[str, float]

    def spent(self, trials: Iterable[TrialRecord], wall_s: float) -> dict[str, float]:
        """Return what a search has spent of each limit.

        Args:
            trials: All of the search; refused ones cost nothing and are not counted.
            wall_s: Seconds it has run, over all its continuations.

        Returns:
            The amounts by name.
        """
        counted = [trial for trial in trials if trial.state != "refused"]
        own = [trial for trial in counted if trial.reused_from is None]
        on_gpus = [(t, t.run) for t in own if t.run is not None and t.run.device == "cuda"]
        return {
            TRIALS: len(counted),
            WALL: wall_s,
            GPU: sum(trial.duration_s * run.world_size for trial, run in on_gpus),
            SAMPLES: sum(trial.samples for trial in own),
        }

    def ended_by(self, spent: Mapping[str, float]) -> str:
        """Return which limit is reached, or nothing.

        Args:
            spent: As `spent` returns it.

        Returns:
            The limit's name; the trials' own number only when no other one is.
        """
        # `trials` is the first limit, so it is named only when no other one is reached.
        reached = [name for name, most in self.limits.items() if spent[name] >= most]
        return reached[-1] if reached else ""


def budget_of(tune: TuneConfig) -> Budget:
    """Return the limits of a search.

    Args:
        tune: The section of the configuration.

    Returns:
        The budget.
    """
    limits: dict[str, float] = {TRIALS: tune.num_trials}
    given = tune.budget
    if given.wall_hours is not None:
        limits[WALL] = given.wall_hours * 3600
    if given.gpu_hours is not None:
        limits[GPU] = given.gpu_hours * 3600
    if given.samples is not None:
        limits[SAMPLES] = given.samples
    return Budget(limits)
