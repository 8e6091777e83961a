"""Manifests in tests: every artefact of some settings, and the checks of other programs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from compose_spec import PyCompose

from distft.emit import compose, dockerfile, kuberay, ray, slurm
from distft.emit.settings import Settings

ARTEFACTS: Mapping[str, Callable[[Settings], str]] = {
    "kuberay job": kuberay.emit,
    "kuberay cluster": kuberay.cluster,
    "slurm": slurm.emit,
    "ray": ray.emit,
    "compose": compose.emit,
    "dockerfile": dockerfile.emit,
}
SCHEMAS = Path(__file__).parent / "data" / "kuberay"
KINDS = {"RayCluster": "rayclusters.v1.schema.json", "RayJob": "rayjobs.v1.schema.json"}


def parts(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


@lru_cache
def kuberay_validator(kind: str) -> jsonschema.Draft202012Validator:
    """Return KubeRay's schema as JSON Schema that refuses unknown fields, as KubeRay does."""
    schema = json.loads((SCHEMAS / KINDS[kind]).read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(_strict(schema))


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if "properties" in made:
        made["properties"] = {name: _strict(each) for name, each in made["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in made:
            made[key] = _strict(made[key])
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in made and not open_ended:
        made.setdefault("additionalProperties", False)
    return made


def check_part(part: Mapping[str, Any]) -> None:
    """Validate a Kubernetes object, and every pod in one of KubeRay's."""
    if part["kind"] not in KINDS:
        kubernetes_validate.validate(part, kubernetes_validate.latest_version(), strict=True)
        return
    kuberay_validator(part["kind"]).validate(part)
    for spec in pods(part):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def cluster_spec(part: Mapping[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = part["spec"]
    return spec["rayClusterSpec"] if part["kind"] == "RayJob" else spec


def pods(part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    spec = cluster_spec(part)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]["spec"]


def check_compose(text: str) -> None:
    made = PyCompose.from_yaml(text)
    made.validate()
    made.to_spec()


def check_launcher(text: str) -> None:
    """Validate against the schema that `ray up` uses."""
    found = find_spec("ray")
    assert found is not None
    folder = Path(str(found.origin)).parent
    schema = json.loads((folder / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(yaml.safe_load(text), schema)


def complaints(program: str, text: str, *options: str) -> str:
    """Return what shellcheck or hadolint has to say about a text."""
    path = Path(sys.executable).parent / program
    done = subprocess.run(
        [path, *options, "-"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


def job_config(name: str, text: str) -> str:
    """Return the text of the configuration that an artefact carries."""
    if name == "kuberay job":
        (found,) = parts(text)[0]["data"].values()
    elif name == "compose":
        found = yaml.safe_load(text)["configs"]["job"]["content"].replace("$$", "$")
    elif name == "slurm":
        found = re.findall(r"<<'DISTFT_CONFIG'\n(.*?)DISTFT_CONFIG\n", text, re.DOTALL)[0]
    elif name == "ray":
        (command,) = yaml.safe_load(text)["head_setup_commands"]
        done = subprocess.run(
            ["bash", "-c", command.rpartition(" > ")[0]], capture_output=True, text=True, check=True
        )
        found = done.stdout
    else:
        raise ValueError(name)
    return str(found)
