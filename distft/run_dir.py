"""A run directory: who owns it, whether it continues, and what is refused."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import yaml

from distft.config import RunConfig
from distft.data.manifest import Manifest
from distft.errors import ConfigError, PlanError
from distft.plan import Plan
from distft.records import (
    DataRecord,
    Metrics,
    ModelRecord,
    RunRecord,
    StudyRecord,
    read_record,
    read_study,
    write_json,
    write_text,
)

JOB_VARIABLE = "DISTFT_JOB"
"""Environment variable of a job's processes: its id."""


def check_free(run_dir: Path, config_hash: str, *, fresh: bool) -> RunRecord | None:
    """Return the record of what a directory holds, when this run may continue it.

    Args:
        run_dir: Where the run is to be kept.
        config_hash: Of the run.
        fresh: What is there may be deleted later.

    Returns:
        The record of the same run, finished or not; None for a new or a fresh one.

    Raises:
        PlanError: The directory holds another run, a study, or something that is no run.
    """
    if run_dir.is_file():
        raise PlanError(f"{run_dir} is a file.", "Choose another name or output_dir.")
    if not run_dir.exists() or not any(run_dir.iterdir()):
        return None
    if _is_study(run_dir):
        raise PlanError(f"{run_dir} holds a study, not a run.", "Choose another name.")
    if not (run_dir / "run.json").exists():
        raise PlanError(
            f"{run_dir} exists and was not made by distft train: it holds no run.json.",
            "Choose another name or output_dir.",
        )
    if fresh:
        return None
    record = read_record(run_dir)
    check_same(f"{run_dir} holds a run of", record.config_hash, config_hash)
    return record


def check_same(what: str, held: str, config_hash: str) -> None:
    """Refuse to continue what was made with another configuration.

    Args:
        what: Begins the message, such as `runs/x holds a run of`.
        held: Hash of what is there.
        config_hash: Hash of what was asked for.

    Raises:
        PlanError: They differ.
    """
    if held != config_hash:
        raise PlanError(
            f"{what} another configuration ({held}, this one is {config_hash}).",
            "Choose another name, or add --fresh to delete what is there.",
        )


def _is_study(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("study.json", "study.journal"))


def check_free_for_study(folder: Path, *, fresh: bool) -> StudyRecord | None:
    """Return the record of what a directory holds, when a study may use it.

    Args:
        folder: Where the study is to be kept.
        fresh: What is there may be deleted later.

    Returns:
        The record of the study in it; None for a new or a fresh one, or one without a record yet.

    Raises:
        PlanError: The directory holds a run, or something that is no study.
    """
    if folder.is_file():
        raise PlanError(f"{folder} is a file.", "Choose another name or output_dir.")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not _is_study(folder):
        what = "a run, not a study" if (folder / "run.json").exists() else "something else"
        raise PlanError(f"{folder} holds {what}.", "Choose another name or output_dir.")
    if fresh or not (folder / "study.json").exists():
        return None
    return read_study(folder)[0]


@contextlib.contextmanager
def claimed(run_dir: Path, *, fresh: bool) -> Iterator[None]:
    """Make the directory this process's own meanwhile.

    Args:
        run_dir: Made if absent.
        fresh: Delete what it holds first.

    Yields:
        Nothing.

    Raises:
        ConfigError: It cannot be written.
        PlanError: Another process is training there.
    """
    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        lock = _open_lock(run_dir.parent / f".{run_dir.name}.lock")
    except BlockingIOError as error:
        raise PlanError(
            f"Another process is working in {run_dir}.", "Wait for it, or choose another name."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"output_dir: {run_dir.parent} cannot be written: {error.strerror}.",
            "Set output_dir to a folder you may write to.",
        ) from error
    with lock:
        try:
            if fresh:
                shutil.rmtree(run_dir, ignore_errors=True)
            run_dir.mkdir(exist_ok=True)
            yield
        finally:
            os.unlink(lock.name)


def _open_lock(path: Path) -> TextIO:
    """Return the locked file; its holder removes it, so one that is no longer there is not it."""
    while True:
        lock = path.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()


def check_writable(output_dir: Path) -> None:
    """Check that directories can be made under a path, without making any.

    Args:
        output_dir: May not exist yet.

    Raises:
        ConfigError: Its nearest existing parent is no directory or may not be written.
    """
    nearest = output_dir
    while not nearest.exists() and not nearest.is_symlink():
        nearest = nearest.parent
    if not nearest.is_dir() or not _writable(nearest):
        what = "may not be written" if nearest.is_dir() else "is not a directory"
        raise ConfigError(
            f"output_dir: {output_dir} cannot be used: {nearest} {what}.",
            "Set output_dir to a folder you may write to.",
        )


def _writable(folder: Path) -> bool:
    # os.access alone says yes to root on a read-only file system.
    read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    return os.access(folder, os.W_OK | os.X_OK) and not read_only


def write_start(run_dir: Path, config: RunConfig, plan: Plan, record: RunRecord) -> None:
    """Write config.yaml, plan.json and a run.json that says `interrupted` until the run ends.

    Args:
        run_dir: Of the run.
        config: With its task resolved.
        plan: Of the run.
        record: What is known at the start.
    """
    write_text(run_dir / "config.yaml", resolved_yaml(config, plan))
    write_json(run_dir / "plan.json", plan.model_dump())
    write_json(run_dir / "run.json", record.model_dump())


def resolved_yaml(config: RunConfig, plan: Plan) -> str:
    """Return the configuration with every derived value filled in, its reason behind it.

    Args:
        config: As the user gave it, with its task resolved.
        plan: Derived from it.

    Returns:
        YAML that `distft train` accepts and that gives the same plan.
    """
    plain = config.dump()
    values = {
        "cluster.zero_stage": plan.zero_stage,
        "train.learning_rate": plan.learning_rate,
        "train.max_steps": plan.total_steps,
        "train.per_device_train_batch_size": plan.per_device_train_batch_size,
        "train.gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "train.global_batch_size": plan.global_batch_size,
        "train.save_steps": plan.save_steps,
        "data.packing": plan.packing,
    }
    if config.train.eval_strategy == "steps":
        values["train.eval_steps"] = plan.eval_steps
    for dotted, value in values.items():
        section, key = dotted.split(".")
        plain[section][key] = value
    lines: list[str] = []
    section = ""
    for line in yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).splitlines():
        if not line.startswith((" ", "-")):
            section = line.split(":", 1)[0]
        reason = plan.reasons.get(f"{section}.{line.strip().split(':', 1)[0]}")
        lines.append(f"{line}  # {reason}" if reason and line.startswith("  ") else line)
    return "\n".join(lines) + "\n"


def first_record(
    config: RunConfig, config_hash: str, made: Plan, manifest: Manifest, versions: dict[str, str]
) -> RunRecord:
    """Return the record of a run that has just begun; it says `interrupted` until the run ends.

    Args:
        config: With its task resolved.
        config_hash: Of the run.
        made: The run's plan.
        manifest: Of its data.
        versions: Of the libraries.

    Returns:
        The record.
    """
    return RunRecord(
        name=config.name,
        status="interrupted",
        config_hash=config_hash,
        config=config.dump(),
        data=DataRecord(
            manifest=manifest.key,
            rows={split: info.rows for split, info in manifest.splits.items()},
            tokens={split: info.tokens for split, info in manifest.splits.items()},
            labels=list(manifest.labels),
            dropped=dict(manifest.dropped),
            changed={
                name: step.changed for name, step in manifest.cleaning.items() if step.changed
            },
            truncated={split: info.truncated for split, info in manifest.splits.items()},
        ),
        model=ModelRecord(
            id=config.model.id, params=made.params, trainable_params=made.trainable_params
        ),
        world_size=made.world_size,
        device=made.device,
        zero_stage=made.zero_stage,
        seeds={"train": config.train.seed},
        versions=versions,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        duration_s=0.0,
        peak_memory_bytes={"planned": made.memory.total_bytes},
    )


def with_this_job(jobs: Sequence[str]) -> list[str]:
    """Return the jobs that worked on a run or study, with the one this process belongs to.

    Args:
        jobs: Ids of the earlier ones.

    Returns:
        The same outside of a job.
    """
    job = os.environ.get(JOB_VARIABLE)
    return [*jobs, job] if job and job not in jobs else list(jobs)


def with_result(record: RunRecord, result: Metrics, duration_s: float) -> RunRecord:
    """Return a run's record with what it came to.

    Args:
        record: As the run began.
        result: What eval.json holds.
        duration_s: Seconds the run took.

    Returns:
        The record; its status is as it was.
    """
    return record.model_copy(
        update={
            "duration_s": duration_s,
            "baseline": result["baseline"],
            "final": {"step": result["step"], **result["final"]},
            "best": {"step": result["best_step"], **result["best"]},
            "test": result["test"],
            "peak_memory_bytes": {
                **record.peak_memory_bytes,
                "measured": result["peak_memory_bytes"],
            },
            "tokens_per_s": result["tokens_per_s"],
            "padding": result["padding"],
        }
    )


def with_peak(record: RunRecord, peak_memory_bytes: int | None) -> RunRecord:
    """Return a run's record with the memory it has needed so far.

    Args:
        record: As the run began.
        peak_memory_bytes: Of its largest worker; None: not measured.

    Returns:
        The record, changed where it was measured: a trial that is stopped has no other result.
    """
    if peak_memory_bytes is None:
        return record
    peaks = {**record.peak_memory_bytes, "measured": peak_memory_bytes}
    return record.model_copy(update={"peak_memory_bytes": peaks})
