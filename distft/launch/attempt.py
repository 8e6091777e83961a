"""What a job is: an attempt at a run or a study, its number, its files, and how it ended."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

import yaml
from pydantic import BaseModel

from distft.config import RunConfig
from distft.errors import ClusterError, LostError, TrainError

CONFIG_FILE = "config.yaml"
State = Literal["pending", "running", "stopped", "succeeded", "failed"]
LIVE = ("pending", "running")
_INTERRUPTED = 130
_PASSWORD = re.compile(r"://[^/@\s:]*:[^/@\s]+@")


class Job(BaseModel):
    """One attempt at a run or a study."""

    id: str
    """Submission id: NAME-aATTEMPT."""
    name: str
    attempt: int
    command: Literal["train", "tune"]
    state: State
    exit_code: int | None
    """As of the command line; None: it has not ended. 75: the same command may succeed."""
    started: str | None
    """UTC, ISO 8601."""
    ended: str | None
    """UTC, ISO 8601; None: it has not."""
    run_dir: str
    """On the cluster."""
    config: str
    """Digest of its configuration file."""
    submitted: bool = False
    """Whether the command that tells of it has just started it."""
    said: str = ""
    """Last line of its log."""


def exit_code(state: State, driver_exit_code: int | None) -> int | None:
    """Return what the command line returns for a job.

    Args:
        state: Of the job.
        driver_exit_code: What its process returned, where Ray knows.

    Returns:
        None for one that has not ended; 75 where Ray, not the command, ended it.
    """
    if state in LIVE:
        return None
    if state == "succeeded":
        return 0
    if state == "stopped":
        return _INTERRUPTED
    if driver_exit_code in (2, 3, 4, LostError.exit_code, _INTERRUPTED):
        return driver_exit_code
    # Without a code Ray lost the process; a signal, which a shell tells as 128 more, ended it.
    lost = driver_exit_code is None or driver_exit_code < 0 or driver_exit_code > 128
    return LostError.exit_code if lost else TrainError.exit_code


def submission_id(name: str, attempt: int) -> str:
    """Return the submission id of an attempt.

    Args:
        name: Of the run or study.
        attempt: From 1.

    Returns:
        The same for the same.
    """
    return f"{name}-a{attempt}"


def next_attempt(name: str, known: int, recorded: Sequence[str]) -> int:
    """Return the number of the attempt that is to start.

    Args:
        name: Of the run or study.
        known: The last one that the cluster knows; 0 where it knows none, as a new head does.
        recorded: Ids of the jobs that the run directory's record names.

    Returns:
        From 1; never one that was used.
    """
    begin = f"{name}-a"
    numbers = [id[len(begin) :] for id in recorded if id.startswith(begin)]
    return 1 + max([known, *(int(number) for number in numbers if number.isdecimal())])


def on_storage(config: RunConfig) -> RunConfig:
    """Put a relative output directory below the storage that every node mounts.

    Args:
        config: As the user gave it.

    Returns:
        A copy; the same where `cluster.storage` is not set or `output_dir` is absolute.
    """
    if config.cluster.storage is None:
        return config
    output_dir = str(PurePosixPath(config.cluster.storage) / config.output_dir)
    return config.model_copy(update={"output_dir": output_dir})


def files_of(config: RunConfig) -> dict[str, str]:
    """Return the files of a job, which are all it takes along.

    Args:
        config: With absolute paths.

    Returns:
        File name -> text.
    """
    cluster = config.cluster.model_copy(update={"address": "auto"})
    plain = config.model_copy(update={"cluster": cluster}).dump()
    return {CONFIG_FILE: yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)}


def digest_of(command: str, files: dict[str, str]) -> str:
    """Return what tells a job from one with other settings.

    Args:
        command: What it runs.
        files: See `files_of`.

    Returns:
        16 hexadecimal digits.
    """
    return hashlib.sha256(repr((command, sorted(files.items()))).encode()).hexdigest()[:16]


def check_secrets(config: RunConfig) -> None:
    """Refuse a configuration that holds a password: the cluster keeps a job's files.

    Args:
        config: Of the job.

    Raises:
        ClusterError: An address in it has one.
    """
    if _PASSWORD.search(repr(config.dump())):
        raise ClusterError(
            "An address in the config holds a password, and the cluster keeps a job's config.",
            "Leave it out there, and give it to the nodes: PGPASSFILE for a study's storage, the "
            "store's own variables or files for data.",
        )
