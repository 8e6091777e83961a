"""What finished runs predict and how they are evaluated, against plain transformers and peft."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from distft import api
from distft.errors import ConfigError, DataError
from distft.records import read_record

RUNS = runpy.run_path(str(Path(__file__).with_name("export_runs.py")))
KINDS = ["bert-lora", "bert-full", "llama-lora"]


def plain_model(run: Path) -> Any:
    """The run's own model/ by plain transformers and peft."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification

    at, base = run / "model", read_record(run).config["model"]["id"]
    config = AutoConfig.from_pretrained(at)
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
    return PeftModel.from_pretrained(model, at).eval()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good rows, bad rows among them, Chinese, labels missing."""
    path = tmp_path / "in.jsonl"
    lines = [
        json.dumps({"text": f"the film is {w}"}) for w in ["poor", "great", "plain", "dull"] * 5
    ]
    lines[2] = json.dumps({"text": "\u8fd9\u90e8\u7535\u5f71 was fine"}, ensure_ascii=False)
    lines[5] = '{"text": "torn'
    lines[9] = json.dumps({"label": "bad"})
    lines[18] = json.dumps({"text": "the story was " + "very " * 200 + "dull", "label": "bad"})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_predictions_are_the_models_own_in_order(runs, mixed: Path, tmp_path: Path) -> None:
    run = runs("bert-lora")
    out = tmp_path / "out.jsonl"
    result = api.predict(run, mixed, out)
    assert (result["rows"], result["errors"]) == (20, 2)
    text = out.read_text(encoding="utf-8")
    assert "\u8fd9\u90e8\u7535\u5f71 was fine" in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [i for i, line in enumerate(lines) if "error" in line] == [5, 9]
    assert "in.jsonl:6:" in lines[5]["error"]
    assert "in.jsonl:10: field 'text' is missing" in lines[9]["error"]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model, labels = plain_model(run), read_record(run).data.labels
    asked = [json.loads(line) for i, line in enumerate(mixed.read_text().splitlines()) if i != 5]
    answers = [line for i, line in enumerate(lines) if i != 5]
    for row, answer in zip(asked, answers, strict=True):
        if "text" not in row:
            continue
        assert answer["text"] == row["text"]
        inputs = tokenizer(row["text"], truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            shares = model(**inputs).logits.softmax(-1)[0].tolist()
        assert list(answer["scores"]) == labels
        assert list(answer["scores"].values()) == pytest.approx(shares, abs=1e-5)
        assert answer["prediction"] == labels[shares.index(max(shares))]


def test_generated_answers_are_the_models_own(runs, tmp_path: Path) -> None:
    """In batches with padding on the left, equal to one row at a time with none."""
    run = runs("llama-lora")
    rows = [
        {"messages": [{"role": "user", "content": text}]}
        for text in ("say good 1", "\u597d", "say bad 2 at some length, please")
    ]
    rows.append({"messages": [*rows[0]["messages"], {"role": "assistant", "content": "unused"}]})
    rows.append({"messages": [{"role": "assistant", "content": "nobody asked"}]})
    out = tmp_path / "out.jsonl"
    result = api.predict(run, RUNS["write_rows"](tmp_path / "in.jsonl", rows), out)
    assert (result["rows"], result["errors"]) == (5, 1)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert re.search(r"in\.jsonl:5: .*no message to answer", lines[4]["error"])
    assert [line["messages"] for line in lines] == [row["messages"] for row in rows]
    assert lines[0]["prediction"] == lines[3]["prediction"], "the row's own answer is not shown"
    api.export(run, tmp_path / "merged", merge=True)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    for row, line in zip(rows[:3], lines, strict=False):
        prompt = f"<s>user:{row['messages'][0]['content']}</s><s>assistant:"
        inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answer = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert line["prediction"] == answer.strip()


@pytest.mark.parametrize("where", ["existing", "nowhere"])
def test_predict_refuses_a_bad_target(runs, where: str, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / ("out.jsonl" if where == "existing" else "no/out.jsonl")
    if where == "existing":
        out.write_text("precious")
    with pytest.raises(ConfigError, match=r"exists already|does not exist"):
        api.predict(runs("bert-lora"), mixed, out)
    assert not out.exists() or out.read_text() == "precious"


@pytest.mark.parametrize("kind", KINDS)
def test_evaluating_the_test_rows_gives_the_runs_own_numbers(runs, kind: str) -> None:
    run = runs(kind)
    tuned = json.loads((run / "eval.json").read_text(encoding="utf-8"))["test"]["tuned"]
    result = api.evaluate(run)
    assert result["rows"] == RUNS["ROWS"]["test"]
    assert result["skipped"] == {}
    assert result["metrics"].keys() == tuned.keys()
    for key, value in tuned.items():
        if isinstance(value, int | float):
            assert result["metrics"][key] == pytest.approx(value, abs=1e-5, rel=1e-5), key
    assert result["metrics"].get("eval_confusion") == tuned.get("eval_confusion")


def test_evaluating_a_file_counts_what_it_skips(runs, tmp_path: Path) -> None:
    run = runs("bert-lora")
    test_rows = RUNS["labelled"]()[30:36]
    path = RUNS["write_rows"](tmp_path / "f.jsonl", [*test_rows, {"text": "no label"}, {"x": 1}])
    result = api.evaluate(run, path)
    assert result["rows"] == 6
    assert sum(result["skipped"].values()) == 2
    assert result["metrics"] == api.evaluate(run)["metrics"]


def test_evaluating_an_unseen_label_names_file_and_row(runs, tmp_path: Path) -> None:
    rows = [{"text": "fine", "label": "good"}, {"text": "odd", "label": "weird"}]
    path = RUNS["write_rows"](tmp_path / "f.jsonl", rows)
    with pytest.raises(DataError, match=r"f\.jsonl:2: the label 'weird' was never seen") as caught:
        api.evaluate(runs("bert-lora"), path)
    assert caught.value.exit_code == 2
    assert "known: bad, good, \u4e00\u822c" in str(caught.value)


def test_evaluating_nothing_usable_is_said(runs, tmp_path: Path) -> None:
    path = RUNS["write_rows"](tmp_path / "f.jsonl", [{"text": "no label"}])
    with pytest.raises(DataError, match=r"No row of .* can be evaluated: field 'label' is missing"):
        api.evaluate(runs("bert-lora"), path)


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_an_unfinished_run_is_refused(runs, status: str, mixed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    broken.mkdir()
    record = read_record(runs("bert-lora")).model_copy(update={"status": status})
    (broken / "run.json").write_text(record.model_dump_json(), encoding="utf-8")
    for ask in (
        lambda: api.evaluate(broken),
        lambda: api.predict(broken, mixed, tmp_path / "out"),
    ):
        with pytest.raises(ConfigError, match=f"its status is {status}"):
            ask()
    with pytest.raises(ConfigError, match=r"holds no run\.json"):
        api.export(tmp_path, tmp_path / "x")
