"""Writes what lies in this folder from its two settings files; `make cluster` runs it."""

from __future__ import annotations

from pathlib import Path

from distft.config_file import load
from distft.emit import compose, dockerfile, kuberay, ray, slurm
from distft.emit.settings import Settings, settings

HERE = Path(__file__).parent
STORAGE = "500Gi"


def generated() -> dict[str, str]:
    """Return the text of every generated file by its path in this folder."""
    cpu, gpu = _settings("cpu"), _settings("gpu")
    files = {
        "Dockerfile": dockerfile.emit(cpu),
        "compose.yaml": compose.emit(cpu),
        "kuberay/redis.yaml": kuberay.redis(),
        "kuberay/storage.yaml": kuberay.storage(STORAGE),
    }
    for kind, each in (("cpu", cpu), ("gpu", gpu)):
        shared = each.model_copy(update={"name": kind})
        files[f"kuberay/raycluster-{kind}.yaml"] = kuberay.cluster(shared)
        files[f"kuberay/rayjob-{kind}.yaml"] = kuberay.emit(each)
        files[f"ray/aws-{kind}.yaml"] = ray.emit(each)
        files[f"slurm/job-{kind}.sh"] = slurm.emit(each)
    return files


def _settings(kind: str) -> Settings:
    return settings(load(HERE / f"settings-{kind}.yaml"), "train")


if __name__ == "__main__":
    for name, text in generated().items():
        path = HERE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
