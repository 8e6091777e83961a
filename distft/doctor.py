"""What `distft doctor` looks at: whether this machine can train, and what to do where it cannot."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version
from pydantic import BaseModel

from distft import assets

GIB = 1 << 30
LEAST_MEMORY_BYTES = 6 * GIB
"""A worker with its libraries takes about 1 GiB, Ray itself another, the packaged models 1-3."""
LEAST_DISK_BYTES = 10 * GIB
LEAST_SHM_BYTES = 1 * GIB
"""Ray's object store lives in shared memory; prepare moves batches of rows through it."""


class Check(BaseModel):
    """One thing looked at."""

    name: str
    state: Literal["ok", "note", "bad"]
    """note: works, but worth knowing; bad: training would fail."""
    found: str
    advice: str = ""
    """What to do about it; empty when it is ok."""


def examine() -> list[Check]:
    """Return every check of this machine, in the order they matter."""
    return [
        _python(),
        *_packages(),
        _compiler(),
        _ninja(),
        _deepspeed_ops(),
        *_resources(),
        _gpus(),
        *_assets(),
    ]


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    wanted = importlib.metadata.metadata("distft")["Requires-Python"]
    fits = Version(version) in Requirement(f"python{wanted}").specifier
    return Check(
        name="python",
        state="ok" if fits else "bad",
        found=version,
        advice="" if fits else f"distft needs Python {wanted}.",
    )


def _packages() -> Iterator[Check]:
    tested = _tested_versions()
    for line in importlib.metadata.requires("distft") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name=name, state="bad", found="not installed", advice="Run: make setup")
            continue
        public = Version(version).public
        if not requirement.specifier.contains(public, prereleases=True):
            advice = f"distft needs {name}{requirement.specifier}. Run: make setup"
            yield Check(name=name, state="bad", found=version, advice=advice)
        elif tested.get(_canonical(name), public) != public:
            advice = f"Tested with {tested[_canonical(name)]}; this one should work."
            yield Check(name=name, state="note", found=version, advice=advice)
        else:
            yield Check(name=name, state="ok", found=version)


def _tested_versions() -> dict[str, str]:
    """Return the pins of constraints.txt; only a clone has it, an installed package does not."""
    path = Path(__file__).parents[1] / "constraints.txt"
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {_canonical(name): version for name, version in pins}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _compiler() -> Check:
    path = shutil.which("g++") or shutil.which("c++")
    advice = "Install a C++ compiler, such as the package g++: DeepSpeed builds its kernels."
    if path is None:
        return Check(name="c++ compiler", state="bad", found="none on PATH", advice=advice)
    return Check(name="c++ compiler", state="ok", found=path)


def _ninja() -> Check:
    path = shutil.which("ninja", path=_path_with_environment())
    if path is None:
        return Check(name="ninja", state="bad", found="none", advice="Run: make setup")
    return Check(name="ninja", state="ok", found=path)


def _path_with_environment() -> str:
    """Return PATH with the programs of this Python first, as the workers see it."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _deepspeed_ops() -> Check:
    # DeepSpeed's own report, as a program: only train/deepspeed_engine.py imports it.
    command = [sys.executable, "-m", "deepspeed.env_report"]
    environment = {**os.environ, "PATH": _path_with_environment()}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        found, advice = "no answer in 120 s", "Run: python -m deepspeed.env_report"
        return Check(name="deepspeed kernels", state="bad", found=found, advice=advice)
    report = re.sub(r"\x1b\[\d+m", "", done.stdout)
    rows = re.findall(r"^(\w+) \.* *\[(?:YES|NO)\] \.+ \[(OKAY|NO)\]", report, re.MULTILINE)
    able = [name for name, verdict in rows if verdict == "OKAY"]
    if done.returncode != 0 or "cpu_adam" not in able:
        advice = "See: python -m deepspeed.env_report"
        found = "cannot be built" if rows else "its report failed"
        return Check(name="deepspeed kernels", state="bad", found=found, advice=advice)
    return Check(name="deepspeed kernels", state="ok", found=f"{len(able)} can be built")


def _resources() -> Iterator[Check]:
    import psutil

    cores = len(os.sched_getaffinity(0))
    advice = "" if cores > 1 else "One core: several workers will share it."
    yield Check(name="cores", state="ok" if cores > 1 else "note", found=str(cores), advice=advice)
    memory_bytes = psutil.virtual_memory().available
    disk_bytes = shutil.disk_usage(Path.cwd()).free
    yield _enough("memory", memory_bytes, LEAST_MEMORY_BYTES, "Close other programs, or add some.")
    yield _enough("disk here", disk_bytes, LEAST_DISK_BYTES, "Make room, or set output_dir.")
    if Path("/dev/shm").is_dir():
        shm_bytes = shutil.disk_usage("/dev/shm").free
        advice = "In a container: --shm-size=4g; Ray falls back to slow files otherwise."
        yield _enough("shared memory", shm_bytes, LEAST_SHM_BYTES, advice)


def _enough(name: str, free_bytes: int, least_bytes: int, advice: str) -> Check:
    enough = free_bytes >= least_bytes
    return Check(
        name=name,
        state="ok" if enough else "note",
        found=f"{free_bytes / GIB:.1f} GiB free",
        advice="" if enough else f"Less than {least_bytes / GIB:.0f} GiB. {advice}",
    )


def _gpus() -> Check:
    import torch

    count = torch.cuda.device_count()
    names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
    found = f"{count} x {', '.join(names)}" if count else "none, training runs on the CPU"
    return Check(name="graphics cards", state="ok", found=found)


def _assets() -> Iterator[Check]:
    for asset in assets.ASSETS.values():
        here = asset.folder.is_dir()
        yield Check(
            name=assets.PREFIX + asset.name,
            state="ok" if here else "note",
            found=str(asset.folder) if here else "not fetched",
            advice="" if here else f"Run: {assets.INSTALL_LINE}",
        )
