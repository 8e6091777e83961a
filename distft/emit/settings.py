"""What all manifests are made from: one configuration, the versions installed here, and sizes.

Every number or name that stands in a manifest comes from here, so that it is the same in all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from packaging.specifiers import SpecifierSet
from pydantic import BaseModel, ConfigDict

from distft import __version__
from distft.capacity import DATA_CPUS, GIB, parse_size, shape_capacity, size_text
from distft.config import RunConfig
from distft.config_sections import ShapeConfig
from distft.errors import ClusterError, ConfigError
from distft.launch.attempt import check_secrets, on_storage

HEAD_CPUS = 4
"""Cores of the head; Ray gives none of them to training."""
MOST_HEAD_MEMORY_BYTES = 64 * GIB
"""Of a head whose memory is not set; models of 32 billion parameters need `head_memory`."""
CACHE = ".cache"
"""Below the storage: models of the hub and packaged ones, downloaded once for all nodes."""
KEYS = "distft-keys"
"""Kubernetes secret with the environment's keys, such as HF_TOKEN and WANDB_API_KEY."""
MOST_LABEL = 40
"""Characters of a cluster's name: KubeRay appends to it, and allows 47."""


class Settings(BaseModel):
    """What a manifest says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of the run."""
    command: Literal["train", "tune"]
    """What the job runs."""
    config: str
    """YAML of the job's configuration; holds no secret."""
    assets: bool
    """The configuration names what comes inside packages."""
    nodes: int
    cpus: int
    """Of a node."""
    memory_bytes: int
    """Of a node."""
    gpus: int
    """Of a node."""
    gpu_memory_bytes: int
    """Of one graphics card."""
    head_memory_bytes: int
    image: str
    storage: str
    """Absolute path, the same on every node."""
    nfs: str | None
    """Export that is mounted as the storage where machines are made."""
    nvme_path: str | None
    """Folder on each node's own disk for what is offloaded there; None: nothing is."""
    ray_version: str
    python_version: str
    shape_is_default: bool

    @property
    def label(self) -> str:
        """The name as Kubernetes takes it: a letter first, then letters, digits and dashes."""
        label = re.sub(r"[^a-z0-9]+", "-", f"distft-{self.name}").strip("-")
        if len(label) <= MOST_LABEL and label == f"distft-{self.name}":
            return label
        # Two names must not become one.
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:6]
        return f"{label[: MOST_LABEL - 7].strip('-')}-{digest}"

    @property
    def machines(self) -> str:
        """What is started, for people."""
        cards = f", {self.gpus} cards of {size_text(self.gpu_memory_bytes)}" if self.gpus else ""
        source = "the default; set cluster.shape" if self.shape_is_default else "cluster.shape"
        each = f"{self.cpus} CPUs, {size_text(self.memory_bytes)}{cards}"
        return f"{self.nodes} x {each} ({source})"

    @property
    def config_data(self) -> dict[str, Any]:
        """The job's configuration as plain data."""
        data: dict[str, Any] = yaml.safe_load(self.config)
        return data

    @property
    def config_file(self) -> str:
        """Name of the configuration's file."""
        return f"{self.name}.yaml"

    @property
    def cache(self) -> str:
        """XDG_CACHE_HOME of every process."""
        return f"{self.storage}/{CACHE}"

    @property
    def shm_bytes(self) -> int:
        """Shared memory of a node: Ray's objects, and what NCCL and gloo exchange."""
        return self.memory_bytes // 4

    @property
    def head_shm_bytes(self) -> int:
        """Shared memory of the head."""
        return self.head_memory_bytes // 4

    @property
    def object_store_bytes(self) -> int:
        """Memory of Ray's objects on a node."""
        return self.memory_bytes // 5

    @property
    def head_object_store_bytes(self) -> int:
        """Memory of Ray's objects on the head."""
        return self.head_memory_bytes // 5

    def entrypoint(self, folder: str) -> str:
        """Return the job as one shell command.

        Args:
            folder: Where the configuration's file lies.

        Returns:
            Of two commands where what comes inside packages is fetched first.
        """
        run = f"distft {self.command} {folder}/{self.config_file}"
        return f"python -m distft.assets && {run}" if self.assets else run


def settings(config: RunConfig, command: Literal["train", "tune"]) -> Settings:
    """Return what the manifests of a configuration say.

    Args:
        config: The configuration.
        command: What the job runs.

    Returns:
        The settings; `cluster.shape` is what is started.

    Raises:
        ConfigError: A path that the nodes cannot see, or no storage.
        ClusterError: The workers do not fit the shape, or an address holds a password.
    """
    storage = config.cluster.storage
    if storage is None:
        raise ConfigError(
            "cluster.storage is not set: the nodes of a cluster share nothing by themselves.",
            "Set it to the path where all of them mount the same storage, such as "
            "cluster.storage=/mnt/distft.",
        )
    check_secrets(config)
    _check_paths(config, storage)
    shape = config.cluster.shape or ShapeConfig()
    capacity = shape_capacity(shape)
    gpus = 0 if config.cluster.gpus_per_worker == 0 else capacity.gpus
    _check_fits(config, shape.nodes, shape.cpus, gpus)
    head = min(capacity.memory_bytes, MOST_HEAD_MEMORY_BYTES)
    if shape.head_memory is not None:
        head = parse_size("cluster.shape.head_memory", shape.head_memory)
    return Settings(
        name=config.name,
        command=command,
        config=_text(on_storage(config)),
        assets=any(spec.startswith("asset:") for _, spec in _places(config)),
        nodes=capacity.nodes,
        cpus=capacity.cpus,
        memory_bytes=capacity.memory_bytes,
        gpus=gpus,
        gpu_memory_bytes=capacity.gpu_memory_bytes,
        head_memory_bytes=head,
        image=config.cluster.image or f"distft:{__version__}-{'cuda' if gpus else 'cpu'}",
        storage=storage,
        nfs=config.cluster.nfs,
        nvme_path=config.cluster.nvme_path if config.cluster.offload == "nvme" else None,
        ray_version=metadata.version("ray"),
        python_version=_oldest_python(),
        shape_is_default=config.cluster.shape is None,
    )


def _oldest_python() -> str:
    allowed = SpecifierSet(str(metadata.metadata("distft")["Requires-Python"]))
    return next(spec.version for spec in allowed if spec.operator == ">=")


def _text(config: RunConfig) -> str:
    """Return the keys that are set, as YAML."""
    plain = config.model_dump(exclude_unset=True)
    plain["cluster"]["address"] = "auto"
    # What is started is not what is asked for: the job measures its cluster.
    for key in ("shape", "nfs", "image"):
        plain["cluster"].pop(key, None)
    for key in ("method", "task"):
        value = getattr(config, key)
        if isinstance(value, BaseModel):
            plain[key] = value.model_dump(exclude_unset=True)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def _places(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield (key, where it points) of the model and of all data."""
    yield "model", config.model.id
    data: dict[str, Any] = {key: getattr(config.data, key) for key in ("train", "eval", "test")}
    data["mix"] = list(config.data.mix)
    for key, spec in data.items():
        for one in spec if isinstance(spec, list) else [spec]:
            if isinstance(one, str):
                yield f"data.{key}", one


def _check_paths(config: RunConfig, storage: str) -> None:
    for key, spec in _places(config):
        # As `hf` tells a folder from a hub id.
        is_hub = key == "model" and not (
            spec.startswith((".", "/", "~")) or spec.count("/") > 1 or Path(spec).exists()
        )
        if "://" in spec or spec.startswith("asset:") or is_hub or _below(spec, storage):
            continue
        raise ConfigError(
            f"{key}: {spec} is a path of this machine, which the nodes of a cluster do not see.",
            f"Copy it below cluster.storage and name it as {storage}/..., or give an address such "
            "as s3://bucket/file.",
        )
    if PurePosixPath(config.output_dir).is_absolute() and not _below(config.output_dir, storage):
        raise ConfigError(
            f"output_dir: {config.output_dir} does not lie below cluster.storage {storage}: nodes "
            "would not see each other's files.",
            f"Set it to a path below {storage}, or to a relative one such as runs.",
        )
    if ".." in PurePosixPath(config.output_dir).parts:
        raise ConfigError(
            f"output_dir: {config.output_dir} leads out of cluster.storage {storage}.",
            "Leave out the `..`.",
        )


def _below(spec: str, storage: str) -> bool:
    path = PurePosixPath(spec)
    return path.is_relative_to(storage) and ".." not in path.parts


def _check_fits(config: RunConfig, nodes: int, cpus: int, gpus: int) -> None:
    cluster = config.cluster
    wanted = cluster.num_workers * cluster.cpus_per_worker + DATA_CPUS
    if wanted > nodes * cpus:
        raise ClusterError(
            f"{cluster.num_workers} workers and Ray Data need {wanted} CPUs; cluster.shape has "
            f"{nodes} nodes of {cpus}.",
            "Raise cluster.shape.nodes or cluster.shape.cpus, or lower cluster.num_workers.",
        )
    if cluster.gpus_per_worker and not gpus:
        raise ClusterError(
            "cluster.gpus_per_worker is 1; cluster.shape has no graphics cards.",
            "Set cluster.shape.gpus, or cluster.gpus_per_worker=0.",
        )
    if gpus and cluster.num_workers > nodes * gpus:
        raise ClusterError(
            f"{cluster.num_workers} workers need as many graphics cards; cluster.shape has {nodes} "
            f"nodes of {gpus}.",
            f"Set cluster.num_workers={nodes * gpus}, or raise cluster.shape.nodes.",
        )
