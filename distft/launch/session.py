"""Connecting to Ray: a cluster by address, or a local one that ends with the command."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

import ray
from ray.exceptions import AuthenticationError

from distft.capacity import DATA_CPUS, Capacity, local_capacity
from distft.config_sections import ClusterConfig
from distft.errors import ClusterError, LostError

LOCAL_OBJECT_STORE_BYTES = 1 << 30

_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_SETTINGS = {
    # Workers must find relative model and data paths where the command was given.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    _START_TIMEOUT: "300",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def configure() -> None:
    """Set Ray Train's variables in this process, unless the user has."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


def start_timeout_s() -> float:
    """Return how long workers may take to find their places, and lost nodes to come back."""
    return float(os.environ.get(_START_TIMEOUT, _SETTINGS[_START_TIMEOUT]))


def refused(address: str, error: AuthenticationError) -> ClusterError:
    """Return what to say of a cluster that refuses the token, or got none.

    Args:
        address: Of the cluster.
        error: Ray's, which names no token.

    Returns:
        The error to raise.
    """
    said = str(error.message).strip().splitlines()[0].split(". ")[0]
    return ClusterError(
        f"The cluster at {address} cannot be used: {said}.",
        "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file that holds the cluster's "
        "token.",
    )


@contextlib.contextmanager
def connected(cluster: ClusterConfig, *, slots: int = 0, state_api: bool = False) -> Iterator[None]:
    """Be connected to Ray meanwhile; a connection that exists already is used and left alone.

    Args:
        cluster: Where; without an address a local Ray is started and ended.
        slots: CPUs a local Ray offers at least, besides those for the driver and Ray Data.
        state_api: Start a local Ray with the dashboard, whose State API nested trials need.

    Yields:
        Nothing.

    Raises:
        ClusterError: The cluster refuses the token.
        LostError: No cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    configure()
    on_termination = signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if cluster.address is None:
            # A CPU is a slot here: a laptop runs more workers than cores, each with fewer threads.
            cores = len(os.sched_getaffinity(0))
            wanted = max(cores, slots, cluster.num_workers * cluster.cpus_per_worker)
            ray.init(
                address="local",
                num_cpus=wanted + 1 + DATA_CPUS,
                include_dashboard=state_api,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                **quiet,
            )
        else:
            ray.init(address=cluster.address, **quiet)
    except AuthenticationError as error:
        raise refused(cluster.address or "this machine", error) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise LostError(
            f"No Ray cluster answers at {cluster.address or 'this machine'}: {error}",
            "Check cluster.address with `ray status`, or leave it out for a local Ray.",
        ) from error
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler leaves with the signal's number, as if the run had failed.
        signal.signal(signal.SIGTERM, on_termination)
    try:
        yield
    finally:
        ray.shutdown()


def capacity(cluster: ClusterConfig) -> Capacity:
    """Return what the connected cluster offers, by its smallest training node.

    Args:
        cluster: A local Ray is measured as this machine.

    Returns:
        Nodes, cores and memory.
    """
    if cluster.address is None:
        return local_capacity()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpus = [node for node in nodes if node.get("GPU")]
    training = with_gpus or [node for node in nodes if node.get("CPU")]
    if not training:
        raise ClusterError("The cluster has no node with CPUs.", "Check it with `ray status`.")
    gpu_memory = 0
    if with_gpus:
        gpu_memory = ray.get(ray.remote(num_gpus=1)(_gpu_memory_bytes).remote())
    return Capacity(
        nodes=len(training),
        cpus=int(min(node.get("CPU", 1) for node in training)),
        memory_bytes=int(min(node.get("memory", 0) for node in training)),
        gpus=int(min(node.get("GPU", 0) for node in training)),
        gpu_memory_bytes=gpu_memory,
        source=f"the cluster at {cluster.address}",
    )


def _gpu_memory_bytes() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)
