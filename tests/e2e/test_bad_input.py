"""Wrong input through the command line: one paragraph, where it is wrong, and nothing written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from distft import cli
from distft.launch import session


@dataclass(frozen=True)
class Wrong:
    """What is wrong, and what must be said about it."""

    said: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """Sections of the config that are replaced."""
    status: int = 2


def rows(*labels: str) -> str:
    return "".join(f'{{"text": "row {i}", "label": "{x}"}}\n' for i, x in enumerate(labels))


GOOD = rows(*("a", "b") * 20)

WRONG = {
    "missing file": Wrong(("data.train", "nothing.csv"), ("data.train=nothing.csv",)),
    "missing eval file": Wrong(("data.eval", "nothing.csv"), ("data.eval=nothing.csv",)),
    "unknown key": Wrong(
        ("reviews.yaml:2: train.learning_rat: unknown key; did you mean learning_rate?",),
        config={"train": {"learning_rat": 0.1}},
    ),
    "unknown key of the method": Wrong(
        ("reviews.yaml:", "method.rnak: unknown key"), config={"method": {"rnak": 4}}
    ),
    "wrong type": Wrong(
        ("override: train.max_steps", "must be a whole number", '"many"'), ("train.max_steps=many",)
    ),
    "impossible value": Wrong(
        ("override: train.learning_rate", "greater than 0", "-1"), ("train.learning_rate=-1",)
    ),
    "empty file": Wrong(("empty.jsonl", "empty"), ("data.train=empty.jsonl",), {"empty.jsonl": ""}),
    "only a header": Wrong(("head.csv",), ("data.train=head.csv",), {"head.csv": "text,label\n"}),
    "no row has the field": Wrong(
        ("fit no format", "text, label", "body"),
        ("data.train=r.jsonl",),
        {"r.jsonl": '{"body": "x", "label": "a"}\n' * 9},
    ),
    "no row has the field of the named format": Wrong(
        ("r.jsonl holds no usable row", "9 rows", "field 'text' is missing", "r.jsonl:1"),
        ("data.train=r.jsonl", "data.format=classification"),
        {"r.jsonl": '{"body": "x", "label": "a"}\n' * 9},
    ),
    "a row without its field, to be an error": Wrong(
        ("r.jsonl:41: field 'label' is missing or empty",),
        ("data.train=r.jsonl", "data.on_bad_row=fail"),
        {"r.jsonl": GOOD + '{"text": "x"}\n'},
    ),
    "a label never seen in training": Wrong(
        ("e.jsonl:3: label 'c' in the eval rows is never seen in training", "a, b"),
        ("data.train=r.jsonl", "data.eval=e.jsonl"),
        {"r.jsonl": GOOD, "e.jsonl": rows("a", "b", "c").replace("row", "other")},
    ),
    "a weight of a class that is not there": Wrong(
        (
            "task.class_weights: the training rows hold no class 'poor'; did you mean pooor?; "
            "they hold good, pooor.",
        ),
        ("data.train=r.jsonl", "task={name: seq_cls, class_weights: {poor: 2.0}}"),
        {"r.jsonl": rows(*("good", "pooor") * 20)},
    ),
    "a folder that is no model": Wrong(("model.id: .", "is no model"), ("model=.",)),
    "an unknown asset": Wrong(("asset:minilm-l7", "minilm-l6"), ("model=asset:minilm-l7",)),
    "longer than the model allows": Wrong(
        ("data.cutoff_len: 513 tokens", "at most 512"), ("data.cutoff_len=513",)
    ),
    "an output directory that is a file": Wrong(
        ("output_dir", "reviews.csv is not a directory"), ("output_dir=reviews.csv/runs",)
    ),
    "an output directory that cannot be written": Wrong(
        ("output_dir", "/proc"), ("output_dir=/proc/runs",)
    ),
    "a broken line, to be an error": Wrong(
        ("r.jsonl:41: not valid JSON",),
        ("data.train=r.jsonl", "data.on_bad_row=fail"),
        {"r.jsonl": GOOD + '{"text": "x", "lab\n'},
    ),
    "a name that leaves the folder": Wrong(("name", "lower-case letters", "../x"), ("name=../x",)),
    "a run in the place of a file": Wrong(
        ("runs/reviews is a file",), files={"runs/reviews": "x"}, status=3
    ),
    "a folder of something else": Wrong(
        ("holds no run.json",), files={"runs/reviews/thesis.tex": "x"}, status=3
    ),
    "a batch that cannot be cut": Wrong(
        ("train.global_batch_size",), ("train.global_batch_size=1",)
    ),
}


@pytest.fixture
def folder(
    make_folder: Callable[..., Any],
    asset: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    asset("minilm-l6")
    made = make_folder(tmp_path / "user")
    monkeypatch.chdir(made.path)
    return made


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_said_in_one_paragraph_and_leaves_nothing(
    name: str,
    folder: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextlib.contextmanager
    def connected(_: object) -> Iterator[None]:
        pytest.fail("Ray was started")
        yield

    wrong = WRONG[name]
    for file, text in wrong.files.items():
        path = folder.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    config = {**wrong.config, **yaml.safe_load(folder.config.read_text()), **wrong.config}
    folder.config.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(session, "connected", connected)
    before = sorted(folder.path.parent.rglob("*"))
    status = cli.main(["train", "reviews.yaml", *wrong.overrides, "--json"])
    captured = capsys.readouterr()
    assert status == wrong.status, captured.err
    assert sorted(folder.path.parent.rglob("*")) == before
    document = json.loads(captured.out)
    assert document["exit_code"] == status
    assert captured.err == f"distft: {document['message']} {document['hint']}".rstrip() + "\n"
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) == 1
    for words in wrong.said:
        assert words in document["message"], document["message"]


def test_a_shell_sees_status_and_paragraph(folder: Any) -> None:
    before = sorted(folder.path.rglob("*"))
    done = folder.distft("train", "reviews.yaml", "train.learning_rat=0.1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("distft: override: train.learning_rat: ")
    assert "unknown key; did you mean learning_rate?" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(folder.path.rglob("*")) == before


@pytest.mark.slow
def test_preparing_refuses_a_weight_of_a_class_that_is_not_there(folder: Any) -> None:
    (folder.path / "r.jsonl").write_text(GOOD, encoding="utf-8")
    task = "task={name: seq_cls, class_weights: {c: 2.0}}"
    done = folder.distft("prepare", "reviews.yaml", "data.train=r.jsonl", task)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the training rows hold no class 'c'; they hold a, b." in done.stderr


def test_unusable_rows_are_counted_and_listed(folder: Any) -> None:
    bad = '{"text": "broken\n{"text": "no label"}\n[1]\n'
    (folder.path / "r.jsonl").write_text(GOOD + bad + rows("a"), encoding="utf-8")
    done = folder.distft("prepare", "reviews.yaml", "data.train=r.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "preparing the data ...\n"
    manifest = json.loads(done.stdout)
    listed = {
        Path(row["file"]).name + f":{row['row']}": row["reason"] for row in manifest["dropped_rows"]
    }
    assert listed["r.jsonl:41"] == "not valid JSON"
    assert listed["r.jsonl:42"] == "field 'label' is missing or empty"
    assert listed["r.jsonl:43"] == "not a JSON object but list"
    # The last row repeats the first.
    assert sum(manifest["dropped"].values()) == len(listed) == 4
    assert sum(split["rows"] for split in manifest["splits"].values()) == 40
