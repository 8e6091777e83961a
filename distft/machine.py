"""One machine as a run finds it: looked at by `distft doctor`, and on every node of a cluster.

Only what is cheap: a node answers in milliseconds, and nothing heavy is imported there.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from distft.capacity import GIB, size_text

STACK = ("ray", "torch", "transformers", "peft", "deepspeed", "optuna", "pyarrow")
LEAST_MEMORY_BYTES = 6 * GIB
"""A worker with its libraries takes about 1 GiB, Ray itself another, the packaged models 1-3."""
LEAST_DISK_BYTES = 10 * GIB
LEAST_SHM_BYTES = 1 * GIB
"""Ray's object store lives in shared memory; prepare moves batches of rows through it."""
CONTAINER_SHM_BYTES = 64 << 20
"""What a container gets by default: too little for NCCL between the graphics cards of a node."""
FULL_DISK = 0.95
"""Ray writes no objects to a disk that is fuller (RAY_local_fs_capacity_threshold)."""
_GPU_QUERY_S = 30


class Check(BaseModel):
    """One thing looked at."""

    name: str
    state: Literal["ok", "note", "bad"]
    """note: works, but worth knowing; bad: training would fail."""
    found: str
    advice: str = ""
    """What is needed and what to do about it; empty when it is ok."""


class Gpu(BaseModel):
    """A graphics card, as the driver lists it."""

    name: str
    memory_bytes: int


class Disk(BaseModel):
    """The file system a folder lies on."""

    free_bytes: int
    total_bytes: int
    writable: bool = True
    """The folder, by this process."""


class Machine(BaseModel):
    """What one machine offers."""

    node: str
    """Its address in a cluster."""
    cpus: int
    memory_bytes: int
    """Main memory, or a container's share of it."""
    free_memory_bytes: int
    gpus: list[Gpu]
    disks: dict[str, Disk]
    """By what they were asked for as: `disk here`, `Ray's disk`."""
    shm_bytes: int | None
    """Of /dev/shm; None: there is none."""
    interface: str | None
    """The network interface that holds the node's address."""
    compiler: str | None
    ninja: str | None
    prebuilt: bool
    """DeepSpeed was installed with its CPU kernel built."""
    disk_kernel: Literal["built", "buildable", "no libaio"]
    """What DeepSpeed reads and writes disks with; to build it takes what `kernels` takes too."""
    versions: dict[str, str]
    storage: Literal["shared", "not seen", "not writable"] | None = None
    """How it sees the folder of a run; None: not asked."""

    @property
    def kernels(self) -> str:
        """Whether DeepSpeed's CPU kernel is there or can be built."""
        if self.prebuilt:
            return "built"
        missing = [
            name
            for name, found in (("no C++ compiler", self.compiler), ("no ninja", self.ninja))
            if found is None
        ]
        return ", ".join(missing) or "buildable"


def look(node: str, folders: Mapping[str, Path], marker: Path | None = None) -> Machine:
    """Look at this machine.

    Args:
        node: Its address in a cluster; empty where it is in none.
        folders: Whose disks are asked for; a name for each, such as `disk here`.
        marker: A file another node made, to tell whether its folder is seen and writable here.

    Returns:
        What was found.
    """
    memory_bytes, free_memory_bytes = _memory()
    return Machine(
        node=node,
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=memory_bytes,
        free_memory_bytes=free_memory_bytes,
        gpus=_gpus(),
        disks={name: _disk(folder) for name, folder in folders.items() if folder.exists()},
        shm_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        interface=interface_of(node) if node else None,
        compiler=_compiler(),
        ninja=shutil.which("ninja", path=path_with_environment()),
        prebuilt=_built("deepspeed_shm_comm"),
        disk_kernel=_disk_kernel(),
        versions=versions(),
        storage=None if marker is None else _storage(marker),
    )


def versions() -> dict[str, str]:
    """Return the versions of what a run's numbers depend on, in this process."""
    from distft import __version__

    found = {"distft": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in STACK}


def interface_of(address: str) -> str | None:
    """Return the name of the network interface that holds an IP address.

    Args:
        address: IPv4 or IPv6.

    Returns:
        Such as `eth0`; None where no interface of this machine holds it.
    """
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    for name, entries in psutil.net_if_addrs().items():
        if any(e.family in families and e.address.split("%")[0] == address for e in entries):
            return str(name)
    return None


def path_with_environment() -> str:
    """Return PATH with the programs of this Python first, as the workers see it."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def checks(machine: Machine) -> Iterator[Check]:
    """Say of each thing a machine offers whether it is enough.

    Args:
        machine: What was found.

    Yields:
        What holds for every run, then `kernel_checks`.
    """
    cpus = machine.cpus
    advice = "" if cpus > 1 else "One core: several workers will share it."
    yield Check(name="cores", state="ok" if cpus > 1 else "note", found=str(cpus), advice=advice)
    advice = "Close other programs, or add some."
    yield _enough("memory", machine.free_memory_bytes, LEAST_MEMORY_BYTES, advice)
    for name, disk in machine.disks.items():
        yield disk_check(name, disk)
    if machine.shm_bytes is not None:
        advice = "In a container: --shm-size=4g; Ray falls back to slow files otherwise."
        yield _enough("shared memory", machine.shm_bytes, LEAST_SHM_BYTES, advice)
    yield from kernel_checks(machine)


def disk_check(name: str, disk: Disk) -> Check:
    """Say whether a disk has room for Ray's objects and logs.

    Args:
        name: Of the check.
        disk: What was found.

    Returns:
        `note` below 10 GiB, or where it is so full that Ray writes no objects to it.
    """
    if disk.free_bytes < (1 - FULL_DISK) * disk.total_bytes:
        return Check(
            name=name,
            state="note",
            found=f"{size_text(disk.free_bytes)} free",
            advice=f"More than {FULL_DISK:.0%} full: Ray spills no objects to it. Make room.",
        )
    return _enough(name, disk.free_bytes, LEAST_DISK_BYTES, "Make room, or set output_dir.")


def kernel_checks(machine: Machine) -> Iterator[Check]:
    """Say whether DeepSpeed's CPU kernel is there or can be built.

    Args:
        machine: What was found.

    Yields:
        `c++ compiler` and `ninja`; a missing one is bad unless the kernel was built before.
    """
    least: Literal["note", "bad"] = "note" if machine.prebuilt else "bad"
    advice = "Install a C++ compiler, such as the package g++: DeepSpeed builds its kernels."
    if machine.compiler is None:
        yield Check(name="c++ compiler", state=least, found="none on PATH", advice=advice)
    else:
        yield Check(name="c++ compiler", state="ok", found=machine.compiler)
    if machine.ninja is None:
        yield Check(name="ninja", state=least, found="none", advice="Run: pip install ninja")
    else:
        yield Check(name="ninja", state="ok", found=machine.ninja)


def disk_kernel_check(machine: Machine) -> Check:
    """Say whether DeepSpeed can read and write disks, which `cluster.offload=nvme` takes.

    Args:
        machine: What was found.

    Returns:
        `note` where libaio's headers are missing.
    """
    enough = machine.disk_kernel != "no libaio"
    advice = "Install libaio-dev (Fedora: libaio-devel); cluster.offload=nvme alone needs it."
    return Check(
        name="libaio",
        state="ok" if enough else "note",
        found=machine.disk_kernel if enough else "none",
        advice="" if enough else advice,
    )


def _enough(name: str, found_bytes: int, least_bytes: int, advice: str) -> Check:
    enough = found_bytes >= least_bytes
    return Check(
        name=name,
        state="ok" if enough else "note",
        found=size_text(found_bytes) + (" free" if name != "shared memory" else ""),
        advice="" if enough else f"Less than {least_bytes / GIB:.0f} GiB. {advice}",
    )


def _memory() -> tuple[int, int]:
    """Return main memory and how much of it is free, in bytes; of the container in one."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        with contextlib.suppress(OSError, ValueError):  # absent, or the word `max`
            own = int(Path(limit).read_text(encoding="ascii"))
            left = own - int(Path(used).read_text(encoding="ascii"))
            total, free = min(total, own), min(free, max(0, left))
    return total, free


def _disk(folder: Path) -> Disk:
    usage = shutil.disk_usage(folder)
    writable = os.access(folder, os.W_OK | os.X_OK)
    return Disk(free_bytes=usage.free, total_bytes=usage.total, writable=writable)


def _gpus() -> list[Gpu]:
    # The driver's own program: torch takes seconds to import, and sees only what Ray lets it see.
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, timeout=_GPU_QUERY_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in done.stdout.splitlines():
        name, _, mebibytes = line.rpartition(",")
        with contextlib.suppress(ValueError):  # a card that does not say
            found.append(Gpu(name=name.strip(), memory_bytes=int(mebibytes) << 20))
    return found


def _built(*kernels: str) -> bool:
    """Return whether DeepSpeed was installed with kernels built.

    It says so in a file of its own; importing it would take seconds.
    """
    package = importlib.util.find_spec("deepspeed")
    for folder in (package and package.submodule_search_locations) or ():
        with contextlib.suppress(OSError, ValueError, SyntaxError):
            text = (Path(folder) / "git_version_info_installed.py").read_text(encoding="utf-8")
            for line in text.splitlines():
                name, _, value = line.partition("=")
                if name.strip() == "installed_ops":
                    installed = ast.literal_eval(value.strip())
                    return all(installed.get(kernel) for kernel in kernels)
    return False


def _disk_kernel() -> Literal["built", "buildable", "no libaio"]:
    if _built("async_io", "pin_memory"):
        return "built"
    compiler = _compiler()
    if compiler is None:
        return "no libaio"
    # Found where the compiler looks, which environment variables may change.
    command = [compiler, "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(
        command, input="#include <libaio.h>\n", text=True, capture_output=True, check=False
    )
    return "buildable" if done.returncode == 0 else "no libaio"


def _compiler() -> str | None:
    return shutil.which("g++") or shutil.which("c++")


def _storage(marker: Path) -> Literal["shared", "not seen", "not writable"]:
    if not marker.is_file():
        return "not seen"
    try:
        with tempfile.NamedTemporaryFile(dir=marker.parent, prefix=marker.name):
            pass
    except OSError:
        return "not writable"
    return "shared"
