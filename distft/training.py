"""One run from its configuration to its proven export and report."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from distft import plugin, run_dir
from distft.config import RunConfig
from distft.errors import ConfigError, DistftError, PlanError, TrainError
from distft.records import RunRecord, read_evaluations, read_record, write_json
from distft.redact import hidden

if TYPE_CHECKING:
    from distft.capacity import Capacity
    from distft.data.manifest import Manifest
    from distft.plan import Plan


def resolved(config: RunConfig, *, assumed: bool = False) -> RunConfig:
    """Fill in the format and the task from the data, and make every path absolute.

    Args:
        config: As the user gave it.
        assumed: Read no data: they are as `data.assumed` states.

    Returns:
        The configuration everything else is given.

    Raises:
        ConfigError: Two sets of `data.mix` are one.
    """
    from distft.data.assumed import stated
    from distft.data.resolve import detect

    format_name, task_name = stated(config) if assumed else detect(config)
    task = config.task or plugin.tasks()[task_name].config(name=task_name)
    config = with_absolute_paths(config)
    data = config.data.model_copy(update={"format": format_name})
    return config.model_copy(update={"task": task, "data": data})


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Make every path absolute: other processes have other working directories.

    Args:
        config: As the user gave it.

    Returns:
        A copy.

    Raises:
        ConfigError: Two sets of `data.mix` are one.
    """
    data = {split: _absolute(getattr(config.data, split)) for split in ("train", "eval", "test")}
    mix = {_absolute(spec): share for spec, share in config.data.mix.items()}
    if len(mix) < len(config.data.mix):
        raise ConfigError(
            f"data.mix names a file twice: {', '.join(config.data.mix)}.",
            "Name it once, with both shares.",
        )
    data["mix"] = mix
    model_id = config.model.id
    if (Path(model_id).expanduser() / "config.json").is_file():
        model_id = _absolute(model_id)
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"id": model_id}),
            "data": config.data.model_copy(update=data),
            "output_dir": _absolute(config.output_dir),
        }
    )


def _absolute(spec: Any) -> Any:
    from distft.data import files

    if isinstance(spec, list):
        return [_absolute(one) for one in spec]
    if not isinstance(spec, str) or spec.startswith("asset:") or files.is_address(spec):
        return spec
    return str(Path(spec).expanduser().absolute())


def prepared(config: RunConfig, console: Console) -> tuple[Path, Manifest]:
    """Return the prepared data of a configuration, made while a progress line shows.

    Args:
        config: Resolved.
        console: Where to draw.

    Returns:
        Their folder and manifest.
    """
    from distft.data.manifest import MANIFEST_FILE
    from distft.data.prepare import prepare as prepare_data
    from distft.data.tally import summary
    from distft.report.progress import counting

    with counting("preparing the data", console) as progress:
        root, manifest = prepare_data(config, progress=progress)
    if manifest.unread_files:
        said = f"not read: {', '.join(manifest.unread_files)}"
        console.print(said, highlight=False, soft_wrap=True)
    if manifest.cleaning:
        console.print(
            f"cleaned, samples in {root / MANIFEST_FILE}:", highlight=False, soft_wrap=True
        )
        console.print(summary(manifest.cleaning), highlight=False, soft_wrap=True)
    # A sample of large data need not show every class.
    plugin.tasks()[manifest.task].check(config.task, manifest.labels)
    return root, manifest


def check_machine(config: RunConfig) -> None:
    """Check, before anything is read, that what is to be trained here was not planned for GPUs.

    Args:
        config: As the user gave it.

    Raises:
        PlanError: `cluster.shape` states graphics cards, this machine lacks them and no address
            says where they are.
    """
    import torch

    cluster = config.cluster
    if cluster.address is not None or cluster.shape is None or cluster.gpus_per_worker == 0:
        return
    here = torch.cuda.device_count()
    if cluster.shape.gpus and here < cluster.num_workers:
        raise PlanError(
            f"cluster.shape plans {cluster.num_workers} worker(s) on graphics cards; this machine "
            f"has {here} and no cluster.address is set.",
            "Set cluster.address to a cluster that has them; `distft plan` needs none.",
        )


def capacity_of(config: RunConfig) -> Capacity:
    """Return what a run may use.

    Args:
        config: Of a cluster at an address, which must be connected unless its shape is stated.

    Returns:
        What `cluster.shape` states, the cluster offers, or this machine.
    """
    from distft.capacity import shape_capacity
    from distft.launch import session

    shape = config.cluster.shape
    return session.capacity(config.cluster) if shape is None else shape_capacity(shape)


def planned(config: RunConfig, *, assumed: bool = False) -> Plan:
    """Return the plan of a run from a sample of its data; launches nothing, loads no Ray.

    Args:
        config: Resolved.
        assumed: Read no data: they are as `data.assumed` states.

    Returns:
        Every number with its reason.
    """
    from distft.capacity import local_capacity, shape_capacity
    from distft.data.assumed import assumed_stats
    from distft.data.stats import sample_stats
    from distft.plan import make_plan

    shape = config.cluster.shape
    capacity = local_capacity() if shape is None else shape_capacity(shape)
    made = make_plan(config, (assumed_stats if assumed else sample_stats)(config), capacity)
    if assumed:
        made.notes.append("rows and tokens are those of data.assumed: no data were read")
    if config.cluster.address is not None and shape is None:
        made.notes.append(
            f"this is a plan for this machine; set cluster.shape to plan for the cluster at "
            f"{config.cluster.address}"
        )
    return made


def train(config: RunConfig, folder: Path, *, fresh: bool = False) -> RunRecord:
    """Train one run, or continue it, or return what it came to; the directory decides.

    Args:
        config: Resolved.
        folder: The run's directory.
        fresh: Delete what it holds and start anew.

    Returns:
        The record of the finished run.

    Raises:
        DistftError: Anything wrong, refused or failed; run.json says so too.
    """
    from distft.batch_sizes import batch_sizes
    from distft.data.resolve import prepared_key
    from distft.data.stats import sample_stats
    from distft.train.tracking import chosen

    console = Console(stderr=True)
    run_dir.check_writable(folder.parent)
    chosen(config.report_to, trial=False)
    task = plugin.tasks()[config.task.name]
    data_key = prepared_key(config, task, config.data.format or "")
    config_hash = config.hash(data_key, batch_sizes(config)[0])
    held = run_dir.check_free(folder, config_hash, fresh=fresh)
    if held is not None and held.status == "completed":
        _close(folder, console)
        return held
    # Everything a sample can show is refused before a directory or a cluster exists; whether it
    # fits a cluster at an address is known only once that is asked.
    if config.cluster.address is None or config.cluster.shape is not None:
        planned(config)
    else:
        sample_stats(config)
    with run_dir.claimed(folder, fresh=fresh), _recorded(folder):
        record = _run(config, config_hash, folder, console)
    _close(folder, console)
    return record


def _run(config: RunConfig, config_hash: str, folder: Path, console: Console) -> RunRecord:
    from distft import machine
    from distft.data.stats import stats_of
    from distft.launch import preflight, session, trainer
    from distft.plan import make_plan
    from distft.train.job import Order

    started = time.time()
    with session.connected(config.cluster):
        nodes = preflight.look(config.cluster, folder, say=teller(console))
        root, manifest = prepared(config, console)
        made = make_plan(config, stats_of(manifest, config.data.mix_shares), capacity_of(config))
        record = run_dir.first_record(config, config_hash, made, manifest, machine.versions())
        earlier = read_record(folder).jobs if (folder / "run.json").exists() else []
        record = record.model_copy(update={"jobs": run_dir.with_this_job(earlier)})
        run_dir.write_start(folder, config, made, record)
        if not (folder / "eval.json").exists():
            preflight.check(config, made, folder, nodes)
            order = Order(
                config=hidden(config.dump()),
                plan=made,
                run_dir=folder,
                data_root=root,
                config_hash=config_hash,
            )
            with _followed(folder, made, console) as say:
                trainer.fit(order, config.cluster, say=say)
    return _finish(folder, record, started, console)


def _finish(folder: Path, record: RunRecord, started: float, console: Console) -> RunRecord:
    from distft.export import export

    result = read_evaluations(folder)
    record = run_dir.with_result(record, result, time.time() - started)
    write_json(folder / "run.json", record.model_dump())
    console.print("exporting the model and loading it again ...", highlight=False)
    # Left by a run that was killed while it exported.
    shutil.rmtree(folder / "model", ignore_errors=True)
    export(folder, folder / "model")
    record = record.model_copy(update={"status": "completed"})
    write_json(folder / "run.json", record.model_dump())
    return record


def teller(console: Console) -> Callable[[str], None]:
    """Return what prints a line as it is: neither coloured nor cut.

    Args:
        console: Where.

    Returns:
        A function of the text.
    """
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def _recorded(folder: Path) -> Iterator[None]:
    """Write into run.json how a run ended when it did not end well."""
    from distft.report.run import build

    try:
        yield
    except Exception as error:
        known = error if isinstance(error, DistftError) else TrainError(str(error))
        with contextlib.suppress(DistftError, OSError):
            record = read_record(folder)
            failed = record.model_copy(update={"status": "failed", "error": known.as_dict()})
            write_json(folder / "run.json", failed.model_dump())
            build(folder)
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


@contextlib.contextmanager
def _followed(folder: Path, made: Plan, console: Console) -> Iterator[Any]:
    """Show progress meanwhile."""
    from distft.report.live import follow

    stop = threading.Event()
    thread = threading.Thread(
        target=follow,
        args=(folder, made.model_dump()),
        kwargs={"stop": stop, "console": console},
        daemon=True,
    )
    thread.start()
    try:
        yield teller(console)
    finally:
        stop.set()
        thread.join()


def _close(folder: Path, console: Console) -> None:
    from distft.report.live import summarize
    from distft.report.run import build

    summarize(folder, build(folder), console)
    sys.stderr.flush()
