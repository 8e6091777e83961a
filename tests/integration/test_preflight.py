"""The look before a run: one table of all nodes, and what cannot work is refused by name."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from distft import machine
from distft.config import RunConfig
from distft.config_sections import ClusterConfig
from distft.errors import ClusterError, LostError
from distft.launch import preflight
from distft.machine import Disk, Gpu, Machine
from distft.plan import Plan
from distft.stages import Memory

GIB = 1 << 30


@pytest.fixture
def config() -> RunConfig:
    return RunConfig.model_validate(
        {"name": "x", "model": "m", "task": "sft", "data": {"train": "t"}}
    )


def planned(**changes: Any) -> Plan:
    """The keys of a plan that the look reads."""
    memory = Memory.model_construct(peak_bytes=changes.pop("peak_bytes", GIB), disk_bytes=GIB)
    keys: dict[str, Any] = {
        "world_size": 2,
        "engine": "deepspeed",
        "device": "cpu",
        "offload": "none",
        "params": 1000,
        "trainable_params": 100,
        "total_steps": 100,
        "save_steps": 10,
    }
    return Plan.model_construct(memory=memory, **{**keys, **changes})


def node(**changes: Any) -> Machine:
    """A node on which nothing is wrong."""
    found: dict[str, Any] = {
        "node": "10.0.0.2",
        "cpus": 8,
        "memory_bytes": 64 * GIB,
        "free_memory_bytes": 60 * GIB,
        "gpus": [],
        "disks": {"Ray's disk": Disk(free_bytes=90 * GIB, total_bytes=100 * GIB)},
        "shm_bytes": 30 * GIB,
        "interface": "eth0",
        "compiler": "/usr/bin/g++",
        "ninja": "/usr/bin/ninja",
        "prebuilt": False,
        "disk_kernel": "buildable",
        "versions": machine.versions(),
        "storage": "shared",
    }
    return Machine(**{**found, **changes})


def cards(*gib: int) -> list[Gpu]:
    return [Gpu(name=f"card of {size}", memory_bytes=size * GIB) for size in gib]


@pytest.mark.usefixtures("ray_cluster")
def test_every_node_of_a_cluster_stands_in_the_table(tmp_path: Path) -> None:
    said: list[str] = []
    (found,) = preflight.look(ClusterConfig(address="auto"), tmp_path, say=said.append)
    head, row = said[0].splitlines()
    assert head.split("  ")[0] == "node"
    assert (found.cpus, found.storage) == (8, "shared")
    assert [row[head.index(name) :].split("  ")[0] for name in ("node", "versions", "storage")] == [
        found.node,
        "the same",
        "shared",
    ]
    assert list(tmp_path.iterdir()) == [], "the marker is gone"


@pytest.mark.usefixtures("ray_cluster")
def test_a_local_run_says_only_what_is_not_as_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(machine, "LEAST_SHM_BYTES", 0)
    monkeypatch.setattr(machine, "LEAST_MEMORY_BYTES", 0)
    monkeypatch.setattr(machine, "LEAST_DISK_BYTES", 0)
    monkeypatch.setattr(machine, "FULL_DISK", 1.0)
    preflight.look(ClusterConfig(), tmp_path, say=said.append)
    assert said == []
    monkeypatch.setattr(machine, "LEAST_SHM_BYTES", 1 << 50)
    preflight.look(ClusterConfig(), tmp_path, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("shared memory: ")
    assert "--shm-size" in said[0]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("plan", "nodes", "words"),
    [
        ({"world_size": 20}, [{}], ("20 workers", "21 CPU", "has 8", "cluster.num_workers")),
        ({}, [{}, {"compiler": None}], ("10.0.0.2", "c++ compiler", "none on PATH", "g++")),
        ({}, [{"ninja": None}], ("10.0.0.2", "ninja", "pip install ninja")),
        (
            {"trainable_params": 1 << 50},
            [{}],
            ("has room for", "checkpoints", "output_dir", "save_total_limit"),
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    plan: dict[str, Any],
    nodes: list[dict[str, Any]],
    words: tuple[str, ...],
    config: RunConfig,
    tmp_path: Path,
) -> None:
    with pytest.raises(ClusterError) as caught:
        preflight.check(config, planned(**plan), tmp_path, [node(**each) for each in nodes])
    text = f"{caught.value} {caught.value.hint}"
    assert [word for word in words if word not in text] == []
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("ray_cluster")
def test_too_few_nodes_for_a_run_that_has_begun_may_come_back(
    config: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(LostError, match="has 8") as caught:
        preflight.check(config, planned(world_size=20), tmp_path, [node()])
    assert caught.value.exit_code == 75
    assert "goes on once nodes that were lost are back" in caught.value.hint


@pytest.mark.usefixtures("ray_cluster")
def test_a_kernel_is_needed_only_where_it_is_used(config: RunConfig, tmp_path: Path) -> None:
    bare = node(compiler=None, ninja=None)
    preflight.check(config, planned(engine="torch"), tmp_path, [bare])
    preflight.check(config, planned(), tmp_path, [bare.model_copy(update={"prebuilt": True})])
    with pytest.raises(ClusterError):
        preflight.check(config, planned(), tmp_path, [bare])


def _free(gib: int, *, writable: bool = True) -> dict[str, Disk]:
    disk = Disk(free_bytes=gib * GIB, total_bytes=100 * GIB, writable=writable)
    return {"offload disk": disk}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ("does not have the folder /mnt/nvme", "cluster.nvme_path")),
        ({"disks": _free(9, writable=False)}, ("may not write to the folder /mnt/nvme",)),
        ({"disks": _free(0)}, ("0.0 KiB free at /mnt/nvme", "takes 1.00 GiB", "offload=cpu")),
        ({"disks": _free(9), "disk_kernel": "no libaio"}, ("libaio: none", "libaio-dev")),
        ({"disks": _free(9), "prebuilt": True, "ninja": None}, ("ninja", "pip install ninja")),
    ],
)
def test_a_node_without_a_disk_for_what_is_offloaded_is_refused(
    changes: dict[str, Any], words: tuple[str, ...], config: RunConfig, tmp_path: Path
) -> None:
    disk = {"offload": "nvme", "nvme_path": "/mnt/nvme"}
    given = RunConfig.model_validate({**config.dump(), "cluster": disk})
    plan = planned(offload="nvme")
    preflight.check(given, plan, tmp_path, [node(disks=_free(2))])
    built = node(disks=_free(2), prebuilt=True, disk_kernel="built", compiler=None, ninja=None)
    preflight.check(given, plan, tmp_path, [built])
    with pytest.raises(ClusterError) as caught:
        preflight.check(given, plan, tmp_path, [node(disks=_free(2)), node(**changes)])
    text = f"{caught.value} {caught.value.hint}"
    assert [word for word in ("10.0.0.2", *words) if word not in text] == []


@pytest.mark.usefixtures("ray_cluster")
def test_the_disk_for_what_is_offloaded_stands_in_the_table(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "distft-offload-remnant").mkdir(parents=True)
    (disk / "distft-offload-remnant" / "lock").touch()
    said: list[str] = []
    cluster = ClusterConfig(address="auto", offload="nvme", nvme_path=str(disk))
    (found,) = preflight.look(cluster, tmp_path, say=said.append)
    assert "offload disk" in said[0].splitlines()[0]
    assert found.disks["offload disk"].writable
    assert list(disk.iterdir()) == [], "a killed run's remnant is room"


@pytest.mark.parametrize(
    ("plan", "changes", "words"),
    [
        (
            {"peak_bytes": 30 * GIB},
            {"gpus": cards(80, 24)},
            ("10.0.0.2", "24.00 GiB", "30.00 GiB", "zero_stage"),
        ),
        ({}, {"gpus": cards(80, 80), "shm_bytes": 64 << 20}, ("64.00 MiB", "NCCL", "--shm-size")),
    ],
)
def test_graphics_cards_that_cannot_work_are_refused(
    plan: dict[str, Any], changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ClusterError) as caught:
        preflight._check_cards(planned(**plan), [node(**changes)])
    text = f"{caught.value} {caught.value.hint}"
    assert [word for word in words if word not in text] == []


def test_cards_of_two_kinds_are_fine_where_the_plan_fits_the_smaller() -> None:
    preflight._check_cards(planned(), [node(gpus=cards(80)), node(gpus=cards(24))])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"versions": {**machine.versions(), "torch": "2.0"}}, ("torch 2.0", "constraints.txt")),
        ({"storage": "not seen"}, ("does not see the run directory", "output_dir")),
        ({"storage": "not writable"}, ("may not write to", "output_dir")),
        ({"interface": None}, ("No network interface", "--node-ip-address")),
        (
            {"disks": {"Ray's disk": Disk(free_bytes=1 << 20, total_bytes=100 * GIB)}},
            ("1.00 MiB free", "256.00 MiB", "--temp-dir"),
        ),
    ],
)
def test_a_node_that_cannot_take_part_is_refused(
    changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    preflight._refuse(node(), tmp_path)
    with pytest.raises(ClusterError) as caught:
        preflight._refuse(node(**changes), tmp_path)
    text = f"{caught.value} {caught.value.hint}"
    assert [word for word in ("10.0.0.2", *words) if word not in text] == []


def test_what_a_run_keeps_is_counted(config: RunConfig) -> None:
    adapter = planned(trainable_params=1_000_000, params=10_000_000)
    # AdamW: weights and two states in float32; two kept, the best and the one being written.
    assert preflight.disk_bytes(config, adapter) == 4 * 12_000_000 + 4_000_000
    full = config.model_copy(
        update={"method": RunConfig.model_validate({**config.dump(), "method": "full"}).method}
    )
    assert preflight.disk_bytes(full, adapter) == 4 * 12_000_000 + 40_000_000
    short = planned(trainable_params=1_000_000, total_steps=5, save_steps=10)
    assert preflight.disk_bytes(config, short) == 2 * 12_000_000 + 4_000_000


_TWO_NODES = """
import os, signal, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from distft.config_sections import ClusterConfig
from distft.errors import ClusterError
from distft.launch import preflight

folder, shadow = Path(sys.argv[1]), sys.argv[2]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)

@ray.remote(num_cpus=1)
class Busy:
    def there(self):
        return True

busy = [Busy.remote() for _ in range(2)]
assert ray.get([each.there.remote() for each in busy]) == [True, True]
look = lambda: preflight.look(ClusterConfig(address=cluster.address), folder, say=print)
found = look()
print("NODES", len(found), {each.storage for each in found})
other = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": os.pathsep.join(
    [shadow, os.environ.get("PYTHONPATH", "")])})
try:
    look()
except ClusterError as error:
    print("VERSIONS", error)
cluster.remove_node(other)
third = cluster.add_node(num_cpus=1)
raylet = third.all_processes["raylet"][0].process.pid
preflight.NODE_S = 15
os.kill(raylet, signal.SIGSTOP)
try:
    look()
except ClusterError as error:
    print("SILENT", error)
finally:
    os.kill(raylet, signal.SIGCONT)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_nodes_that_are_busy_differ_or_hang(tmp_path: Path) -> None:
    """Real raylets: a full one answers, another optuna is named, one that hangs is given up."""
    run_dir, shadow = tmp_path / "run", tmp_path / "shadow"
    run_dir.mkdir()
    (shadow / "optuna-4.9.dist-info").mkdir(parents=True)
    (shadow / "optuna-4.9.dist-info" / "METADATA").write_text("Name: optuna\nVersion: 4.9\n")
    script = tmp_path / "nodes.py"
    script.write_text(textwrap.dedent(_TWO_NODES), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(run_dir), str(shadow)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    said = {line.split(" ", 1)[0]: line for line in done.stdout.splitlines()}
    assert done.returncode == 0, done.stderr[-3000:]
    assert said["NODES"] == "NODES 2 {'shared'}"
    assert "optuna 4.9" in said["VERSIONS"]
    assert "did not answer within 15 s" in said["SILENT"]
    assert list(run_dir.iterdir()) == []
