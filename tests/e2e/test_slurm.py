"""Slurm's batch script with Ray itself: told of its time limit it ends, queued again it goes on.

Two Ray nodes on this machine; only Slurm's own programs are stood in for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distft import api
from distft.config_file import parse
from distft.errors import LostError

SRUN = """#!/bin/bash
number=1
while [[ $1 == --* ]]; do
    [[ $1 == --nodes=* ]] && number=${1#--nodes=}
    shift
done
trap 'kill $(jobs -p) 2>/dev/null; wait' TERM
for ((i = 0; i < number; i++)); do "$@" & done
wait
"""
SCONTROL = """#!/bin/bash
case $1 in
    show) printf 'node1\\nnode2\\n' ;;
    requeue) echo "slurm: $2 is queued again" >&2 ;;
esac
"""
TIMEOUT_S = 540


def start(folder: Path, log: Path, restarts: int) -> subprocess.Popen[bytes]:
    paths = (folder / "bin", Path(sys.executable).parent, os.environ["PATH"])
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_RESTART_COUNT": str(restarts),
        # Two nodes start on one machine.
        "RAY_raylet_start_wait_time_s": "300",
    }
    with log.open("wb") as file:
        return subprocess.Popen(
            ["bash", folder / "job.sh"],
            env={**os.environ, **slurm, "PATH": ":".join(map(str, paths))},
            cwd=folder,
            stdout=file,
            stderr=file,
        )


def reach_step(folder: Path, log: Path, metrics: Path, step: int) -> subprocess.Popen[bytes]:
    """Start the job; again where Ray did not come up on a busy machine, as Slurm would."""
    process, starts = start(folder, log, 0), 1
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        if any(json.loads(line).get("step", 0) >= step for line in lines[:-1]):
            return process
        if process.poll() is not None:
            said = log.read_text(encoding="utf-8")[-3000:]
            assert process.returncode == LostError.exit_code, said
            assert starts < 4, said
            process, starts = start(folder, log, starts), starts + 1
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
def test_told_of_its_limit_it_ends_and_queued_again_it_goes_on(
    tmp_path: Path, asset: Callable[[str], Path]
) -> None:
    asset("minilm-l6")
    storage = tmp_path / "shared"
    storage.mkdir()
    rows = [f"{word} {number},{word}" for number in range(60) for word in ("good", "bad")]
    (storage / "rows.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    config = parse(
        {
            "name": "run",
            "model": {"id": "asset:minilm-l6", "dropout": 0},
            "data": {"train": str(storage / "rows.csv"), "cutoff_len": 16},
            "train": {"max_steps": 40, "global_batch_size": 4, "save_steps": 4},
            "cluster": {
                "num_workers": 2,
                "zero_stage": 2,
                "storage": str(storage),
                "shape": {"nodes": 2, "cpus": 2, "memory": "4GiB"},
            },
        }
    )
    (tmp_path / "job.sh").write_text(api.emit(config, "slurm"), encoding="utf-8")
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text, encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)

    first, second = tmp_path / "first.log", tmp_path / "second.log"
    job = reach_step(tmp_path, first, storage / "runs" / "run" / "metrics.jsonl", 8)
    state = storage / f".distft-{os.getpid()}"
    token = (state / "token").read_text(encoding="utf-8").strip()
    assert (state / "token").stat().st_mode & 0o077 == 0
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "raylet" in shown
    assert token not in shown
    job.send_signal(signal.SIGUSR1)
    assert job.wait(TIMEOUT_S) != 0
    said = first.read_text(encoding="utf-8")
    assert f"slurm: {os.getpid()} is queued again" in said, said[-3000:]

    again = start(tmp_path, second, 1)
    assert again.wait(TIMEOUT_S) == 0, second.read_text(encoding="utf-8")[-3000:]
    assert "continued from step" in second.read_text(encoding="utf-8")
    record = json.loads((storage / "runs" / "run" / "run.json").read_text(encoding="utf-8"))
    assert (record["status"], record["world_size"]) == ("completed", 2)
    assert not state.exists()
    assert not Path(f"/tmp/distft-{os.getpid()}").exists()
    written = [path for path in storage.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml")]
    for path in [first, second, *written]:
        assert token not in path.read_text(encoding="utf-8")
