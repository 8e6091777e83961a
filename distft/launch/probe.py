"""What a job will meet, asked on every node before it starts.

Run as `python -m distft.launch.probe CONFIG`; its last line of output is a `Found` as JSON.
"""

from __future__ import annotations

import glob
import json
import os
import sys
import uuid
from pathlib import Path

import ray
from pydantic import BaseModel
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distft import assets, config_file
from distft.config import RunConfig
from distft.data import files
from distft.errors import ConfigError, LostError

ANSWER_S = 60
"""Longest wait for a node."""


class Found(BaseModel):
    """What the nodes see of a run."""

    jobs: list[str] = []
    """Ids of the jobs that worked on the run directory, as its record has them."""
    completed: bool = False
    """Whether the run or study is."""
    unseen: list[tuple[str, str]] = []
    """(address of a node, path that it does not see)."""
    unshared: list[str] = []
    """Addresses of nodes that do not see, or may not write to, the output directory."""


def local_paths(config: RunConfig) -> list[str]:
    """Return what a run reads from disk: paths, globs and packaged assets, not addresses.

    Args:
        config: With absolute paths.

    Returns:
        Each once.
    """
    data = config.data
    specs = [config.model.id] if os.path.isabs(config.model.id) else []
    for given in (data.train, data.eval, data.test, list(data.mix)):
        named = given if isinstance(given, list) else [given]
        specs += [spec for spec in named if isinstance(spec, str)]
    specs = [spec for spec in specs if not files.is_address(spec)]
    return list(dict.fromkeys(specs))


def probe(config: RunConfig) -> Found:
    """Return what the nodes of the connected cluster see of a run.

    Args:
        config: With absolute paths.

    Returns:
        See `Found`. A folder made to find out is removed again.
    """
    found = _recorded(config.run_dir)
    output = Path(config.output_dir)
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    marker = output / f".probe-{uuid.uuid4().hex}"
    writable = _touched(marker)
    try:
        asked = {
            node["NodeManagerAddress"]: ray.remote(num_cpus=0)(_look)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(local_paths(config), str(marker))
            for node in ray.nodes()
            if node["Alive"]
        }
        answers = {at: ray.get(answer, timeout=ANSWER_S) for at, answer in asked.items()}
    finally:
        marker.unlink(missing_ok=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    found.unseen = sorted((at, path) for at, (unseen, _) in answers.items() for path in unseen)
    found.unshared = sorted(at for at, (_, seen) in answers.items() if not (writable and seen))
    return found


def _touched(marker: Path) -> bool:
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError:
        return False
    return True


def _look(paths: list[str], marker: str) -> tuple[list[str], bool]:
    shared = os.path.isfile(marker) and os.access(os.path.dirname(marker), os.W_OK)
    return [path for path in paths if not _is_here(path)], shared


def _is_here(path: str) -> bool:
    if not path.startswith(assets.PREFIX):
        return os.path.exists(path) or bool(glob.glob(path, recursive=True))
    try:
        name = path.removeprefix(assets.PREFIX)
        assets.resolve(path, assets.ASSETS[name].kind)
    except (ConfigError, KeyError):
        return False
    return True


def _recorded(run_dir: Path) -> Found:
    for name in ("run.json", "study.json"):
        if (run_dir / name).is_file():
            record = json.loads((run_dir / name).read_text(encoding="utf-8"))
            done = record.get("status") == "completed"
            return Found(jobs=record.get("jobs", []), completed=done)
    return Found()


if __name__ == "__main__":
    # First: ray.init moves the process to the node's own copy of the job's files.
    given = config_file.load(sys.argv[1])
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
        sys.stdout.write(probe(given).model_dump_json() + "\n")
    except RayError as error:
        sys.stdout.write(f"a node was lost or does not answer: {type(error).__name__}\n")
        sys.exit(LostError.exit_code)
