"""Files of every kind, whole and broken -> rows with their numbers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distft.data import source
from distft.data.rows import RawRow, read_chunk
from distft.data.source import content_hash, scan
from distft.errors import DataError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path) -> list[RawRow]:
    return [row for file in scan([str(path)]) for chunk in file.chunks for row in read_chunk(chunk)]


def test_jsonl_rows_carry_their_line_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '\ufeff{"a": 1}\n\n{"a": "\u4f60\u2028\u597d"}\r\n{"a": 3}')
    found = rows(path)
    assert [row.row for row in found] == [1, 3, 4]
    assert [row.value for row in found] == [{"a": 1}, {"a": "\u4f60\u2028\u597d"}, {"a": 3}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": ', "not valid JSON: Expecting value at column"),
        (b"[1]", "not a JSON object but list"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 8"),
        (b'{"a": "\\ud83d"}', "surrogate"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_broken_line_costs_one_row_and_says_where(tmp_path: Path, line: bytes, said: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    first, broken, last = rows(path)
    assert first.value == {"a": 1}
    assert last.value == {"a": 2}
    assert broken.value is None
    assert broken.error.startswith(f"{path}:2: ")
    assert said in broken.error
    assert first.error == ""


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=50,
    deadline=None,
)
@given(
    texts=st.lists(st.text(alphabet="ab\u4f60\u2028\x85\n ", max_size=40), min_size=1, max_size=60),
    chunk_bytes=st.integers(1, 200),
)
def test_chunks_of_any_size_give_every_row_once(
    tmp_path: Path, texts: list[str], chunk_bytes: int
) -> None:
    lines = [json.dumps({"t": text}, ensure_ascii=False) if text else "" for text in texts]
    path = write(tmp_path / f"{hash((tuple(texts), chunk_bytes))}.jsonl", "\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_MIN_CHUNK_BYTES", chunk_bytes)
        patch.setattr(source, "_MAX_CHUNK_BYTES", chunk_bytes)
        (file,) = scan([str(path)])
        if file.size_bytes > 4 * chunk_bytes + 400:
            assert len(file.chunks) > 1
        found = [row for chunk in file.chunks for row in read_chunk(chunk)]
    source._scan_file.cache_clear()
    assert [(row.row, row.value) for row in found] == [
        (i, {"t": text}) for i, text in enumerate(texts, start=1) if text
    ]


def test_json_may_be_an_array_or_lines(tmp_path: Path) -> None:
    array = rows(write(tmp_path / "a.json", '\ufeff [\n{"a": 1},\n{"a": 2}, 3]'))
    assert [(row.row, row.value) for row in array[:2]] == [(1, {"a": 1}), (2, {"a": 2})]
    assert "not a JSON object but int" in array[2].error
    lines = rows(write(tmp_path / "b.json", '{"a": 1}\n{"a": 2}\n'))
    assert [row.value for row in lines] == [{"a": 1}, {"a": 2}]


def test_a_broken_array_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[\n{"a": 1},\n{"a" 2}\n]')
    with pytest.raises(DataError, match=r"a\.json:3: not valid JSON"):
        rows(path)
    with pytest.raises(DataError, match=r"b\.json:2: not UTF-8"):
        rows(write(tmp_path / "b.json", b'[\n"\xff"]'))


def test_csv_rows_carry_the_line_they_begin_on(tmp_path: Path) -> None:
    text = '\ufefftext,label\r\n"two\r\nlines, ""quoted""",a\r\n\r\n\u4f60\u597d,b\r\n'
    found = rows(write(tmp_path / "a.csv", text))
    assert [(row.row, row.value) for row in found] == [
        (2, {"text": 'two\r\nlines, "quoted"', "label": "a"}),
        (5, {"text": "\u4f60\u597d", "label": "b"}),
    ]
    tsv = rows(write(tmp_path / "a.tsv", "text\tlabel\na, b\tc\n"))
    assert [row.value for row in tsv] == [{"text": "a, b", "label": "c"}]


def test_csv_flaws_cost_their_row(tmp_path: Path) -> None:
    text = b'text,label\na,b,c\nonly\n"x"y,b\n\xff,b\nfine,b\n'
    found = rows(write(tmp_path / "a.csv", text))
    assert [row.row for row in found] == [2, 3, 4, 5, 6]
    assert "3 fields where the header names 2" in found[0].error
    assert "1 fields" in found[1].error
    assert "not valid CSV" in found[2].error
    assert "not UTF-8" in found[3].error
    assert found[4].value == {"text": "fine", "label": "b"}


def test_csv_takes_long_fields(tmp_path: Path) -> None:
    (row,) = rows(write(tmp_path / "a.csv", "text,label\n" + "w" * 300_000 + ",b\n"))
    assert row.value is not None
    assert len(row.value["text"]) == 300_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('text,label\na,b\n"open,c\nd,e\n', r":3: a quote that opens here is never closed"),
        ("text,text\na,b\n", ":1: the header must name every column once"),
        ("text,\na,b\n", ":1: the header must name every column once"),
    ],
)
def test_a_broken_csv_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        rows(write(tmp_path / "a.csv", text))


def test_utf16_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,b\n".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16") as caught:
        scan([str(path)])
    assert "UTF-8" in caught.value.hint


def test_content_hash_follows_bytes_not_names(tmp_path: Path) -> None:
    first = content_hash(scan([str(write(tmp_path / "a.jsonl", '{"a": 1}\n'))]))
    assert content_hash(scan([str(write(tmp_path / "b.jsonl", '{"a": 1}\n'))])) == first
    assert content_hash(scan([str(write(tmp_path / "c.jsonl", '{"a": 2}\n'))])) != first
    assert content_hash(scan([str(write(tmp_path / "d.csv", '{"a": 1}\n'))])) != first


def test_a_text_file_gives_a_row_a_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n \r\n\n  two \xe2\x80\xa8x\x00\n\xff\nend"
    )
    found = rows(path)
    assert [(row.row, row.value) for row in found if not row.reason] == [
        (1, {"text": "one"}),
        (4, {"text": "  two \u2028x\x00"}),
        (6, {"text": "end"}),
    ]
    assert [row.error for row in found if row.reason] == [
        f"{path}:5: not UTF-8 at byte 1 of the line; save the file as UTF-8"
    ]


def test_a_long_text_file_is_read_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_MIN_CHUNK_BYTES", 64)
    path = write(tmp_path / "a.txt", "".join(f"line {i}\n" for i in range(100)))
    assert len(scan([str(path)])[0].chunks) > 5
    assert [(row.row, row.value) for row in rows(path)] == [
        (i + 1, {"text": f"line {i}"}) for i in range(100)
    ]


CONLL = (
    "\ufeff-DOCSTART- -X- -X- O\r\n\r\n# id 7 lang=en\r\nAda NNP B-NP B-PER\r\n"
    "left VBD B-VP O\r\n \r\n\n# NN B-NP O\n\u4f60 X X I-LOC\n"
)


@pytest.mark.parametrize("suffix", [".conll", ".bio", ".iob"])
def test_tagged_columns_become_sentences(tmp_path: Path, suffix: str) -> None:
    found = rows(write(tmp_path / f"a{suffix}", CONLL))
    assert [(row.row, row.value) for row in found] == [
        (3, {"tokens": ["Ada", "left"], "ner_tags": ["B-PER", "O"]}),
        (8, {"tokens": ["#", "\u4f60"], "ner_tags": ["O", "I-LOC"]}),
    ]


def test_tagged_columns_by_tab_hold_spaces_and_need_no_tags(tmp_path: Path) -> None:
    tabs = rows(write(tmp_path / "a.conll", "New York\tB-LOC\n\u3000\tO\n"))
    assert [row.value for row in tabs] == [
        {"tokens": ["New York", "\u3000"], "ner_tags": ["B-LOC", "O"]}
    ]
    plain = rows(write(tmp_path / "b.conll", "Ada\nleft\n\n-DOCSTART-\n"))
    assert [row.value for row in plain] == [{"tokens": ["Ada", "left"]}]


def test_flaws_in_tagged_columns_cost_their_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", b"a O\nb\n\n\xff O\n\nfine\tO\n")
    lost, torn, fine = rows(path)
    assert lost.error == f"{path}:1: the sentence's lines have 1 and 2 columns"
    assert lost.reason == "lines of one sentence differ in their columns"
    assert torn.error == f"{path}:4: not UTF-8; save the file as UTF-8"
    assert (fine.row, fine.value) == (6, {"tokens": ["fine"], "ner_tags": ["O"]})


def packed(path: Path, content: bytes) -> Path:
    codec = {".gz": "gzip", ".zst": "zstd"}[path.suffix]
    with pa.CompressedOutputStream(str(path), codec) as file:
        file.write(content)
    return path


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_files_give_the_rows_they_hold(tmp_path: Path, suffix: str) -> None:
    lines = "".join(json.dumps({"t": f"{i} \u4f60\u2028"}) + "\r\n" for i in range(3000))
    text = packed(tmp_path / f"a.jsonl{suffix}", b"\xef\xbb\xbf" + lines.encode())
    found = rows(text)
    assert [(row.row, row.value) for row in found] == [
        (i + 1, {"t": f"{i} \u4f60\u2028"}) for i in range(3000)
    ]
    table = packed(tmp_path / f"b.csv{suffix}", b"text,label\na,b\n")
    assert [row.value for row in rows(table)] == [{"text": "a", "label": "b"}]
    array = packed(tmp_path / f"c.json{suffix}", b'[{"t": 1}]')
    assert [row.value for row in rows(array)] == [{"t": 1}]
    assert content_hash(scan([str(text)])) != content_hash(scan([str(array)]))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_packed_file_cut_short_is_refused(tmp_path: Path, suffix: str, kind: str) -> None:
    content = b"text,label\n" + b"".join(b"%d,%x\n" % (i, i**9) for i in range(20_000))
    path = packed(tmp_path / f"a.{kind}{suffix}", content)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"a\.{kind}\{suffix} cannot be read"):
        rows(path)
    path.write_bytes(b"this is no archive")
    with pytest.raises(DataError, match=rf"a\.{kind}\{suffix} cannot be read"):
        rows(path)


def test_parquet_rows_carry_their_number_through_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    wanted = [{"text": f"row {i}", "tags": [i, None], "deep": {"x": i / 2}} for i in range(100)]
    pq.write_table(pa.Table.from_pylist(wanted), path, row_group_size=30)
    (file,) = scan([str(path)])
    assert [chunk.first_row for chunk in file.chunks] == [1, 31, 61, 91]
    found = rows(path)
    assert [(row.row, row.value) for row in found] == list(enumerate(wanted, start=1))


def test_a_parquet_column_that_json_does_not_know_costs_nothing(tmp_path: Path) -> None:
    when = datetime(2026, 11, 23, tzinfo=UTC)
    pq.write_table(pa.table({"text": ["a"], "when": [when], "raw": [b"b"]}), tmp_path / "a.parquet")
    (row,) = rows(tmp_path / "a.parquet")
    assert (row.reason, row.value) == ("", {"text": "a", "when": when, "raw": b"b"})


def test_a_damaged_parquet_file_costs_the_row_group_or_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{i} {i**20}" for i in range(3000)]})
    pq.write_table(table, path, row_group_size=1000, compression="zstd", use_dictionary=False)
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    whole = path.read_bytes()
    path.write_bytes(whole[: place + 30] + bytes(2000) + whole[place + 2030 :])
    found = rows(path)
    assert [row.row for row in found] == list(range(1, 3001))
    assert {row.row for row in found if row.reason} == set(range(1001, 2001))
    assert found[1000].error.startswith(f"{path}:1001: row group 1 cannot be read: ")
    cut = write(tmp_path / "b.parquet", whole[:-2000])
    with pytest.raises(DataError, match=r"b\.parquet is no whole Parquet file"):
        scan([str(cut)])


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([["a"], ["b"], ["c"]], names=["text", "label", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet names more than one column text"):
        rows(tmp_path / "a.parquet")
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"a\.arrow names more than one column text"):
        rows(tmp_path / "a.arrow")
