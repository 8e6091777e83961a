"""A run directory: who owns it, whether it continues, and what is refused."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import yaml

from distft.config import RunConfig
from distft.errors import ConfigError, PlanError
from distft.plan import Plan
from distft.records import RunRecord, read_record, write_json, write_text


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
    if (run_dir / "study.journal").exists():
        raise PlanError(f"{run_dir} holds a study, not a run.", "Choose another name.")
    if not (run_dir / "run.json").exists():
        raise PlanError(
            f"{run_dir} exists and was not made by distft train: it holds no run.json.",
            "Choose another name or output_dir.",
        )
    if fresh:
        return None
    record = read_record(run_dir)
    if record.config_hash != config_hash:
        raise PlanError(
            f"{run_dir} holds a run of another configuration ({record.config_hash}, this one is "
            f"{config_hash}).",
            "Choose another name, or add --fresh to delete what is there.",
        )
    return record


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
            f"Another process is training in {run_dir}.", "Wait for it, or choose another name."
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
