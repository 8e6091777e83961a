"""Real trackers, offline, of a run killed and continued: what they hold is metrics.jsonl."""

from __future__ import annotations

import glob
import json
import os
import runpy
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

NAMES = ("tensorboard", "mlflow", "wandb")
SECRET = "pass-word-77"
_PREPARE = runpy.run_path(str(Path(__file__).with_name("export_runs.py")))

_TRAIN = """
import json, os, sys, time
from pathlib import Path
from distft.data.shards import read_steps
from distft.train.job import Order, make_engine, make_job
from distft.train.loop import train

order, last = Order.model_validate_json(open(sys.argv[1]).read()), int(sys.argv[2])
job = make_job(order, 0, read_steps)
for line in train(job, make_engine(job)):
    if line["step"] == last and "loss" in line:
        told = [order.run_dir / "logs" / f"{name}.json" for name in job.config.report_to]
        while not all(p.exists() and json.loads(p.read_text())["told"][0] == last for p in told):
            time.sleep(0.1)
        os._exit(9)
"""


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory, chat_llama: Path) -> Path:
    """A run's order as a file: a tiny model, 6 steps, all three trackers."""
    from distft.redact import hidden
    from distft.train.job import Order

    folder = tmp_path_factory.mktemp("tracked")
    config, rows = _PREPARE["config_of"](
        folder, "tracked", str(chat_llama), "sft", {"name": "lora"}, logging_steps=1, save_steps=2
    )
    root = _PREPARE["prepare"](config, rows)
    storage = f"postgresql://me:{SECRET}@host/db"
    config = config.model_copy(
        update={
            "report_to": list(NAMES),
            "tune": config.tune.model_copy(update={"storage": storage}),
        }
    )
    made, record = _PREPARE["start"](config, root)
    order = Order(
        config=hidden(config.dump()),
        plan=made,
        run_dir=config.run_dir,
        data_root=root,
        config_hash=record.config_hash,
    )
    path = folder / "order.json"
    path.write_text(order.model_dump_json())
    return path


def attempt(order: Path, last: int = -1, **environment: str) -> subprocess.CompletedProcess[str]:
    """Train until the line of a step, after which the process is gone at once; -1: to the end."""
    return subprocess.run(
        [sys.executable, "-c", _TRAIN, str(order), str(last)],
        env={**os.environ, "WANDB_MODE": "offline", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def tracked(order: Path) -> Path:
    """The directory of a run that was killed after step 5, one step past a checkpoint."""
    killed = attempt(order, 5)
    assert killed.returncode == 9, killed.stderr
    ended = attempt(order)
    assert ended.returncode == 0, ended.stderr
    return order.parent / "tracked"


def expected(run_dir: Path) -> dict[str, dict[int, float]]:
    """Metric -> step -> value, as metrics.jsonl says."""
    found: dict[str, dict[int, float]] = {}
    for text in (run_dir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for name, value in line.items() if "note" not in line else ():
            if name != "step":
                found.setdefault(name, {})[line["step"]] = value
    assert set(found["loss"]) == {1, 2, 3, 4, 5, 6}
    return found


# Two steps were done twice; how fast differs.
TIMED = ("tokens_per_s", "data_wait")


def same(seen: Mapping[str, Mapping[int, float]], run_dir: Path) -> None:
    wanted = expected(run_dir)
    assert {name for name in wanted if name not in seen} == set()
    for name, values in wanted.items():
        assert list(seen[name]) == list(values), name
        if name not in TIMED:
            assert seen[name] == pytest.approx(values, rel=1e-5), name


def test_tensorboard_holds_each_line_once(tracked: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    same(
        {name: {e.step: e.value for e in events.Scalars(name)} for name in tags["scalars"]}, tracked
    )
    assert len(events.Scalars("loss")) == 6
    assert "result/test/tuned/eval_loss" in tags["scalars"]
    (text, *_) = events.Tensors("config/text_summary")
    config = text.tensor_proto.string_val[0].decode()
    assert '"logging_steps": 1' in config
    assert SECRET not in config


def test_mlflow_holds_one_run_with_each_line_once(tracked: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tracked.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("distft")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("tracked", "FINISHED")
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    assert [each.step for each in history["loss"]] == [1, 2, 3, 4, 5, 6]
    same({name: {m.step: m.value for m in each} for name, each in history.items()}, tracked)
    result = json.loads((tracked / "eval.json").read_text())
    test = result["test"]["tuned"]["eval_loss"]
    assert run.data.metrics["result/test/tuned/eval_loss"] == pytest.approx(test)
    assert run.data.params["method.name"] == "lora"
    assert run.data.params["tune.storage"] == "postgresql://me:***@host/db"


def test_wandb_holds_one_run_with_each_line_once(tracked: Path) -> None:
    history: dict[str, dict[int, float]] = {}
    identities, configs, summary = set(), [], {}
    paths = sorted(glob.glob(str(tracked / "wandb" / "offline-run-*" / "run-*.wandb")))
    assert len(paths) == 2, "one for each attempt"
    rows = 0
    # An attempt that is killed may lose what it had not written; the next one holds all of it.
    for path in paths[-1:]:
        for record in wandb_records(Path(path)):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                identities.add(record.run.run_id)
                configs += [(item.key, item.value_json) for item in record.run.config.update]
            elif kind == "history":
                row = {
                    tuple(i.nested_key) or i.key: json.loads(i.value_json)
                    for i in record.history.item
                }
                row = {key[0] if isinstance(key, tuple) else key: row[key] for key in row}
                rows += "loss" in row
                for name, value in row.items():
                    history.setdefault(name, {})[row["_step"]] = value
            elif kind == "summary":
                summary |= {i.key or i.nested_key[0]: i.value_json for i in record.summary.update}
    assert {Path(path).stem for path in paths} == {f"run-{name}" for name in identities}
    assert rows == 6
    same(history, tracked)
    assert json.loads(summary["status"]) == "completed"
    assert "result/test/tuned/eval_loss" in summary
    assert SECRET not in repr(configs)
    assert json.loads(dict(configs)["name"]) == "tracked"


def wandb_records(path: Path) -> Iterator[Any]:
    """Read W&B's file of an offline run: records in blocks of 32 KiB, as LevelDB's log has them."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, part = struct.unpack("<IHB", data[place : place + 7])
        if part == 0:
            break
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if part in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_no_file_of_them_holds_the_password(tracked: Path) -> None:
    files = [path for path in tracked.parent.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_a_server_that_does_not_answer_costs_a_note_and_no_run(order: Path, tmp_path: Path) -> None:
    plain = json.loads(order.read_text())
    plain["run_dir"] = str(tmp_path / "run")
    plain["config"]["report_to"] = ["mlflow"]
    (tmp_path / "run").mkdir()
    other = tmp_path / "order.json"
    other.write_text(json.dumps(plain))
    ended = attempt(
        other,
        MLFLOW_TRACKING_URI=f"http://me:{SECRET}@localhost:9",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    assert ended.returncode == 0, ended.stderr
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    notes = [json.loads(line)["note"] for line in text.splitlines() if '"note"' in line]
    assert notes[0].startswith("mlflow does not take this run's metrics (")
    assert "mlflow has not taken all of this run; 10 lines are not there" in notes[-1]
    assert SECRET not in text
