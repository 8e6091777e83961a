"""What all trials of a study share, and the plan of one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distft import plugin
from distft.batch_sizes import batch_sizes
from distft.capacity import Capacity
from distft.config import RunConfig
from distft.data.manifest import Manifest
from distft.data.mix import Mix
from distft.data.stats import DataStats
from distft.errors import ConfigError, PlanError
from distft.plan import Plan, make_plan
from distft.search.policy import DEFAULT, Policy, for_budget
from distft.space import Limit, parse_limit

COSTS = ("trainable_params", "peak_memory", "duration_s")
"""Objectives that are not measured on the eval rows; less is better."""


@dataclass(frozen=True)
class Goal:
    """One objective."""

    metric: str
    greater_is_better: bool


def goals(config: RunConfig) -> list[Goal]:
    """Return the objectives of a search, the deciding one first.

    Args:
        config: With its task resolved.

    Returns:
        The task's plain loss where the user names none. Costs come last: they decide nothing.

    Raises:
        ConfigError: All of them are costs.
    """
    given = config.tune.objective
    task = plugin.tasks()[config.task.name]
    if given is None:
        return [Goal(task.objective, task.greater_is_better)]
    found = []
    for name in [given] if isinstance(given, str) else given:
        if name in COSTS:
            found.append(Goal(name, False))
            continue
        metric = name if name.startswith("eval_") else f"eval_{name}"
        found.append(Goal(metric, plugin.greater_is_better(metric)))
    if all(goal.metric in COSTS for goal in found):
        raise ConfigError(
            f"tune.objective: {', '.join(g.metric for g in found)} are costs; one objective must "
            "be measured on the eval rows.",
            "Add one, such as eval_loss.",
        )
    return sorted(found, key=lambda goal: goal.metric in COSTS)


def policy_of(config: RunConfig, budget_samples: int) -> Policy | None:
    """Return when trials are stopped early; None: never.

    Args:
        config: With several objectives no trial is stopped.
        budget_samples: Samples of one trial; rungs that come too early to tell are left out,
            unless the user asked for them.

    Returns:
        The policy.

    Raises:
        ConfigError: `tune.policy` does not read.
    """
    given = config.tune.policy
    if given.name == "none" or len(goals(config)) > 1:
        return None
    if given.rungs is None:
        policy = replace(DEFAULT, keep=tuple(given.keep or DEFAULT.keep))
        return for_budget(policy, budget_samples)
    rungs = tuple(given.rungs)
    return Policy(rungs=rungs, keep=tuple(given.keep or DEFAULT.keep[:1] * len(rungs)))


def limits(config: RunConfig) -> list[Limit]:
    """Return the constraints of a search."""
    return [parse_limit(text) for text in config.tune.constraints]


@dataclass(frozen=True)
class Setting:
    """What every trial of a study starts from."""

    config: RunConfig
    """As given, with its task resolved."""
    folder: Path
    """The study's directory."""
    data_key: str
    data_root: Path
    manifest: Manifest | None
    """None while nothing is prepared yet; trials are planned from a sample of the data then."""
    stats: DataStats
    capacity: Capacity
    """Of the whole cluster."""
    concurrent: int
    """Trials side by side."""
    versions: Mapping[str, str]

    @property
    def global_batch_size(self) -> int:
        """Samples of an optimizer step, unless a trial draws its own."""
        return batch_sizes(self.config)[0]

    @property
    def full_samples(self) -> int:
        """Training samples of the winner."""
        train = self.config.train
        if train.max_steps is not None:
            return train.max_steps * self.global_batch_size
        rows = (self.stats.rows["train"], *self.stats.mixed_rows)
        return Mix(rows, self.config.data.mix_shares).samples(train.num_train_epochs)

    @property
    def trial_samples(self) -> int:
        """Training samples of one search trial."""
        return min(self.config.tune.max_samples or self.full_samples, self.full_samples)

    @property
    def threads(self) -> int:
        """Threads of a worker of a trial of one worker."""
        return share(self).cpus

    def hash(self, config: RunConfig) -> str:
        """Return the hash of what a trial learns, its seed included."""
        return config.hash(self.data_key, batch_sizes(config)[0])

    def search_train(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys of `train` that a search trial's configuration differs in.

        Args:
            sample: What the trial draws; a batch size in it wins.

        Returns:
            Keys and values: how long it is, and evaluations at its rungs and its end only.
        """
        cut = self.confirm_train(sample)
        if self.trial_samples < self.full_samples:
            cut["max_steps"] = max(1, math.ceil(self.trial_samples / cut["global_batch_size"]))
        if self.config.train.eval_steps is None:
            cut["eval_strategy"] = "no"
        return cut

    def confirm_train(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys of `train` that a full-budget run on a trial's workers differs in.

        Args:
            sample: What the trial drew; a batch size in it wins.

        Returns:
            Keys and values: the same steps, cut for its own workers.
        """
        return {
            "global_batch_size": sample.get("train.global_batch_size", self.global_batch_size),
            "per_device_train_batch_size": sample.get("train.per_device_train_batch_size"),
            "gradient_accumulation_steps": None,
            "save_total_limit": 1,
        }


def plan_trial(setting: Setting, config: RunConfig) -> tuple[RunConfig, Plan]:
    """Return a trial's configuration with its workers, and its plan.

    Args:
        setting: Of the study.
        config: What the trial's sample makes.

    Returns:
        Both; a trial gets one worker where the model fits one, else `cluster.num_workers`.

    Raises:
        PlanError: It fits neither.
        ConfigError: The model cannot be trained so.
    """
    cluster = setting.config.cluster
    asked = setting.config.tune.num_workers
    counts = [asked] if asked else sorted({1, cluster.num_workers})
    problem: PlanError | None = None
    for workers in counts:
        stage = cluster.zero_stage if workers == cluster.num_workers else None
        own = cluster.model_copy(update={"num_workers": workers, "zero_stage": stage})
        sized = config.model_copy(update={"cluster": own})
        try:
            return sized, make_plan(sized, setting.stats, share(setting))
        except PlanError as error:
            problem = error
    assert problem is not None
    raise problem


def share(setting: Setting) -> Capacity:
    """Return what one of several trials side by side may use.

    Args:
        setting: Of the study.

    Returns:
        Cores and main memory of a node divided; graphics cards are dealt out whole.
    """
    capacity = setting.capacity
    per_node = math.ceil(setting.concurrent / capacity.nodes)
    return replace(
        capacity,
        cpus=max(1, capacity.cpus // per_node),
        memory_bytes=capacity.memory_bytes // per_node,
    )


def rung_steps(plan: Plan, rung_samples: Sequence[float]) -> list[int]:
    """Return the steps after which a trial stands at its rungs.

    Args:
        plan: Of the trial.
        rung_samples: Samples at which trials are compared.

    Returns:
        The first steps that reach them, rising; the trial's last step is none.
    """
    size = plan.global_batch_size
    steps = [max(1, plan.sets.steps_to(wanted, size)) for wanted in rung_samples]
    return sorted({step for step in steps if step < plan.total_steps})
