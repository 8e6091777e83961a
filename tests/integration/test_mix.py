"""Mixed sets from their files to trained steps: prepared once, drawn exactly, continued exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from distft.capacity import local_capacity
from distft.config import RunConfig
from distft.config_file import parse
from distft.data.manifest import Manifest
from distft.data.prepare import prepare
from distft.data.reread import split_readings
from distft.data.sets import mix_of
from distft.data.shards import open_split
from distft.data.stats import sample_stats, stats_of
from distft.data.stream import stream
from distft.errors import ConfigError, DataError
from distft.plan import make_plan
from distft.train.job import Job, Order, make_engine, make_job
from distft.train.loop import train
from distft.training import resolved

pytestmark = pytest.mark.usefixtures("ray_cluster")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def messages(tag: str, count: int) -> list[dict[str, Any]]:
    turns = [(f"{tag} {i}", f"good {i % 10}") for i in range(count)]
    roles = ("user", "assistant")
    return [
        {"messages": [{"role": r, "content": c} for r, c in zip(roles, turn, strict=True)]}
        for turn in turns
    ]


def instructions(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"tell {i}", "output": f"fine {i}"} for i in range(count)]


def make(folder: Path, model: Path, mix: dict[str, float], **data: Any) -> RunConfig:
    """100 conversations, the eval rows a share of them, and two test rows in a file."""
    raw = {
        "name": "mixed",
        "output_dir": str(folder / "runs"),
        "model": str(model),
        "task": {"name": "sft", "max_new_tokens": 8},
        "data": {
            "train": write(folder / "mine.jsonl", messages("say", 100)),
            "test": write(folder / "test.jsonl", messages("held out", 2)),
            "cutoff_len": 64,
            "mix": mix,
            **data,
        },
        "method": {"name": "lora", "lora_dropout": 0.1},
        "train": {
            "num_train_epochs": 1.0,
            "global_batch_size": 10,
            "eval_steps": 5,
            "learning_rate": 1e-2,
            "logging_steps": 1,
        },
    }
    return resolved(parse(raw))


@pytest.fixture
def config(tmp_path: Path, chat_llama: Path) -> RunConfig:
    """Mixed with instructions, which are of another format, and with a few conversations."""
    held, mine = ("held out 1", "good 1"), ("say 5", "good 5")
    others = [{"instruction": one, "output": answer} for one, answer in (held, mine)]
    rows = [*instructions(150), *instructions(1), *others]
    few = write(tmp_path / "few.jsonl", messages("few", 6))
    return make(tmp_path, chat_llama, {write(tmp_path / "other.jsonl", rows): 0.2, few: 0.1})


def bytes_of(root: Path, manifest: Manifest) -> dict[str, bytes]:
    shards = [shard for info in manifest.splits.values() for shard in info.shards]
    return {shard.file: (root / shard.file).read_bytes() for shard in shards}


def test_sets_are_prepared_one_after_the_other_and_once_for_all_shares(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distft.data import shards

    monkeypatch.setattr(shards, "SHARD_ROWS", 256)
    monkeypatch.setattr(shards, "GROUP_ROWS", 32)
    root, manifest = prepare(config)
    assert [(one.format, one.rows) for one in manifest.training_sets] == [
        ("messages", 90),
        ("alpaca", 151),
        ("messages", 6),
    ]
    # A row of data.train may stand in a mixed set, too: naming both is asking for it.
    assert manifest.dropped == {"duplicate": 1, "also_in_test": 1}
    info = manifest.splits["train"]
    assert [(shard.file, shard.rows) for shard in info.shards] == [
        ("train-00000.parquet", 90),
        ("mix1-00000.parquet", 151),
        ("mix2-00000.parquet", 6),
    ]
    assert (info.rows, info.ended) == (247, 247)
    assert info.tokens == sum(one.tokens for one in manifest.training_sets)
    assert info.mean_length == pytest.approx(info.tokens / 247)
    reader = open_split(root, "train")
    assert [sample.sample_id for sample in reader.read(range(247))] == list(range(247))
    written = [pq.read_table(root / shard.file)["sample_id"].to_pylist() for shard in info.shards]
    assert [one for ids in written for one in ids] == list(range(247))

    # What is mixed in changes no split.
    assert [reading.row for reading in split_readings(config, "test", manifest.key)] == [1, 2]
    assert len(list(split_readings(config, "eval", manifest.key))) == 10

    shares = dict.fromkeys(config.data.mix, 0.05)
    other = config.model_copy(update={"data": config.data.model_copy(update={"mix": shares})})
    assert prepare(other, progress=refuse) == (root, manifest)
    assert other.hash(manifest.key, 8) != config.hash(manifest.key, 8)

    guess, truth = sample_stats(config), stats_of(manifest, config.data.mix_shares)
    assert guess.rows == truth.rows == {"train": 90, "eval": 10, "test": 2}
    assert list(guess.mixed_rows) == list(truth.mixed_rows) == [151, 6]
    # The sample holds the rows that are dropped, too.
    assert guess.mean_tokens == pytest.approx(truth.mean_tokens, rel=0.01)
    means = [one.tokens / one.rows for one in manifest.training_sets]
    assert truth.mean_tokens == pytest.approx(np.dot([0.7, 0.2, 0.1], means))


def refuse(done: int, total: int) -> None:
    raise AssertionError(f"{done} of {total} rows were tokenized again")


@pytest.mark.slow
def test_an_interrupted_preparation_of_sets_ends_in_the_same_bytes(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distft.data import shards

    monkeypatch.setattr(shards, "SHARD_ROWS", 32)
    monkeypatch.setattr(shards, "GROUP_ROWS", 32)
    whole = prepare(config)
    again = config.model_copy(update={"output_dir": str(tmp_path / "again")})

    def stop(done: int, total: int) -> None:
        # The shards of data.train and the first ones of the set after it are finished.
        if done >= 240:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(again, progress=stop)
    (begun,) = (tmp_path / "again" / "prepared").glob("*/")
    assert (begun / "mix1-00003.parquet").is_file()
    root, manifest = prepare(again)
    assert whole[1].tokenized_rows < manifest.tokenized_rows < 2 * whole[1].tokenized_rows
    tokenized = {"tokenized_rows": whole[1].tokenized_rows}
    assert manifest.model_copy(update=tokenized) == whole[1]
    assert bytes_of(root, manifest) == bytes_of(*whole)


def job_of(config: RunConfig, root: Path, manifest: Manifest, name: str) -> Job:
    made = make_plan(config, stats_of(manifest, config.data.mix_shares), local_capacity())
    order = Order(
        config=config.dump(),
        plan=made,
        run_dir=root.parent / name,
        data_root=root,
        config_hash=name[:3],
    )
    order.run_dir.mkdir(exist_ok=True)
    return make_job(order, 0, lambda _, plans: stream(root, "train", plans))


def logged(job: Job) -> tuple[list[list[int]], list[float]]:
    (file,) = (job.run_dir / "logs").glob("samples-*.jsonl")
    steps = [json.loads(line)["sample_ids"] for line in file.read_text().splitlines()]
    text = (job.run_dir / "metrics.jsonl").read_text()
    return steps, [line["loss"] for line in map(json.loads, text.splitlines()) if "loss" in line]


@pytest.mark.slow
def test_a_mixed_run_keeps_its_shares_and_continues_where_it_stopped(config: RunConfig) -> None:
    root, manifest = prepare(config)
    whole = job_of(config, root, manifest, "run-whole")
    lines = list(train(whole, make_engine(whole)))
    steps, losses = logged(whole)
    assert [len(ids) for ids in steps] == [10] * 12 + [8]
    mix = mix_of(manifest, config.data.mix_shares)
    ends = np.cumsum(mix.rows)
    taken = np.zeros(3, int)
    for number, ids in enumerate(steps):
        taken += np.bincount(np.searchsorted(ends, ids, side="right"), minlength=3)
        assert (np.abs(taken - np.array([0.7, 0.2, 0.1]) * taken.sum()) < 1).all(), number
    every = [one for ids in steps for one in ids]
    assert sorted(one for one in every if one < 90) == list(range(90))
    assert {one for one in every if one >= 241} == set(range(241, 247))
    assert len(set(every)) == 90 + taken[1] + 6
    assert [line["epoch"] for line in lines if "epoch" in line][-1] == 1.0
    assert losses[-1] < losses[0]

    stopped = job_of(config, root, manifest, "run-stopped")
    for line in train(stopped, make_engine(stopped)):
        if line.get("step") == 8:
            break
    stopped = job_of(config, root, manifest, "run-stopped")
    notes = [line["note"] for line in train(stopped, make_engine(stopped)) if "note" in line]
    assert "continued from step 5" in notes
    again, same_losses = logged(stopped)
    assert again == steps
    assert same_losses == pytest.approx(losses, abs=1e-6)


def test_wrong_sets_are_refused_with_what_is_wrong(
    tmp_path: Path, chat_llama: Path, config: RunConfig
) -> None:
    (good, share), _ = config.data.mix.items()
    wrong = {
        str(tmp_path / "othr.jsonl"): (DataError, r"data\.mix: .*othr\.jsonl does not exist"),
        write(tmp_path / "odd.jsonl", [{"review": "fine"}]): (
            ConfigError,
            r"data\.mix: the first rows of .*odd\.jsonl hold the fields review and fit no format",
        ),
        write(tmp_path / "held.jsonl", messages("held out", 2)): (
            DataError,
            r"data\.mix: .*held\.jsonl holds no usable row\. 2 rows were dropped; .*also_in_test",
        ),
        str(tmp_path / "oth*.jsonl"): (DataError, r"data\.mix: .*other\.jsonl is in two of the"),
    }
    for spec, (error, said) in wrong.items():
        with pytest.raises(error, match=said):
            sample_stats(make(tmp_path, chat_llama, {good: share, spec: 0.1}))
    near = str(Path(good).parent / "." / Path(good).name)
    with pytest.raises(ConfigError, match="names a file twice"):
        make(tmp_path, chat_llama, {good: share, near.replace("/other", "//other"): 0.1})
