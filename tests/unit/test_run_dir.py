"""Who owns a run directory, what is continued and what is refused."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distft import run_dir
from distft.errors import ConfigError, DistftError, PlanError
from distft.records import DataRecord, ModelRecord, RunRecord, write_json

HOLDER = """
import sys
from pathlib import Path
from distft import run_dir
with run_dir.claimed(Path(sys.argv[1]), fresh=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def record(config_hash: str = "abc", **more: Any) -> RunRecord:
    return RunRecord(
        name="r",
        status=more.pop("status", "interrupted"),
        config_hash=config_hash,
        config={},
        data=DataRecord(manifest="m", rows={}, tokens={}),
        model=ModelRecord(id="m", params=1, trainable_params=1),
        world_size=1,
        zero_stage=0,
        seeds={},
        versions={},
        started="2026-01-01T00:00:00+00:00",
        duration_s=1.0,
        **more,
    )


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """A directory with a run of configuration abc."""
    folder = tmp_path / "r"
    folder.mkdir()
    write_json(folder / "run.json", record().model_dump())
    return folder


def refused(error: DistftError, *words: str) -> None:
    assert error.exit_code == 3
    assert all(word in str(error) for word in words), str(error)
    assert error.hint


@pytest.mark.parametrize("make", [False, True])
def test_a_new_or_empty_directory_is_free(make: bool, tmp_path: Path) -> None:
    if make:
        (tmp_path / "r").mkdir()
    assert run_dir.check_free(tmp_path / "r", "abc", fresh=False) is None


@pytest.mark.parametrize("status", ["completed", "failed", "interrupted"])
def test_the_same_configuration_continues(status: Any, held: Path) -> None:
    write_json(held / "run.json", record(status=status).model_dump())
    found = run_dir.check_free(held, "abc", fresh=False)
    assert found is not None
    assert found.status == status


def test_another_configuration_is_refused(held: Path) -> None:
    with pytest.raises(PlanError) as caught:
        run_dir.check_free(held, "xyz", fresh=False)
    refused(caught.value, str(held), "abc", "xyz")
    assert "--fresh" in caught.value.hint


def test_fresh_takes_another_configuration(held: Path) -> None:
    assert run_dir.check_free(held, "xyz", fresh=True) is None
    assert (held / "run.json").exists(), "checking deletes nothing"
    with run_dir.claimed(held, fresh=True):
        assert list(held.iterdir()) == []


@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_no_run_is_never_touched(fresh: bool, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(PlanError) as caught:
        run_dir.check_free(tmp_path, "abc", fresh=fresh)
    refused(caught.value, "no run.json")


@pytest.mark.parametrize("fresh", [False, True])
def test_a_study_is_refused(fresh: bool, held: Path) -> None:
    (held / "study.journal").touch()
    with pytest.raises(PlanError) as caught:
        run_dir.check_free(held, "abc", fresh=fresh)
    refused(caught.value, "study, not a run")


@pytest.mark.parametrize("fresh", [False, True])
def test_a_file_in_its_place_is_refused(fresh: bool, tmp_path: Path) -> None:
    (tmp_path / "r").write_text("x")
    with pytest.raises(PlanError) as caught:
        run_dir.check_free(tmp_path / "r", "abc", fresh=fresh)
    refused(caught.value, "is a file")


def test_a_broken_record_is_said(held: Path) -> None:
    (held / "run.json").write_text('{"schema_version": 99}')
    with pytest.raises(ConfigError, match="not a run record of schema 1"):
        run_dir.check_free(held, "abc", fresh=False)


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(PlanError) as caught, run_dir.claimed(folder, fresh=True):
            pass
        refused(caught.value, "Another process is working")
        assert folder.is_dir(), "the holder's directory is not deleted by a refused --fresh"
        # Neither does a killed holder leave it locked.
        holder.kill()
        holder.wait()
        with run_dir.claimed(folder, fresh=False):
            assert folder.is_dir()


def test_the_lock_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_dir.claimed(tmp_path / "r", fresh=False):
        _ = 1 / 0
    with run_dir.claimed(tmp_path / "r", fresh=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def unusable(kind: str, tmp_path: Path) -> Path:
    if kind == "file":
        (tmp_path / "file").write_text("x")
        return tmp_path / "file" / "runs"
    if kind == "dangling":
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        return tmp_path / "link" / "runs"
    return Path("/proc/distft-runs")


@contextlib.contextmanager
def _checked(output_dir: Path) -> Iterator[None]:
    """What `train` does before it starts: look without making anything, then try."""
    run_dir.check_writable(output_dir)
    with run_dir.claimed(output_dir / "r", fresh=False):
        yield


@pytest.mark.parametrize("kind", ["file", "dangling", "proc"])
def test_a_place_that_cannot_be_written_is_wrong_input(kind: str, tmp_path: Path) -> None:
    """Also for root, to whom permissions deny nothing."""
    output_dir = unusable(kind, tmp_path)
    with pytest.raises(ConfigError) as caught, _checked(output_dir):
        pass
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"output_dir: {output_dir} can")
    assert "Set output_dir" in caught.value.hint


def test_checking_a_place_makes_nothing(tmp_path: Path) -> None:
    run_dir.check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_the_resolved_config_gives_the_same_plan(tiny_bert: Path, tmp_path: Path) -> None:
    from distft.capacity import Capacity
    from distft.config_file import load, parse
    from distft.data.stats import DataStats
    from distft.plan import make_plan

    config = parse(
        {
            "name": "r",
            "model": str(tiny_bert),
            "task": "seq_cls",
            "data": {"train": "f", "format": "classification"},
            "cluster": {"num_workers": 3},
        }
    )
    rows = {"train": 100, "eval": 10, "test": 10}
    stats = DataStats(rows, 9.5, 30, ["a: #1", "\u597d"], exact=True)
    capacity = Capacity(1, 4, 1 << 33, 0, 0, "a test")
    plan = make_plan(config, stats, capacity)
    run_dir.write_start(tmp_path, config, plan, record())
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    again = make_plan(load(tmp_path / "config.yaml"), stats, capacity)
    assert again.model_dump(exclude={"reasons"}) == plan.model_dump(exclude={"reasons"})
    plain = yaml.safe_load(text)
    for dotted, reason in plan.reasons.items():
        section, key = dotted.split(".")
        assert plain[section][key] is not None, dotted
        (line,) = [one for one in text.splitlines() if one.startswith(f"  {key}:")]
        assert line.endswith(f"  # {reason}")
