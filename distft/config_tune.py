"""The sections of a configuration that say how a search goes; only `distft tune` reads them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distft import plugin, space
from distft.config_sections import Section, Share, Text
from distft.errors import nearest


class PolicyConfig(Section):
    """When the search stops a trial early; `policy: X` is short for `policy: {name: X}`."""

    name: Literal["successive_halving", "none"] = "successive_halving"
    """successive_halving: at each rung the better share goes on; none: every trial runs to its
    end."""
    rungs: list[Share] | None = None
    """Where trials are compared, as shares of `tune.max_samples`, rising; default: as replays of
    recorded searches found best."""
    keep: list[Share] | None = None
    """Share of the trials that goes on, for each rung."""


class BudgetConfig(Section):
    """What the search may spend besides `tune.num_trials`; what is reached first ends it."""

    wall_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours the search may run, over all its continuations."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of trials times graphics cards of each."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """Training samples over all trials."""


class TuneConfig(Section):
    """The search over method, rank and learning rate; Optuna decides, Ray Tune executes."""

    num_trials: Annotated[int, Field(ge=1)] = 16
    """Trials, those stopped early, failed or reused included."""
    methods: Annotated[list[Text], Field(min_length=1)] | Literal["all"] | None = None
    """Methods to choose from; all: every one that goes with the task; default: full, freeze and
    lora."""
    space: dict[str, Any] = Field(default_factory=dict)
    """Dotted path -> {low, high, log}, a list of choices or a constant; wins over the methods' own
    ranges, such as {train.learning_rate: {low: 1e-5, high: 1e-3, log: true}, method.r: [4, 16]}."""
    sampler: Literal["tpe", "random", "grid", "gp", "nsga2"] = "tpe"
    """Which configurations are tried; nsga2 is for several objectives. grid tries five values of a
    range."""
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """When a trial is stopped early."""
    objective: Text | Annotated[list[Text], Field(min_length=2)] | None = None
    """Metric on the eval rows; default: the task's plain loss. Several, of which the first decides
    the winner, also `trainable_params`, `peak_memory` and `duration_s`: no trial is stopped."""
    constraints: list[Text] = Field(default_factory=list)
    """Limits a trial's plan must keep, such as `trainable_params <= 10M`, `peak_memory <= 24GB`."""
    budget: BudgetConfig = Field(default_factory=BudgetConfig)
    """What the search may spend."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Training samples of one trial; default: those of the whole training. The learning rate's
    schedule spans them."""
    num_workers: Annotated[int, Field(ge=1)] | None = None
    """Workers of one trial; default: 1 where the model fits one, else `cluster.num_workers`."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials side by side; default: as many as the resources allow."""
    confirm: Annotated[int, Field(ge=0)] = 2
    """Best configurations trained again with further seeds at full budget; below 2: none."""
    confirm_seeds: Annotated[int, Field(ge=2)] = 3
    """Further seeds of each."""
    tolerance: Annotated[float, Field(ge=0)] | None = None
    """The cheapest configuration whose mean is this near to the best one wins; default: one
    standard error of the difference, pooled over those confirmed."""
    storage: str | None = None
    """Optuna storage URL; default: the file study.journal in the study's directory."""

    @field_validator("methods")
    @classmethod
    def _methods_are_known(cls, names: list[str] | str | None) -> list[str] | str | None:
        known = plugin.methods()
        for name in names if isinstance(names, list) else ():
            if name not in known:
                raise ValueError(
                    f"unknown method {name!r}{nearest(name, known)}; allowed: {', '.join(known)}"
                )
        return names

    @field_validator("space")
    @classmethod
    def _space_reads(cls, given: dict[str, Any]) -> dict[str, Any]:
        for path, value in given.items():
            space.parse_values(path, value)
        return given

    @model_validator(mode="after")
    def _refusals_teach(self) -> TuneConfig:
        if self.sampler == "gp" and self.constraints:
            raise ValueError(
                "sampler gp does not learn from refused trials; allowed with constraints: tpe, "
                "random, grid, nsga2"
            )
        return self

    @field_validator("constraints")
    @classmethod
    def _constraints_read(cls, given: list[str]) -> list[str]:
        for text in given:
            space.parse_limit(text)
        return given
