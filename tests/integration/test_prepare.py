"""Raw files with every kind of flaw -> verified shards, once."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distft.config import RunConfig
from distft.config_file import parse
from distft.data.manifest import load_manifest
from distft.data.prepare import prepare
from distft.data.resolve import detect, prepared_key
from distft.data.shards import open_split
from distft.data.stats import sample_stats, stats_of
from distft.errors import ConfigError, DataError, LostError
from distft.plugin import tasks

pytestmark = pytest.mark.usefixtures("ray_cluster")

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config(tmp_path: Path, tiny_model: Path) -> MakeConfig:
    def make(train: Path | list[str], **data: Any) -> RunConfig:
        spec = train if isinstance(train, list) else str(train)
        return parse(
            {
                "name": "x",
                "output_dir": str(tmp_path / "runs"),
                "model": str(tiny_model),
                "data": {"train": spec, **data},
            }
        )

    return make


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def reviews(count: int, start: int = 0) -> list[tuple[str, str]]:
    return [
        (f"\u7535\u5f71 film number {i}, {'good' if i % 3 else 'bad'}", "pos" if i % 3 else "neg")
        for i in range(start, start + count)
    ]


def prepared(config: RunConfig) -> Path:
    return Path(config.output_dir) / "prepared"


def test_csv_with_flaws_is_split_counted_and_readable(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    rows = reviews(300)
    rows[10] = ("", "pos")
    rows[20] = ("a text, quoted\nover two lines", "pos")
    rows[30] = rows[40]
    rows[50] = ("no label here", "")
    rows[60] = ("word " * 200, "neg")
    config = make_config(write_csv(tmp_path / "r.csv", rows))
    seen: list[tuple[int, int]] = []
    root, manifest = prepare(config, progress=lambda done, total: seen.append((done, total)))

    assert manifest.format == "classification"
    assert manifest.task == "seq_cls"
    assert manifest.labels == ["neg", "pos"]
    assert manifest.dropped == {
        "field 'text' is empty": 1,
        "field 'label' is missing or empty": 1,
        "duplicate": 1,
    }
    # Line numbers of the file: header, then one line a row, and one row of two lines before 50.
    listed = {(row.row, row.reason) for row in manifest.dropped_rows}
    assert (12, "field 'text' is empty") in listed
    assert (53, "field 'label' is missing or empty") in listed
    assert (43, "duplicate") in listed
    assert {split: info.rows for split, info in manifest.splits.items()} == {
        "train": 237,
        "eval": 30,
        "test": 30,
    }
    assert sum(info.truncated for info in manifest.splits.values()) == 1
    assert seen[-1] == (297, 297)

    for split, info in manifest.splits.items():
        reader = open_split(root, split)
        samples = reader.read(range(reader.rows))
        assert [sample.sample_id for sample in samples] == list(range(info.rows))
        assert sum(len(sample.input_ids) for sample in samples) == info.tokens
        assert reader.lengths(range(reader.rows)).tolist() == [len(s.input_ids) for s in samples]
        assert max(len(sample.input_ids) for sample in samples) == info.max_length <= 64
        share = Counter(int(sample.labels[0]) for sample in samples)[0] / info.rows
        assert share == pytest.approx(1 / 3, abs=0.04)
    assert not list(prepared(config).glob("*/.*"))


def test_samples_stand_in_file_order_and_decode_to_their_text(
    tmp_path: Path, make_config: MakeConfig, tiny_model: Path
) -> None:
    from transformers import AutoTokenizer

    rows = [{"text": text, "label": label} for text, label in reviews(40)]
    held = [{"text": text, "label": label} for text, label in reviews(6, start=100)]
    config = make_config(
        write_jsonl(tmp_path / "t.jsonl", rows),
        eval=str(write_jsonl(tmp_path / "e.jsonl", held)),
        test=str(write_jsonl(tmp_path / "s.jsonl", [held[0], *rows[:2]])),
    )
    root, manifest = prepare(config)
    assert manifest.dropped == {"also_in_test": 3}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    decoded = {
        split: [
            tokenizer.decode(sample.input_ids, skip_special_tokens=True)
            for sample in open_split(root, split).read(range(manifest.splits[split].rows))
        ]
        for split in ("train", "eval", "test")
    }
    assert decoded["train"] == [row["text"] for row in rows[2:]]
    assert decoded["eval"] == [row["text"] for row in held[1:]]
    assert decoded["test"] == [held[0]["text"], rows[0]["text"], rows[1]["text"]]


def test_conversations_with_broken_lines(tmp_path: Path, make_config: MakeConfig) -> None:
    rows: list[Any] = [
        {"instruction": f"say {i}", "input": "" if i % 2 else "\u4f60\u597d", "output": f"row {i}"}
        for i in range(50)
    ]
    rows[7] = '{"instruction": "cut'
    rows[8] = "[1, 2]"
    rows[9] = {"instruction": "no answer"}
    rows[11] = {"instruction": "word " * 80, "output": "reached"}
    rows[12] = {"instruction": "say it", "output": "row", "history": [["", "said first"]]}
    config = make_config(write_jsonl(tmp_path / "a.jsonl", rows), test=0.2)
    root, manifest = prepare(config)
    assert (manifest.format, manifest.task, manifest.labels) == ("alpaca", "sft", [])
    assert manifest.dropped == {
        "not valid JSON": 1,
        "not a JSON object but list": 1,
        "field 'output' holds no answer (assistant turn) to learn": 1,
        "field 'history' must be a list of [question, answer] pairs": 1,
    }
    assert [(row.row, Path(row.file).name) for row in manifest.dropped_rows] == [
        (8, "a.jsonl"),
        (9, "a.jsonl"),
        (10, "a.jsonl"),
        (13, "a.jsonl"),
    ]
    sample = open_split(root, "train").read([0])[0]
    assert len(sample.labels) == len(sample.input_ids)
    assert manifest.splits["train"].targets > 0
    assert sum(info.rows for info in manifest.splits.values()) == 46
    assert sum(info.truncated for info in manifest.splits.values()) == 1
    assert all(info.ended == info.rows for info in manifest.splits.values())


@pytest.mark.slow
def test_rows_at_the_edges_are_counted_and_stand_in_the_shards_as_written(
    tmp_path: Path, make_config: MakeConfig, tiny_model: Path
) -> None:
    from transformers import AutoTokenizer

    scripts = [
        "\u4f60\u597d\uff0c\u4e16\u754c",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u0645\u0631\u062d\u0628\u0627 \u200f\u0628\u0643",
        "before\x00after\u2028end",
    ]
    rows = [{"text": text, "label": 1} for text in scripts]
    rows += [
        {"text": "w " * 50_000, "label": 2},
        {"text": "</s></s>", "label": 1},
        {"text": None, "label": 2},
        {"text": "alone in its class", "label": True},
    ]
    held, test = [{"text": f"row {i}", "label": 2} for i in range(3)], tmp_path / "s.csv"
    test.write_bytes("\ufefftext,label\r\n\U0001f600\x00,1\r\n".encode())
    eval_file = str(write_jsonl(tmp_path / "e.jsonl", held))
    train_file = write_jsonl(tmp_path / "t.jsonl", rows)
    root, manifest = prepare(make_config(train_file, eval=eval_file, test=str(test)))
    assert manifest.labels == ["1", "2", "true"]
    assert manifest.dropped == {
        "field 'text' is missing": 1,
        "the row has no token, or special ones only": 1,
    }
    train = manifest.splits["train"]
    assert (train.rows, train.truncated, train.label_counts) == (6, 1, [4, 1, 1])
    assert manifest.splits["eval"].label_counts == [0, 3, 0]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def texts(split: str, count: int) -> list[str]:
        samples = open_split(root, split).read(range(count))
        return [str(tokenizer.decode(one.input_ids, skip_special_tokens=True)) for one in samples]

    assert texts("train", 4) == scripts
    assert texts("test", 1) == ["\U0001f600\x00"]


def test_second_prepare_reads_no_row(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(write_csv(tmp_path / "r.csv", reviews(60)))
    tokenized: list[int] = []
    root, manifest = prepare(config, progress=lambda done, total: tokenized.append(done))
    assert tokenized[-1] == 60
    before = {path.name: path.stat().st_mtime_ns for path in root.iterdir()}
    tokenized.clear()
    again, same = prepare(config, progress=lambda done, total: tokenized.append(done))
    assert (again, same) == (root, manifest)
    assert tokenized == [], "a second pass over the data"
    (line,) = map(json.loads, (root.parent / "log.jsonl").read_text().splitlines())
    assert (line["key"], line["rows"], line["tokenized_rows"]) == (manifest.key, 60, 60)
    assert {path.name: path.stat().st_mtime_ns for path in root.iterdir()} == before


def test_leftovers_of_an_interrupted_preparation_are_replaced(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(write_csv(tmp_path / "r.csv", reviews(60)))
    key = prepared_key(config, tasks()["seq_cls"], "classification")
    leftover = prepared(config) / key
    leftover.mkdir(parents=True)
    (leftover / "train-00007.parquet").write_bytes(b"half")
    root, manifest = prepare(config)
    assert root == leftover.absolute()
    assert not (root / "train-00007.parquet").exists()
    assert load_manifest(root) == manifest


@pytest.mark.parametrize(
    ("moments", "error"),
    [
        pytest.param((4,), KeyboardInterrupt, marks=pytest.mark.slow),
        ((3, 1, 3), LostError),
        pytest.param((7,), KeyboardInterrupt, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_preparation_goes_on_after_its_finished_shards(
    tmp_path: Path,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    moments: tuple[int, ...],
    error: type[BaseException],
) -> None:
    from distft.data import finished, shards, source

    monkeypatch.setattr(source, "_MIN_CHUNK_BYTES", 8192)
    monkeypatch.setattr(shards, "SHARD_ROWS", 256)
    rows = [{"text": text, "label": label} for text, label in reviews(1500)]
    # Special tokens pass the first look and leave none of their own in the second.
    rows[::97] = [{"text": "</s>" * (i + 1), "label": "pos"} for i in range(len(rows[::97]))]
    file = write_jsonl(tmp_path / "r.jsonl", rows)
    _, unbroken = prepare(make_config(file))
    assert unbroken.tokenized_rows == 1500
    assert unbroken.dropped == {"the row has no token, or special ones only": 16}
    config = make_config(file).model_copy(update={"output_dir": str(tmp_path / "again")})
    whole: dict[Path, int] = {}
    for moment in moments:
        with pytest.raises(error):
            prepare(config, progress=Interrupt(moment, error))
        (root,) = (path for path in prepared(config).iterdir() if path.is_dir())
        with pytest.raises(DataError, match=r"manifest\.json is missing"):
            load_manifest(root)
        assert {path: path.stat().st_mtime_ns for path in whole} == whole
        state = finished.Finished.model_validate_json((root / "finished.json").read_bytes())
        files = [root / one.file for info in state.splits.values() for one in info.shards]
        assert len(files) >= max(1, len(whole))
        whole = {path: path.stat().st_mtime_ns for path in files}
    root, manifest = prepare(config)
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert manifest.tokenized_rows - 1500 in range(1, 600 * len(moments))
    assert manifest.model_copy(update={"tokenized_rows": 1500}) == unbroken
    names = {shard.file for info in manifest.splits.values() for shard in info.shards}
    assert {path.name for path in root.iterdir()} == {"manifest.json", *names}


class Interrupt:
    """A progress that is interrupted when it is told of something for so many times."""

    def __init__(self, moment: int, error: type[BaseException]) -> None:
        self.left, self.error = moment, error

    def __call__(self, done: int, total: int) -> None:
        self.left -= 1
        if not self.left:
            raise self.error("stop")


def test_a_broken_shard_is_refused(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(write_csv(tmp_path / "r.csv", reviews(60)))
    root, manifest = prepare(config)
    shard = root / manifest.splits["train"].shards[0].file
    content = shard.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[:-1], bytes(flipped)):
        shard.write_bytes(damaged)
        with pytest.raises(DataError, match=r"train-00000\.parquet"):
            prepare(config)
    shard.unlink()
    with pytest.raises(DataError, match=r"train-00000\.parquet is missing"):
        prepare(config)
    shard.write_bytes(content)
    assert prepare(config) == (root, manifest)


def test_many_chunks_of_many_files_give_the_order_of_the_files(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distft.data import files, source
    from distft.data import prepare as module

    monkeypatch.setattr(source, "_MIN_CHUNK_BYTES", 2048)
    monkeypatch.setattr(module, "_BYTES_PER_WORKER", 32_768)
    for part in range(3):
        rows = [{"text": t, "label": s} for t, s in reviews(400, start=400 * part)]
        write_jsonl(tmp_path / f"p{part}.jsonl", rows)
    config = make_config(
        tmp_path / "p*.jsonl",
        eval=str(write_jsonl(tmp_path / "e.jsonl", [{"text": "x good", "label": "pos"}])),
        test=str(write_jsonl(tmp_path / "s.jsonl", [{"text": "y good", "label": "pos"}])),
    )
    assert sum(len(f.chunks) for f in source.scan(files.expand(config.data.train, "k"))) > 20
    root, manifest = prepare(config)
    reader = open_split(root, "train")
    labels = [int(sample.labels[0]) for sample in reader.read(range(1200))]
    assert labels == [1 if i % 3 else 0 for i in range(1200)]
    assert reader.row_groups == [256, 256, 256, 256, 176]
    assert manifest.splits["train"].rows == 1200


def test_plan_statistics_agree_with_prepared_data(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(write_csv(tmp_path / "r.csv", [*reviews(120), reviews(1)[0]]))
    guess = sample_stats(config)
    truth = stats_of(prepare(config)[1])
    assert guess.rows == truth.rows
    assert guess.labels == truth.labels
    assert guess.mean_tokens == pytest.approx(truth.mean_tokens, rel=0.05)
    assert (guess.exact, truth.exact) == (False, True)


def test_max_samples_caps_training_rows_only(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(write_csv(tmp_path / "r.csv", reviews(100)), max_samples=30)
    _, manifest = prepare(config)
    assert {split: info.rows for split, info in manifest.splits.items()} == {
        "train": 30,
        "eval": 10,
        "test": 10,
    }
    assert manifest.dropped == {"beyond_max_samples": 50}
    assert sample_stats(config).rows == {"train": 30, "eval": 10, "test": 10}


def refused(config: RunConfig, error: type[Exception], *parts: str) -> None:
    for function in (sample_stats, prepare):
        with pytest.raises(error) as caught:
            function(config)
        for part in parts:
            assert part in str(caught.value)
    assert not [path for path in prepared(config).glob("*") if path.is_dir()]


def refused_by_plan(config: RunConfig, error: type[Exception], *parts: str) -> None:
    with pytest.raises(error) as caught:
        sample_stats(config)
    for part in parts:
        assert part in str(caught.value)


def test_refusals_name_file_and_row_and_leave_nothing(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    # plan and prepare decide with the same code; some cases are enough to show that both reach it.
    good = [{"text": t, "label": s} for t, s in reviews(30)]
    broken = write_jsonl(tmp_path / "b.jsonl", [*good, '{"text": '])
    refused(
        make_config(broken, on_bad_row="fail"),
        DataError,
        "b.jsonl:31:",
        "not valid JSON",
        "column",
    )
    none = write_jsonl(tmp_path / "n.jsonl", [{"text": "", "label": "a"}] * 3)
    refused_by_plan(
        make_config(none),
        DataError,
        "no usable row",
        "3 of them: field 'text' is empty",
        "n.jsonl:1",
    )
    one = write_jsonl(tmp_path / "o.jsonl", [{"text": t, "label": "a"} for t, _ in reviews(30)])
    refused_by_plan(make_config(one), DataError, "1 class (a); at least 2")
    unseen = write_jsonl(tmp_path / "u.jsonl", [{"text": "new", "label": "odd"}])
    config = make_config(write_jsonl(tmp_path / "g.jsonl", good), eval=str(unseen))
    refused(config, DataError, "u.jsonl:1:", "'odd'", "eval", "never seen in training")
    few = write_jsonl(tmp_path / "f.jsonl", [good[0], good[1]])
    refused(make_config(few), DataError, "No row is left for")
    ragged = tmp_path / "q.csv"
    ragged.write_text('text,label\nfine,a\n"never closed,b\nlost,a\n')
    refused(make_config(ragged, format="classification"), DataError, "q.csv:3:", "never closed")
    long = make_config(write_csv(tmp_path / "l.csv", reviews(30)), cutoff_len=65)
    refused_by_plan(long, ConfigError, "cutoff_len", "65", "64")
    both = make_config(write_csv(tmp_path / "m.csv", reviews(30)), eval=0.5, test=0.5)
    refused_by_plan(both, ConfigError, "leave nothing to train on")


def test_bad_row_met_by_the_tokenizer_stops_too(tmp_path: Path, make_config: MakeConfig) -> None:
    rows = [{"text": text, "label": label} for text, label in reviews(30)]
    rows[4] = {"text": "</s>", "label": "pos"}
    config = make_config(write_jsonl(tmp_path / "a.jsonl", rows), on_bad_row="fail")
    with pytest.raises(DataError, match=r"a\.jsonl:5: the row has no token, or special ones only"):
        prepare(config)
    assert not [path for path in prepared(config).glob("*") if path.is_dir()]


def test_detection_says_what_it_found_and_what_is_allowed(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    odd = write_jsonl(tmp_path / "o.jsonl", [{"review": "fine", "stars": 5}])
    with pytest.raises(ConfigError, match=r"review, stars.*classification reads text, label"):
        detect(make_config(odd))
    renamed = make_config(odd, columns={"text": "review", "label": "stars"})
    assert detect(renamed) == ("classification", "seq_cls")
    twice = {"text": "a", "label": "b", "messages": [{"role": "user", "content": "c"}]}
    with pytest.raises(ConfigError, match="several formats"):
        detect(make_config(write_jsonl(tmp_path / "t.jsonl", [twice])))
    with pytest.raises(ConfigError, match="did you mean label"):
        detect(make_config(odd, format="classification", columns={"lable": "stars"}))


def test_key_depends_on_what_the_shards_depend_on(tmp_path: Path, make_config: MakeConfig) -> None:
    path = write_csv(tmp_path / "r.csv", reviews(60))
    task = tasks()["seq_cls"]

    def key(**data: Any) -> str:
        return prepared_key(make_config(path, **data), task, "classification")

    first = key()
    assert len({first, key(eval=0.2), key(cutoff_len=32), key(max_samples=9)}) == 4
    assert key(on_bad_row="fail") != first
    moved = tmp_path / "moved.csv"
    moved.write_bytes(path.read_bytes())
    assert prepared_key(make_config(moved), task, "classification") == first
    moved.write_bytes(path.read_bytes() + b"one more,pos\n")
    assert prepared_key(make_config(moved), task, "classification") != first
