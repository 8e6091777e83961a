"""Committed checkpoints: state from every rank, a position, and a manifest written last.

State is safetensors in one portable form for every method, ZeRO stage and world size: each
trainable parameter's whole float32 weights and optimizer tensors stand once, in the file of rank
`index % world_size`.
Nothing is pickled. A directory without a manifest that matches its files is not a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from distft.data.manifest import file_sha256
from distft.errors import TrainError
from distft.records import Metrics, write_json
from distft.train.engine import Engine, StateReader

FILE_LIMIT_BYTES = 1 << 30
SCHEMA_VERSION = 1


@dataclass
class Position:
    """Where a run stands; all a restart needs besides the state."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    tokens: int = 0
    positions: int = 0
    """Tokens and padding."""
    best_step: int | None = None
    best: Metrics = field(default_factory=dict)
    bad_evals: int = 0
    """Evaluations in a row without a better one."""
    baseline: Metrics = field(default_factory=dict)
    base_test: Metrics = field(default_factory=dict)
    latest: Metrics = field(default_factory=dict)
    train_s: float = 0.0
    """Seconds spent in optimizer steps."""


def step_dir(run_dir: Path, step: int) -> Path:
    """Return the directory of a step's checkpoint.

    Args:
        run_dir: Of the run.
        step: Optimizer steps done.

    Returns:
        `<run>/checkpoints/step-00000000`.
    """
    return run_dir / "checkpoints" / f"step-{step:08d}"


def save(engine: Engine, run_dir: Path, position: Position, config_hash: str, keep: int) -> None:
    """Write a checkpoint and delete the oldest; called by all ranks.

    Args:
        engine: Whose state is saved.
        run_dir: Of the run.
        position: Where it stands.
        config_hash: Of the run; a checkpoint of another one is never loaded.
        keep: Newest checkpoints that stay, besides the best.

    Raises:
        TrainError: The directory cannot be written.
    """
    final = step_dir(run_dir, position.step)
    partial = final.with_name(f".{final.name}.partial")
    try:
        if engine.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / "state").mkdir(parents=True)
        engine.gather(None)
        files = _write_state(engine, partial)
    except OSError as error:
        raise TrainError(
            f"The checkpoint {final} cannot be written: {error.strerror or error}.",
            "Free space or mend the permissions, then run the same command again.",
        ) from error
    entries = [entry for rank_files in engine.gather(files) for entry in rank_files]
    if engine.rank == 0:
        write_json(partial / "position.json", asdict(position))
        entries.append(_entry(partial, partial / "position.json"))
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "step": position.step,
            "world_size": engine.world_size,
            "config_hash": config_hash,
            "files": entries,
        }
        write_json(partial / "manifest.json", manifest)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _fsync_folder(final.parent)
        _prune(run_dir, keep, position.best_step)
    engine.gather(None)


def newest(run_dir: Path, config_hash: str) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint whose every byte is as its manifest says.

    Args:
        run_dir: Of the run.
        config_hash: Checkpoints of another configuration are passed over.

    Returns:
        Its directory or None, and a sentence for each newer one passed over.
    """
    passed_over: list[str] = []
    for folder in sorted((run_dir / "checkpoints").glob("step-*"), reverse=True):
        problem = verify(folder, config_hash)
        if problem is None:
            return folder, passed_over
        passed_over.append(f"checkpoint {folder.name} is not used: {problem}")
    return None, passed_over


def verify(folder: Path, config_hash: str | None = None) -> str | None:
    """Return what is wrong with a checkpoint, or None.

    Args:
        folder: Its directory.
        config_hash: What it must be of; None takes any.

    Returns:
        One clause, such as `state/x.safetensors is truncated`.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if config_hash is not None and manifest["config_hash"] != config_hash:
            return "it belongs to another configuration"
        for entry in manifest["files"]:
            path = folder / entry["file"]
            if not path.resolve().is_relative_to(folder.resolve()):
                return f"{entry['file']} lies outside it"
            if not path.is_file():
                return f"{entry['file']} is missing"
            if path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
                return f"{entry['file']} is damaged"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    return None


def read_position(folder: Path) -> Position:
    """Return where a verified checkpoint stands.

    Args:
        folder: Its directory.

    Returns:
        Its position.
    """
    return Position(**json.loads((folder / "position.json").read_text(encoding="utf-8")))


def read_state(folder: Path) -> StateReader:
    """Return a reader of a verified checkpoint's tensors, one parameter at a time.

    Args:
        folder: Its directory.

    Returns:
        Parameter name -> its tensors.
    """
    where: dict[str, tuple[Path, str]] = {}
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    # Only what was verified: a file that lies there besides could stand in for another.
    for entry in manifest["files"]:
        path = folder / entry["file"]
        if path.suffix != ".safetensors":
            continue
        with safe_open(path, framework="pt") as file:
            where |= {key: (path, key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    names: dict[str, list[str]] = {}
    for key in where:
        names.setdefault(key.rpartition("|")[0], []).append(key)

    def read(name: str) -> Mapping[str, torch.Tensor]:
        if name not in names:
            raise TrainError(f"The checkpoint {folder} holds no parameter {name}.")
        tensors = {}
        for key in names[name]:
            with safe_open(where[key][0], framework="pt") as file:
                tensors[key.rpartition("|")[2]] = file.get_tensor(key)
        return tensors

    return read


def _write_state(engine: Engine, folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    pending: dict[str, torch.Tensor] = {}

    def flush() -> None:
        if pending:
            name = f"state/rank-{engine.rank:05d}-{len(entries):05d}.safetensors"
            save_file(pending, folder / name)
            with (folder / name).open("rb") as file:
                os.fsync(file.fileno())
            entries.append(_entry(folder, folder / name))
            pending.clear()

    for index, (name, tensors) in enumerate(engine.state()):
        if index % engine.world_size != engine.rank:
            continue
        pending |= {f"{name}|{key}": tensor.contiguous() for key, tensor in tensors.items()}
        if sum(t.numel() * t.element_size() for t in pending.values()) >= FILE_LIMIT_BYTES:
            flush()
    flush()
    return entries


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    return {
        "file": path.relative_to(folder).as_posix(),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
    }


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prune(run_dir: Path, keep: int, best_step: int | None) -> None:
    folders = sorted((run_dir / "checkpoints").glob("step-*"))
    best = None if best_step is None else step_dir(run_dir, best_step)
    for folder in folders[:-keep]:
        if folder != best:
            shutil.rmtree(folder)
    for leftover in (run_dir / "checkpoints").glob(".step-*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
