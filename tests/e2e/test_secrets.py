"""Secrets planted in the environment and the config: no file, log or command line holds one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

pytestmark = pytest.mark.slow

PLANTED = {
    "HF_TOKEN": "hf_planted-1-token",
    "WANDB_API_KEY": "planted2" * 5,
    "AWS_SECRET_ACCESS_KEY": "planted-3/key+x",
    "MLFLOW_TRACKING_PASSWORD": "planted-4-word",
    "MY_SERVICE_SECRET": "planted-5-secret",
}
IN_STORAGE, IN_ADDRESS = "planted-6-word", "planted-7-key"


def start(folder: Path, *words: str) -> tuple[int, str, set[str]]:
    """Run a command; return its status, all it printed, and the command lines of its children."""
    process = subprocess.Popen(
        [sys.executable, "-m", "distft.cli", *words],
        cwd=folder,
        env={**os.environ, **PLANTED, "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen: set[str] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            try:
                for child in psutil.Process(process.pid).children(recursive=True):
                    seen.add(" ".join(child.cmdline()))
            except psutil.Error:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        said, _ = process.communicate(timeout=500)
    finally:
        ended.set()
        thread.join()
    return process.returncode, said, seen


def held(folder: Path, config: str) -> list[str]:
    """Return 'file: secret' for every file below, but the user's config, that holds one."""
    secrets = [*PLANTED.values(), IN_STORAGE, IN_ADDRESS]
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and path.name != config:
            data = path.read_bytes()
            found += [f"{path.name}: {each}" for each in secrets if each.encode() in data]
    return found


def spoken(*texts: str) -> list[str]:
    secrets = [*PLANTED.values(), IN_STORAGE, IN_ADDRESS]
    return [each for each in secrets for text in texts if each in text]


@pytest.fixture
def folder(tmp_path: Path, tiny_bert: Path) -> Callable[..., Path]:
    def make(**changes: object) -> Path:
        rows = [f"the film is {word} {n},{word}" for n in range(40) for word in ("good", "bad")]
        (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
        config = {
            "model": str(tiny_bert),
            "task": "seq_cls",
            "data": {"train": "rows.csv"},
            "report_to": ["tensorboard", "mlflow", "wandb"],
            "train": {"max_steps": 4, "logging_steps": 1, "eval_steps": 2},
            "tune": {"storage": f"postgresql://me:{IN_STORAGE}@host/db"},
            **changes,
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        return tmp_path

    return make


def test_a_run_that_ends_well_writes_none(folder: Callable[..., Path]) -> None:
    home = folder()
    status, said, commands = start(home, "train", "run.yaml", "--debug")
    assert status == 0, said
    assert (home / "runs" / "mlflow.db").is_file()
    assert list((home / "runs" / "run" / "wandb").glob("offline-run-*"))
    assert any("raylet" in each for each in commands)
    assert held(home, "run.yaml") == []
    assert spoken(said, *commands) == []
    record = (home / "runs" / "run" / "run.json").read_text()
    assert "postgresql://me:***@host/db" in record, "the rest of the address stays"


def test_a_run_that_fails_writes_none(folder: Callable[..., Path]) -> None:
    home = folder(train={"max_steps": 4, "learning_rate": 1e30, "max_grad_norm": 0, "optim": "sgd"})
    status, said, commands = start(home, "train", "run.yaml", "--debug")
    assert status == 4, said
    assert "is not finite" in said
    assert (home / "runs" / "run" / "run.json").is_file()
    assert held(home, "run.yaml") == []
    assert spoken(said, *commands) == []


@pytest.mark.parametrize("words", [("train",), ("plan", "--json"), ("prepare", "--debug")])
def test_an_address_that_cannot_be_read_is_named_without_its_keys(
    folder: Callable[..., Path], words: tuple[str, ...]
) -> None:
    address = f"s3://AKIAPLANTED:{IN_ADDRESS}@bucket/rows.jsonl?endpoint_override=localhost:9"
    home = folder(data={"train": address})
    status, said, _ = start(home, words[0], "run.yaml", *words[1:])
    assert status == 2, said
    assert "bucket/rows.jsonl" in said
    assert "AKIAPLANTED" not in said
    assert held(home, "run.yaml") == []
    assert spoken(said) == []
