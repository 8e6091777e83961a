"""What counts as a checkpoint, which one is continued from, and which are kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distft.errors import TrainError
from distft.train import checkpoint
from distft.train.checkpoint import Position


class State:
    """The part of an engine that a checkpoint asks for; one rank, two parameters."""

    rank = 0
    world_size = 1

    def __init__(self, value: float) -> None:
        self.value = value

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def state(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        for i, name in enumerate(("layer.weight", "layer.bias")):
            yield name, {"param": torch.full((2, 3), self.value + i), "exp_avg": torch.ones(2, 3)}


def save(run_dir: Path, steps: Sequence[int], *, keep: int = 9, best: int | None = None) -> None:
    for step in steps:
        engine: Any = State(float(step))
        position = Position(step=step, samples=step * 4, best_step=best, best={"eval_loss": 0.5})
        checkpoint.save(engine, run_dir, position, "abc", keep)


def only_state_file(run_dir: Path, step: int) -> Path:
    (path,) = (checkpoint.step_dir(run_dir, step) / "state").iterdir()
    return path


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    save(tmp_path, [3])
    folder, passed_over = checkpoint.newest(tmp_path, "abc")
    assert folder == tmp_path / "checkpoints" / "step-00000003"
    assert passed_over == []
    assert checkpoint.read_position(folder) == Position(
        step=3, samples=12, best_step=None, best={"eval_loss": 0.5}
    )
    read = checkpoint.read_state(folder)
    assert torch.equal(read("layer.weight")["param"], torch.full((2, 3), 3.0))
    assert torch.equal(read("layer.bias")["param"], torch.full((2, 3), 4.0))
    assert set(read("layer.bias")) == {"param", "exp_avg"}
    with pytest.raises(TrainError, match=r"holds no parameter layer\.other"):
        read("layer.other")


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path, "abc") == (None, [])


def truncate(folder: Path) -> None:
    path = next((folder / "state").iterdir())
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path) -> None:
    path = next((folder / "state").iterdir())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def remove(folder: Path) -> None:
    next((folder / "state").iterdir()).unlink()


def escape(folder: Path) -> None:
    path = next((folder / "state").iterdir())
    outside = folder.parents[2] / "outside.safetensors"
    shutil.move(path, outside)
    path.symlink_to(outside)


def climb(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    (folder.parent / "stolen").write_text("x")
    manifest["files"][0]["file"] = "../stolen"
    (folder / "manifest.json").write_text(json.dumps(manifest))


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def torn_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:40])


def strange_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"config_hash": "abc", "files": [7]}')


def other_position(folder: Path) -> None:
    path = folder / "position.json"
    path.write_text(path.read_text().replace('"samples": 8', '"samples": 9'))


def other_config(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"abc"', '"abd"'))


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (truncate, "is damaged"),
        (flip, "is damaged"),
        (remove, "is missing"),
        (escape, "lies outside"),
        (climb, "lies outside"),
        (no_manifest, "manifest cannot be read"),
        (torn_manifest, "manifest cannot be read"),
        (strange_manifest, "manifest cannot be read"),
        (other_position, "position.json is damaged"),
        (other_config, "another configuration"),
    ],
)
def test_harmed_is_passed_over_and_said(
    harm: Callable[[Path], None], problem: str, tmp_path: Path
) -> None:
    save(tmp_path, [1, 2])
    harm(checkpoint.step_dir(tmp_path, 2))
    folder, passed_over = checkpoint.newest(tmp_path, "abc")
    assert folder == checkpoint.step_dir(tmp_path, 1)
    (said,) = passed_over
    assert said.startswith("checkpoint step-00000002 is not used: ")
    assert problem in said


def test_when_all_are_harmed_none_is_used(tmp_path: Path) -> None:
    save(tmp_path, [1, 2])
    for step in (1, 2):
        flip(checkpoint.step_dir(tmp_path, step))
    folder, passed_over = checkpoint.newest(tmp_path, "abc")
    assert folder is None
    assert len(passed_over) == 2


def test_a_file_the_manifest_does_not_know_is_never_read(tmp_path: Path) -> None:
    save(tmp_path, [1])
    path = only_state_file(tmp_path, 1)
    forged = {key: tensor + 100 for key, tensor in load_file(path).items()}
    for name in ("rank-00000-00009.safetensors", "zzz.safetensors"):
        save_file(forged, path.with_name(name))
    folder, _ = checkpoint.newest(tmp_path, "abc")
    if folder is not None:
        value = checkpoint.read_state(folder)("layer.weight")["param"]
        assert torch.equal(value, torch.full((2, 3), 1.0))


def test_a_half_written_one_is_no_checkpoint_and_is_cleared_away(tmp_path: Path) -> None:
    save(tmp_path, [1])
    partial = tmp_path / "checkpoints" / ".step-00000002.partial"
    shutil.copytree(checkpoint.step_dir(tmp_path, 1), partial)
    assert checkpoint.newest(tmp_path, "abc")[0] == checkpoint.step_dir(tmp_path, 1)
    save(tmp_path, [3])
    assert not partial.exists()


def test_saving_again_replaces_what_is_there(tmp_path: Path) -> None:
    save(tmp_path, [1])
    flip(checkpoint.step_dir(tmp_path, 1))
    save(tmp_path, [1])
    assert checkpoint.verify(checkpoint.step_dir(tmp_path, 1), "abc") is None


@pytest.mark.parametrize(
    ("keep", "best", "kept"),
    [(1, None, [6]), (2, None, [5, 6]), (2, 3, [3, 5, 6]), (2, 6, [5, 6]), (9, 1, [*range(1, 7)])],
)
def test_pruning_keeps_the_newest_and_the_best(
    keep: int, best: int | None, kept: list[int], tmp_path: Path
) -> None:
    save(tmp_path, range(1, 7), keep=keep, best=best)
    left = sorted(os.listdir(tmp_path / "checkpoints"))
    assert left == [f"step-{step:08d}" for step in kept]
    assert all(checkpoint.verify(tmp_path / "checkpoints" / name, "abc") is None for name in left)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(TrainError, match=r"step-00000001 cannot be written: .*director") as caught:
        save(tmp_path, [1])
    assert "run the same command again" in caught.value.hint
