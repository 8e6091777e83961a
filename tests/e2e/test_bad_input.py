"""Wrong input through the command line: one paragraph, where it is wrong, and nothing written."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from distft import cli
from distft.launch import session


@dataclass(frozen=True)
class Wrong:
    """What is wrong, and what must be said about it."""

    said: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    files: dict[str, str | bytes] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """Sections of the config that are replaced."""
    status: int = 2


def rows(*labels: str) -> str:
    return "".join(f'{{"text": "row {i}", "label": "{x}"}}\n' for i, x in enumerate(labels))


GOOD = rows(*("a", "b") * 20)


def table(*names: str) -> bytes:
    """A Parquet file of 3 row groups of 20 rows."""
    text, label = [f"f {i}" for i in range(60)], ["a", "b"] * 30
    columns = [pa.array({"text": text, "label": label}[name]) for name in names]
    with pa.BufferOutputStream() as file:
        written = pa.Table.from_arrays(columns, names=list(names))
        pq.write_table(written, file, row_group_size=20, use_dictionary=False, compression="none")
        content: bytes = file.getvalue().to_pybytes()
    return content


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def torn(content: bytes) -> bytes:
    """The second row group's page begins with zeros."""
    group = pq.ParquetFile(pa.BufferReader(content)).metadata.row_group(1)
    at = group.column(0).data_page_offset
    return content[:at] + bytes(20) + content[at + 20 :]


def broken(file: str, content: str | bytes, *said: str) -> Wrong:
    """A file that stops the run where a bad row does."""
    return Wrong(said, (f"data.train={file}", "data.on_bad_row=fail"), {file: content})


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
    "a broken line, to be an error": broken(
        "r.jsonl", GOOD + '{"text": "x", "lab\n', "r.jsonl:41: not valid JSON"
    ),
    "a name twice in a row": broken(
        "r.jsonl",
        GOOD + '{"text": "x", "label": "a", "text": "y"}\n',
        "r.jsonl:41: an object names 'text' more than once",
    ),
    "a name twice in a header": broken("r.csv", "text,label,text\nx,a,y\n", "r.csv:1", "once"),
    "a name twice in a table": broken(
        "r.parquet", table("text", "label", "text"), "r.parquet names more than one column text"
    ),
    "Latin-1 among UTF-8": broken(
        "r.jsonl",
        GOOD.encode() + rows("caf\u00e9").encode("latin-1"),
        "r.jsonl:41: not UTF-8 at byte 32 of the line",
    ),
    "UTF-16": broken("r.jsonl", GOOD.encode("utf-16"), "r.jsonl is encoded as UTF-16"),
    "UTF-16 without a mark, packed": broken(
        "r.jsonl.gz", gzip.compress(GOOD.encode("utf-16-le")), "r.jsonl.gz is encoded as UTF-16"
    ),
    "a gz file cut short": broken(
        "r.jsonl.gz", gzip.compress(GOOD.encode())[:-9], "r.jsonl.gz cannot be read: Truncated"
    ),
    "a zst file cut short": broken(
        "r.jsonl.zst", zstd(GOOD.encode())[:-9], "r.jsonl.zst cannot be read: Truncated"
    ),
    "a file that is not packed": broken("r.jsonl.zst", GOOD, "r.jsonl.zst cannot be read"),
    "a table cut short": broken(
        "r.parquet", table("text", "label")[:-50], "r.parquet is no whole Parquet file"
    ),
    "a table with a torn page": broken(
        "r.parquet", torn(table("text", "label")), "r.parquet:21: row group 1 cannot be read"
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
        path.write_bytes(text.encode() if isinstance(text, str) else text)
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
    def good(word: str) -> bytes:
        return GOOD.replace("row", word).encode()

    flaws = [
        '{"text": "broken',
        '{"text": "no label"}',
        "[1]",
        '{"text": "x", "label": "a", "label": "b"}',
        "caf\u00e9",
        '{"text": "b 0", "label": "a"}',
    ]
    with pa.BufferOutputStream() as file:
        pq.ParquetWriter(file, pa.schema({"text": pa.string(), "label": pa.string()})).close()
        no_rows = file.getvalue().to_pybytes()
    files = {
        # The first ones hold no row at all.
        "a.csv": b"text,label\n",
        "a.jsonl": b"\n  \n",
        "a.parquet": no_rows,
        # The last row repeats its first one.
        "b.jsonl": good("b") + "\n".join(flaws).encode("latin-1"),
        "c.csv": b"\xef\xbb\xbftext,label\r\n" + b"".join(b"c %d,a\r\n" % i for i in range(40)),
        "d.jsonl.gz": gzip.compress(good("d")),
        "e.jsonl.zst": zstd(good("e")),
        "f.parquet": torn(table("text", "label")),
        "notes.md": b"stray",
        "stray.txt": b"stray",
    }
    (folder.path / "rows").mkdir()
    for name, content in files.items():
        (folder.path / "rows" / name).write_bytes(content)
    done = folder.distft("prepare", "reviews.yaml", "data.train=rows", "--json")
    assert done.returncode == 0, done.stderr
    stray = [str(folder.path / "rows" / name) for name in ("notes.md", "stray.txt")]
    assert done.stderr.splitlines()[-1] == f"not read: {', '.join(stray)}"
    manifest = json.loads(done.stdout)
    assert manifest["unread_files"] == stray
    listed = {
        f"{Path(row['file']).name}:{row['row']}": row["reason"] for row in manifest["dropped_rows"]
    }
    assert listed == {
        "b.jsonl:41": "not valid JSON",
        "b.jsonl:42": "field 'label' is missing or empty",
        "b.jsonl:43": "not a JSON object but list",
        "b.jsonl:44": "an object names a field more than once",
        "b.jsonl:45": "not UTF-8",
        "b.jsonl:46": "duplicate",
        **{f"f.parquet:{row}": "its row group cannot be read" for row in range(21, 41)},
    }
    assert manifest["dropped"] == dict(Counter(listed.values()).most_common())
    assert sum(split["rows"] for split in manifest["splits"].values()) == 5 * 40


@pytest.mark.slow
def test_one_broken_line_of_a_million_is_named_or_counted(folder: Any) -> None:
    lines = [f'{{"text": "row {i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(1_000_000)]
    lines[654_320] = '{"text": "row 654320", "lab\n'
    (folder.path / "r.jsonl").write_text("".join(lines))
    words = ("prepare", "reviews.yaml", "data.train=r.jsonl")
    done = folder.distft(*words, "data.on_bad_row=fail")
    assert (done.returncode, done.stdout) == (2, "")
    assert "r.jsonl:654321: not valid JSON: Unterminated string" in done.stderr
    assert not list(folder.path.rglob("*.parquet"))
    done = folder.distft(*words, "data.on_bad_row=skip", "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["dropped"] == {"not valid JSON": 1}
    assert [row["row"] for row in manifest["dropped_rows"]] == [654_321]
    assert sum(split["rows"] for split in manifest["splits"].values()) == 999_999
