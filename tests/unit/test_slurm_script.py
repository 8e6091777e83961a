"""Slurm's batch script, run: only the programs it calls are stood in for, as Slurm is not here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from distft.emit import slurm
from distft.emit.settings import settings
from tests.unit.test_emit import config

# Each writes what it was called with; what it is named after would not run without a cluster.
PROGRAMS = {
    "srun": """
echo "srun $*" >>"$LOG"
while [[ $1 == --* ]]; do shift; done
[[ $1 == rm ]] || export PATH=$PATH
exec "$@"
""",
    "scontrol": """
echo "scontrol $*" >>"$LOG"
[[ $1 == show ]] && printf 'node1\\nnode2\\nnode3\\n' | head -n "$SLURM_JOB_NUM_NODES"
exit 0
""",
    "ray": """
[[ $1 == --version ]] && { echo "ray, version $RAY_HERE"; exit 0; }
echo "ray $* address=${RAY_ADDRESS:-}" >>"$LOG"
if [[ $1 == health-check ]]; then
    [[ -z ${HEAD_DIES:-} ]] || exit 1
    until [[ -s $SEEN ]]; do sleep 0.02; done
    exit 0
fi
trap 'echo "ray stopped" >>"$LOG"; exit 0' TERM
[[ $* == *--head* ]] && { echo "token $(cat "$RAY_AUTH_TOKEN_PATH")" >"$SEEN"; \
    stat -c %a "$RAY_AUTH_TOKEN_PATH" >>"$SEEN"; }
[[ -z ${HEAD_DIES:-} ]] || exit 1
while :; do sleep 0.05; done
""",
    "python": """
echo "python $1 ${2:0:14}" >>"$LOG"
if [[ $1 == - ]] && (($2 > 1)); then
    until grep -q "^ray start .*--address" "$LOG"; do sleep 0.02; done
fi
case $2 in
    *secrets*) echo 5ec2e7 ;;
    *get_node_ip*) echo node1.example ;;
esac
""",
    "distft": """
echo "distft $1 $(basename "$2") mode=$RAY_AUTH_MODE address=$RAY_ADDRESS" >>"$LOG"
cp "$2" "$SEEN.yaml"
umask >"$SEEN.umask"
trap 'echo "distft told to end" >>"$LOG"; exit 143' TERM
[[ -z ${DISTFT_WAITS:-} ]] || while :; do sleep 0.05; done
exit "${DISTFT_EXIT:-0}"
""",
}


class Job:
    """One run of the script."""

    def __init__(self, folder: Path, nodes: int = 3) -> None:
        self.storage = folder / "storage"
        self.storage.mkdir()
        self.log, self.seen = folder / "log", folder / "seen"
        shape = {"nodes": nodes, "cpus": 8}
        self.settings = settings(
            config(cluster__storage=str(self.storage), cluster__shape=shape), "train"
        )
        (folder / "job.sh").write_text(slurm.emit(self.settings), encoding="utf-8")
        (folder / "bin").mkdir()
        for name, body in PROGRAMS.items():
            path = folder / "bin" / name
            path.write_text(f"#!/bin/bash\n{body}", encoding="utf-8")
            path.chmod(0o755)
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "LOG": str(self.log),
            "SEEN": str(self.seen),
            "RAY_HERE": self.settings.ray_version,
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_JOB_NODELIST": f"node[1-{nodes}]",
        }
        self._command = ["bash", str(folder / "job.sh")]

    def start(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            env={**self.environment, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, **environment: str) -> tuple[int, str]:
        process = self.start(**environment)
        said = process.communicate(timeout=60)[1]
        return process.returncode, said

    @property
    def lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines()

    def left(self) -> list[str]:
        return [path.name for path in self.storage.iterdir()]

    def requeued(self) -> bool:
        return any(line.startswith("scontrol requeue") for line in self.lines)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_head_then_workers_then_the_run_then_nothing_is_left(job: Job) -> None:
    status, said = job.run()
    assert (status, job.requeued(), job.left()) == (0, False, []), said
    lines = [line for line in job.lines if line.startswith(("ray st", "distft"))]
    steps = [re.sub(r" start .*(--head|--address=\S+).*", r" \1", line) for line in lines]
    port = 20000 + os.getpid() % 10000
    address = f"node1.example:{port}"
    assert steps == [
        "ray --head",
        f"ray --address={address}",
        f"distft train run.yaml mode=token address={address}",
        "ray stopped",
        "ray stopped",
    ]
    head, workers, last = [line for line in job.lines if line.startswith("srun")]
    assert "--nodelist=node1 " in head
    assert "--nodes=2 " in workers
    assert "--nodelist=node2,node3 " in workers
    assert f"rm -rf -- /tmp/distft-{os.getpid()}" in last
    assert f"--port={port} --temp-dir=/tmp/distft-{os.getpid()} " in head
    assert f"--ray-client-server-port={port + 10000} --num-cpus=8 --num-gpus=0 " in head


def test_one_node_is_head_and_worker(tmp_path: Path) -> None:
    job = Job(tmp_path, nodes=1)
    status, said = job.run()
    assert (status, job.left()) == (0, []), said
    assert len([line for line in job.lines if line.startswith("ray start")]) == 1


def test_the_token_is_in_a_file_of_the_user_alone(job: Job) -> None:
    assert job.run()[0] == 0
    assert job.seen.read_text(encoding="utf-8").split() == ["token", "5ec2e7", "600"]
    assert "5ec2e7" not in job.log.read_text(encoding="utf-8")
    written = Path(f"{job.seen}.yaml")
    assert written.read_text(encoding="utf-8") == job.settings.config
    # The runs themselves are as open as the user wants them.
    umask = int(Path(f"{job.seen}.umask").read_text(encoding="utf-8"), 8)
    assert umask == os.umask(umask)


@pytest.mark.parametrize(
    ("exit_code", "again"),
    [(1, False), (2, False), (3, False), (4, False), (130, False), (75, True), (137, True)],
)
def test_its_exit_code_is_the_runs(job: Job, exit_code: int, again: bool) -> None:
    status, said = job.run(DISTFT_EXIT=str(exit_code))
    assert (status, job.requeued(), job.left()) == (exit_code, again, []), said


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_ends_the_run_first(job: Job, number: signal.Signals, again: bool) -> None:
    process = job.start(DISTFT_WAITS="1")
    deadline = time.monotonic() + 30
    while not Path(f"{job.seen}.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, job.requeued(), job.left()) == (143, again, []), said
    assert job.lines.index("distft told to end") < job.lines.index("ray stopped")


def test_it_is_not_queued_again_for_ever(job: Job) -> None:
    status, said = job.run(DISTFT_EXIT="75", SLURM_RESTART_COUNT="20")
    assert (status, job.requeued()) == (75, False)
    assert "not queued again: it was 20 times" in said


def test_a_head_that_ends_is_a_loss(job: Job) -> None:
    status, said = job.run(HEAD_DIES="1")
    assert (status, job.requeued(), job.left()) == (75, True, []), said
    assert "Ray ended while the head was waited for" in said


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RAY_HERE": "1.0"}, "ray, version 1.0 is installed here; this script was made for"),
        ({"PATH": "/usr/bin:/bin"}, "activate the environment of distft"),
    ],
)
def test_a_wrong_environment_is_told_before_anything_starts(
    job: Job, environment: dict[str, str], said: str
) -> None:
    status, heard = job.run(**environment)
    assert status == 2
    assert said in heard
    assert not job.log.exists()


def test_storage_that_is_not_there_is_told(job: Job) -> None:
    job.storage.rmdir()
    status, heard = job.run()
    assert status == 2
    assert f"{job.storage} cannot be written" in heard
