"""What a setting of files stands for: folders, globs, addresses, saved data sets."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from distft.data.files import expand, unread
from distft.data.rows import RawRow, read_chunk
from distft.data.source import scan
from distft.errors import DataError
from tests.s3_server import s3_server


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def rows(*paths: str) -> list[RawRow]:
    return [row for file in scan(paths) for chunk in file.chunks for row in read_chunk(chunk)]


def test_expand_reads_lists_globs_and_folders_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.csv", "notes.txt"):
        write(tmp_path / name, "x\n")
    assert [Path(p).name for p in expand(str(tmp_path / "*.jsonl"), "k")] == ["a.jsonl", "b.jsonl"]
    assert [Path(p).name for p in expand(str(tmp_path), "k")] == ["a.jsonl", "b.jsonl", "c.csv"]
    both = [str(tmp_path / "c.csv"), str(tmp_path / "a*")]
    assert [Path(p).name for p in expand(both, "k")] == ["c.csv", "a.jsonl"]


def test_expand_refuses_and_helps(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "{}\n")
    write(tmp_path / "empty.csv", "")
    write(tmp_path / "data.xlsx", "x")
    (tmp_path / "sub").mkdir()
    with pytest.raises(DataError, match=r"data\.train: .*trian\.jsonl does not exist") as caught:
        expand(str(tmp_path / "trian.jsonl"), "data.train")
    assert "train.jsonl?" in caught.value.hint
    with pytest.raises(DataError, match="does not exist") as caught:
        expand(str(tmp_path / "no" / "such" / "zzzzz.tsv"), "data.train")
    assert "empty.csv" in caught.value.hint
    with pytest.raises(DataError, match=r"empty\.csv is empty"):
        expand(str(tmp_path / "empty.csv"), "data.train")
    with pytest.raises(DataError, match="no supported kind") as caught:
        expand(str(tmp_path / "data.xlsx"), "data.train")
    assert ".jsonl" in caught.value.hint
    with pytest.raises(DataError, match="holds no"):
        expand(str(tmp_path / "sub"), "data.train")
    with pytest.raises(DataError, match="named twice"):
        expand([str(tmp_path / "train.jsonl"), str(tmp_path / "*.jsonl")], "data.train")
    with pytest.raises(DataError, match="list of files is empty"):
        expand([], "data.train")


def test_a_folder_of_texts_counts_a_note_beside_a_table_does_not(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "x\n")
    write(tmp_path / "a.txt", "x\n")
    assert [Path(p).name for p in expand(str(tmp_path), "k")] == ["a.txt", "b.txt"]
    write(tmp_path / "c.conll", "x O\n")
    assert [Path(p).name for p in expand(str(tmp_path), "k")] == ["c.conll"]


def test_a_folder_that_datasets_saved_is_read(tmp_path: Path) -> None:
    import datasets

    wanted = [{"text": f"row {i}", "label": i % 2} for i in range(50)]
    saved = datasets.Dataset.from_list(wanted)
    saved.save_to_disk(str(tmp_path / "one"), num_shards=2)
    paths = expand(str(tmp_path / "one"), "data.train")
    assert len(paths) == 2
    assert [row.value for row in rows(*paths)] == wanted
    datasets.DatasetDict(train=saved, test=saved).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(DataError, match="holds 2 sets: train, test") as caught:
        expand(str(tmp_path / "two"), "data.train")
    assert str(tmp_path / "two" / "train") in caught.value.hint


def test_a_stray_file_of_a_folder_is_not_read_and_not_hidden(tmp_path: Path) -> None:
    for name in ("a.jsonl", "notes.md", "b.txt", ".hidden"):
        write(tmp_path / name, "{}\n")
    (tmp_path / "more").mkdir()
    assert [Path(p).name for p in expand(str(tmp_path), "k")] == ["a.jsonl"]
    assert [Path(p).name for p in unread(str(tmp_path))] == ["b.txt", "more", "notes.md"]
    assert unread([str(tmp_path / "a.jsonl"), "s3://bucket/rows"]) == []


def test_addresses_are_listed_and_read(tmp_path: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    system.pipe("/rows/b.jsonl", b'{"a": 2}\n')
    system.pipe("/rows/a.jsonl", b'{"a": 1}\n\xff\n')
    system.pipe("/rows/notes.md", b"x")
    wanted = ["memory://rows/a.jsonl", "memory://rows/b.jsonl"]
    assert expand("memory://rows", "k") == expand("memory://rows/*.jsonl", "k") == wanted
    found = rows(*wanted)
    assert [row.value for row in found if row.value] == [{"a": 1}, {"a": 2}]
    assert found[1].error.startswith("memory://rows/a.jsonl:2: not UTF-8")
    assert expand("memory://rows/b.jsonl", "k") == ["memory://rows/b.jsonl"]
    with pytest.raises(DataError, match=r"k: memory://nothing names no file"):
        expand("memory://nothing", "k")
    with pytest.raises(DataError, match=r"k: nosuch://x cannot be read"):
        expand("nosuch://x", "k")
    with pytest.raises(DataError, match="named twice"):
        expand([wanted[0], wanted[0]], "k")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket of three files of rows, served as S3."""
    lines = "".join(json.dumps({"t": i}) + "\n" for i in range(5000)).encode()
    objects = {
        "bucket/rows/a.jsonl": lines,
        "bucket/rows/b.jsonl.gz": gzip.compress(lines),
        "bucket/rows/deep/c.jsonl": b'{"t": 1}\n',
        "bucket/rows/notes.md": b"x",
        "bucket/my rows/\u4f60 100%.jsonl": b'{"t": 1}\n',
    }
    with s3_server(objects) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        yield


@pytest.mark.usefixtures("bucket")
def test_a_bucket_is_listed_like_a_folder_and_read() -> None:
    both = ["s3://bucket/rows/a.jsonl", "s3://bucket/rows/b.jsonl.gz"]
    assert expand("s3://bucket/rows", "k") == expand("s3://bucket/rows/", "k") == both
    assert expand("s3://bucket/rows/*.jsonl", "k") == both[:1]
    assert expand("s3://bucket/rows/**/*.jsonl", "k") == [
        *both[:1],
        "s3://bucket/rows/deep/c.jsonl",
    ]
    assert expand("s3://bucket/*/*/c*.jsonl", "k") == ["s3://bucket/rows/deep/c.jsonl"]
    assert [row.value for row in rows(*both)] == 2 * [{"t": i} for i in range(5000)]
    assert [row.value for row in rows(*expand("s3://bucket/my rows", "k"))] == [{"t": 1}]
    with pytest.raises(DataError, match="k: s3://bucket/none names no file"):
        expand("s3://bucket/none", "k")


@pytest.mark.slow
def test_a_bucket_that_does_not_answer_is_said_with_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9")
    with pytest.raises(DataError, match="k: s3://bucket/rows cannot be read") as caught:
        expand("s3://bucket/rows", "k")
    assert "credentials" in caught.value.hint
