"""Small studies for the tests that search for real: rows, configs, and what a study left behind."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import psutil
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from distft.records import StudyRecord, TrialRecord, read_study

WORDS = {"positive": ("good", "great", "fine"), "negative": ("bad", "poor", "dull")}
FREED_S = 10
"""How long what a stopped trial held may take to be gone."""


def write_config(folder: Path, model: str | Path, **changes: Any) -> Path:
    """Write reviews.csv and NAME.yaml; `section__key` changes a key of a section."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "reviews.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(320):
            label = ("positive", "negative")[number % 2]
            word = WORDS[label][number // 2 % 3]
            writer.writerow([f"the story number {number} is {word} and {number % 7}", label])
    config: dict[str, Any] = {
        "model": str(model),
        "output_dir": str(folder / "runs"),
        "data": {"train": str(folder / "reviews.csv"), "cutoff_len": 32},
        "train": {"max_steps": 20, "logging_steps": 10},
        "tune": {"num_trials": 4, "max_concurrent": 1, "sampler": "random", "confirm": 0},
    }
    name = changes.pop("name", "study")
    for path, value in changes.items():
        section, _, key = path.partition("__")
        config.setdefault(section, {})[key] = value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def preparations(folder: Path) -> list[tuple[str, int]]:
    """Return (key, rows tokenized) of each time that data were prepared for a folder's runs."""
    lines = (folder / "prepared" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["key"], line["tokenized_rows"]) for line in map(json.loads, lines)]


def of(study_dir: Path, study: str = "search") -> list[TrialRecord]:
    """The trials of trials.jsonl."""
    return [trial for trial in read_study(study_dir)[1] if trial.study == study]


def record(study_dir: Path) -> StudyRecord:
    """study.json."""
    return read_study(study_dir)[0]


def journal(study_dir: Path, name: str | None = None) -> list[optuna.trial.FrozenTrial]:
    """The trials as Optuna itself reads them from the journal."""
    storage = JournalStorage(JournalFileBackend(str(study_dir / "study.journal")))
    return optuna.load_study(study_name=name or study_dir.name, storage=storage).get_trials()


_STATES = {"COMPLETE": ("complete",), "PRUNED": ("pruned", "refused"), "FAIL": ("failed",)}


def assert_ledger_is_the_journal(study_dir: Path) -> None:
    """Same trials, states, parameters and values in trials.jsonl and in Optuna's own reading."""
    for kind, name in (("search", study_dir.name), ("confirm", f"{study_dir.name} confirmation")):
        exported = of(study_dir, kind)
        # What only waits in line was never started.
        kept = [t for t in journal(study_dir, name) if t.state.name != "WAITING"]
        assert [trial.number for trial in exported] == [trial.number for trial in kept]
        for line, trial in zip(exported, kept, strict=True):
            assert line.state in _STATES[trial.state.name], (line.number, trial.state)
            assert trial.user_attrs["record"] == line.model_dump()
            if line.state == "complete":
                assert trial.values == line.values
            if kind == "search":
                assert trial.params["method"] == line.method


def temporary(folder: Path) -> list[Path]:
    """What studies and runs keep in a temporary folder meanwhile."""
    return [path for kind in ("tune", "ray") for path in folder.rglob(f"distft-{kind}-*")]


def processes(root: psutil.Process, *names: str) -> dict[int, str]:
    """Living Ray actors of ours under a process: pid -> title."""
    found = {}
    for process in root.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())
            if any(name in title for name in names) and process.status() != "zombie":
                found[process.pid] = title
    return found


ACTORS = ("TrialProcess", "RayTrainWorker", "_Gate", "TrainController")


def log_of(pid: int) -> Path | None:
    """The file a process prints to."""
    with contextlib.suppress(OSError):
        return Path(os.readlink(f"/proc/{pid}/fd/1"))
    return None


def wait_until(true: Callable[[], Any], within_s: float, what: str) -> float:
    """Poll; return the seconds it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within_s, f"not within {within_s} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


class Cluster(NamedTuple):
    """A Ray that lives on beside the studies."""

    address: str
    dashboard: str
    process: psutil.Process
    temporary: Path

    def placement_groups(self, bundles: int | None = None) -> set[str]:
        """Ids of those that hold, or wait for, resources; of so many bundles."""
        from ray.util.state import list_placement_groups

        found = list_placement_groups(address=self.dashboard, limit=1000, detail=True)
        return {
            group.placement_group_id
            for group in found
            if group.state != "REMOVED" and bundles in (None, len(group.bundles))
        }

    def actors(self) -> list[str]:
        """Class names of those alive."""
        from ray.util.state import list_actors

        found = list_actors(address=self.dashboard, limit=1000)
        return [actor.class_name for actor in found if actor.state not in ("DEAD",)]


_HOLD = """
import json, sys, ray
context = ray.init(address="local", num_cpus=int(sys.argv[1]), include_dashboard=True,
                   object_store_memory=1 << 29, log_to_driver=False)
print(json.dumps(dict(context.address_info)), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def living_cluster(cpus: int) -> Iterator[Cluster]:
    """A Ray with its dashboard, held by a process of its own, ended with the context."""
    with tempfile.TemporaryDirectory(prefix="distft-") as folder, _environment(folder):
        holder = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            info = next(json.loads(line) for line in holder.stdout if line.startswith("{"))
            dashboard = f"http://{info['webui_url']}"
            try:
                process = psutil.Process(holder.pid)
                yield Cluster(info["gcs_address"], dashboard, process, Path(folder))
            finally:
                holder.stdin.close()
                holder.wait(60)


@contextlib.contextmanager
def _environment(folder: str) -> Iterator[None]:
    """Set for the cluster and for who connects to it: a temporary folder of their own, and no
    token, which a new local Ray asks for."""
    wanted = {"TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value


def command(folder: Path, *words: str | Path, said: Any = None) -> subprocess.Popen[str]:
    """Start distft as a shell does: in its own process group; `said` takes what it prints."""
    return subprocess.Popen(
        [sys.executable, "-m", "distft.cli", *map(str, words)],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=said or subprocess.PIPE,
        stderr=said or subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
