"""A study from its configuration to its trained winner and its report."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from distft import plugin, run_dir, training
from distft.config import RunConfig
from distft.errors import ClusterError, ConfigError, DistftError, PlanError, SearchError
from distft.records import (
    StudyRecord,
    read_record,
    read_study,
    write_json,
    write_text,
)
from distft.redact import hidden

if TYPE_CHECKING:
    from distft.capacity import Capacity
    from distft.machine import Machine
    from distft.plan import Plan
    from distft.search.phases import Search
    from distft.search.setting import Setting

_LOG_COLUMNS = 160
_DRIVER_CPUS = 1
"""Left free on a cluster for Ray Data and what the driver starts."""


def tune(config: RunConfig, *, fresh: bool = False, plain: bool = False) -> StudyRecord:
    """Search, confirm the best, train the winner; or continue, or return what it came to.

    Args:
        config: Resolved.
        fresh: Delete what the directory holds and start anew.
        plain: Show lines instead of a screen.

    Returns:
        The record of the finished study.

    Raises:
        DistftError: Anything wrong, refused or failed; study.json says so too.
    """
    from distft.batch_sizes import batch_sizes
    from distft.data.resolve import prepared_key
    from distft.search.sample import build_space
    from distft.train.tracking import chosen

    folder, console = config.run_dir, _console()
    run_dir.check_writable(folder.parent)
    chosen(config.report_to, trial=False)
    build_space(config)
    task = plugin.tasks()[config.task.name]
    data_key = prepared_key(config, task, config.data.format or "")
    config_hash = config.search_hash(config.hash(data_key, batch_sizes(config)[0]))
    held = run_dir.check_free_for_study(folder, fresh=fresh)
    if held is not None:
        run_dir.check_same(f"{folder} holds a study of", held.config_hash, config_hash)
        if held.status == "completed" and held.config["tune"] == hidden(config.dump()["tune"]):
            _close(folder, console)
            return held
    look = None
    if not config.cluster.address:
        look = _first_look(config, folder, data_key, training.capacity_of(config))
        look = _with_concurrency(look, look.setting.capacity.cpus)
    with run_dir.claimed(folder, fresh=fresh), _recorded(folder):
        record = _tune(config, config_hash, data_key, look, console, plain)
    _close(folder, console)
    return record


def _console() -> Console:
    # A log has no width of its own; 80 columns would cut a study's tables to nothing.
    return Console(stderr=True, width=None if sys.stderr.isatty() else _LOG_COLUMNS)


@dataclass(frozen=True)
class _Look:
    """A study's setting, and what its trials need of a cluster."""

    setting: Setting
    workers: int
    """Most workers of one trial."""
    nested: bool
    """Whether a trial needs Ray Train."""
    winner: tuple[RunConfig, Plan]
    """That with most to train, should it win."""


def _first_look(config: RunConfig, folder: Path, data_key: str, capacity: Capacity) -> _Look:
    """Return the setting as a sample of the data shows it: refusals come before anything starts."""
    from distft.data.stats import sample_stats
    from distft.search.setting import Setting

    setting = Setting(
        config=config,
        folder=folder,
        data_key=data_key,
        data_root=folder,
        manifest=None,
        stats=sample_stats(config),
        capacity=capacity,
        concurrent=1,
        versions={},
    )
    return _looked(setting)


def _looked(setting: Setting) -> _Look:
    """Return what the methods' priors need, of those that could be trained after they have won.

    A winner has `cluster.num_workers` and `cluster.zero_stage`, which its trial need not have had.

    Args:
        setting: Of the study.

    Returns:
        The setting with what its largest trial needs.

    Raises:
        DistftError: There are none; why the last one is refused.
    """
    from distft.plan import make_plan
    from distft.search.sample import build_space, effective, priors
    from distft.search.setting import plan_trial

    config = setting.config
    found, winners, problem = [], [], None
    for sample in priors(build_space(config), config):
        made = effective(config, sample, name="trial", **setting.search_train(sample))
        try:
            plan = plan_trial(setting, made)[1]
            winner = effective(config, sample, name="winner")
            full = make_plan(winner, setting.stats, setting.capacity)
        except (PlanError, ConfigError) as error:
            problem = error
        else:
            found.append(plan)
            winners.append((winner, full))
    if not found:
        assert problem is not None
        raise problem
    nested = any(plan.engine != "torch" for plan in found)
    largest = max(winners, key=lambda each: each[1].trainable_params)
    return _Look(setting, max(plan.world_size for plan in found), nested, largest)


def _with_concurrency(look: _Look, cpus: float) -> _Look:
    setting = look.setting
    config, capacity = setting.config, setting.capacity
    concurrent = config.tune.max_concurrent
    if concurrent is None:
        uses_gpus = capacity.gpus and config.cluster.gpus_per_worker != 0
        each = config.cluster.cpus_per_worker
        slots = capacity.gpus * capacity.nodes if uses_gpus else cpus / each
        concurrent = max(1, min(math.floor(slots / look.workers), config.tune.num_trials))
    # Memory is shared by the trials side by side.
    return _looked(replace(setting, concurrent=concurrent))


def _tune(
    config: RunConfig,
    config_hash: str,
    data_key: str,
    look: _Look | None,
    console: Console,
    plain: bool,
) -> StudyRecord:
    from distft.launch import preflight, session
    from distft.search.phases import Search
    from distft.search.sample import build_space
    from distft.search.study import open_storage

    folder = config.run_dir
    slots, nested = 0, False
    if look is not None:
        slots = look.setting.concurrent * look.workers * config.cluster.cpus_per_worker
        nested = look.nested
    with session.connected(config.cluster, slots=slots, state_api=nested):
        nodes = preflight.look(config.cluster, folder, say=training.teller(console))
        setting = _setting(config, data_key, look, nodes, console)
        storage = open_storage(folder, config.tune.storage)
        search = Search(storage, setting, build_space(config), config_hash)
        write_text(folder / "config.yaml", _config_yaml(config))
        search.publish()
        _search(search, folder, console, plain)
        winner = search.winner()
        write_text(folder / "best.yaml", _best_yaml(winner, search))
        console.print("training the winner at full budget ...", highlight=False)
        _train_winner(winner, folder / "winner", data_key)
    return search.publish(status="completed", winner="winner")


def _setting(
    config: RunConfig,
    data_key: str,
    look: _Look | None,
    nodes: Sequence[Machine],
    console: Console,
) -> Setting:
    from distft import machine
    from distft.data.stats import stats_of
    from distft.launch import preflight

    # What a cluster at an address cannot do is said before the data are prepared there.
    if look is None:
        look = _first_look(config, config.run_dir, data_key, training.capacity_of(config))
        look = _with_concurrency(look, _check_room(look))
    else:
        _check_room(look)
    preflight.check(*look.winner, config.run_dir, nodes)
    root, manifest = training.prepared(config, console)
    return replace(
        look.setting,
        data_root=root,
        manifest=manifest,
        stats=stats_of(manifest, config.data.mix_shares),
        versions=machine.versions(),
    )


def _check_room(look: _Look) -> float:
    """Return the CPUs free for trials; refuse what the cluster cannot."""
    from distft.launch import preflight

    if look.nested:
        preflight.check_state_api()
    each = look.setting.config.cluster.cpus_per_worker
    free = preflight.free_cpus() - _DRIVER_CPUS
    if free < look.workers * each:
        raise ClusterError(
            f"A trial needs {look.workers} worker(s) of {each} CPU; the cluster has "
            f"{max(0.0, free):g} free besides one for the driver.",
            "Lower tune.num_workers or cluster.cpus_per_worker, or wait for other jobs.",
        )
    return free


def _search(search: Search, folder: Path, console: Console, plain: bool) -> None:
    from distft.report.study_live import follow
    from distft.search.tune import execute

    stop = threading.Event()
    thread = threading.Thread(
        target=follow,
        args=(folder,),
        kwargs={"stop": stop, "console": console, "plain": plain},
        daemon=True,
    )
    thread.start()
    try:
        search.run(execute)
    finally:
        search.publish()
        stop.set()
        thread.join()


def _config_yaml(config: RunConfig) -> str:
    import yaml

    return yaml.safe_dump(config.dump(), sort_keys=False, allow_unicode=True)


def _best_yaml(winner: RunConfig, search: Search) -> str:
    import yaml

    trial = search.recommended
    assert trial is not None
    plain = winner.dump()
    del plain["tune"]
    head = (
        f"# Recommended by the study {search.setting.config.name}: trial {trial.number}.\n"
        "# `distft train best.yaml` trains it again.\n"
    )
    return head + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _train_winner(winner: RunConfig, folder: Path, data_key: str) -> None:
    from distft.batch_sizes import batch_sizes

    fresh = False
    if (folder / "run.json").exists():
        # More trials may have found another winner than the one that was trained before.
        fresh = read_record(folder).config_hash != winner.hash(data_key, batch_sizes(winner)[0])
    training.train(winner, folder, fresh=fresh)


@contextlib.contextmanager
def _recorded(folder: Path) -> Iterator[None]:
    """Write into study.json how a study ended when it did not end well."""
    from distft.report.study import build

    try:
        yield
    except BaseException as error:
        failed = isinstance(error, Exception)
        known = error if isinstance(error, DistftError) else SearchError(str(error))
        changes: dict[str, Any] = {"status": "failed" if failed else "interrupted"}
        if failed:
            changes["error"] = known.as_dict()
        with contextlib.suppress(DistftError, OSError):
            record, _ = read_study(folder)
            write_json(folder / "study.json", record.model_copy(update=changes).model_dump())
            build(folder)
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


def _close(folder: Path, console: Console) -> None:
    from distft.report.study import build
    from distft.report.study_live import summarize

    summarize(folder, build(folder), console)
