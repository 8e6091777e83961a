"""Finished run directories without Ray: the same loop, engine and finish, in this process."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from distft import hf, machine, plugin, run_dir, training
from distft.batch_sizes import batch_sizes
from distft.capacity import local_capacity
from distft.config import RunConfig
from distft.config_file import parse
from distft.data import resolve
from distft.data.manifest import Manifest, TokenizerInfo, load_manifest, save_manifest
from distft.data.shards import ShardWriter, encoded_schema, read_steps
from distft.data.stats import stats_of
from distft.plan import Plan, make_plan
from distft.plugin import EncodeContext, Row
from distft.records import RunRecord
from distft.train.job import Order, make_engine, make_job
from distft.train.loop import train

ROWS = {"train": 24, "eval": 6, "test": 6}
_WORDS = {"bad": "poor dull", "good": "great fine", "\u4e00\u822c": "plain so-so"}


def labelled() -> list[Row]:
    """Rows of three classes, one with a Chinese name; every split sees each."""
    return [
        {"text": f"the {noun} {verb} {word}", "label": label}
        for noun in ("film", "story", "acting")
        for verb in ("is", "was")
        for label, words in _WORDS.items()
        for word in words.split()
    ]


def conversations() -> list[Row]:
    """Short dialogues."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"say {word}"},
                {"role": "assistant", "content": word},
            ]
        }
        for number in range(9)
        for word in (f"good {number}", f"bad {number}", f"\u597d {number}", f"so {number}")
    ]


def write_rows(path: Path, rows: list[Row]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def prepare(config: RunConfig, rows: list[Row]) -> Path:
    """Tokenize rows into shards as `prepare` does, without Ray."""
    task = plugin.tasks()[config.task.name]
    classes = task.classes
    labels = sorted({name for row in rows for name in classes(row)}) if classes else []
    context = EncodeContext(resolve.cutoff_len(config), labels)
    tokenizer = hf.load_tokenizer(config.model)
    key = resolve.prepared_key(config, task, config.data.format or "")
    root = Path(config.output_dir) / "prepared" / key
    root.mkdir(parents=True, exist_ok=True)
    pending, splits = iter(rows), {}
    for split, count in ROWS.items():
        writer = ShardWriter(root, split, task, len(labels))
        made: list[dict[str, Any]] = []
        for _ in range(count):
            encoded = task.encode(next(pending), tokenizer, context)
            made.append({**vars(encoded), "targets": task.num_targets(encoded.labels)})
        writer.add(pa.Table.from_pylist(made, schema=encoded_schema(task)))
        splits[split] = writer.close()
    manifest = Manifest(
        key=key,
        task=task.name,
        format=config.data.format or "",
        columns={},
        labels=labels,
        cutoff_len=context.cutoff_len,
        tokenizer=TokenizerInfo(name=config.model.id, sha256=""),
        splits=splits,
        dropped={},
        dropped_rows=[],
        sources=[],
    )
    save_manifest(root, manifest)
    return root


def config_of(
    folder: Path, name: str, model: str, task: str, method: dict[str, Any], **train: Any
) -> tuple[RunConfig, list[Row]]:
    """A configuration on rows written beside it."""
    labelled_task = "labelled_text" in plugin.tasks()[task].rows
    rows = labelled() if labelled_task else conversations()
    config = parse(
        {
            "name": name,
            "output_dir": str(folder),
            "model": model,
            "task": {"name": task, **({} if labelled_task else {"max_new_tokens": 8})},
            "data": {
                "train": str(write_rows(folder / f"{task}.jsonl", rows)),
                "format": "classification" if labelled_task else "messages",
                "cutoff_len": 64,
            },
            "method": method,
            "train": {
                "max_steps": 6,
                "global_batch_size": 8,
                "eval_steps": 2,
                "warmup_steps": 1,
                **train,
            },
            "cluster": {"zero_stage": 0},
        }
    )
    return config, rows


def start(config: RunConfig, root: Path) -> tuple[Plan, RunRecord]:
    """Write what a run directory holds when training begins."""
    manifest = load_manifest(root)
    made = make_plan(config, stats_of(manifest), local_capacity())
    config_hash = config.hash(manifest.key, batch_sizes(config)[0])
    record = run_dir.first_record(config, config_hash, made, manifest, machine.versions())
    config.run_dir.mkdir(parents=True)
    run_dir.write_start(config.run_dir, config, made, record)
    return made, record


def end(config: RunConfig, record: RunRecord) -> RunRecord:
    """Do what follows training: the record, and the first export to `model/`."""
    return training._finish(config.run_dir, record, time.time(), Console(quiet=True))


def finished_run(
    folder: Path, name: str, model: str, task: str, method: dict[str, Any], **train_section: Any
) -> Path:
    """Return the directory of a run that trained and finished in this process."""
    config, rows = config_of(folder, name, model, task, method, **train_section)
    root = prepare(config, rows)
    made, record = start(config, root)
    order = Order(
        config=config.dump(),
        plan=made,
        run_dir=config.run_dir,
        data_root=root,
        config_hash=record.config_hash,
    )
    job = make_job(order, 0, read_steps)
    engine = make_engine(job)
    lines = list(train(job, engine))
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert min(losses[1:]) < losses[0], "a model that learnt nothing proves nothing"
    end(config, record)
    return config.run_dir
