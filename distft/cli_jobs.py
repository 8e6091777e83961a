"""The commands for jobs on a Ray cluster: submit, status, logs, stop, list."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distft.cli_arguments import Config, Json, Overrides
from distft.errors import ConfigError
from distft.output import answer, lines, table

if TYPE_CHECKING:
    from distft.launch.attempt import Job

app = typer.Typer(rich_markup_mode=None)

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The cluster's dashboard, such as http://HEAD:8265; default: RAY_ADDRESS, this "
        "machine's Ray.",
        show_default=False,
    ),
]
Which = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="A job's id, a run's name for its last attempt, or the config.",
        show_default=False,
    ),
]


@app.command()
def submit(
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the log; exit as the job does.")
    ] = False,
    command: Annotated[
        Literal["train", "tune"] | None,
        typer.Option("--command", help="Default: tune where the config has a section tune."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what the directory holds and begin again.")
    ] = False,
    emit: Annotated[
        Literal["kuberay", "slurm", "ray"] | None,
        typer.Option("--emit", help="Print what starts a cluster and runs it there, for these."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run train or tune as a job on a Ray cluster; again: the next attempt, which resumes."""
    from distft import api, config_file

    if emit is not None and (address or wait or fresh):
        raise ConfigError(
            "--emit prints a manifest and submits nothing: it goes without --address, --wait and "
            "--fresh.",
            "Leave one of them out.",
        )
    with answer(as_json) as show:
        loaded = config_file.load(config, overrides or [])
        if emit is not None:
            manifest = api.emit(loaded, emit, command)
            show({"target": emit, "manifest": manifest}, manifest.removesuffix("\n"))
            return
        write = _write if wait else None
        job = api.submit(loaded, address=address, command=command, fresh=fresh, follow=write)
        show(job.model_dump(), "" if wait else _submitted(job))
    _exit_as(job, wait)


@app.command()
def status(job: Which, address: Address = None, as_json: Json = False) -> None:
    """Say how a job stands; exit as it did once it has ended."""
    from distft import api

    with answer(as_json) as show:
        found = api.job(_name(job), address=address)
        show(found.model_dump(), _told(found))
    _exit_as(found, True)


@app.command()
def logs(
    job: Which,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Print what a job has printed."""
    from distft import api

    # The log is what was asked for, so it goes to stdout, which `answer` keeps for later.
    write = _write if as_json else _to_stdout()
    with answer(as_json) as show:
        found, text = api.job_logs(_name(job), address=address, follow=write if follow else None)
        show({**found.model_dump(), "log": text}, text.removesuffix("\n"))


@app.command()
def stop(job: Which, address: Address = None, as_json: Json = False) -> None:
    """Interrupt a job; submitted again, it goes on."""
    from distft import api

    with answer(as_json) as show:
        stopped = api.stop_job(_name(job), address=address)
        show(stopped.model_dump(), _told(stopped))


@app.command("list")
def list_(address: Address = None, as_json: Json = False) -> None:
    """List the distft jobs of a cluster."""
    from distft import api

    columns = ("name", "attempt", "state", "started", "run_dir", "said")
    with answer(as_json) as show:
        rows = [job.model_dump() for job in api.jobs(address=address)]
        show(rows, table(rows, columns) if rows else "no distft job")


def _name(word: str) -> str:
    """Return the name in a config, or the word itself."""
    from distft import config_file

    path = Path(word)
    return config_file.load(path).name if path.suffix in (".yaml", ".yml") else word


def _submitted(job: Job) -> str:
    if job.state == "succeeded":
        return f"{job.id} has completed it:\n{job.said}"
    what = f"submitted {job.id}" if job.submitted else f"{job.id} is running already"
    return f"{what}; its directory: {job.run_dir}\nfollow it: distft logs -f {job.id}"


def _told(job: Job) -> str:
    return lines(job.model_dump(exclude={"config", "submitted"}))


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _to_stdout() -> Callable[[str], None]:
    stdout = os.fdopen(os.dup(1), "w", errors="backslashreplace")

    def write(text: str) -> None:
        stdout.write(text)
        stdout.flush()

    return write


def _exit_as(job: Job, wanted: bool) -> None:
    if wanted and job.exit_code:
        raise typer.Exit(job.exit_code)
