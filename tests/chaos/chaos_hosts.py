"""Jobs on hosts of their own: submitted, followed, stopped, lost and continued.

Two hosts of three CPUs, and workers of two: one on each host, the rest for Ray Data.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from distft.records import read_study
from tests.hosts import Hosts, missing

STEPS = 60
JOB_S = 400
A, B, C = "a", "b", "c"
PLANTED = {
    "HF_TOKEN": "hf_planted-1-token",
    "WANDB_API_KEY": "planted2" * 5,
    "AWS_SECRET_ACCESS_KEY": "planted-3/key+x",
}
"""Secrets in the environment of the hosts, and of who submits."""

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(1500),
]


@dataclass(frozen=True)
class User:
    """Someone outside of the hosts who has the cluster's address and token."""

    hosts: Hosts
    folder: Path

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        environment = {**self.hosts.variables(), **PLANTED, "RAY_ADDRESS": self.hosts.url}
        return subprocess.Popen(
            [sys.executable, "-m", "distft.cli", *words],
            cwd=self.folder,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def distft(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        with self.start(*words, **variables) as process:
            stdout, stderr = process.communicate(timeout=JOB_S)
        print(f"$ distft {' '.join(words)}\n{stdout}{stderr}== {process.returncode}")
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    def submit(self, name: str, *words: str, wait: bool = True) -> tuple[int, str]:
        """Return the exit code and what was said."""
        options = ["--wait"] if wait else []
        done = self.distft("submit", "rows.yaml", f"name={name}", *words, *options)
        return done.returncode, done.stdout + done.stderr

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.distft("status", name, "--json").stdout)
        return found

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def steps(self, name: str) -> dict[int, float]:
        """Step -> loss, each once."""
        found = [line for line in read_lines(self.run(name) / "metrics.jsonl") if "loss" in line]
        assert len({line["step"] for line in found}) == len(found), "a step is logged once"
        return {line["step"]: line["loss"] for line in found}

    def samples(self, name: str) -> dict[int, list[list[int]]]:
        """Step -> the sample ids of each rank."""
        steps: dict[int, list[list[int]]] = {}
        for path in sorted((self.run(name) / "logs").glob("samples-rank-*.jsonl")):
            for line in read_lines(path):
                steps.setdefault(line["step"], []).append(line["sample_ids"])
        return steps

    def places(self, name: str) -> set[str]:
        """The addresses of the hosts whose workers took part."""
        logs = self.run(name).rglob("worker-*.log")
        return set(re.findall(r"rank \d+ of \d+ on (\S+):", "".join(p.read_text() for p in logs)))

    def wait_for(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + JOB_S
        while not ready():
            assert time.monotonic() < deadline, self.distft("logs", name).stdout
            time.sleep(0.1)

    def wait_for_step(self, name: str, step: int) -> None:
        def there() -> bool:
            lines = read_lines(self.run(name) / "metrics.jsonl")
            return any("loss" in line and line["step"] >= step for line in lines)

        self.wait_for(name, there)

    def assert_equal(self, name: str, other: str) -> None:
        """Assert that two runs saw the same rows and learnt the same."""
        assert list(self.steps(name)) == list(range(1, STEPS + 1))
        assert self.steps(name) == pytest.approx(self.steps(other), abs=1e-5)
        assert self.samples(name) == self.samples(other)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a JSONL file that another process may be writing."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture(scope="session")
def user(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    folder = tmp_path_factory.mktemp("user")
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(120):
            word = ("poor", "good")[number % 2]
            writer.writerow([f"the film is {word} and great {number}", word])
    config = {
        "model": str(tiny_bert),
        "data": {"train": "rows.csv", "cutoff_len": 16},
        "method": "full",
        "train": {
            "learning_rate": 1e-3,
            "max_steps": STEPS,
            "global_batch_size": 20,
            "eval_steps": 20,
            "save_steps": 4,
            "logging_steps": 1,
        },
        "cluster": {"num_workers": 2, "cpus_per_worker": 2, "zero_stage": 3},
    }
    (folder / "rows.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    # Ray's sockets need a short path; the number keeps two sessions apart.
    hosts = Hosts(Path(tempfile.mkdtemp(prefix="dft")), os.getpid() % 255, PLANTED)
    try:
        hosts.start(A)
        hosts.start(B)
        yield User(hosts, folder)
        assert_no_secret(hosts, folder)
    finally:
        hosts.remove()


def assert_no_secret(hosts: Hosts, folder: Path) -> None:
    """Assert that logs, runs, command lines and what the dashboard tells of jobs hold none."""
    secrets = [hosts.token, *PLANTED.values()]
    asked = urllib.request.Request(
        f"{hosts.url}/api/jobs/", headers={"Authorization": f"Bearer {hosts.token}"}
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        jobs = answer.read().decode()
    assert len(json.loads(jobs)) > 0
    command_lines = [
        " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
    ]
    for text in (jobs, *command_lines):
        assert not [secret for secret in secrets if secret in text], text
    for root in (hosts.folder, folder):
        for path in root.rglob("*"):
            if path.is_file() and path != hosts.token_file:
                data = path.read_bytes()
                assert not [secret for secret in secrets if secret.encode() in data], path


@pytest.fixture(scope="session")
def unbroken(user: User) -> str:
    """The name of a ZeRO-3 run over both hosts that nobody disturbed."""
    code, said = user.submit("unbroken")
    assert code == 0, said
    return "unbroken"


def test_what_a_node_does_not_see_is_refused_with_the_remedy(user: User) -> None:
    hosts = user.hosts
    (hosts.local / "rows.csv").write_bytes((user.folder / "rows.csv").read_bytes())
    code, said = user.submit("blind", f"data.train={hosts.local / 'rows.csv'}")
    assert code == 3, said
    assert f"Node {hosts.address(A)} does not see {hosts.local / 'rows.csv'}" in said
    assert "behind an address such as s3://" in said
    code, said = user.submit("blind", f"output_dir={hosts.local / 'runs'}")
    assert code == 3, said
    assert "does not see the output directory" in said
    assert "cluster.storage" in said
    assert json.loads(user.distft("list", "--json").stdout) == []


def test_zero_3_over_two_hosts_followed_from_outside(user: User, unbroken: str) -> None:
    assert user.places(unbroken) == {user.hosts.address(A), user.hosts.address(B)}
    assert list(user.steps(unbroken)) == list(range(1, STEPS + 1))
    assert user.distft("train", "rows.yaml", "name=local", RAY_ADDRESS="").returncode == 0
    user.assert_equal("local", unbroken)
    log = user.distft("logs", unbroken).stdout
    assert re.search(rf"^step 30/{STEPS}  loss .* ETA ", log, re.MULTILINE)
    found = user.status(unbroken)
    assert (found["state"], found["exit_code"], found["attempt"]) == ("succeeded", 0, 1)
    again = user.submit(unbroken, wait=False)
    assert again[0] == 0
    assert "unbroken-a1 has completed it" in again[1]


def test_zero_2_over_two_hosts_learns_what_zero_3_does(user: User, unbroken: str) -> None:
    code, said = user.submit("zero2", "cluster.zero_stage=2")
    assert code == 0, said
    assert user.places("zero2") == {user.hosts.address(A), user.hosts.address(B)}
    user.assert_equal("zero2", unbroken)


def test_stopped_and_submitted_again_it_goes_on(user: User, unbroken: str) -> None:
    assert user.submit("stopped", wait=False)[0] == 0
    again = user.submit("stopped", wait=False)
    assert again[0] == 0
    assert "stopped-a1 is running already" in again[1]
    other = user.submit("stopped", "train.learning_rate=1e-4", wait=False)
    assert other[0] == 3
    assert "with other settings" in other[1]
    user.wait_for_step("stopped", 5)
    assert user.distft("stop", "stopped").returncode == 0
    found = user.status("stopped")
    assert (found["state"], found["exit_code"]) == ("stopped", 130)
    assert "Interrupted. The same command continues" in user.distft("logs", "stopped").stdout
    code, said = user.submit("stopped")
    assert code == 0, said
    assert re.search(r"^continued from step \d+$", said, re.MULTILINE)
    assert user.status("stopped")["id"] == "stopped-a2"
    user.assert_equal("stopped", unbroken)


def test_a_host_that_comes_back_is_used_again(user: User, unbroken: str) -> None:
    assert user.submit("back", wait=False)[0] == 0
    user.wait_for_step("back", 5)
    user.hosts.kill(B)
    user.hosts.start(B)
    code = user.distft("logs", "--follow", "back").returncode
    assert code == 0
    found = user.status("back")
    assert (found["id"], found["exit_code"]) == ("back-a1", 0)
    assert "a worker died; starting again" in user.distft("logs", "back").stdout
    user.assert_equal("back", unbroken)


def test_a_host_that_stays_away_ends_the_job_and_the_same_command_goes_on(
    user: User, unbroken: str
) -> None:
    with user.start("submit", "rows.yaml", "name=away", "--wait") as process:
        user.wait_for_step("away", 5)
        user.hosts.kill(B)
        _, said = process.communicate(timeout=JOB_S)
    assert process.returncode == 75, said
    assert "the cluster has not had the nodes for that" in said
    assert user.status("away")["exit_code"] == 75
    assert user.submit("away")[0] == 75, "it is still away"
    user.hosts.start(B)
    code, said = user.submit("away")
    assert code == 0, said
    assert re.search(r"^continued from step \d+$", said, re.MULTILINE)
    user.assert_equal("away", unbroken)


def test_two_jobs_at_once_do_not_disturb_each_other(user: User, unbroken: str) -> None:
    both = [
        user.start("submit", "rows.yaml", f"name={name}", "--wait") for name in ("left", "right")
    ]
    for name, process in zip(("left", "right"), both, strict=True):
        with process:
            _, said = process.communicate(timeout=JOB_S)
        assert process.returncode == 0, said
        user.assert_equal(name, unbroken)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_search_over_two_hosts(user: User, stage: int) -> None:
    name = f"search{stage}"
    words = ["tune.num_trials=2", "tune.num_workers=2", "tune.methods=[full]", "tune.confirm=0"]
    code, said = user.submit(name, *words, f"cluster.zero_stage={stage}", "train.max_steps=20")
    assert code == 0, said
    record, trials = read_study(user.run(name))
    assert (record.status, len(trials), record.workers_per_trial) == ("completed", 2, 2)
    assert record.jobs == [f"{name}-a1"]
    assert user.places(f"{name}/trials") == {user.hosts.address(A), user.hosts.address(B)}


def test_a_wrong_token_or_none_is_refused(user: User, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("f" * 32)
    for variables in ({"RAY_AUTH_TOKEN_PATH": str(wrong)}, {"RAY_AUTH_MODE": "disabled"}):
        for words in (("submit", "rows.yaml"), ("list",), ("status", "unbroken")):
            done = user.distft(*words, **variables)
            assert done.returncode == 3, done.stderr
            assert "RAY_AUTH_TOKEN_PATH" in done.stderr
            assert "Traceback" not in done.stderr
    nobody = user.distft("list", RAY_ADDRESS=f"http://{user.hosts.address()}:1")
    assert nobody.returncode == 75


def test_a_host_that_joins_is_used(user: User) -> None:
    words = ("cluster.num_workers=3", "train.max_steps=10")
    code, said = user.submit("joined", *words)
    assert code == 3, said
    user.hosts.start(C)
    code, said = user.submit("joined", *words)
    assert code == 0, said
    assert user.places("joined") == {user.hosts.address(name) for name in (A, B, C)}
    user.hosts.kill(C)

    def noticed() -> bool:
        # Until Ray has, a node that was lost is asked too: the same command may succeed.
        code, said = user.submit("joined", *words)
        assert code in (0, 75), said
        return code == 0

    user.wait_for("joined", noticed)


def test_the_head_lost_and_a_new_one_goes_on(user: User, unbroken: str) -> None:
    with user.start("submit", "rows.yaml", "name=beheaded", "--wait") as process:
        user.wait_for_step("beheaded", 5)
        for name in (A, B):
            user.hosts.kill(name)
        _, said = process.communicate(timeout=JOB_S)
    assert process.returncode == 75, said
    for name in (A, B):
        user.hosts.start(name)
    assert json.loads(user.distft("list", "--json").stdout) == []
    code, said = user.submit("beheaded")
    assert code == 0, said
    assert re.search(r"^continued from step \d+$", said, re.MULTILINE)
    assert user.status("beheaded")["id"] == "beheaded-a2"
    user.assert_equal("beheaded", unbroken)
