"""Jobs on a Ray cluster over its Jobs API: submit, find, follow, stop.

The caller need not see the cluster's disks. A job's files are its configuration alone; what it
reads and writes must lie where the nodes see it, which a probe on them finds out before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from distft.config import RunConfig
from distft.errors import ClusterError, ConfigError, LostError, TrainError

CONFIG_FILE = "config.yaml"
REQUEST_S = 30
"""Longest wait for an answer of the Jobs API."""
_POLL_S = 0.5
_QUIET_S = 5.0
"""Without a word of its log for so long, a job is asked whether it is still there."""
_MARK = "distft"
"""Key of the metadata that only distft's jobs have."""

State = Literal["pending", "running", "stopped", "succeeded", "failed"]
LIVE = ("pending", "running")
_INTERRUPTED = 130


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


class _Client(JobSubmissionClient):  # type: ignore[misc]  # Ray ships no types
    def _do_request(self, *args: Any, **kwargs: Any) -> Any:
        # Ray sets no limit: a head that lost its power would be waited for.
        return super()._do_request(*args, timeout=REQUEST_S, **kwargs)


class Jobs:
    """The distft jobs of a cluster.

    Args:
        address: Of the dashboard, such as http://HEAD:8265, or what `ray.init` takes; default:
            RAY_API_SERVER_ADDRESS, RAY_ADDRESS, the Ray of this machine.

    Raises:
        ClusterError: The cluster refuses the token.
        LostError: No cluster answers.
    """

    def __init__(self, address: str | None) -> None:
        if address is not None:
            # Ray lets its variables win over what is asked for.
            os.environ["RAY_API_SERVER_ADDRESS"] = address
        for module in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
        logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
        self._address = address or "the default address"
        with self._asking():
            self._client = _Client(address)
        self._address = self._client.get_address()

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Raise what a user can act on in place of what Ray's client raises."""
        try:
            yield
        except AuthenticationError as error:
            raise ClusterError(
                f"The cluster at {self._address} refuses the token, or got none.",
                "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file that holds the "
                "cluster's token.",
            ) from error
        except (OSError, RuntimeError) as error:
            # Of a failed request Ray gives the text of the answer, often a traceback.
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise LostError(
                f"No Ray cluster answers at {self._address}: {said}",
                "Check --address, that of the dashboard, such as http://HEAD:8265; the same "
                "command goes on when the cluster is back.",
            ) from error

    def all(self) -> list[Job]:
        """Return the distft jobs the cluster knows, the oldest first."""
        with self._asking():
            details = self._client.list_jobs()
        jobs = [_job(each) for each in details if _MARK in (each.metadata or {})]
        return sorted(jobs, key=lambda job: (job.started or "", job.attempt))

    def of(self, name: str) -> list[Job]:
        """Return the attempts at a run or study, in their order.

        Args:
            name: Its name.

        Returns:
            May be empty.
        """
        return sorted((j for j in self.all() if j.name == name), key=lambda job: job.attempt)

    def find(self, word: str) -> Job:
        """Return a job.

        Args:
            word: Its id, or a name for the last attempt.

        Returns:
            It, with the last line of its log.

        Raises:
            ConfigError: The cluster knows none.
        """
        jobs = self.all()
        found = [job for job in jobs if job.id == word] or [job for job in jobs if job.name == word]
        if not found:
            known = ", ".join(dict.fromkeys(job.name for job in jobs)) or "none"
            raise ConfigError(
                f"The cluster at {self._address} knows no distft job {word!r}; known: {known}.",
                "After its head was lost it knows none: submit again to go on.",
            )
        return self.told(max(found, key=lambda job: job.attempt))

    def told(self, job: Job) -> Job:
        """Return a job with the last line of its log.

        Args:
            job: One of the cluster's.

        Returns:
            A copy.
        """
        return job.model_copy(update={"said": _last_line(self.logs(job))})

    def logs(self, job: Job) -> str:
        """Return all that a job has printed.

        Args:
            job: One of the cluster's.

        Returns:
            Its log so far.
        """
        with self._asking():
            return str(self._client.get_job_logs(job.id))

    def submit(self, config: RunConfig, command: Literal["train", "tune"], *, fresh: bool) -> Job:
        """Start the next attempt.

        Args:
            config: With absolute paths.
            command: What the job runs.
            fresh: Delete what the run directory holds first.

        Returns:
            The job; one that is running already, or has ended well with the same configuration,
            is returned as it is.

        Raises:
            ClusterError: The run is being worked on with other settings.
        """
        files = _files(config)
        digest = _digest(files)
        jobs = self.of(config.name)
        held = jobs[-1] if jobs else None
        if held is not None and held.state in LIVE:
            return held
        if held is not None and held.state == "succeeded" and held.config == digest and not fresh:
            return held
        attempt = held.attempt + 1 if held else 1
        words = [
            "python",
            "-m",
            "distft.cli",
            command,
            CONFIG_FILE,
            *(["--fresh"] if fresh else []),
        ]
        metadata = {
            _MARK: command,
            "name": config.name,
            "attempt": str(attempt),
            "run_dir": str(config.run_dir),
            "config": digest,
        }
        self._start(submission_id(config.name, attempt), words, files, metadata)
        return self.find(submission_id(config.name, attempt))

    def _start(
        self, job_id: str, words: Sequence[str], files: dict[str, str], metadata: dict[str, str]
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="distft-job-") as folder, self._asking():
            for name, text in files.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            self._client.submit_job(
                entrypoint=" ".join(words),
                submission_id=job_id,
                runtime_env={"working_dir": folder},
                metadata=metadata,
            )

    def wait(self, job: Job) -> Job:
        """Return a job once it has ended.

        Args:
            job: One of the cluster's.

        Returns:
            It, with the last line of its log.
        """
        while True:
            job = self._now(job)
            if job.state not in LIVE:
                return self.told(job)
            time.sleep(_POLL_S)

    def _now(self, job: Job) -> Job:
        with self._asking():
            return _job(self._client.get_job_info(job.id))

    def follow(self, job: Job, write: Callable[[str], None]) -> Job:
        """Write a job's log as it grows, until the job has ended.

        Args:
            job: One of the cluster's.
            write: Takes pieces of text.

        Returns:
            The job as it ended.
        """
        asyncio.run(self._tail(job, write))
        return self.wait(job)

    async def _tail(self, job: Job, write: Callable[[str], None]) -> None:
        with self._asking():
            pieces = self._client.tail_job_logs(job.id)
            following = asyncio.ensure_future(anext(pieces, None))
            while True:
                done, _ = await asyncio.wait({following}, timeout=_QUIET_S)
                if not done:
                    await asyncio.to_thread(self._now, job)
                    continue
                piece = following.result()
                if piece is None:
                    return
                write(piece)
                following = asyncio.ensure_future(anext(pieces, None))

    def stop(self, job: Job) -> Job:
        """Ask a job to end, and wait until it has.

        Args:
            job: One of the cluster's; one that has ended is left as it is.

        Returns:
            It as it ended.
        """
        with self._asking():
            self._client.stop_job(job.id)
        return self.wait(job)


def _files(config: RunConfig) -> dict[str, str]:
    """Return the files of a job: file name -> text."""
    cluster = config.cluster.model_copy(update={"address": "auto"})
    plain = config.model_copy(update={"cluster": cluster}).dump()
    return {CONFIG_FILE: yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)}


def _digest(files: dict[str, str]) -> str:
    import hashlib

    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]


def _job(details: JobDetails) -> Job:
    kept = details.metadata or {}
    state: Any = details.status.value.lower()
    return Job(
        id=details.submission_id,
        name=kept["name"],
        attempt=int(kept["attempt"]),
        command=kept[_MARK],
        state=state,
        exit_code=exit_code(state, details.driver_exit_code),
        started=_time(details.start_time),
        ended=_time(details.end_time) if state not in LIVE else None,
        run_dir=kept["run_dir"],
        config=kept["config"],
    )


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _last_line(text: str) -> str:
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    return lines[-1].strip() if lines else ""
