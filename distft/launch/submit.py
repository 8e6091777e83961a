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
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from distft.config import RunConfig
from distft.errors import ClusterError, ConfigError, LostError
from distft.launch.attempt import (
    CONFIG_FILE,
    LIVE,
    Job,
    check_secrets,
    digest_of,
    exit_code,
    files_of,
    next_attempt,
    submission_id,
)
from distft.launch.probe import Found
from distft.launch.session import refused
from distft.run_dir import JOB_VARIABLE

REQUEST_S = 30
"""Longest wait for an answer of the Jobs API."""
_POLL_S = 0.5
_QUIET_S = 5.0
"""Without a word of its log for so long, a job is asked whether it is still there."""
_MARK = "distft"
"""Key of the metadata that only distft's jobs have."""


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
        self._address = address or os.environ.get("RAY_ADDRESS", "the default address")
        with self._asking():
            self._client = _Client(address)
        self._address = self._client.get_address()

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Raise what a user can act on in place of what Ray's client raises."""
        try:
            yield
        except AuthenticationError as error:
            raise refused(self._address, error) from error
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
        """Start the next attempt, once every node was found to see what it reads and writes.

        Args:
            config: With absolute paths.
            command: What the job runs.
            fresh: Delete what the run directory holds first.

        Returns:
            The job; one that is running already, or has completed the run with the same
            configuration, is returned as it is.

        Raises:
            ClusterError: The run is being worked on with other settings, or a node does not see
                what it needs.
        """
        check_secrets(config)
        files = files_of(config)
        digest = digest_of(command, files)
        held = next(reversed(self.of(config.name)), None)
        if held is not None and held.state in LIVE:
            if held.config != digest or fresh:
                raise ClusterError(
                    f"{held.id} is {held.state}, with other settings.",
                    f"Stop it first (distft stop {held.id}), or choose another name.",
                )
            return self.told(held)
        found = self._probe(config.name, files)
        _check_seen(found, config)
        unchanged = held is not None and (held.state, held.config) == ("succeeded", digest)
        if held is not None and unchanged and found.completed and not fresh:
            return self.told(held)
        attempt = next_attempt(config.name, held.attempt if held else 0, found.jobs)
        words = ("distft.cli", command, CONFIG_FILE, *(("--fresh",) if fresh else ()))
        metadata = {
            _MARK: command,
            "name": config.name,
            "attempt": str(attempt),
            "run_dir": str(config.run_dir),
            "config": digest,
        }
        job_id = submission_id(config.name, attempt)
        self._start(job_id, words, files, metadata)
        return self.find(job_id).model_copy(update={"submitted": True})

    def _start(
        self, job_id: str, words: Sequence[str], files: dict[str, str], metadata: dict[str, str]
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="distft-job-") as folder, self._asking():
            for name, text in files.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            self._client.submit_job(
                entrypoint=f"python -m {' '.join(words)}",
                submission_id=job_id,
                runtime_env={"working_dir": folder, "env_vars": {JOB_VARIABLE: job_id}},
                metadata=metadata,
            )

    def _probe(self, name: str, files: dict[str, str]) -> Found:
        """Return what the nodes see of a run; a job of a few seconds, which leaves no trace."""
        job_id = f"{name}-probe-{uuid.uuid4().hex[:8]}"
        self._start(job_id, ("distft.launch.probe", CONFIG_FILE), files, {})
        with self._asking():
            while (details := self._client.get_job_info(job_id)).status.value.lower() in LIVE:
                time.sleep(_POLL_S)
            log = str(self._client.get_job_logs(job_id))
            self._client.delete_job(job_id)
        # Ray may have told of the end of its own process behind it.
        answers = [line for line in log.splitlines() if line.startswith("{")]
        if details.driver_exit_code == 0 and answers:
            return Found.model_validate_json(answers[-1])
        said = _last_line(log)
        if exit_code("failed", details.driver_exit_code) == LostError.exit_code:
            raise LostError(
                f"The cluster at {self._address} cannot be probed: {said}", "Try again."
            )
        raise ClusterError(
            f"The cluster at {self._address} cannot run distft: {said}",
            "Install distft on every node, and start Ray there from its environment: jobs run the "
            "`python` that the nodes find.",
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
        try:
            asyncio.run(self._tail(job, write))
        except KeyboardInterrupt:
            write(f"{job.id} goes on; `distft stop {job.id}` ends it.\n")
            raise
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


def _check_seen(found: Found, config: RunConfig) -> None:
    if found.unseen:
        node, path = found.unseen[0]
        raise ClusterError(
            f"Node {node} does not see {path}.",
            "Fetch it on every node: python -m distft.assets."
            if path.startswith("asset:")
            else "Put it where every node sees it at the same path, or behind an address such as "
            "s3://bucket/rows.jsonl.",
        )
    if found.unshared:
        raise ClusterError(
            f"Node {found.unshared[0]} does not see the output directory {config.output_dir}, or "
            "may not write there.",
            "Set cluster.storage to what every node mounts at the same path; a relative "
            "output_dir lies below it.",
        )


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
