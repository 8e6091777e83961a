"""The space a search draws from, and what a draw makes of a configuration. Pure.

The space is conditional on the method: each method brings its own ranges, which `tune.space`
overrides. A sample is a mapping of dotted config paths to values, with `method.name`.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from distft import compat, plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.errors import ConfigError, nearest
from distft.space import Range, Values, parse_values

METHOD = "method.name"
GRID_POINTS = 5
"""Values a grid takes of a range, its ends included."""

Sample = dict[str, Any]

_SECTIONS = ("train", "method", "model")
_FIXED = {
    "method.name": "tune.methods says which methods are tried",
    "model.id": "one study is of one model",
    "model.revision": "one study is of one model",
    "model.trust_remote_code": "one study is of one model",
    "train.max_steps": "tune.max_samples says how long a trial is",
    "train.num_train_epochs": "tune.max_samples says how long a trial is",
    "train.seed": "tune.confirm_seeds says how many seeds the best ones get",
    "train.metric_for_best_model": "tune.objective says what is compared",
    "train.greater_is_better": "tune.objective says what is compared",
}
"""Path that cannot be searched -> why."""


class Suggests(Protocol):
    """The part of an Optuna trial that draws."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number of the range."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return a whole number of the range."""
        ...

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return one of the choices."""
        ...


@dataclass(frozen=True)
class Space:
    """Method -> dotted path -> what may be drawn; one choice is a constant."""

    methods: Mapping[str, Mapping[str, Values]]
    shared: frozenset[str]
    """Paths whose draw means the same for every method."""

    def parameter(self, method: str, path: str) -> str:
        """Return the name of a path's parameter in the study.

        Args:
            method: The method it is drawn for.
            path: Dotted config path.

        Returns:
            The path; with the method before it where its best value depends on the method.
        """
        return path if path in self.shared else f"{method}:{path}"

    def plain(self) -> dict[str, dict[str, Any]]:
        """Return the space as JSON can hold it."""
        return {
            method: {
                path: {"low": v.low, "high": v.high, "log": v.log}
                if isinstance(v, Range)
                else list(v)
                for path, v in paths.items()
            }
            for method, paths in self.methods.items()
        }


def build_space(config: RunConfig) -> Space:
    """Return what a configuration's search draws from.

    Args:
        config: With its task resolved.

    Returns:
        The space.

    Raises:
        ConfigError: `tune.space` names a path that cannot be searched, or a value that is wrong.
    """
    known = plugin.methods()
    names = _methods(config)
    given = {path: parse_values(path, value) for path, value in config.tune.space.items()}
    for path in given:
        _check_path(path, names)
    methods: dict[str, dict[str, Values]] = {}
    for name in names:
        fields = known[name].config.model_fields
        own = {
            path: values
            for path, values in given.items()
            if not path.startswith("method.") or path.removeprefix("method.") in fields
        }
        methods[name] = {**known[name].space, **own}
    particular = {path for name in names for path in known[name].space}
    shared = frozenset(p for p in given if p not in particular and not p.startswith("method."))
    space = Space(methods, shared)
    for sample in _extremes(space):
        effective(config, sample, name=config.name)
    return space


def _methods(config: RunConfig) -> list[str]:
    named, known = config.tune.methods, plugin.methods()
    if named is None:
        return [name for name, method in known.items() if method.searched]
    if named != "all":
        return list(dict.fromkeys(named))
    # A method that is told by its keys alone has no ranges of its own.
    matrix = compat.matrix()
    return [
        name
        for name, method in known.items()
        if method.space and f"task={config.task.name}" not in matrix[name]
    ]


def _check_path(path: str, methods: list[str]) -> None:
    if path in _FIXED:
        raise ConfigError(f"tune.space: {path} cannot be searched: {_FIXED[path]}.")
    section, _, key = path.partition(".")
    if section == "cluster":
        raise ConfigError(
            f"tune.space: {path} cannot be searched: where a run is trained does not change what "
            "is learnt."
        )
    if section not in _SECTIONS or not key or "." in key:
        raise ConfigError(
            f"tune.space: {path} cannot be searched{nearest(path, _SECTIONS)}; allowed: keys of "
            f"{', '.join(_SECTIONS)}, such as train.weight_decay."
        )
    known = {f for name in methods for f in plugin.methods()[name].config.model_fields}
    if section == "method" and key not in known:
        raise ConfigError(
            f"tune.space: no method of this search has {path}{nearest(key, known)}; allowed: "
            f"{', '.join(sorted('method.' + f for f in known - {'name'}))}."
        )


def _extremes(space: Space) -> Iterator[Sample]:
    """Yield samples that together hold every end and choice of every path."""
    for method, paths in space.methods.items():
        for path, values in paths.items():
            ends = (values.low, values.high) if isinstance(values, Range) else values
            for value in ends:
                yield {METHOD: method, path: value}


def draw(space: Space, trial: Suggests) -> Sample:
    """Return the sample a trial draws.

    Args:
        space: What to draw from.
        trial: Asked in a fixed order; parameters with one choice are not asked for.

    Returns:
        The sample.
    """
    method = trial.suggest_categorical("method", tuple(space.methods))
    sample: Sample = {METHOD: method}
    for path, values in space.methods[method].items():
        name = space.parameter(method, path)
        if not isinstance(values, Range):
            many = len(values) > 1
            sample[path] = trial.suggest_categorical(name, values) if many else values[0]
        elif values.whole:
            low, high = int(values.low), int(values.high)
            sample[path] = trial.suggest_int(name, low, high, log=values.log)
        else:
            sample[path] = trial.suggest_float(name, values.low, values.high, log=values.log)
    return sample


def parameters(space: Space, sample: Sample) -> dict[str, Any]:
    """Return a sample as the study's parameters, for enqueueing.

    Args:
        space: Where it is from.
        sample: Complete or not.

    Returns:
        Parameter name -> value.
    """
    method = sample[METHOD]
    found = {"method": method}
    for path, values in space.methods[method].items():
        if path in sample and (isinstance(values, Range) or len(values) > 1):
            found[space.parameter(method, path)] = sample[path]
    return found


def priors(space: Space, config: RunConfig) -> list[Sample]:
    """Return the samples tried first: for each method what its file, or the config, says.

    Args:
        space: What may be drawn.
        config: Its own method keeps the values it was given.

    Returns:
        One sample per method; a default outside the space becomes the nearest value in it.
    """
    samples = []
    for name, paths in space.methods.items():
        method = plugin.methods()[name]
        own = config.method if config.method.name == name else method.config(name=name)
        defaults: dict[str, Any] = {f"method.{key}": v for key, v in own.model_dump().items()}
        for section in ("train", "model"):
            plain = getattr(config, section).model_dump()
            defaults |= {f"{section}.{key}": value for key, value in plain.items()}
        if config.train.learning_rate is None or config.method.name != name:
            defaults["train.learning_rate"] = method.learning_rate
        sample: Sample = {METHOD: name}
        for path, values in paths.items():
            sample[path] = _nearest_value(values, defaults.get(path))
        samples.append(sample)
    return samples


def _nearest_value(values: Values, wanted: Any) -> Any:
    number = isinstance(wanted, int | float) and not isinstance(wanted, bool)
    if isinstance(values, Range):
        if number:
            return min(max(wanted, values.low), values.high)
        return _points(values, 3)[1]
    if wanted in values or not number:
        return wanted if wanted in values else values[0]
    numeric = [v for v in values if isinstance(v, int | float)]
    return min(numeric, key=lambda v: abs(v - wanted), default=values[0])


def grid(space: Space) -> list[Sample]:
    """Return every combination of choices, with GRID_POINTS values of each range.

    Args:
        space: What to combine.

    Returns:
        The samples, method by method in turn.
    """
    of_methods: list[list[Sample]] = []
    for method, paths in space.methods.items():
        axes = [_points(v, GRID_POINTS) if isinstance(v, Range) else v for v in paths.values()]
        combined = itertools.product(*axes)
        of_methods.append(
            [{METHOD: method, **dict(zip(paths, one, strict=True))} for one in combined]
        )
    turns = itertools.zip_longest(*of_methods)
    return [sample for turn in turns for sample in turn if sample is not None]


def _points(values: Range, count: int) -> tuple[float, ...]:
    shares = [i / (count - 1) for i in range(count)]
    if values.log:
        ratio = math.log(values.high / values.low)
        found = [values.low * math.exp(share * ratio) for share in shares]
    else:
        found = [values.low + share * (values.high - values.low) for share in shares]
    found[-1] = values.high
    return tuple(dict.fromkeys(round(p) for p in found)) if values.whole else tuple(found)


def effective(config: RunConfig, sample: Sample, *, name: str, **train: Any) -> RunConfig:
    """Return the configuration a sample makes.

    Args:
        config: What it starts from.
        sample: The draw.
        name: Of the run.
        **train: Further keys of `train`, which win over the sample's and the config's.

    Returns:
        A plain run's configuration, without its search.

    Raises:
        ConfigError: The values do not go together.
    """
    plain = copy.deepcopy(config.dump())
    del plain["tune"]
    plain["name"] = name
    if config.method.name != sample[METHOD]:
        plain["method"] = {"name": sample[METHOD]}
    for path, value in sample.items():
        section, key = path.split(".", 1)
        plain[section][key] = value
    if "train.learning_rate" not in sample:
        # The config's own rate belongs to the config's own method.
        same = config.method.name == sample[METHOD]
        plain["train"]["learning_rate"] = config.train.learning_rate if same else None
    plain["train"].update(train)
    # The config itself has been read before, so only a sampled value can be wrong.
    return parse(plain, lambda key: "tune.space")
