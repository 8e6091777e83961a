"""One configuration, one set of settings, seen in every manifest; what no manifest may hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from distft import __version__, api, cli
from distft.config import RunConfig
from distft.config_file import load, parse
from distft.emit.settings import Settings, settings
from distft.errors import ClusterError, ConfigError, DistftError
from tests import manifests

ROOT = Path(__file__).parents[2]
BASE = {
    "name": "run",
    "model": "org/model",
    "data": {"train": "s3://bucket/train.jsonl"},
    "cluster": {
        "num_workers": 2,
        "storage": "/mnt/shared",
        "nfs": "files.example.org:/x",
        "offload": "nvme",
        "nvme_path": "/mnt/nvme",
        "shape": {"nodes": 2, "cpus": 8, "memory": "16GiB"},
    },
}


def config(**changes: Any) -> RunConfig:
    raw = json.loads(json.dumps(BASE))
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        target = raw
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = value
    return parse(raw)


def made(**changes: Any) -> Settings:
    return settings(config(**changes), "train")


# Setting -> value, and what of it stands in which artefact. What is missing is not that artefact's:
# a script for Slurm uses the environment it finds and no image, an image knows of no cluster, and
# what runs in an image has the image's Ray.
SEEN: Mapping[str, tuple[Any, Mapping[str, Sequence[str]]]] = {
    "name": (
        "other",
        {
            "kuberay job": ["name: distft-other", "/etc/distft/other.yaml"],
            "kuberay cluster": ["name: distft-other"],
            "slurm": ["--job-name=distft-other", '"$STATE/"other.yaml'],
            "ray": ["cluster_name: distft-other", "/home/distft/other.yaml"],
            "compose": ["name: distft-other", "/home/distft/other.yaml"],
        },
    ),
    "cluster__shape__nodes": (
        7,
        {
            "kuberay job": ["replicas: 7", "minReplicas: 7", "maxReplicas: 7"],
            "kuberay cluster": ["replicas: 7"],
            "slurm": ["#SBATCH --nodes=7"],
            "ray": ["min_workers: 7", "max_workers: 14"],
            "compose": ["replicas: 7"],
        },
    ),
    "cluster__shape__cpus": (
        13,
        {
            "kuberay job": ["cpu: '13'"],
            "kuberay cluster": ["cpu: '13'"],
            "slurm": ["#SBATCH --cpus-per-task=13", "--num-cpus=13"],
            "ray": ["CPU: 13", "m7i.4xlarge"],
            "compose": ["cpus: '13'", "--num-cpus=13"],
        },
    ),
    "cluster__shape__memory": (
        "40GiB",
        {
            "kuberay job": ["memory: 40960Mi", "sizeLimit: 10240Mi", f"'{8 << 30}'"],
            "kuberay cluster": ["memory: 40960Mi", "sizeLimit: 10240Mi", f"'{8 << 30}'"],
            "slurm": ["#SBATCH --mem=40960M", f"--object-store-memory={8 << 30}"],
            "ray": ["--shm-size=10240m", f"--object-store-memory={8 << 30}", "m7i.4xlarge"],
            "compose": ["memory: 40960m", "shm_size: 10240m", f"--object-store-memory={8 << 30}"],
        },
    ),
    "cluster__shape__gpus": (
        8,
        {
            "kuberay job": ["nvidia.com/gpu: '8'", f"image: distft:{__version__}-cuda"],
            "kuberay cluster": ["nvidia.com/gpu: '8'", f"image: distft:{__version__}-cuda"],
            "slurm": ["#SBATCH --gpus-per-node=8", "--num-gpus=8"],
            "ray": ["GPU: 8", "p5.48xlarge", f"image: distft:{__version__}-cuda"],
            "compose": ["count: 8", "--num-gpus=8", "VARIANT: cuda"],
        },
    ),
    "cluster__shape__head_memory": (
        "32GiB",
        {
            "kuberay job": ["memory: 32768Mi", "sizeLimit: 8192Mi"],
            "kuberay cluster": ["memory: 32768Mi", "sizeLimit: 8192Mi"],
            "ray": ["--shm-size=8192m"],
            "compose": ["memory: 32768m", "shm_size: 8192m"],
        },
    ),
    "cluster__image": (
        "registry.example:5000/team/distft:7",
        {
            name: ["image: registry.example:5000/team/distft:7"]
            for name in ("kuberay job", "kuberay cluster", "ray", "compose")
        },
    ),
    "cluster__storage": (
        "/data/all",
        {
            "kuberay job": ["mountPath: /data/all\n", "value: /data/all/.cache", "/data/all/runs"],
            "kuberay cluster": ["mountPath: /data/all\n", "value: /data/all/.cache"],
            "slurm": ["STORAGE=/data/all\n", "output_dir: /data/all/runs"],
            "ray": ["--volume=/data/all:/data/all", "mkdir -p /data/all", "/data/all/runs"],
            "compose": ["storage:/data/all\n", "output_dir: /data/all/runs"],
            "dockerfile": ["--group=distft /data/all\n"],
        },
    ),
    "cluster__nvme_path": (
        "/opt/fast",
        {
            "kuberay job": ["mountPath: /opt/fast\n", "nvme_path: /opt/fast"],
            "kuberay cluster": ["mountPath: /opt/fast\n"],
            "slurm": ["nvme_path: /opt/fast"],
            "ray": ["--volume=/opt/fast:/opt/fast", "mkdir -p /opt/fast", '"/opt/fast"'],
            "compose": ["nvme_path: /opt/fast"],
        },
    ),
    "train__max_steps": (
        271,
        {
            "kuberay job": ["max_steps: 271"],
            "slurm": ["max_steps: 271"],
            "ray": ['"max_steps": 271'],
            "compose": ["max_steps: 271"],
        },
    ),
}


@pytest.mark.parametrize("artefact", manifests.ARTEFACTS)
@pytest.mark.parametrize("setting", SEEN)
def test_a_changed_setting_is_seen_in_every_artefact(setting: str, artefact: str) -> None:
    value, seen = SEEN[setting]
    emit = manifests.ARTEFACTS[artefact]
    before, after = emit(made()), emit(made(**{setting: value}))
    for text in seen.get(artefact, ()):
        assert text in after
        assert text not in before
    assert (before != after) is (artefact in seen)


@pytest.mark.parametrize(
    ("field", "artefacts"),
    [
        ("ray_version", {"kuberay job", "kuberay cluster", "slurm"}),
        ("python_version", {"dockerfile"}),
    ],
)
def test_a_changed_version_is_seen(field: str, artefacts: set[str]) -> None:
    changed = made().model_copy(update={field: "9.87"})
    found = {name for name, emit in manifests.ARTEFACTS.items() if "9.87" in emit(changed)}
    assert found == artefacts


def test_versions_stand_in_one_place() -> None:
    now = made()
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"ray=={now.ray_version}\n" in pins
    assert f"on Python {now.python_version}." in pins.splitlines()[0]
    for path in (ROOT / "distft" / "emit").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        for text in (now.ray_version, now.python_version, version("torch").split("+")[0]):
            assert text not in source, path


@pytest.mark.parametrize("artefact", manifests.ARTEFACTS)
@pytest.mark.parametrize("gpus", [0, 4])
def test_every_artefact_is_accepted(artefact: str, gpus: int) -> None:
    text = manifests.ARTEFACTS[artefact](made(cluster__shape__gpus=gpus))
    if artefact.startswith("kuberay"):
        for part in manifests.parts(text):
            manifests.check_part(part)
    elif artefact == "ray":
        manifests.check_launcher(text)
    elif artefact == "compose":
        manifests.check_compose(text)
    else:
        program = "shellcheck" if artefact == "slurm" else "hadolint"
        assert manifests.complaints(program, text) == ""


@pytest.mark.parametrize("artefact", ["kuberay job", "slurm", "ray", "compose"])
def test_the_jobs_configuration_reads_back(artefact: str, tmp_path: Path) -> None:
    given = config(
        data__train=["s3://b/it's $HOME.jsonl", 's3://b/\u00fc \\ "q".jsonl'],
        train__learning_rate=1e-5,
        method={"name": "lora", "r": 4},
        tune={"num_trials": 3, "policy": "none"},
    )
    text = manifests.ARTEFACTS[artefact](settings(given, "tune"))
    (tmp_path / "run.yaml").write_text(manifests.job_config(artefact, text), encoding="utf-8")
    read = load(tmp_path / "run.yaml")
    assert read.cluster.address == "auto"
    assert read.output_dir == "/mnt/shared/runs"
    kept = {"name", "model", "task", "data", "method", "train", "tune"}
    assert {key: read.dump()[key] for key in kept} == {key: given.dump()[key] for key in kept}
    assert "distft tune " in text


def test_the_command_is_the_configs() -> None:
    assert "distft train" in api.emit(config(), "slurm")
    assert "distft tune" in api.emit(config(tune={"num_trials": 3}), "slurm")
    assert "distft train" in api.emit(config(tune={"num_trials": 3}), "slurm", "train")


def test_packaged_data_are_fetched_on_the_cluster() -> None:
    given = made(model="asset:minilm-l6")
    job = manifests.parts(manifests.ARTEFACTS["kuberay job"](given))[1]
    assert job["spec"]["entrypoint"] == (
        'bash -c "python -m distft.assets && distft train /etc/distft/run.yaml"'
    )
    assert "python -m distft.assets\n" in manifests.ARTEFACTS["slurm"](given)
    assert "distft.assets" not in manifests.ARTEFACTS["slurm"](made())


def test_an_unset_shape_is_said() -> None:
    given = settings(config(cluster__shape=None), "train")
    for name in ("kuberay job", "slurm", "ray", "compose"):
        header = manifests.ARTEFACTS[name](given)[:700]
        assert "1 x 8 CPUs, 16.00 GiB (the default; set cluster.shape)" in header


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("run", "distft-run"),
        ("7b", "distft-7b"),
        ("a.b_c", r"distft-a-b-c-[0-9a-f]{6}"),
        ("x" * 63, r"distft-x{26}-[0-9a-f]{6}"),
    ],
)
def test_a_name_becomes_a_label(name: str, label: str) -> None:
    found = made(name=name).label
    assert re.fullmatch(label, found)
    # DNS-1035 and the length that KubeRay allows a job.
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
    assert len(found) <= 47


def test_two_names_have_two_labels() -> None:
    names = ["a.b", "a_b", "a-b", "y" * 60, "y" * 61]
    assert len({made(name=name).label for name in names}) == len(names)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"cluster__storage": None}, ConfigError, "cluster.storage=/mnt/distft"),
        ({"data__train": "rows.jsonl"}, ConfigError, "data.train: rows.jsonl is a path of this"),
        ({"data__train": "/home/me/rows.jsonl"}, ConfigError, "/mnt/shared/..."),
        ({"data__eval": ["s3://b/x.csv", "~/e.csv"]}, ConfigError, "data.eval: ~/e.csv"),
        ({"data__mix": {"more.csv": 0.2}}, ConfigError, "data.mix: more.csv"),
        ({"data__train": "/mnt/shared/../x.csv"}, ConfigError, "data.train"),
        ({"data__train": "/mnt/sharedx/x.csv"}, ConfigError, "data.train"),
        ({"model": "./model"}, ConfigError, "model: ./model"),
        ({"model": "/models/x"}, ConfigError, "model: /models/x"),
        ({"output_dir": "/scratch/runs"}, ConfigError, "does not lie below cluster.storage"),
        ({"output_dir": "../runs"}, ConfigError, "leads out of"),
        ({"cluster__num_workers": 16}, ClusterError, "need 17 CPUs"),
        ({"cluster__gpus_per_worker": 1}, ClusterError, "has no graphics cards"),
        (
            {"cluster__num_workers": 9, "cluster__shape__gpus": 4},
            ClusterError,
            "cluster.num_workers=8",
        ),
        (
            {"tune": {"storage": "postgresql://me:hunter2@host/db"}},
            ClusterError,
            "holds a password",
        ),
        ({"data__train": "s3://KEY:hunter2@bucket/x.csv"}, ClusterError, "holds a password"),
    ],
)
def test_what_cannot_work_is_refused(
    changes: dict[str, Any], error: type[DistftError], said: str
) -> None:
    with pytest.raises(error) as caught:
        made(**changes)
    text = f"{caught.value} {caught.value.hint}"
    assert said in text
    assert "hunter2" not in text
    assert caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"data__train": "/mnt/shared/data/rows.jsonl"},
        {"data__train": "hf://datasets/org/name/train.parquet"},
        {"data__train": "asset:vader-amazon"},
        {"model": "/mnt/shared/models/x"},
        {"output_dir": "/mnt/shared/me/runs"},
        {"cluster__shape__gpus": 1, "cluster__gpus_per_worker": 0},
    ],
)
def test_what_the_nodes_see_is_taken(changes: dict[str, Any]) -> None:
    assert made(**changes).storage == "/mnt/shared"


def test_machines_of_aws_hold_what_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.nfs is not set"):
        api.emit(config(cluster__nfs=None), "ray")
    with pytest.raises(ClusterError, match=r"No machine of AWS known here has 8 CPUs, .*, 9"):
        api.emit(config(cluster__shape__gpus=9), "ray")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("storage", "shared"),
        ("storage", "/mnt/$(reboot)"),
        ("storage", "/"),
        ("nfs", "host"),
        ("nfs", "host:/x y"),
        ("image", "a image"),
        ("image", "x; reboot"),
    ],
)
def test_words_that_would_break_a_manifest_are_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"cluster.{key}: must be "):
        config(**{f"cluster__{key}": value})


@pytest.mark.parametrize("artefact", manifests.ARTEFACTS)
def test_no_secret_of_the_environment_is_in_it(
    artefact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hunter2")
    text = manifests.ARTEFACTS[artefact](made())
    assert "hunter2" not in text
    # Where the token comes from is said, and that it is asked for.
    asked = {"kuberay job": "mode: token", "kuberay cluster": "mode: token"}
    assert asked.get(artefact, "RAY_AUTH_MODE") in text
    assert not re.search(r"RAY_AUTH_TOKEN\b(?!_PATH)", text)


def test_the_command_prints_the_manifest_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(BASE), encoding="utf-8")
    for target in ("kuberay", "slurm", "ray"):
        assert cli.main(["submit", str(path), "--emit", target]) == 0
        printed = capfd.readouterr()
        assert printed.out == api.emit(config(), target)
        assert printed.err == ""
    assert cli.main(["submit", str(path), "--emit", "slurm", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document == {"target": "slurm", "manifest": api.emit(config(), "slurm")}
    assert cli.main(["submit", str(path), "--emit", "slurm", "--wait"]) == 2
    assert "submits nothing" in capfd.readouterr().err
    assert cli.main(["submit", str(path), "--emit", "slurm", "cluster.storage=null"]) == 2
