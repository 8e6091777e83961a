"""The records of a run (`run.json`) and of a study: what reports read, and all they trust.

`metrics.jsonl` beside it holds one JSON object per logged step (keys: `step, samples, tokens,
epoch, loss, learning_rate, grad_norm, tokens_per_s, padding, data_wait`) and one per evaluation
(`step, samples` and keys beginning `eval_`); `eval.json` holds the last evaluations in full.
`data_wait` is the share of the time since the last line, from 0 to 1, that rank 0 waited for
samples.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distft.errors import ConfigError
from distft.redact import hidden, hide

SCHEMA_VERSION = 1

Metrics = dict[str, Any]


class DataRecord(BaseModel):
    """Which prepared data a run used."""

    manifest: str
    """Key of the prepared data: a hash of its bytes, tokenizer, template and length."""
    rows: dict[str, int]
    """Rows per split."""
    tokens: dict[str, int]
    """Tokens per split."""
    labels: list[str] = Field(default_factory=list)
    """Class names in id order; empty for tasks without classes."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Reason -> rows left out; the manifest lists them."""
    changed: dict[str, int] = Field(default_factory=dict)
    """Step of `data.clean` -> rows it changed; the manifest holds samples."""
    truncated: dict[str, int] = Field(default_factory=dict)
    """Rows cut to the longest length, per split."""


class ModelRecord(BaseModel):
    """Which model a run trained, and how much of it."""

    id: str
    params: int
    trainable_params: int


class RunRecord(BaseModel):
    """One run, finished or not; versioned."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    name: str
    status: Literal["completed", "pruned", "failed", "interrupted"]
    config_hash: str
    config: dict[str, Any]
    data: DataRecord
    model: ModelRecord
    world_size: int
    device: Literal["cpu", "cuda"] = "cpu"
    zero_stage: int
    seeds: dict[str, int]
    versions: dict[str, str]
    started: str
    """UTC, ISO 8601."""
    duration_s: float
    jobs: list[str] = Field(default_factory=list)
    """Ids of the cluster jobs that worked on it, the last one last."""
    baseline: Metrics = Field(default_factory=dict)
    """Metrics on the eval rows before the first step."""
    final: Metrics = Field(default_factory=dict)
    """Metrics on the eval rows after the last step."""
    best: Metrics = Field(default_factory=dict)
    """Metrics on the eval rows at the best checkpoint, with its `step`."""
    test: dict[str, Metrics] = Field(default_factory=dict)
    """`base` and `tuned`: metrics on the test rows before training and at the best checkpoint."""
    peak_memory_bytes: dict[str, int] = Field(default_factory=dict)
    """`planned` (model states of one rank) and `measured` (of the largest worker)."""
    tokens_per_s: float = 0.0
    padding: float | None = None
    """Share of the positions trained on that held no token."""
    trial: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class TrialRecord(BaseModel):
    """One trial of a study: a line of trials.jsonl."""

    model_config = ConfigDict(extra="forbid")

    study: Literal["search", "confirm"]
    """`search`: sampled, at the search budget; `confirm`: a further seed at full budget."""
    number: int
    """In the order of starting, from 0, for each study."""
    state: Literal["running", "complete", "pruned", "failed", "refused"]
    """pruned: stopped at a rung or by the budget; failed: raised, see `reason`; refused: broke a
    constraint or does not fit, and was never launched."""
    method: str
    params: dict[str, Any]
    """Sampled: dotted config path -> value, with `method.name`."""
    config_hash: str
    """Of the effective configuration, seed included."""
    seed: int
    value: float | None = None
    """Best evaluation of the first objective; None where there is none."""
    values: list[float] = Field(default_factory=list)
    """All objectives, where there are several."""
    curve: list[dict[str, Any]] = Field(default_factory=list)
    """One evaluation each: `samples, step, value` and the metrics, each prefixed `eval_`."""
    rungs: list[dict[str, Any]] = Field(default_factory=list)
    """One decision each: `rung, samples, value, rank, of, kept`."""
    samples: int = 0
    """Trained on."""
    duration_s: float = 0.0
    saved_bytes: int = 0
    """Size of what a run of it saves: the adapter, or the whole model."""
    attempts: int = 1
    """Starts: above 1 where a process was lost on the way."""
    reused_from: int | None = None
    """Number of the trial with the same configuration whose result this is."""
    reason: str = ""
    """Why it was stopped, failed or refused."""
    run: RunRecord | None = None
    """The run behind it, with planned and measured memory and trainable parameters; None where
    nothing was planned."""


class Candidate(BaseModel):
    """A configuration that was confirmed with further seeds at full budget."""

    model_config = ConfigDict(extra="forbid")

    trial: int
    """Number of the search trial that found it."""
    method: str
    params: dict[str, Any]
    search_value: float
    """Its objective in the search, which picked it and does not count again."""
    seeds: list[int]
    values: list[float]
    """Objective of each seed."""
    mean: float | None
    """None where no seed finished."""
    spread: float | None
    """Standard deviation over the seeds."""
    cost: list[float]
    """Planned bytes of one worker, trained parameters: what `cheapest` compares, in this order."""
    within_tolerance: bool


class StudyRecord(BaseModel):
    """A study, finished or not: study.json. All trials are in trials.jsonl beside it."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    name: str
    status: Literal["running", "completed", "failed", "interrupted"]
    config_hash: str
    config: dict[str, Any]
    """As given, with its task resolved."""
    objective: list[str]
    """Metric names, `eval_` prefixed where measured on the eval rows."""
    greater_is_better: list[bool]
    samples_per_trial: int
    """The search budget of one trial."""
    full_samples: int
    """Training samples of the winner and of the confirmations."""
    policy: dict[str, Any]
    """`name`, and for successive halving `rungs` (shares), `keep` and `smooth`."""
    space: dict[str, dict[str, Any]]
    """Method -> dotted path -> {low, high, log} or a list of choices."""
    max_concurrent: int
    workers_per_trial: int
    threads_per_worker: int
    counts: dict[str, int]
    """complete, pruned, failed, refused, reused, running."""
    limits: dict[str, float]
    """What the search may spend: trials, wall_s, gpu_s, samples, where set."""
    spent: dict[str, float]
    """What it has spent of each."""
    ended_by: str = ""
    """Which limit ended the search."""
    best_trial: int | None = None
    """Of the search, by its value."""
    candidates: list[Candidate] = Field(default_factory=list)
    tolerance: float | None = None
    """Used to choose among the candidates."""
    tolerance_from: str = ""
    """How it came about, in words."""
    recommended: int | None = None
    """Number of the search trial whose configuration is recommended."""
    importances: dict[str, dict[str, float]] = Field(default_factory=dict)
    """`all` or a method's name -> parameter -> share of the variation it explains."""
    winner: str | None = None
    """The winner's run directory, relative to the study's."""
    versions: dict[str, str] = Field(default_factory=dict)
    started: str
    """UTC, ISO 8601."""
    duration_s: float = 0.0
    jobs: list[str] = Field(default_factory=list)
    """Ids of the cluster jobs that worked on it, the last one last."""
    error: dict[str, Any] | None = None


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file so that a reader sees the old or the new one, never a half.

    Args:
        path: Where it goes; its folder must exist.
        document: Anything `json` can write.
    """
    write_text(path, json.dumps(hidden(document), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str, *, verbatim: bool = False) -> None:
    """Write a UTF-8 text file atomically, through a temporary file and a rename.

    Args:
        path: Where it goes; its folder must exist.
        text: What it holds.
        verbatim: Texts of the user's own rows; in all others secrets are hidden.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text if verbatim else hide(text))
            file.flush()
            os.fsync(file.fileno())
        share(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def share(path: Path) -> None:
    """Give a file the mode files usually get; libraries that write atomically make it private.

    Args:
        path: The file.
    """
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def read_record(run_dir: Path) -> RunRecord:
    """Return the record of a run directory.

    Args:
        run_dir: The directory `distft train` wrote.

    Returns:
        Its record.

    Raises:
        ConfigError: There is no `run.json`, or it is not one this version reads.
    """
    path = run_dir / "run.json"
    if not path.is_file():
        raise ConfigError(
            f"{run_dir} is not a finished run: it holds no run.json.",
            "Name the directory that `distft train` printed, or run the same train command again.",
        )
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ConfigError(
            f"{path} is not a run record of schema {SCHEMA_VERSION}: {error.errors()[0]['msg']}.",
            "Run `distft train --fresh` to make it anew.",
        ) from error


def read_metrics(run_dir: Path) -> list[Metrics]:
    """Return the lines of `metrics.jsonl` in order; a torn last line (a crash) is left out.

    Args:
        run_dir: A run directory, finished or not.

    Returns:
        One mapping per line; empty when the file does not exist.
    """
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    lines: list[Metrics] = []
    # As bytes: a crash may tear a character, and text would also be split at U+2028 in a label.
    for line in path.read_bytes().split(b"\n"):
        try:
            value: Mapping[str, Any] = json.loads(line)
        except ValueError:
            continue
        lines.append(dict(value))
    return lines


def read_evaluations(run_dir: Path) -> Metrics:
    """Return eval.json, which rank 0 writes last of all.

    Args:
        run_dir: A run directory whose training has ended.

    Returns:
        What it holds.

    Raises:
        ConfigError: It is not there or cannot be read.
    """
    path = run_dir / "eval.json"
    try:
        value: Metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}.", "Run the same `distft train` command again."
        ) from error
    return value


def read_study(study_dir: Path) -> tuple[StudyRecord, list[TrialRecord]]:
    """Return the record of a study directory and its trials.

    Args:
        study_dir: The directory `distft tune` wrote.

    Returns:
        study.json and the lines of trials.jsonl.

    Raises:
        ConfigError: They are not there, or are not what this version reads.
    """
    try:
        record = StudyRecord.model_validate_json((study_dir / "study.json").read_bytes())
        lines = (study_dir / "trials.jsonl").read_bytes().splitlines()
        return record, [TrialRecord.model_validate_json(line) for line in lines]
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{study_dir} is not a study of schema {SCHEMA_VERSION}: {error}.",
            "Name the directory that `distft tune` printed, or run the same tune command again.",
        ) from error
