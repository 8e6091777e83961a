"""Every command as a function; the command line only wraps these."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from distft import run_dir
from distft.config import RunConfig
from distft.records import RunRecord, StudyRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from distft.data.manifest import Manifest
    from distft.data.preview import Preview
    from distft.launch.attempt import Job
    from distft.plan import Plan
    from distft.search.replay import Replay


def plan(config: RunConfig) -> Plan:
    """Return the plan of a run from a sample of its data; launches nothing, loads no Ray.

    With `data.assumed` no data are read, with `model.shape` no files of the model.

    Args:
        config: The configuration.

    Returns:
        Every number with its reason.

    Raises:
        DistftError: Anything wrong with configuration, model or data, or it does not fit.
    """
    from distft import training

    assumed = config.data.assumed is not None
    return training.planned(training.resolved(config, assumed=assumed), assumed=assumed)


def preview(
    config: RunConfig, *, rows: int = 5, row: str | None = None, html: Path | None = None
) -> Preview:
    """Return a look at the training rows as the model sees them; loads no Ray.

    Args:
        config: The configuration.
        rows: How many rows are shown in full.
        row: Show this one instead, as messages name it: FILE:ROW.
        html: Also write a page there.

    Returns:
        See `distft.data.preview.Preview`.

    Raises:
        DistftError: Anything wrong with configuration, model or files.
    """
    from distft import training
    from distft.data import preview as previewing
    from distft.report import preview_page as page
    from distft.report.progress import counting

    if html is not None:
        page.check_page(html)
    config = training.resolved(config)
    with counting("looking at rows", Console(stderr=True)) as progress:
        seen = previewing.preview(config, rows=rows, row=row, progress=progress)
    if html is not None:
        page.write(html, seen)
    return seen


def prepare(config: RunConfig) -> Manifest:
    """Tokenize the data into shards, once.

    Args:
        config: The configuration.

    Returns:
        The manifest of what is there now.

    Raises:
        DistftError: Anything wrong with configuration, model or data.
    """
    from distft import training
    from distft.launch.session import connected

    config = training.resolved(config)
    run_dir.check_writable(Path(config.output_dir).absolute())
    with connected(config.cluster):
        return training.prepared(config, Console(stderr=True))[1]


def train(config: RunConfig, *, fresh: bool = False) -> RunRecord:
    """Train one run, or continue it, or return what it came to; the directory decides.

    Args:
        config: The configuration.
        fresh: Delete what the directory holds and start anew.

    Returns:
        The record of the finished run.

    Raises:
        DistftError: Anything wrong, refused or failed; run.json says so too.
    """
    from distft import training

    training.check_machine(config)
    config = training.resolved(config)
    return training.train(config, config.run_dir, fresh=fresh)


def tune(config: RunConfig, *, fresh: bool = False, plain: bool = False) -> StudyRecord:
    """Search method, rank and learning rate, confirm the best, train the winner; or continue.

    Args:
        config: The configuration.
        fresh: Delete what the directory holds and start anew.
        plain: Show lines instead of a screen.

    Returns:
        The record of the finished study.

    Raises:
        DistftError: Anything wrong, refused or failed; study.json says so too.
    """
    from distft import training, tuning

    training.check_machine(config)
    return tuning.tune(training.resolved(config), fresh=fresh, plain=plain)


def replay(curves: Path) -> Replay:
    """Score search policies on recorded curves.

    Args:
        curves: The file.

    Returns:
        The table.

    Raises:
        ConfigError: The file does not read.
    """
    from distft.report.progress import counting
    from distft.search.replay import replay as replaying

    with counting("replaying", Console(stderr=True), "splits") as progress:
        return replaying(curves, progress=progress)


def evaluate(
    folder: Path, data: str | Path | None = None, *, generate: bool = False
) -> dict[str, Any]:
    """Return the metrics of a finished run's model on its test rows or on a file.

    Args:
        folder: The run directory.
        data: A file or address of rows in the run's format.
        generate: Also write an answer to every row and compare it with the row's own.

    Returns:
        See `distft.predict.evaluate_run`.
    """
    from distft.predict import evaluate_run
    from distft.report.progress import counting

    where = None if data is None else str(data)
    if not generate:
        return evaluate_run(folder, where)
    with counting("writing answers", Console(stderr=True)) as progress:
        return evaluate_run(folder, where, generate=True, progress=progress)


def predict(folder: Path, source: str | Path, target: Path) -> dict[str, Any]:
    """Write a prediction for every row of a file.

    Args:
        folder: The run directory.
        source: Rows in the run's format.
        target: JSON lines.

    Returns:
        See `distft.predict.predict`.
    """
    from distft import predict as predicting
    from distft.report.progress import counting

    with counting("predicting", Console(stderr=True)) as progress:
        return predicting.predict(folder, str(source), target, progress=progress)


def export(folder: Path, target: Path, *, merge: bool = False) -> dict[str, Any]:
    """Write a run's model to a folder, and prove it.

    Args:
        folder: The run directory.
        target: New folder.
        merge: Fold an adapter into the base.

    Returns:
        See `distft.export.export`.
    """
    from distft import export as exporting

    return exporting.export(folder, target, merge=merge)


def report(folder: Path) -> dict[str, str]:
    """Write report.html, report.md and report.json of a run or a study.

    Args:
        folder: Its directory.

    Returns:
        Their paths by kind.
    """
    from distft.report import run, study

    return study.build(folder) if (folder / "study.json").exists() else run.build(folder)


def submit(
    config: RunConfig,
    *,
    address: str | None = None,
    command: Literal["train", "tune"] | None = None,
    fresh: bool = False,
    follow: Callable[[str], None] | None = None,
) -> Job:
    """Run `train` or `tune` as a job on a Ray cluster, or return the job that does.

    Args:
        config: The configuration.
        address: See `distft.launch.submit.Jobs`; default: `cluster.address`.
        command: Default: tune where the configuration has a section tune.
        fresh: Delete what the run directory holds and start anew.
        follow: Takes the job's log until it ends; default: return once it is submitted.

    Returns:
        The job.

    Raises:
        DistftError: Anything wrong or refused, or no cluster answers.
    """
    from distft import training
    from distft.launch.attempt import on_storage
    from distft.launch.submit import Jobs

    jobs = Jobs(address or config.cluster.address)
    wanted = _command(config, command)
    job = jobs.submit(training.with_absolute_paths(on_storage(config)), wanted, fresh=fresh)
    return jobs.follow(job, follow) if follow else job


def emit(
    config: RunConfig,
    target: Literal["kuberay", "slurm", "ray"],
    command: Literal["train", "tune"] | None = None,
) -> str:
    """Return the manifest that starts a cluster and runs `train` or `tune` on it.

    Args:
        config: The configuration.
        target: Who starts it: KubeRay, Slurm or Ray's cluster launcher.
        command: Default: tune where the configuration has a section tune.

    Returns:
        YAML, or a batch script.

    Raises:
        DistftError: The nodes would not see a path, the workers do not fit, or a secret would show.
    """
    from distft.emit import kuberay, ray, slurm
    from distft.emit.settings import settings

    targets = {"kuberay": kuberay.emit, "slurm": slurm.emit, "ray": ray.emit}
    return targets[target](settings(config, _command(config, command)))


def _command(
    config: RunConfig, command: Literal["train", "tune"] | None
) -> Literal["train", "tune"]:
    return command or ("tune" if "tune" in config.model_fields_set else "train")


def job(word: str, *, address: str | None = None) -> Job:
    """Return how a job stands.

    Args:
        word: Its id, or a run's name for the last attempt.
        address: See `distft.launch.submit.Jobs`.

    Returns:
        The job.
    """
    from distft.launch.submit import Jobs

    return Jobs(address).find(word)


def job_logs(
    word: str, *, address: str | None = None, follow: Callable[[str], None] | None = None
) -> tuple[Job, str]:
    """Return what a job has printed.

    Args:
        word: Its id, or a run's name for the last attempt.
        address: See `distft.launch.submit.Jobs`.
        follow: Takes the log instead, until the job ends.

    Returns:
        (the job, its log or, where it was followed, nothing).
    """
    from distft.launch.submit import Jobs

    jobs = Jobs(address)
    found = jobs.find(word)
    if follow is None:
        return found, jobs.logs(found)
    return jobs.follow(found, follow), ""


def stop_job(word: str, *, address: str | None = None) -> Job:
    """Interrupt a job.

    Args:
        word: Its id, or a run's name for the last attempt.
        address: See `distft.launch.submit.Jobs`.

    Returns:
        The job as it ended.
    """
    from distft.launch.submit import Jobs

    jobs = Jobs(address)
    return jobs.stop(jobs.find(word))


def jobs(*, address: str | None = None) -> list[Job]:
    """Return the distft jobs of a cluster, the oldest first.

    Args:
        address: See `distft.launch.submit.Jobs`.

    Returns:
        Those that have not ended with the last line of their log.
    """
    from distft.launch.attempt import LIVE
    from distft.launch.submit import Jobs

    cluster = Jobs(address)
    return [cluster.told(job) if job.state in LIVE else job for job in cluster.all()]
