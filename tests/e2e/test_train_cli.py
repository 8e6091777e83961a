"""A run from a CSV file to a report, and everything a user does with it afterwards."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distft import cli
from distft.config_file import load
from distft.launch import session
from distft.records import RunRecord

Say = Callable[..., tuple[int, str, str]]
Lines = Callable[[Path], list[dict[str, Any]]]

# DESIGN section 4, and the rows with logits that every export is held to.
RUN_FILES = {
    "config.yaml",
    "plan.json",
    "metrics.jsonl",
    "eval.json",
    "run.json",
    "checkpoints",
    "model",
    "report.html",
    "report.md",
    "report.json",
    "logs",
    "probe.safetensors",
    "tensorboard",
}
TRAIN_KEYS = {
    "step",
    "samples",
    "tokens",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_s",
    "data_wait",
    "padding",
}


@pytest.fixture
def say(finished: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command in this process, where the user's files are: exit status, stdout, stderr."""
    monkeypatch.chdir(finished.folder.path)

    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_run_directory_holds_what_is_promised(finished: Any, lines: Lines) -> None:
    run_dir = finished.run_dir
    assert {path.name for path in run_dir.iterdir()} == RUN_FILES
    beside = {path.name for path in run_dir.parent.iterdir()}
    assert {"reviews", "prepared"} <= beside
    assert not [name for name in beside if name.startswith(".")], "no lock or half folder is left"
    names = {path.name for path in (run_dir / "logs").iterdir()}
    assert names == {
        f"{kind}-{rank:05d}.{ending}"
        for rank in (0, 1)
        for kind, ending in (("worker", "log"), ("samples-rank", "jsonl"))
    } | {"tensorboard.json"}
    record = RunRecord.model_validate_json((run_dir / "run.json").read_text(encoding="utf-8"))
    assert (record.status, record.world_size, record.zero_stage) == ("completed", 2, 2)
    assert record.error is None
    assert record.data.rows == {"train": 96, "eval": 12, "test": 12}
    assert record.data.labels == ["negative", "positive"]
    assert record.peak_memory_bytes["measured"] > 0
    assert record.final["eval_loss"] < record.baseline["eval_loss"]
    trained = [line for line in lines(run_dir / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 15))
    assert all(set(line) == TRAIN_KEYS for line in trained)
    evaluated = [line["step"] for line in lines(run_dir / "metrics.jsonl") if "eval_loss" in line]
    assert evaluated == [0, 4, 8, 12, 14]
    assert json.loads((run_dir / "eval.json").read_text())["test"]["tuned"]["eval_rows"] == 12
    plan = json.loads((run_dir / "plan.json").read_text())
    assert (plan["total_steps"], plan["world_size"]) == (14, 2)


def test_fresh_replaces_another_run_only_when_asked(finished: Any) -> None:
    assert finished.refusal.returncode == 3
    assert "--fresh" in finished.refusal.stderr
    assert len(finished.refusal.stderr.splitlines()) == 1
    assert not (finished.run_dir / "stale.txt").exists()


def test_progress_is_plain_lines_on_stderr(finished: Any) -> None:
    assert finished.done.stdout == ""
    said = finished.done.stderr
    assert "\x1b" not in said
    assert "\r" not in said
    for expected in (
        r"^preparing the data \.\.\.$",
        r"^starting 2 Ray workers \.\.\.$",
        r"^step 0/14  eval loss \d",
        r"^step 7/14  loss \d.* tokens/s  ETA ",
        r"^On 12 test rows accuracy ",
        rf"^model   {re.escape(str(finished.run_dir / 'model'))}$",
        rf"^report  {re.escape(str(finished.run_dir / 'report.html'))}$",
        r"^  distft predict ",
    ):
        assert re.search(expected, said, re.MULTILINE), expected
    for noise in ("Traceback", "Warning", "WARNING", "INFO", "(pid="):
        assert noise not in said


def test_the_resolved_config_is_a_config_without_surprises(finished: Any) -> None:
    path = finished.run_dir / "config.yaml"
    text = path.read_text(encoding="utf-8")
    config = load(path)
    assert (config.name, config.task.name, config.data.format) == (
        "reviews",
        "seq_cls",
        "classification",
    )
    assert config.train.per_device_train_batch_size is not None
    assert re.search(r"^  per_device_train_batch_size: \d+  # .*20 samples", text, re.MULTILINE)
    plain = yaml.safe_load(text)
    assert plain.pop("output_dir") == str(finished.run_dir.parent)
    # Workers, and whoever reads this file later, have another working directory.
    assert plain["data"].pop("train") == str(finished.folder.path / "reviews.csv")
    assert '"/' not in json.dumps(plain), "no other absolute path"
    for file in finished.run_dir.rglob("*"):
        assert not file.is_file() or b"hf_this-must-not" not in file.read_bytes(), file


@pytest.mark.parametrize("from_resolved", [False, True])
def test_the_same_command_prints_its_result_without_ray(
    from_resolved: bool, finished: Any, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def connected(_: object) -> Iterator[None]:
        pytest.fail("Ray was started")
        yield

    monkeypatch.setattr(session, "connected", connected)
    config = finished.run_dir / "config.yaml" if from_resolved else finished.folder.config
    status, out, err = say("train", config)
    assert (status, out) == (0, "")
    assert "On 12 test rows accuracy " in err
    status, out, _ = say("train", config, "--json")
    assert status == 0
    assert json.loads(out) == json.loads((finished.run_dir / "run.json").read_text())


def test_another_config_under_the_name_is_refused(finished: Any, say: Say) -> None:
    before = (finished.run_dir / "run.json").read_bytes()
    status, out, err = say("train", finished.folder.config, "train.weight_decay=0.2")
    assert (status, out) == (3, "")
    assert "another configuration" in err
    assert "--fresh" in err
    assert (finished.run_dir / "run.json").read_bytes() == before


def test_evaluate_repeats_the_runs_figures(finished: Any, say: Say) -> None:
    status, out, _ = say("evaluate", finished.run_dir, "--json")
    assert status == 0
    metrics = json.loads(out)["metrics"]
    tuned = json.loads((finished.run_dir / "run.json").read_text())["test"]["tuned"]
    assert metrics["eval_loss"] == pytest.approx(tuned["eval_loss"], abs=1e-4)
    assert metrics["eval_confusion"] == tuned["eval_confusion"]
    status, out, _ = say("evaluate", finished.run_dir, "--data", "reviews.csv")
    assert status == 0
    assert "\nrows: 120\n" in out
    assert "\nskipped: none\n" in out


def test_predictions_are_those_of_the_exported_model(
    finished: Any, say: Say, lines: Lines, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    target, exported = tmp_path / "out.jsonl", tmp_path / "exported"
    assert say("predict", finished.run_dir, "reviews.csv", target)[0] == 0
    status, out, _ = say("export", finished.run_dir, exported, "--merge", "--json")
    assert status == 0
    document = json.loads(out)
    assert document["kind"] == "merged"
    assert document["max_logit_difference"] <= document["tolerance"]
    rows = lines(target)
    assert len(rows) == 120
    model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    texts = [row["text"] for row in rows]
    with torch.inference_mode():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    for row, scores in zip(rows, logits.softmax(-1).tolist(), strict=True):
        assert [row["scores"][label] for label in ("negative", "positive")] == pytest.approx(
            scores, abs=1e-4
        )
    assert say("export", finished.run_dir, exported)[0] == 3


def test_report_is_written_again(finished: Any, say: Say) -> None:
    page = finished.run_dir / "report.html"
    page.unlink()
    status, out, _ = say("report", finished.run_dir)
    assert status == 0
    assert f"html: {page}" in out
    assert "<html" in page.read_text(encoding="utf-8")


def test_prepare_finds_what_training_prepared(finished: Any, say: Say) -> None:
    status, out, _ = say("prepare", finished.folder.config, "--json")
    assert status == 0
    record = json.loads((finished.run_dir / "run.json").read_text())
    assert json.loads(out)["key"] == record["data"]["manifest"]
    log = (finished.run_dir.parent / "prepared" / "log.jsonl").read_text().splitlines()
    assert len(log) == 1, "however many runs trained on them"


def test_the_starter_config_plans(say: Say, tmp_path: Path, asset: Callable[[str], Path]) -> None:
    asset("vader-amazon")
    path = tmp_path / "starter.yaml"
    assert say("init", path)[0] == 0
    status, out, _ = say("plan", path, "--json")
    assert status == 0
    assert json.loads(out)["total_steps"] == 100


def test_the_tables_and_the_doctor_answer(say: Say) -> None:
    for command in ("methods", "tasks", "formats", "schema", "version"):
        status, out, err = say(command)
        assert (status, err) == (0, "")
        assert out.strip()
    status, out, _ = say("doctor", "--json")
    assert status == (0 if json.loads(out)["ok"] else 3)
