"""A search on real Ray: what is sampled is what is built, what is stopped is freed, what fails is
told."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import runpy
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from rich.console import Console

from distft import api, hf, plugin, training
from distft.config_file import load, parse
from distft.data.manifest import load_manifest
from distft.data.stats import stats_of
from distft.errors import ClusterError, SearchError
from distft.launch import session
from distft.plan import make_plan
from distft.records import StudyRecord, TrialRecord, read_evaluations, read_record
from distft.search.trainable import TrialProcess
from distft.train.job import Order

STUDIES = runpy.run_path(str(Path(__file__).parents[1] / "tune_studies.py"))
write_config, of, wait_until = STUDIES["write_config"], STUDIES["of"], STUDIES["wait_until"]
FREED_S, ACTORS = STUDIES["FREED_S"], STUDIES["ACTORS"]

HIDDEN, INNER, POSITIONS, LAYERS, CLASSES = 24, 40, 64, 2, 2


def trained_by_hand(method: str, params: dict[str, Any], words: int) -> int:
    """Parameters of the tiny BERT that a sample trains, counted from its shapes."""

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    norm = 2 * HIDDEN
    block = 4 * linear(HIDDEN, HIDDEN) + linear(HIDDEN, INNER) + linear(INNER, HIDDEN) + 2 * norm
    head = linear(HIDDEN, CLASSES)
    if method == "freeze":
        return abs(params["method.trainable_layers"]) * block + head
    if method == "lora":
        pairs = LAYERS * (4 * 2 * HIDDEN + 2 * (HIDDEN + INNER)) + 2 * HIDDEN
        return int(params["method.r"]) * pairs + head
    embeddings = (words + POSITIONS + 2) * HIDDEN + norm
    return embeddings + LAYERS * block + linear(HIDDEN, HIDDEN) + head


def folder_of(study_dir: Path, number: int) -> Path:
    return study_dir / "trials" / f"{number:05d}"


@dataclass(frozen=True)
class Done:
    """A study that was run once for the tests that look at it."""

    folder: Path
    record: StudyRecord
    trials: list[TrialRecord]
    temporary: Path
    cpus: float
    words: int
    before: frozenset[int]
    """Processes of other tests' Ray Train runs on the same Ray."""


@pytest.fixture(scope="module")
def done(ray_cluster: None, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Ten draws of five configurations, the worst of each rung stopped, on a Ray that goes on."""
    from transformers import AutoConfig

    path = write_config(
        tmp_path_factory.mktemp("tune"),
        tiny_bert,
        train__learning_rate=1e-3,
        # One thread, which waits for no other on a busy machine.
        cluster__shape={"cpus": 1, "memory": "8GiB"},
        tune__num_trials=10,
        tune__confirm_seeds=2,
        tune__space={
            "train.learning_rate": 1e-3,
            "method.trainable_layers": [1, 2],
            "method.r": [2, 4],
        },
        tune__policy={"rungs": [0.3], "keep": [0.99]},
    )
    temporary, cpus = tmp_path_factory.mktemp("temporary"), ray.available_resources()["CPU"]
    before = frozenset(STUDIES["processes"](psutil.Process(), *ACTORS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        record = api.tune(load(path), plain=True)
    folder = load(path).run_dir.resolve()
    words = AutoConfig.from_pretrained(tiny_bert).vocab_size
    return Done(folder, record, of(folder), temporary, cpus, words, before)


def test_sampled_is_effective_is_built(done: Done) -> None:
    built = set()
    for trial in done.trials:
        assert trial.run is not None
        config = parse(trial.run.config)
        for path, value in trial.params.items():
            section, key = path.split(".")
            assert getattr(getattr(config, section), key) == value, (trial.number, path)
        by_hand = trained_by_hand(trial.method, trial.params, done.words)
        assert trial.run.model.trainable_params == by_hand
        if trial.state == "complete" and trial.reused_from is None:
            result = read_evaluations(folder_of(done.folder, trial.number))
            assert result["trainable_params"] == by_hand
            built.add(trial.method)
    assert built == {"full", "freeze", "lora"}
    assert len({trial.config_hash for trial in done.trials}) == 5


def test_an_equal_sample_is_reused_and_counted(done: Done) -> None:
    reused = [trial for trial in done.trials if trial.reused_from is not None]
    assert len(reused) == 5
    assert done.record.counts["reused"] == 5
    assert done.record.spent["trials"] == 10
    for trial in reused:
        first = done.trials[trial.reused_from or 0]
        assert first.reused_from is None
        assert (trial.params, trial.config_hash) == (first.params, first.config_hash)
        assert (trial.state, trial.value, trial.curve) == (first.state, first.value, first.curve)
        assert not folder_of(done.folder, trial.number).exists()
    own = sum(trial.samples for trial in done.trials if trial.reused_from is None)
    assert done.record.spent["samples"] == own


def test_the_worst_is_stopped_at_its_rung_and_the_process_is_used_again(done: Done) -> None:
    stopped = [t for t in done.trials if t.state == "pruned" and t.reused_from is None]
    assert stopped
    for trial in stopped:
        (rung,) = trial.rungs
        assert (trial.samples, rung["samples"], rung["kept"]) == (96, 96, False)
        assert rung["rank"] == rung["of"]
    seen: set[str] = set()
    for trial in done.trials:
        if trial.reused_from is None:
            log = (folder_of(done.folder, trial.number) / "logs" / "trial.log").read_text()
            ((held, before),) = re.findall(r"released: (\d+) bytes held, (\d+) before", log)
            print(f"trial {trial.number} {trial.method} {trial.state}: {held} {before} bytes")
            assert trial.attempts == 1
            assert (int(before) > 0) == bool(seen), "all in one process"
            assert trial.method not in seen or int(held) <= 1.1 * int(before)
            seen.add(trial.method)


def test_nothing_is_left_on_a_cluster_that_goes_on(done: Done) -> None:
    me = psutil.Process()
    took_s = wait_until(
        lambda: not set(STUDIES["processes"](me, *ACTORS)) - done.before, FREED_S, "actors"
    )
    took_s += wait_until(
        lambda: ray.available_resources().get("CPU") == done.cpus, FREED_S, "reserved CPUs"
    )
    print(f"gone {took_s:.1f} s after the study")
    groups = ray.util.placement_group_table().values()
    assert {group["state"] for group in groups} <= {"REMOVED"}
    assert STUDIES["temporary"](done.temporary) == []


def test_the_ledger_is_the_journal_and_the_winner_is_a_run(done: Done) -> None:
    STUDIES["assert_ledger_is_the_journal"](done.folder)
    best = min((t for t in done.trials if t.state == "complete"), key=lambda t: t.value or 0.0)
    assert done.record.recommended is not None
    assert done.trials[done.record.recommended].config_hash == best.config_hash
    winner = read_record(done.folder / "winner")
    assert (winner.status, winner.config["method"]["name"]) == ("completed", best.method)


def test_trials_confirmations_and_the_winner_share_one_tokenization(done: Done) -> None:
    assert len({trial.method for trial in done.trials}) > 1
    manifest = load_manifest(next((done.folder.parent / "prepared").glob("*/manifest.json")).parent)
    rows = sum(info.rows for info in manifest.splits.values())
    assert STUDIES["preparations"](done.folder.parent) == [(manifest.key, rows)]


def test_without_a_dashboard_trials_of_several_workers_are_refused(done: Done) -> None:
    path = done.folder.parents[1] / "study.yaml"
    began = time.monotonic()
    with pytest.raises(ClusterError, match="dashboard is off") as caught:
        api.tune(load(path, ["name=nested", "tune.num_workers=2"]), plain=True)
    took_s = time.monotonic() - began
    print(f"refused after {took_s:.1f} s")
    assert took_s < FREED_S
    assert caught.value.exit_code == 3
    assert "--include-dashboard=true" in caught.value.hint
    assert "tune.num_workers=1" in caught.value.hint


@pytest.mark.slow
def test_different_samples_of_one_configuration_stop_the_study(
    ray_cluster: None, tiny_bert: Path, tmp_path: Path
) -> None:
    space = {"train.learning_rate": 1e-3, "train.logging_steps": [5, 7]}
    path = write_config(tmp_path, tiny_bert, tune__methods=["full"], tune__space=space)
    with pytest.raises(SearchError, match=r"train\.logging_steps changes nothing") as caught:
        api.tune(load(path), plain=True)
    assert caught.value.exit_code == 4
    record = STUDIES["record"](tmp_path / "runs" / "study")
    assert record.status == "failed"
    assert record.error == caught.value.as_dict()
    me = psutil.Process()
    wait_until(lambda: not STUDIES["processes"](me, *ACTORS), FREED_S, "actors")


@pytest.mark.slow
def test_trials_that_fail_say_why_and_the_study_goes_on(
    ray_cluster: None, tiny_bert: Path, tmp_path: Path
) -> None:
    rates = [1e-3, 1e30, 2e-3, 3e-3]
    space = {"train.learning_rate": rates, "train.optim": "sgd", "train.max_grad_norm": 0.0}
    path = write_config(
        tmp_path,
        tiny_bert,
        tune__methods=["full"],
        tune__space=space,
        tune__sampler="grid",
        tune__policy={"name": "none"},
        tune__num_trials=2,
    )
    folder = tmp_path / "runs" / "study"
    assert api.tune(load(path), plain=True).counts["failed"] == 1
    # A folder that cannot be made, also not by root.
    folder_of(folder, 2).write_text("in the way")
    record = api.tune(load(path, ["tune.num_trials=4"]), plain=True)
    trials = of(folder)
    print([(trial.state, trial.attempts, trial.reason) for trial in trials])
    assert [trial.state for trial in trials] == ["complete", "failed", "failed", "complete"]
    assert re.search(r"loss of step \d+ is (nan|inf)", trials[1].reason)
    assert "00002" in trials[2].reason
    assert [trial.attempts for trial in trials] == [1, 1, 1, 1]
    assert record.counts["failed"] == 2
    STUDIES["assert_ledger_is_the_journal"](folder)


@pytest.mark.slow
def test_a_metric_that_is_not_measured_is_named(
    ray_cluster: None, tiny_bert: Path, tmp_path: Path
) -> None:
    path = write_config(tmp_path, tiny_bert, tune__objective="brilliance", tune__num_trials=2)
    with pytest.raises(SearchError, match="No trial came to a value") as caught:
        api.tune(load(path), plain=True)
    assert "eval_brilliance is not measured; allowed: eval_accuracy" in caught.value.hint
    trials = of(tmp_path / "runs" / "study")
    assert [trial.state for trial in trials] == ["failed", "failed"]
    assert all("eval_brilliance is not measured" in trial.reason for trial in trials)
    STUDIES["assert_ledger_is_the_journal"](tmp_path / "runs" / "study")


@contextlib.contextmanager
def starved(log: Path, more_bytes: int) -> Iterator[list[int]]:
    """Forbid the process that prints to a log, once it does, to map more memory than that."""
    found: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not found and not ended.wait(0.005):
            if log.exists():
                for pid in STUDIES["processes"](psutil.Process(), *ACTORS):
                    if STUDIES["log_of"](pid) == log:
                        limit = psutil.Process(pid).memory_info().vms + more_bytes
                        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
                        found.append(pid)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
def test_a_trial_that_runs_out_of_memory_fails_and_the_next_gets_another_process(
    ray_cluster: None, asset: Callable[[str], Path], tmp_path: Path
) -> None:
    asset("minilm-l6")
    path = write_config(
        tmp_path,
        "asset:minilm-l6",
        train__max_steps=3,
        tune__num_trials=3,
        tune__methods=["full"],
        tune__sampler="grid",
        tune__policy={"name": "none"},
        tune__space={"train.learning_rate": [1e-5, 2e-5, 3e-5]},
    )
    folder = tmp_path / "runs" / "study"
    with starved(folder_of(folder, 1) / "logs" / "trial.log", 16 << 20) as pids:
        api.tune(load(path), plain=True)
    assert len(pids) == 1
    trials = of(folder)
    print([(trial.state, trial.attempts, trial.reason) for trial in trials])
    assert [trial.state for trial in trials] == ["complete", "failed", "complete"]
    assert trials[1].reason.startswith("out of memory: ")
    assert [trial.attempts for trial in trials] == [1, 1, 1]
    STUDIES["assert_ledger_is_the_journal"](folder)


def is_pristine(process: TrialProcess) -> bool:
    """Whether the base weights a process keeps are those of the files, bit by bit."""
    config = parse(process._order.config)
    task = plugin.tasks()[config.task.name]
    labels = load_manifest(process._order.data_root, verify=False).labels
    read = hf.load_model(config.model, task, labels, seed=config.train.seed).state_dict()
    kept = process._warm.pristine.model
    assert kept is not None
    mine = kept.state_dict()
    return mine.keys() == read.keys() and all(torch.equal(mine[k], read[k]) for k in read)


@pytest.mark.slow
def test_a_stopped_trial_leaves_its_process_as_it_was(
    ray_cluster: None, asset: Callable[[str], Path], tmp_path: Path
) -> None:
    asset("minilm-l6")
    path = write_config(tmp_path, "asset:minilm-l6", train__max_steps=6, train__eval_steps=100)
    config = training.resolved(load(path))
    root, manifest = training.prepared(config, Console(stderr=True))
    capacity = session.capacity(config.cluster)

    def order(name: str, method: str) -> dict[str, Any]:
        own = training.resolved(load(path, [f"method={method}", "train.learning_rate=1e-3"]))
        made = Order(
            config=own.dump(),
            plan=make_plan(own, stats_of(manifest), capacity),
            run_dir=tmp_path / "trials" / name,
            data_root=root,
            config_hash=name,
            rungs=[3],
        )
        return {"order": made.model_dump(mode="json"), "cluster": config.cluster.model_dump()}

    actor = ray.remote(num_cpus=1)(TrialProcess).remote(order("first", "full"))
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    rss = psutil.Process(pid).memory_info

    def to_the_rung() -> tuple[list[Any], int, int, float]:
        """Its reports, bytes held by the trial and once it is stopped, seconds until then."""
        reports = [json.loads(ray.get(actor.step.remote())["report"]) for _ in range(2)]
        assert all(report.pop("peak_memory_bytes") > 0 for report in reports)
        held, began = rss().rss, time.monotonic()
        ray.get(actor.release.remote())
        return reports, held, rss().rss, time.monotonic() - began

    curves, left = {}, {}
    for name, method in (("first", "full"), ("adapted", "lora"), ("second", "full")):
        if name != "first":
            assert ray.get(actor.reset_config.remote(order(name, method)))
        curves[name], held, left[name], took_s = to_the_rung()
        print(f"{name}: {held} bytes held, {left[name]} after {took_s:.2f} s")
        assert held - left[name] > 80 << 20
        assert took_s < FREED_S
        assert ray.get(actor.__ray_call__.remote(is_pristine))
    assert left["second"] <= 1.1 * max(left["first"], left["adapted"])
    assert curves["second"] == curves["first"] != curves["adapted"]
    ray.kill(actor)
