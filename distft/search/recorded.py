"""Recorded learning curves: a JSON file of runs that were trained to the end, read strictly.

The form: `runs` maps a name to `train_loss` (step -> loss) and `test` (final accuracy); `steps` and
`batch` say how long and how wide a run is, `test_n` how many rows `test` was measured on, a run's
`train_time` how long it took. Other keys are ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from distft.errors import ConfigError
from distft.search.policy import Curve

FEWEST_RUNS = 4
"""Half of them choose, half are scored: two of each at least."""
_SHOWN = 5
_HINT = "tests/bench/curves/ holds a file of this form; tests/bench/record_curves.py records one."


@dataclass(frozen=True)
class Run:
    """One run that was trained to the end."""

    curve: Curve
    """(samples, training loss); infinite where it was not finite."""
    test: float
    """Final accuracy, 0 to 1."""
    seconds: float
    """How long it took, or 1 for all runs where the file does not say it of every run."""


@dataclass(frozen=True)
class Recording:
    """The runs of one file."""

    runs: list[Run]
    steps: int
    """Of a whole run."""
    batch: int
    """Samples of a step."""
    test_rows: int | None
    """Rows behind each accuracy."""
    failed: int
    """Runs that ended early or whose last loss is not finite; they are never picked."""

    @property
    def budget_samples(self) -> int:
        """Samples of a whole run."""
        return self.steps * self.batch


class _Run(BaseModel):
    train_loss: dict[Annotated[int, Field(ge=1)], float | None] = Field(min_length=1)
    test: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    train_time: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class _File(BaseModel):
    runs: dict[str, _Run] = Field(min_length=FEWEST_RUNS)
    steps: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 1
    test_n: Annotated[int, Field(ge=1)] | None = None


def read(path: Path) -> Recording:
    """Return the recorded runs of a file.

    Args:
        path: JSON.

    Returns:
        The runs. A loss that is null or not finite counts as the worst there is; so does the report
        that is missing where a curve ends early.

    Raises:
        ConfigError: No such file, not JSON, too few runs, a run without `train_loss` or `test`, a
            value of the wrong type or out of range, or a step beyond `steps`.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.", _HINT) from error
    try:
        file = _File.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_what_is_wrong(error)}", _HINT) from error
    longest = max(max(run.train_loss) for run in file.runs.values())
    steps = file.steps or longest
    if longest > steps:
        raise ConfigError(
            f"{path}: got a loss at step {longest}; allowed: up to `steps`, which is {steps}.",
            _HINT,
        )
    timed = all(run.train_time is not None for run in file.runs.values())
    curves = [_curve(run, steps, file.batch) for run in file.runs.values()]
    runs = [
        Run(curve, run.test, (run.train_time or 1.0) if timed else 1.0)
        for curve, run in zip(curves, file.runs.values(), strict=True)
    ]
    failed = sum(math.isinf(curve[-1][1]) for curve in curves)
    return Recording(runs, steps, file.batch, file.test_n, failed)


def _curve(run: _Run, steps: int, batch: int) -> Curve:
    points = [
        (step * batch, loss if loss is not None and math.isfinite(loss) else math.inf)
        for step, loss in sorted(run.train_loss.items())
    ]
    last = points[-1][0]
    spacing = last - points[-2][0] if points[1:] else last
    # The spacing need not divide the steps; a whole missing report means that the run ended there.
    if last + spacing <= steps * batch:
        points.append((last + spacing, math.inf))
    return points


def _what_is_wrong(error: ValidationError) -> str:
    found = []
    for each in error.errors(include_url=False)[:_SHOWN]:
        where = ".".join(str(part) for part in each["loc"]) or "the file"
        got = "" if each["type"] in ("missing", "json_invalid") else f", got {each['input']!r:.60}"
        found.append(f"{where}: {each['msg']}{got}")
    more = error.error_count() - len(found)
    tail = f" (and {more} more)" if more > 0 else ""
    return (
        "; ".join(found) + f"{tail}. Allowed: at least {FEWEST_RUNS} runs, each with train_loss "
        "{step: loss} and test, its final accuracy between 0 and 1 (higher is better; a loss is "
        "not supported there)."
    )
