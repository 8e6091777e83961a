"""Checks on every node before a run: workers fit, versions agree, the directory is shared."""

from __future__ import annotations

import os
import platform
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distft.config_sections import ClusterConfig
from distft.errors import ClusterError
from distft.launch.session import DATA_CPUS
from distft.plan import Plan

STATE_API_S = 5
STACK = ("ray", "torch", "transformers", "peft", "deepspeed", "optuna", "pyarrow")


def versions() -> dict[str, str]:
    """Return the versions of what a run's numbers depend on, in this process."""
    from distft import __version__

    found = {"distft": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in STACK}


def check(cluster: ClusterConfig, plan: Plan, run_dir: Path) -> None:
    """Check that the connected cluster can run a plan.

    Args:
        cluster: Workers and what each reserves.
        plan: Of the run.
        run_dir: Must be the same directory on every node.

    Raises:
        ClusterError: It cannot; Ray alone would wait for ever.
    """
    free = ray.cluster_resources()
    wanted = {"CPU": plan.world_size * cluster.cpus_per_worker + DATA_CPUS}
    if plan.device == "cuda":
        wanted["GPU"] = plan.world_size
    for resource, amount in wanted.items():
        if free.get(resource, 0) < amount:
            raise ClusterError(
                f"{plan.world_size} workers and Ray Data need {amount} {resource}; the cluster "
                f"has {free.get(resource, 0):g}.",
                "Lower cluster.num_workers or cluster.cpus_per_worker, or add nodes.",
            )
    marker = run_dir / f".preflight-{uuid.uuid4().hex}"
    marker.touch()
    try:
        _compare_nodes(run_dir, marker)
    finally:
        marker.unlink(missing_ok=True)


def _compare_nodes(run_dir: Path, marker: Path) -> None:
    here = versions()
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    probe = ray.remote(num_cpus=0.01)(_probe)
    answers = ray.get(
        [
            probe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(marker))
            for node in nodes
        ]
    )
    for answer in answers:
        differing = [k for k in here if answer["versions"].get(k) != here[k]]
        if differing:
            name = differing[0]
            raise ClusterError(
                f"Node {answer['node']} has {name} {answer['versions'].get(name)}, this one "
                f"{here[name]}.",
                "Install the same constraints.txt on every node.",
            )
        if not answer["shared"]:
            raise ClusterError(
                f"Node {answer['node']} does not see the run directory {run_dir}, or may not "
                "write there.",
                "Set output_dir to storage that every node mounts at the same path.",
            )


def _probe(marker: str) -> dict[str, Any]:
    path = Path(marker)
    return {
        "node": ray.util.get_node_ip_address(),
        "versions": versions(),
        "shared": path.is_file() and os.access(path.parent, os.W_OK),
    }


def check_state_api() -> None:
    """Check that Ray's State API answers: without it a killed trial's workers are never freed.

    Raises:
        ClusterError: It does not; the text says how to start it.
    """
    from ray.util.state import list_nodes

    # Its own node must be in the answer: without a dashboard Ray asks the default port, where that
    # of another cluster may listen.
    here = ray.get_runtime_context()
    own = [("node_id", "=", here.get_node_id())]
    try:
        if not list_nodes(here.gcs_address, own, timeout=STATE_API_S):
            raise ConnectionError("Another cluster answers.")
    except Exception as error:
        raise ClusterError(
            "Trials of several workers need Ray's State API, which does not answer: the "
            "cluster's dashboard is off.",
            "Start the cluster with `ray start --head --include-dashboard=true`, or set "
            "tune.num_workers=1.",
        ) from error


def free_cpus() -> float:
    """Return the CPUs of the connected cluster that nothing has reserved."""
    return float(ray.available_resources().get("CPU", 0.0))
