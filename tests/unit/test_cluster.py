"""What lies in `cluster/` is what the package makes, and what its readers accept."""

from __future__ import annotations

import copy
import importlib.util
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from distft import api, config_file
from tests import manifests

FOLDER = Path(__file__).parents[2] / "cluster"
BY_HAND = {"README.md", "generate.py", "settings-cpu.yaml", "settings-gpu.yaml"}


def _generated() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files: dict[str, str] = module.generated()
    return files


FILES = _generated()
KUBERNETES = sorted(name for name in FILES if name.startswith("kuberay/"))
SCRIPTS = sorted(name for name in FILES if name.endswith(".sh"))
LAUNCHERS = sorted(name for name in FILES if name.startswith("ray/"))


@pytest.mark.parametrize("name", FILES)
def test_a_committed_file_is_what_is_generated(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == FILES[name], "run `make cluster`"


def test_nothing_else_lies_there() -> None:
    found = {
        path.relative_to(FOLDER).as_posix()
        for path in FOLDER.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found - {"ray-token"} == BY_HAND | set(FILES)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_what_the_settings_start_is_enough_for_their_run(kind: str) -> None:
    raw = yaml.safe_load((FOLDER / f"settings-{kind}.yaml").read_text(encoding="utf-8"))
    if kind == "gpu":
        # Its model and data are elsewhere: the same model's sizes, and rows like its preset's.
        preset = yaml.safe_load((FOLDER.parent / "configs" / "full-8b-1node.yaml").read_text())
        raw["model"]["shape"] = preset["model"]["shape"]
        raw["data"]["assumed"] = preset["data"]["assumed"]
    made = api.plan(config_file.parse(raw))
    assert made.world_size == raw["cluster"]["num_workers"]
    assert made.zero_stage == raw["cluster"]["zero_stage"]
    assert made.memory.peak_bytes <= made.memory.available_bytes
    assert made.device == ("cuda" if kind == "gpu" else "cpu")


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_and_kuberay_accept(name: str) -> None:
    for part in manifests.parts(FILES[name]):
        manifests.check_part(part)


def _job() -> dict[str, Any]:
    return manifests.parts(FILES["kuberay/rayjob-gpu.yaml"])[1]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("spec", "backOffLimit"), 3),
        (("spec", "backoffLimit"), "3"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "password"),
        (("spec", "rayClusterSpec", "headGroupSpec", "replicas"), 1),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"), 0.5),
    ],
)
def test_kuberays_schema_refuses(where: tuple[Any, ...], value: Any) -> None:
    part = copy.deepcopy(_job())
    inner = part
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        manifests.check_part(part)


def test_kubernetes_schema_refuses() -> None:
    (claim,) = manifests.parts(FILES["kuberay/storage.yaml"])
    claim["spec"]["size"] = "1Gi"
    with pytest.raises(kubernetes_validate.ValidationError):
        manifests.check_part(claim)


def test_compose_accepts() -> None:
    manifests.check_compose(FILES["compose.yaml"])


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head.update(health_check={"test": ["CMD", "true"]}),
        lambda head: head.update(shm_size={"size": 1}),
        lambda head: head["secrets"].append("unknown"),
    ],
)
def test_compose_refuses(change: Callable[[dict[str, Any]], None]) -> None:
    data = yaml.safe_load(FILES["compose.yaml"])
    change(data["services"]["head"])
    with pytest.raises(Exception, match=r"health_check|shm_size|unknown|invalid|error"):
        manifests.check_compose(yaml.safe_dump(data))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_cluster_launcher_accepts(name: str) -> None:
    manifests.check_launcher(FILES[name])
    data = yaml.safe_load(FILES[name])
    data["avaliable_node_types"] = {}
    with pytest.raises(jsonschema.ValidationError):
        manifests.check_launcher(yaml.safe_dump(data))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_launchers_commands_are_clean(name: str) -> None:
    data = yaml.safe_load(FILES[name])
    for key, commands in data.items():
        if key.endswith("_commands"):
            script = "#!/bin/bash\n" + "".join(f"{line}\n" for line in commands)
            # The head's address is a variable that Ray sets; unquoted as in all of Ray's examples.
            assert manifests.complaints("shellcheck", script, "--exclude=SC2086,SC2154") == ""


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_clean(name: str) -> None:
    assert manifests.complaints("shellcheck", FILES[name]) == ""


def test_shellcheck_sees() -> None:
    assert "SC2086" in manifests.complaints("shellcheck", "#!/bin/bash\nrm -rf $1/x\n")


def test_the_commands_inside_manifests_are_clean() -> None:
    scripts = []
    for part in manifests.parts(FILES["kuberay/redis.yaml"]):
        if part["kind"] == "StatefulSet":
            (container,) = part["spec"]["template"]["spec"]["containers"]
            probes = [container[key]["exec"]["command"] for key in container if "Probe" in key]
            scripts += [command[2] for command in (container["command"], *probes)]
    for name in ("cpu", "gpu"):
        scripts.append(
            manifests.parts(FILES[f"kuberay/rayjob-{name}.yaml"])[1]["spec"]["entrypoint"]
        )
    assert len(scripts) == 5
    for script in scripts:
        assert manifests.complaints("shellcheck", f"#!/bin/sh\n{script}\n") == ""


def test_the_dockerfile_is_clean() -> None:
    assert manifests.complaints("hadolint", FILES["Dockerfile"], "--no-color") == ""
    root = FILES["Dockerfile"].replace("USER $USER_ID", "USER root")
    assert "DL3002" in manifests.complaints("hadolint", root, "--no-color")


def test_the_image_holds_what_the_repository_pins() -> None:
    lines = [line for line in FILES["Dockerfile"].splitlines() if "pip install" in line]
    assert len(lines) == 4
    # torch has pinned CUDA's version, which the compiler must have.
    assert [line.split('"')[1] for line in lines if "constraints.txt" not in line] == [
        "cuda-toolkit[nvcc,cccl]"
    ]
    assert shlex.split(FILES["Dockerfile"].splitlines()[-1])[0] == "CMD"


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_head_trains_nothing_and_all_share_what_they_must(kind: str) -> None:
    for file in (f"kuberay/raycluster-{kind}.yaml", f"kuberay/rayjob-{kind}.yaml"):
        part = manifests.parts(FILES[file])[-1]
        spec = manifests.cluster_spec(part)
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["enableInTreeAutoscaling"] is True
        assert ("gcsFaultToleranceOptions" in spec) is (part["kind"] == "RayCluster")
        for pod in manifests.pods(part):
            (container,) = pod["containers"]
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {"readinessProbe", "livenessProbe"} <= set(container)
            assert "/mnt/distft" in [mount["mountPath"] for mount in container["volumeMounts"]]
            assert pod["securityContext"]["runAsNonRoot"] is True
        on_demand, spot = spec["workerGroupSpecs"]
        assert "nodeSelector" not in on_demand["template"]["spec"]
        assert spot["template"]["spec"]["nodeSelector"]
        assert (on_demand["minReplicas"], spot["minReplicas"]) == (2, 0)
    assert ("nvidia.com/gpu" in FILES[f"kuberay/rayjob-{kind}.yaml"]) is (kind == "gpu")
