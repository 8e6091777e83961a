"""What `distft doctor` looks at: whether this machine can train, and what to do where it cannot."""

from __future__ import annotations

import importlib.metadata
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

from distft import assets, machine
from distft.machine import Check, Machine


def examine() -> list[Check]:
    """Return every check of this machine, in the order they matter."""
    here = machine.look("", {"disk here": Path.cwd(), "Ray's disk": Path(tempfile.gettempdir())})
    return [
        _python(),
        *_packages(),
        *machine.checks(here),
        machine.disk_kernel_check(here),
        _deepspeed_ops(),
        _network(),
        _gpus(here),
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


def _deepspeed_ops() -> Check:
    # DeepSpeed's own report, as a program: only train/deepspeed_engine.py imports it.
    command = [sys.executable, "-m", "deepspeed.env_report"]
    environment = {**os.environ, "PATH": machine.path_with_environment()}
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


def _network() -> Check:
    import psutil

    up = {name for name, status in psutil.net_if_stats().items() if status.isup}
    found = [
        f"{name} {entry.address}"
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if name in up and name != "lo" and entry.family == socket.AF_INET
    ]
    advice = "" if found else "Enough for one machine; nodes of a cluster need an address."
    state: Literal["ok", "note"] = "ok" if found else "note"
    return Check(name="network", state=state, found=", ".join(found) or "lo", advice=advice)


def _gpus(here: Machine) -> Check:
    import torch

    count = torch.cuda.device_count()
    names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
    found = f"{count} x {', '.join(names)}" if count else "none, training runs on the CPU"
    if count == len(here.gpus) or not here.gpus:
        return Check(name="graphics cards", state="ok", found=found)
    return Check(
        name="graphics cards",
        state="note",
        found=f"torch sees {count} of {len(here.gpus)}",
        advice="Look at CUDA_VISIBLE_DEVICES, and whether torch was built for CUDA.",
    )


def _assets() -> Iterator[Check]:
    for asset in assets.ASSETS.values():
        here = asset.folder.is_dir()
        yield Check(
            name=assets.PREFIX + asset.name,
            state="ok" if here else "note",
            found=str(asset.folder) if here else "not fetched",
            advice="" if here else f"Run: {assets.INSTALL_LINE}",
        )
