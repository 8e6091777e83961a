"""Jobs as far as no cluster is needed: their numbers, their files, how they ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError

from distft import training
from distft.config_file import load, parse
from distft.errors import ClusterError
from distft.launch import trainer
from distft.launch.attempt import (
    CONFIG_FILE,
    check_secrets,
    digest_of,
    exit_code,
    files_of,
    next_attempt,
    on_storage,
    submission_id,
)
from distft.launch.probe import local_paths
from distft.run_dir import JOB_VARIABLE, with_this_job


@pytest.mark.parametrize(
    ("known", "recorded", "number"),
    [
        (0, [], 1),
        (3, [], 4),
        (0, ["reviews-a1", "reviews-a2"], 3),
        (1, ["reviews-a1", "reviews-a7"], 8),
        (2, ["reviews-a2-a9", "other-a9", "reviews-ab"], 3),
    ],
)
def test_an_attempt_is_never_one_that_was_used(
    known: int, recorded: list[str], number: int
) -> None:
    """Neither one of the cluster's jobs nor, where its head is new, one the record names."""
    assert next_attempt("reviews", known, recorded) == number
    assert submission_id("reviews", number) not in recorded


@pytest.mark.parametrize(
    ("state", "driver", "code"),
    [
        ("pending", None, None),
        ("running", None, None),
        ("succeeded", 0, 0),
        ("stopped", None, 130),
        ("failed", 2, 2),
        ("failed", 3, 3),
        ("failed", 4, 4),
        ("failed", 75, 75),
        ("failed", 130, 130),
        ("failed", 1, 4),
        ("failed", 127, 4),
        ("failed", -9, 75),
        ("failed", 137, 75),
        ("failed", None, 75),
    ],
)
def test_what_was_killed_may_be_tried_again_and_what_failed_may_not(
    state: str, driver: int | None, code: int | None
) -> None:
    assert exit_code(state, driver) == code  # type: ignore[arg-type]  # the table's words


def test_a_job_takes_its_resolved_config_along_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "reviews.yaml"
    path.write_text("model: asset:minilm-l6\ndata: {train: reviews.csv}\n", encoding="utf-8")
    config = training.with_absolute_paths(load(path, ["train.max_steps=7"]))
    files = files_of(config)
    assert list(files) == [CONFIG_FILE]
    (tmp_path / CONFIG_FILE).write_text(files[CONFIG_FILE], encoding="utf-8")
    there = load(tmp_path / CONFIG_FILE)
    assert there.cluster.address == "auto"
    assert there.name == "reviews"
    assert there.train.max_steps == 7
    assert there.run_dir.is_absolute()
    assert Path(str(there.data.train)).is_absolute()
    # The address stands for no setting: the same config from another place is the same job.
    moved = config.model_copy(
        update={"cluster": config.cluster.model_copy(update={"address": "x"})}
    )
    assert digest_of("train", files_of(moved)) == digest_of("train", files)
    other = training.with_absolute_paths(load(path, ["train.max_steps=8"]))
    assert digest_of("train", files_of(other)) != digest_of("train", files)
    assert digest_of("tune", files) != digest_of("train", files)


def test_a_relative_output_directory_lies_below_the_storage() -> None:
    plain = {"name": "x", "model": "m", "data": {"train": "rows.jsonl"}}
    shared = {**plain, "cluster": {"storage": "/mnt/shared"}}
    assert on_storage(parse(shared)).output_dir == "/mnt/shared/runs"
    assert on_storage(parse({**shared, "output_dir": "/else/runs"})).output_dir == "/else/runs"
    assert on_storage(parse(plain)).output_dir == "runs"


def test_paths_to_look_for_are_those_of_disks() -> None:
    config = parse(
        {
            "name": "x",
            "model": "/models/m",
            "data": {
                "train": ["/rows/a.jsonl", "s3://bucket/b.jsonl"],
                "eval": "/rows/e.jsonl",
                "test": 0.1,
                "mix": {"/more/*.jsonl": 0.2},
            },
        }
    )
    wanted = ["/models/m", "/rows/a.jsonl", "/rows/e.jsonl", "/more/*.jsonl"]
    assert local_paths(config) == wanted
    assert local_paths(parse({"name": "x", "model": "hub/id", "data": {"train": "asset:a"}})) == [
        "asset:a"
    ]


@pytest.mark.parametrize(
    "raw",
    [
        {"tune": {"storage": "postgresql://me:hush@db/optuna"}},
        {"data": {"train": "s3://key:hush@bucket/rows.jsonl"}},
    ],
)
def test_a_password_is_refused_and_not_repeated(raw: dict[str, object]) -> None:
    plain = {"name": "x", "model": "m", "data": {"train": "rows.jsonl"}, **raw}
    with pytest.raises(ClusterError, match="holds a password") as caught:
        check_secrets(parse(plain))
    assert "hush" not in f"{caught.value} {caught.value.hint}"


def test_addresses_without_a_password_pass() -> None:
    plain = {"name": "x", "model": "m", "data": {"train": "s3://bucket/a:b@c.jsonl"}}
    check_secrets(parse({**plain, "tune": {"storage": "postgresql://me@db:5432/optuna"}}))


def test_a_record_names_the_jobs_that_worked_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    assert with_this_job(["x-a1"]) == ["x-a1"]
    monkeypatch.setenv(JOB_VARIABLE, "x-a2")
    assert with_this_job([]) == ["x-a2"]
    assert with_this_job(["x-a1"]) == ["x-a1", "x-a2"]
    assert with_this_job(["x-a1", "x-a2"]) == ["x-a1", "x-a2"]


@pytest.mark.parametrize(
    ("cause", "lost"),
    [
        (ActorDiedError(), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (RuntimeError("Connection reset by peer"), True),
        (RuntimeError("NCCL error: remote process exited"), True),
        (OutOfMemoryError("task was killed"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("x"), False),
    ],
)
def test_a_lost_peer_is_told_from_what_the_run_raised(cause: Exception, lost: bool) -> None:
    assert trainer._is_loss(cause) is lost
