"""Hosts on one machine: network namespaces joined by a bridge, one Ray node each.

Every host has an address, processes and, below `local`, disk of its own; the rest of the disk is
what a cluster's nodes share. Token authentication is on.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

INSTALL_LINE = "run as root on Linux with the package iproute2"
GCS_PORT, DASHBOARD_PORT = 6379, 8265
START_S = 120
SETTINGS = {
    # How long lost hosts are waited for.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    # A dead host is noticed within half a minute; much less, and a busy one is taken for dead.
    "RAY_health_check_period_ms": "2000",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def missing() -> str:
    """Return what this machine lacks for hosts, or nothing."""
    able = os.geteuid() == 0 and shutil.which("ip") and shutil.which("unshare")
    return "" if able else f"hosts need network namespaces: {INSTALL_LINE}"


def _run(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@dataclass
class Hosts:
    """Named hosts; the first one started is the cluster's head."""

    folder: Path
    """Short: Ray's sockets lie below it."""
    number: int
    """From 0 to 254, this machine's only user of it: 10.77.NUMBER.0/24."""
    environment: dict[str, str] = field(default_factory=dict)
    """Further variables of the Ray nodes."""
    names: list[str] = field(default_factory=list)
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("home", "local"):
            (self.folder / name).mkdir()
        self.token = secrets.token_hex(16)
        self.token_file = self.folder / "token"
        self.token_file.write_text(self.token)
        self.token_file.chmod(0o600)
        _run("ip", "link", "add", self.bridge, "type", "bridge")
        _run("ip", "address", "add", f"{self.address()}/24", "dev", self.bridge)
        _run("ip", "link", "set", self.bridge, "up")

    @property
    def bridge(self) -> str:
        return f"distft{self.number}"

    @property
    def local(self) -> Path:
        """A folder that is another one on every host."""
        return self.folder / "local"

    @property
    def url(self) -> str:
        """Of the dashboard."""
        return f"http://{self.address(self.names[0])}:{DASHBOARD_PORT}"

    def address(self, name: str | None = None) -> str:
        """Of a host; None: of the machine they all are on."""
        last = 1 if name is None else 2 + self.names.index(name)
        return f"10.77.{self.number}.{last}"

    def variables(self) -> dict[str, str]:
        """The environment of whoever may use the cluster."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return {
            **kept,
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
            "HF_HUB_OFFLINE": "1",
            # Jobs run the `python` that the nodes find.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
        }

    def start(self, name: str, cpus: int = 3, **resources: float) -> None:
        """Start a host, or start it again after it was lost."""
        if name not in self.names:
            self.names.append(name)
            self._join(name)
        space, head = self._space(name), self.address(self.names[0])
        words = [f"--node-ip-address={self.address(name)}", f"--num-cpus={cpus}"]
        words += ["--object-store-memory=100000000", "--block", "--disable-usage-stats"]
        if resources:
            words.append(f"--resources={resources!r}".replace("'", '"'))
        if name == self.names[0]:
            # A head that comes back knows nothing of what it was before.
            shutil.rmtree(self.folder / "ray", ignore_errors=True)
            words += ["--head", f"--port={GCS_PORT}", f"--temp-dir={self.folder / 'ray'}"]
            words += [f"--dashboard-host={head}", f"--dashboard-port={DASHBOARD_PORT}"]
        else:
            words += [f"--address={head}:{GCS_PORT}"]
        command = f'mount -t tmpfs none "{self.local}" && exec "$@"'
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", *words]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.started[name] = subprocess.Popen(
                ["ip", "netns", "exec", space, "sh", "-c", command, "sh", *ray],
                env={**self.variables(), **SETTINGS, **self.environment, "TMPDIR": str(self.local)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait(name)

    def _join(self, name: str) -> None:
        space, inner, outer = self._space(name), "eth0", self._link(name)
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", space)
        _run("ip", "link", "set", outer, "master", self.bridge, "up")
        inside = ("ip", "-netns", space)
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "address", "add", f"{self.address(name)}/24", "dev", inner)
        _run(*inside, "link", "set", inner, "up")

    def _link(self, name: str) -> str:
        return f"{self.bridge}-{self.names.index(name)}"

    def _space(self, name: str) -> str:
        return f"{self.bridge}-{name}"

    def _wait(self, name: str) -> None:
        """Return once Ray says that the node is up."""
        log = self.folder / f"{name}.log"
        deadline = time.monotonic() + START_S
        while "Ray runtime started." not in log.read_text():
            if self.started[name].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        """Take a host's power: nothing of it says goodbye."""
        space = self._space(name)
        _run("ip", "-netns", space, "link", "set", "eth0", "down")
        while pids := _run("ip", "netns", "pids", space).split():
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)
            self.started[name].poll()
        self.started.pop(name).wait()
        _run("ip", "-netns", space, "link", "set", "eth0", "up")

    def remove(self) -> None:
        """End everything and leave nothing."""
        for name in list(self.started):
            self.kill(name)
        links = [self._link(name) for name in self.names]
        for link in [*links, self.bridge]:
            subprocess.run(["ip", "link", "delete", link], check=False)
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", self._space(name)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
