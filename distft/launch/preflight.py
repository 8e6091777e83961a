"""What is looked at before a run: every node, one table of them, then whether the plan fits."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import NodeDiedError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distft import machine, plugin
from distft.capacity import DATA_CPUS, size_text
from distft.errors import ClusterError, DistftError, LostError
from distft.machine import Machine
from distft.plan import Plan
from distft.stages import USABLE_SHARE
from distft.train import swap

if TYPE_CHECKING:
    from distft.config import RunConfig
    from distft.config_sections import ClusterConfig

STATE_API_S = 5
NODE_S = 120
"""Longest wait for a node to answer; a busy one takes seconds to start a process."""
LEAST_DISK_BYTES = 256 << 20
"""Below it Ray has no room even for its logs."""
_RUN_DISK, _RAY_DISK, _OFFLOAD_DISK = "run directory", "Ray's disk", "offload disk"
_OPTIMIZER_TENSORS = {"adamw_torch": 2, "sgd": 1}
"""Per parameter, as large as its float32 weights."""


def look(cluster: ClusterConfig, run_dir: Path, *, say: Callable[[str], None]) -> list[Machine]:
    """Look at every node of the connected cluster that has CPUs or graphics cards.

    Args:
        cluster: At an address, the nodes are printed as a table; of a local Ray, this machine, only
            what is not as it should be.
        run_dir: Must exist, and be the same directory on every node.
        say: Prints.

    Returns:
        What each node offers.

    Raises:
        ClusterError: A node does not answer, has other versions, does not see the directory or has
            no room for Ray's logs; or no interface of it holds its address.
    """
    nodes = [n for n in ray.nodes() if n["Alive"] and {"CPU", "GPU"} & set(n["Resources"])]
    if cluster.address is None:
        folders = _folders(nodes[0], run_dir, cluster)
        found = [_look_here(nodes[0]["NodeManagerAddress"], folders)]
        kernels = {check.name for check in machine.kernel_checks(found[0])}
        for check in machine.checks(found[0]):
            if check.state != "ok" and check.name not in kernels:
                say(f"{check.name}: {check.found}. {check.advice}")
    else:
        found = _ask(nodes, run_dir, cluster)
        say(table(found))
        cards = {gpu.name for each in found for gpu in each.gpus}
        if len(cards) > 1:
            say(f"Graphics cards differ ({', '.join(sorted(cards))}): a step takes the slowest's.")
    for each in found:
        _refuse(each, run_dir)
    return found


def check(config: RunConfig, plan: Plan, run_dir: Path, nodes: Sequence[Machine]) -> None:
    """Check that the nodes can run a plan; Ray alone would wait for ever, or fail late.

    Args:
        config: Of the run.
        plan: Of the run.
        run_dir: Of the run; what it holds already is counted as room.
        nodes: As `look` found them.

    Raises:
        ClusterError: They cannot; the text names the node, what it has and what is needed.
        LostError: They are too few, and the run has trained already: then there were more.
    """
    _check_workers(config.cluster, plan, begun=(run_dir / "metrics.jsonl").exists())
    if plan.device == "cuda":
        _check_cards(plan, nodes)
    elif plan.engine == "deepspeed":
        _check_kernels(nodes)
    if plan.offload == "nvme":
        _check_offload(config.cluster, plan, nodes)
    need = disk_bytes(config, plan)
    room = shutil.disk_usage(run_dir).free + _held_bytes(run_dir)
    if room < need:
        raise ClusterError(
            f"{run_dir} has room for {size_text(room)}; checkpoints and the exported model need "
            f"about {size_text(need)}.",
            "Free space, set output_dir to a larger disk, or lower train.save_total_limit.",
        )


def _check_kernels(nodes: Sequence[Machine]) -> None:
    # DeepSpeed's workers on a CPU sum through a kernel; those on graphics cards need none.
    for each in nodes:
        for one in machine.kernel_checks(each):
            if one.state == "bad":
                raise ClusterError(f"{_name(each)} has {one.name}: {one.found}.", one.advice)


def _check_offload(cluster: ClusterConfig, plan: Plan, nodes: Sequence[Machine]) -> None:
    for each in nodes:
        disk, needed = each.disks.get(_OFFLOAD_DISK), plan.memory.disk_bytes
        if disk is None or not disk.writable:
            raise ClusterError(
                f"{_name(each)} {'does not have' if disk is None else 'may not write to'} the "
                f"folder {cluster.nvme_path}.",
                "Set cluster.nvme_path to a folder on a fast disk of each node's own.",
            )
        if disk.free_bytes < needed:
            raise ClusterError(
                f"{_name(each)} has {size_text(disk.free_bytes)} free at {cluster.nvme_path}; "
                f"what is offloaded there takes {size_text(needed)}.",
                "Make room, add nodes, or set cluster.offload=cpu.",
            )
        kernel = machine.disk_kernel_check(each)
        if kernel.state != "ok":
            raise ClusterError(f"{_name(each)} has {kernel.name}: {kernel.found}.", kernel.advice)
    if any(each.disk_kernel != "built" for each in nodes):
        _check_kernels([each.model_copy(update={"prebuilt": False}) for each in nodes])


def disk_bytes(config: RunConfig, plan: Plan) -> int:
    """Return about how many bytes a run keeps at most: checkpoints and the exported model.

    Args:
        config: Of the run.
        plan: Of the run.

    Returns:
        Bytes; a checkpoint holds the trained weights and optimizer states in float32. Kept are
        `save_total_limit`, the best one, and the one being written.
    """
    trained_bytes = 4 * plan.trainable_params
    checkpoint_bytes = trained_bytes * (1 + _OPTIMIZER_TENSORS[config.train.optim])
    written = plan.total_steps // max(1, plan.save_steps) + 1
    kept = min(config.train.save_total_limit + 2, written + 1)
    adapter = plugin.methods()[config.method.name].adapter
    weight_bytes = 2 if config.model.dtype == "bfloat16" else 4
    return kept * checkpoint_bytes + (trained_bytes if adapter else weight_bytes * plan.params)


def _held_bytes(run_dir: Path) -> int:
    folders = [run_dir / "checkpoints", run_dir / "model"]
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)


def _folders(node: Mapping[str, Any], run_dir: Path, cluster: ClusterConfig) -> dict[str, Path]:
    # Ray names no session folder of a node, but the socket of its object store lies in it.
    session = Path(node["ObjectStoreSocketName"]).parent.parent
    folders = {_RUN_DISK: run_dir, _RAY_DISK: session}
    if cluster.offload == "nvme" and cluster.nvme_path is not None:
        folders[_OFFLOAD_DISK] = Path(cluster.nvme_path)
    return folders


def _look_here(address: str, folders: Mapping[str, Path], marker: Path | None = None) -> Machine:
    if _OFFLOAD_DISK in folders:
        # What a killed run left there is no room that is taken: the next one removes it.
        swap.sweep(folders[_OFFLOAD_DISK])
    return machine.look(address, folders, marker)


def _ask(
    nodes: Sequence[Mapping[str, Any]], run_dir: Path, cluster: ClusterConfig
) -> list[Machine]:
    """Return what every node answers, in their order."""
    marker = run_dir / f".preflight-{uuid.uuid4().hex}"
    marker.touch()
    # Without a CPU of its own: a node whose CPUs are all taken answers too.
    task = ray.remote(num_cpus=0, max_retries=0)(_look_here)
    asked = {}
    try:
        for node in nodes:
            pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            address = node["NodeManagerAddress"]
            answer = task.options(scheduling_strategy=pinned).remote(
                address, _folders(node, run_dir, cluster), marker
            )
            asked[answer] = node
        _, late = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_S)
        for answer in late:
            ray.cancel(answer, force=True)
        if late:
            silent = ", ".join(asked[answer]["NodeManagerAddress"] for answer in late)
            raise ClusterError(
                f"Node {silent} did not answer within {NODE_S} s.",
                "Look at it with `ray status`; stop Ray on a node that hangs.",
            )
        return [_answered(answer, node) for answer, node in asked.items()]
    finally:
        marker.unlink(missing_ok=True)


def _answered(answer: ray.ObjectRef, node: Mapping[str, Any]) -> Machine:
    try:
        found: Machine = ray.get(answer)
    except Exception as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, NodeDiedError | WorkerCrashedError):
            raise LostError(
                f"Node {node['NodeManagerAddress']} was lost while it was looked at.",
                "The same command may succeed without it, or once it is back.",
            ) from error
        raise ClusterError(
            f"Node {node['NodeManagerAddress']} cannot be looked at: {type(cause).__name__}: "
            f"{str(cause).strip().splitlines()[-1]}",
            "Install distft and the same constraints.txt on every node.",
        ) from error
    # What Ray deals out, which may be fewer or more than its cores.
    return found.model_copy(update={"cpus": int(node["Resources"].get("CPU", 0))})


def _name(each: Machine) -> str:
    return f"Node {each.node}"


def _differing(each: Machine) -> str | None:
    """Return the first library whose version is not this process's."""
    here = machine.versions()
    return next((name for name in here if each.versions.get(name) != here[name]), None)


def _refuse(each: Machine, run_dir: Path) -> None:
    name = _differing(each)
    if name is not None:
        raise ClusterError(
            f"{_name(each)} has {name} {each.versions.get(name)}, this one "
            f"{machine.versions()[name]}.",
            "Install the same constraints.txt on every node.",
        )
    if each.storage not in (None, "shared"):
        seen = "does not see" if each.storage == "not seen" else "may not write to"
        raise ClusterError(
            f"{_name(each)} {seen} the run directory {run_dir}.",
            "Set output_dir to storage that every node mounts at the same path.",
        )
    if each.interface is None:
        raise ClusterError(
            f"No network interface of node {each.node} holds its Ray address.",
            "Start Ray with --node-ip-address set to an address of the node.",
        )
    for where, whose in ((_RUN_DISK, "the run directory"), (_RAY_DISK, "Ray")):
        disk = each.disks.get(where)
        if disk is not None and disk.free_bytes < LEAST_DISK_BYTES:
            raise ClusterError(
                f"{_name(each)} has {size_text(disk.free_bytes)} free on the disk of "
                f"{whose}; Ray and its logs need {size_text(LEAST_DISK_BYTES)}.",
                "Make room, or start Ray there with --temp-dir on a larger disk.",
            )


def _check_workers(cluster: ClusterConfig, plan: Plan, *, begun: bool) -> None:
    offered = ray.cluster_resources()
    each = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if plan.device == "cuda" else {})
    kind: type[DistftError] = LostError if begun else ClusterError
    remedy = "Lower cluster.num_workers or cluster.cpus_per_worker, or add nodes."
    if begun:
        remedy = f"The same command goes on once nodes that were lost are back. {remedy}"
    for resource, amount in each.items():
        wanted = plan.world_size * amount + (DATA_CPUS if resource == "CPU" else 0)
        if offered.get(resource, 0) < wanted:
            raise kind(
                f"{plan.world_size} workers and Ray Data need {wanted} {resource}; the cluster "
                f"has {offered.get(resource, 0):g}.",
                remedy,
            )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        min(int(node.get(resource, 0) // amount) for resource, amount in each.items())
        for node in nodes
    )
    if room < plan.world_size:
        needs = " and ".join(f"{amount} {resource}" for resource, amount in each.items())
        raise kind(
            f"A worker needs {needs} on one node; the nodes have room for {room} of "
            f"{plan.world_size}.",
            remedy,
        )


def _check_cards(plan: Plan, nodes: Sequence[Machine]) -> None:
    for each in nodes:
        smallest = min((gpu.memory_bytes for gpu in each.gpus), default=None)
        if smallest is not None and smallest * USABLE_SHARE < plan.memory.peak_bytes:
            raise ClusterError(
                f"{_name(each)} has a graphics card of {size_text(smallest)}; a worker "
                f"needs {size_text(plan.memory.peak_bytes)} of {USABLE_SHARE:.0%} of it.",
                "Raise cluster.zero_stage or cluster.num_workers, or leave that node out.",
            )
        shm_bytes = each.shm_bytes or 0
        if len(each.gpus) > 1 and plan.world_size > 1 and shm_bytes <= machine.CONTAINER_SHM_BYTES:
            raise ClusterError(
                f"{_name(each)} has {size_text(shm_bytes)} of shared memory; NCCL needs more "
                f"between its {len(each.gpus)} graphics cards.",
                "Start its container with --shm-size=4g, or mount a memory volume at /dev/shm.",
            )


def table(nodes: Sequence[Machine]) -> str:
    """Return the nodes as a table for a log.

    Args:
        nodes: At least one.

    Returns:
        A head and a line for each node.
    """
    places = [_RUN_DISK, _RAY_DISK]
    if any(_OFFLOAD_DISK in each.disks for each in nodes):
        places.append(_OFFLOAD_DISK)
    rows = [_row(each, places) for each in nodes]
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = [dict(zip(widths, widths, strict=True)), *rows]
    return "\n".join(
        "  ".join(line[key].ljust(width) for key, width in widths.items()).rstrip()
        for line in lines
    )


def _row(each: Machine, places: Sequence[str]) -> dict[str, str]:
    cards = {gpu.name: size_text(gpu.memory_bytes) for gpu in each.gpus}
    shown = [
        f"{sum(gpu.name == name for gpu in each.gpus)} x {name} ({memory})"
        for name, memory in cards.items()
    ]
    name = _differing(each)
    return {
        "node": each.node,
        "CPUs": str(each.cpus),
        "memory": size_text(each.memory_bytes),
        "graphics cards": ", ".join(shown) or "none",
        **{
            place: size_text(each.disks[place].free_bytes) if place in each.disks else "not seen"
            for place in places
        },
        "shared memory": size_text(each.shm_bytes) if each.shm_bytes else "none",
        "interface": each.interface or "none",
        "DeepSpeed kernel": each.kernels,
        "versions": "the same" if name is None else f"{name} {each.versions.get(name)}",
        "storage": each.storage or "",
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
        # Where there are more nodes, Ray takes those filtered out for missing and would raise.
        found = list_nodes(
            here.gcs_address, own, timeout=STATE_API_S, raise_on_missing_output=False
        )
        if not found:
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
