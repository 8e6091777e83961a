"""What the end-to-end tests share: rows, a config, the real command line, and one finished run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from distft.config_file import load
from distft.records import DataRecord, ModelRecord, RunRecord, write_json

THINGS = ("phone", "lamp", "chair", "soup", "\u624b\u673a", "\u676f\u5b50")
OPINIONS = {
    "negative": ("awful", "broken", "useless", "\u5f88\u5dee"),
    "positive": ("great", "lovely", "perfect", "\u5f88\u597d"),
}
SECRET = "hf_this-must-not-be-written-anywhere"
TIMEOUT_S = 540


@dataclass(frozen=True)
class Folder:
    """A folder as a user has it: reviews.csv, reviews.yaml, and the runs that were made there."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "reviews.yaml"

    def run(self, name: str = "reviews") -> Path:
        return self.path / "runs" / name

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a command as a shell does: in its own process group."""
        return subprocess.Popen(
            [sys.executable, "-m", "distft.cli", *map(str, words)],
            cwd=self.path,
            env={**os.environ, "HF_TOKEN": SECRET, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def distft(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        with self.start(*words) as process:
            stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


@dataclass(frozen=True)
class Finished:
    """A training that was run once for all tests; what it printed and where it lies."""

    folder: Folder
    run_dir: Path
    done: subprocess.CompletedProcess[str]
    refusal: subprocess.CompletedProcess[str]
    """The same command without --fresh, when another run lay in its place."""


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Folder]:
    """(folder, model) -> a Folder with 120 rows of two classes and a config for two workers."""

    def make(path: Path, model: str | Path = "asset:minilm-l6") -> Folder:
        path.mkdir(parents=True, exist_ok=True)
        with (path / "reviews.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for number in range(120):
                label = ("negative", "positive")[number % 2]
                word = OPINIONS[label][number % 4]
                writer.writerow([f"{word}: the {THINGS[number % 6]} of order {number}", label])
        config = {
            "model": str(model),
            "data": {"train": "reviews.csv", "cutoff_len": 32},
            "method": {"name": "lora", "lora_dropout": 0.1},
            "train": {
                "learning_rate": 1e-3,
                "max_steps": 14,
                "global_batch_size": 20,
                "eval_steps": 4,
                "logging_steps": 1,
            },
            "cluster": {"num_workers": 2, "zero_stage": 2},
        }
        (path / "reviews.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return Folder(path)

    return make


@pytest.fixture(scope="session")
def finished(
    make_folder: Callable[..., Folder],
    asset: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """Train MiniLM with LoRA and ZeRO-2 on 2 workers, over a run of another configuration."""
    asset("minilm-l6")
    folder = make_folder(tmp_path_factory.mktemp("user"))
    run_dir = folder.run()
    run_dir.mkdir(parents=True)
    (run_dir / "stale.txt").write_text("of the other run")
    other = RunRecord(
        name="reviews",
        status="completed",
        config_hash="0" * 16,
        config=load(folder.config).dump(),
        data=DataRecord(manifest="other", rows={}, tokens={}),
        model=ModelRecord(id="other", params=1, trainable_params=1),
        world_size=1,
        zero_stage=0,
        seeds={},
        versions={},
        started="2026-01-01T00:00:00+00:00",
        duration_s=1.0,
    )
    write_json(run_dir / "run.json", other.model_dump())
    refusal = folder.distft("train", folder.config)
    assert (run_dir / "stale.txt").exists()
    done = folder.distft("train", folder.config, "--fresh")
    assert done.returncode == 0, done.stderr
    return Finished(folder, run_dir, done, refusal)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a JSONL file that another process may be writing."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture(scope="session")
def lines() -> Callable[[Path], list[dict[str, Any]]]:
    """Return read_lines: test modules cannot import a conftest."""
    return read_lines


@pytest.fixture(scope="session")
def samples() -> Callable[[Path], dict[int, list[list[int]]]]:
    """run directory -> step -> the sample ids of each rank, as the workers logged them."""

    def read(run_dir: Path) -> dict[int, list[list[int]]]:
        steps: dict[int, list[list[int]]] = {}
        for path in sorted((run_dir / "logs").glob("samples-rank-*.jsonl")):
            for line in read_lines(path):
                steps.setdefault(line["step"], []).append(line["sample_ids"])
        return steps

    return read
