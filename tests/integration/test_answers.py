"""Written answers scored: `distft evaluate --generate` on a run that was trained here."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distft import api, cli, hf, plugin
from distft.config_file import parse
from distft.data.prepare import prepare
from distft.data.reread import split_readings
from distft.data.shards import open_split
from distft.data.tokenize import encode_row
from distft.errors import DataError, PlanError
from distft.overlap import compare
from distft.plugin import EncodeContext
from distft.records import RunRecord, read_record

RUNS = runpy.run_path(str(Path(__file__).with_name("export_runs.py")))
COMPARED = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match", "answers")


def turns(*texts: str) -> dict[str, Any]:
    """User and assistant by turns."""
    roles = ("user", "assistant")
    return {
        "messages": [
            {"role": roles[i % 2], "content": text} for i, text in enumerate(texts) if text
        ]
    }


ROWS = [
    turns("say good 1", "good 1"),
    turns("\u8bf4 \u597d", "\u597d"),
    turns("say bad", "bad", "say so", "so"),
    turns("say bad", "bad", "and what the user says last has no answer"),
    turns("say \U0001f44d", "\U0001f44d \u05e9\u05dc\u05d5\u05dd"),
]
PROMPTS = [
    turns("say good 1"),
    turns("\u8bf4 \u597d"),
    turns("say bad", "bad", "say so"),
    turns("say bad"),
    turns("say \U0001f44d"),
]
REFERENCES = ["good 1", "\u597d", "so", "bad", "\U0001f44d \u05e9\u05dc\u05d5\u05dd"]


@pytest.fixture(scope="module")
def run(chat_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a conversation task, its dropout as good as always seen."""
    method = {"name": "lora", "r": 4, "lora_dropout": 0.5}
    folder = tmp_path_factory.mktemp("answers")
    made: Path = RUNS["finished_run"](
        folder, "chat", str(chat_llama), "sft", method, learning_rate=2e-2, max_steps=60
    )
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path: Path = RUNS["write_rows"](tmp_path / "rows.jsonl", ROWS)
    return path


def predicted_lines(run: Path, folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = folder / "out.jsonl"
    api.predict(run, RUNS["write_rows"](folder / "asked.jsonl", rows), out)
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


def predicted(run: Path, folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    return [line["prediction"] for line in predicted_lines(run, folder, rows)]


def test_the_answers_of_predict_are_compared(run: Path, file: Path, tmp_path: Path) -> None:
    """To the last answer of each conversation, all before it being the prompt."""
    said = predicted(run, tmp_path, PROMPTS)
    expected = compare(said, REFERENCES)
    assert 0 < expected["chrf"] < 100, "a comparison that shows nothing"
    found = api.evaluate(run, file, generate=True)
    assert found["scored_with"] == expected.pop("scored_with")
    generated = {name: found["metrics"].pop(f"eval_{name}") for name in COMPARED}
    assert generated == expected
    assert (generated["answers"], found["rows"], found["unanswered"]) == (5, 5, {})
    plain = api.evaluate(run, file)
    assert found["metrics"] == plain["metrics"]
    assert plain.keys() == found.keys() - {"scored_with", "unanswered"}
    for text in said:
        for mark in ("<s>", "</s>", "user:", "assistant:"):
            assert mark not in text


def test_one_row_is_enough(run: Path, tmp_path: Path) -> None:
    file = RUNS["write_rows"](tmp_path / "one.jsonl", ROWS[:1])
    found = api.evaluate(run, file, generate=True)["metrics"]
    assert found["eval_answers"] == found["eval_rows"] == 1


def test_what_is_skipped_is_not_answered(run: Path, file: Path, tmp_path: Path) -> None:
    flawed = [turns("nobody answers"), {"x": 1}, turns("", "the assistant begins")]
    RUNS["write_rows"](file, [*ROWS, *flawed])
    found = api.evaluate(run, file, generate=True)
    assert found["rows"] == found["metrics"]["eval_answers"] == len(ROWS)
    assert sum(found["skipped"].values()) == len(flawed)
    RUNS["write_rows"](file, flawed)
    with pytest.raises(DataError, match=r"No row of .*rows\.jsonl can be evaluated"):
        api.evaluate(run, file, generate=True)


def test_without_a_file_the_runs_own_test_rows_are_answered(run: Path) -> None:
    found = api.evaluate(run, generate=True)
    record = read_record(run)
    config = parse(record.config)
    rows = list(split_readings(config, "test", record.data.manifest))
    assert found["data"] == "test rows of the run"
    assert found["rows"] == found["metrics"]["eval_answers"] == len(rows) > 1


def test_test_rows_of_changed_files_are_refused(run: Path, tmp_path: Path) -> None:
    config = parse(read_record(run).config)
    rows = RUNS["write_rows"](tmp_path / "other.jsonl", ROWS)
    data = config.data.model_copy(update={"train": str(rows)})
    other = config.model_copy(update={"data": data})
    with pytest.raises(DataError, match="have changed") as caught:
        list(split_readings(other, "test", read_record(run).data.manifest))
    assert "--data" in caught.value.hint


def test_the_command_prints_every_number(
    run: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(run), "--data", str(file), "--generate"]
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    for name in (*COMPARED, "loss", "perplexity"):
        assert f"\n  eval_{name}: " in captured.out
    assert "tok:zh" in captured.out
    assert "\nunanswered: none\n" in captured.out
    assert captured.err.splitlines()[0] == "writing answers ..."
    assert cli.main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {f"eval_{name}" for name in COMPARED} < document["metrics"].keys()
    assert document["scored_with"].keys() == {"bleu", "chrf", "rouge"}


@pytest.mark.parametrize("task", [t.name for t in plugin.tasks().values() if t.reference is None])
def test_a_task_without_written_answers_is_refused(
    task: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = json.loads((run / "run.json").read_text("utf-8"))
    raw["config"] = {**raw["config"], "task": {"name": task}}
    record = RunRecord.model_validate(raw)
    (tmp_path / "run.json").write_text(record.model_dump_json(), encoding="utf-8")
    with pytest.raises(PlanError, match=f"Task {task} has no written answers") as caught:
        api.evaluate(tmp_path, generate=True)
    assert "seq2seq, sft" in str(caught.value)
    assert cli.main(["evaluate", str(tmp_path), "--generate"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Leave --generate out." in captured.err


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("seq2seq", {"source": "the film is good", "target": "good"}),
        ("sft", turns("the film is good, you say", "good")),
    ],
)
def test_the_model_is_not_shown_the_reference(
    task: str, row: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """What it is asked gives the same answer whatever the reference is."""
    folder = request.getfixturevalue({"seq2seq": "tiny_t5", "sft": "chat_llama"}[task])
    raw = {"name": "x", "model": str(folder), "task": task, "data": {"train": "none"}}
    config, chosen = parse(raw), plugin.tasks()[task]
    assert chosen.reference is not None
    tokenizer = hf.load_tokenizer(config.model)
    model = hf.load_model(config.model, chosen, [], seed=3).eval()
    swapped = json.loads(json.dumps(row).replace('"good"', '"bad"'))
    asked, references = zip(*map(chosen.reference, (row, swapped)), strict=True)
    assert references == ("good", "bad")
    first, second = (
        chosen.predict(model, tokenizer, [each], EncodeContext(64), config.task) for each in asked
    )
    assert first == second
    assert first[0]["prediction"]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("given", [pytest.param("shares", marks=pytest.mark.slow), "files"])
def test_rows_read_again_are_those_prepared(given: str, tiny_model: Path, tmp_path: Path) -> None:
    """In number and order, with repeated, broken and too long rows among them."""
    write: Callable[..., Path] = RUNS["write_rows"]
    rows = [turns(f"say good {i}", f"good {i}") for i in range(60)]
    rows[3], rows[7], rows[9] = rows[5], {"x": 1}, turns("long " * 200, "beyond")
    data: dict[str, Any] = {"train": str(write(tmp_path / "train.jsonl", rows)), "cutoff_len": 48}
    if given == "files":
        others = [turns(f"say bad {i}", f"bad {i}") for i in range(9)]
        data["test"] = str(write(tmp_path / "test.jsonl", [*others[:4], rows[0], *others[4:]]))
    config = parse(
        {
            "name": "x",
            "output_dir": str(tmp_path / "runs"),
            "model": str(tiny_model),
            "task": "sft",
            "data": {**data, "format": "messages"},
        }
    )
    root, manifest = prepare(config)
    task, tokenizer = plugin.tasks()["sft"], hf.load_tokenizer(config.model)
    for split in ("train", "eval", "test"):
        reader = open_split(root, split)
        count = sum(reader.row_groups)
        shards = [sample.input_ids.tolist() for sample in reader.read(range(count))]
        readings = split_readings(config, split, manifest.key)
        encoded = [
            encode_row(reading.value, task, tokenizer, EncodeContext(manifest.cutoff_len))
            for reading in readings
            if reading.value is not None
        ]
        again = [one.input_ids for one in encoded if not isinstance(one, str)]
        assert again == shards
        assert count > 3


def test_a_prompt_that_fills_the_model_is_said(run: Path, tmp_path: Path) -> None:
    """Its first answer is within the cutoff, the prompt of its last is longer than the model."""
    long = turns("say good 1", "good 1", "and so on " * 10_000, "so")
    assert "no position for an answer" in predicted_lines(run, tmp_path, [long])[0]["error"]
    file = RUNS["write_rows"](tmp_path / "rows.jsonl", [*ROWS, long])
    found = api.evaluate(run, file, generate=True)
    assert (found["rows"], found["metrics"]["eval_answers"]) == (len(ROWS) + 1, len(ROWS))
    assert list(found["unanswered"].values()) == [1]
    RUNS["write_rows"](file, [long])
    with pytest.raises(DataError, match="No row can be answered: the prompt leaves"):
        api.evaluate(run, file, generate=True)


def test_a_prompt_near_the_last_position_shortens_its_own_answer_only() -> None:
    """The positions of GPT-2 are learnt: there is none beyond the last."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

    from distft import texts

    set_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w0")
    short, long = plugin.Encoded([3, 4, 5], []), plugin.Encoded([7] * 30, [])
    assert texts.positions_left(model, long.input_ids) == 2
    alone = texts.generate(model, tokenizer, [short], 20, eos_token_id=None)[0]
    said = texts.generate(model, tokenizer, [long, short], 20, eos_token_id=None)
    assert (len(said[0].split()), said[1]) == (2, alone)
    assert len(alone.split()) == 20
