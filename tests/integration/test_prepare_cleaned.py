"""`data.clean` through a real preparation: what is in the shards, and what the manifest says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distft.config import RunConfig
from distft.config_file import parse
from distft.data.manifest import Manifest
from distft.data.prepare import prepare
from distft.data.reread import split_readings
from distft.data.resolve import prepared_key
from distft.data.shards import open_split
from distft.data.stats import sample_stats, stats_of
from distft.errors import DataError
from distft.plugin import tasks

CLEAN = {
    "unicode": "NFC",
    "control_characters": True,
    "mask": ["email"],
    "min_chars": 5,
    "languages": ["en"],
    "near_duplicates": 0.8,
}
GERMAN = "Das ist ein wirklich schlechter Film, den man nicht sehen sollte."


def review(number: int) -> str:
    """Return a text that resembles none of another number."""
    return " ".join(f"word{number}x{i} was good" for i in range(8))


def config_of(folder: Path, model: Path, rows: list[dict[str, Any]], **data: Any) -> RunConfig:
    path = folder / "r.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return parse(
        {
            "name": "x",
            "output_dir": str(folder / "runs"),
            "model": str(model),
            "task": "seq_cls",
            "data": {"train": str(path), "format": "classification", **data},
        }
    )


def flawed_rows() -> list[dict[str, Any]]:
    rows = [{"text": review(i), "label": "ab"[i % 2]} for i in range(60)]
    rows[3]["text"] += " cafe\u0301\x07"
    rows[4]["text"] = f"ann@example.org wrote: {review(4)}"
    rows[5]["text"] = "\u200b"
    rows[6]["text"] = "ok"
    rows[7]["text"] = GERMAN
    rows[9]["text"] = review(8) + " indeed"
    rows[11]["text"] = review(10)
    rows[13] = {"text": review(13)}
    return rows


@pytest.mark.usefixtures("ray_cluster")
def test_rows_are_cleaned_counted_and_sampled(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    config = config_of(tmp_path, tiny_model, flawed_rows(), clean=CLEAN)
    root, manifest = prepare(config)
    assert manifest.dropped == {
        "a text is empty after cleaning": 1,
        "shorter than 5 characters (data.clean.min_chars)": 1,
        "language de (data.clean.languages)": 1,
        "near_duplicate": 1,
        "duplicate": 1,
        "field 'label' is missing or empty": 1,
    }
    counts = {name: (step.changed, step.dropped) for name, step in manifest.cleaning.items()}
    assert counts == {
        "control_characters": (2, 0),
        "unicode": (1, 0),
        "mask": (1, 0),
        "empty": (0, 1),
        "min_chars": (0, 1),
        "languages": (0, 1),
        "near_duplicates": (0, 1),
    }
    assert {name: step.samples[0].row for name, step in manifest.cleaning.items()} == {
        "control_characters": 4,
        "unicode": 4,
        "mask": 5,
        "empty": 6,
        "min_chars": 7,
        "languages": 8,
        "near_duplicates": 10,
    }
    near = manifest.cleaning["near_duplicates"].samples[0]
    assert near.resembles == f"{config.data.train}:9"
    assert manifest.cleaning["languages"].samples[0].before.startswith(GERMAN[:40])
    assert "ann@" not in manifest.model_dump_json()
    assert manifest.tokenized_rows == 54

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    told = [
        tokenizer.decode(sample.input_ids, skip_special_tokens=True)
        for split in ("train", "eval", "test")
        for sample in open_split(root, split).read(range(manifest.splits[split].rows))
    ]
    assert sum("ann@" in one for one in told) == 0
    assert sum(one.startswith("[EMAIL] wrote: word4x0") for one in told) == 1

    assert sample_stats(config).rows == stats_of(manifest).rows
    again = [reading.value for reading in split_readings(config, "test", manifest.key)]
    assert len(again) == manifest.splits["test"].rows
    assert all(value is not None for value in again)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_result_does_not_depend_on_how_the_files_are_cut(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distft.data import prepare as module
    from distft.data import source

    rows = [
        {"text": f"{review(i // 2)} {'so' if i % 2 else 'too'}\x07", "label": "ab"[i // 2 % 2]}
        for i in range(200)
    ]
    held = tmp_path / "e.jsonl"
    lines = [json.dumps({**row, "text": row["text"] + " held"}) for row in rows[::20]]
    held.write_text("\n".join(lines), encoding="utf-8")

    def made(folder: str) -> Manifest:
        (tmp_path / folder).mkdir()
        config = config_of(tmp_path / folder, tiny_model, rows, eval=str(held), clean=CLEAN)
        manifest = prepare(config)[1]
        text = manifest.model_dump_json().replace(str(tmp_path / folder), "")
        return Manifest.model_validate_json(text)

    whole = made("whole")
    monkeypatch.setattr(source, "_MIN_CHUNK_BYTES", 2048)
    monkeypatch.setattr(module, "_BYTES_PER_WORKER", 32_768)
    cut = made("cut")
    assert cut == whole
    assert whole.dropped == {"near_duplicate": 90, "near_eval": 20}
    assert whole.cleaning["near_duplicates"].dropped == 110
    assert len(whole.cleaning["control_characters"].samples) == 20
    assert whole.summary()["cleaning"]["near_duplicates"] == "0 changed, 110 left out"
    rows = whole.splits["train"].rows
    assert whole.summary()["splits"]["train"].startswith(f"{rows:,} rows, ")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_row_that_is_cleaned_out_is_no_bad_row(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"text": review(i), "label": "ab"[i % 2]} for i in range(40)]
    rows[3]["text"] = "ok"
    clean = {"min_chars": 5, "control_characters": True}
    config = config_of(tmp_path, tiny_model, rows, on_bad_row="fail", clean=clean)
    assert sample_stats(config).rows["train"] == 31
    assert list(prepare(config)[1].dropped.values()) == [1]
    rows[4]["label"] = None
    broken = config_of(tmp_path, tiny_model, rows, on_bad_row="fail", clean=clean)
    for read in (sample_stats, prepare):
        with pytest.raises(DataError, match=r"r\.jsonl:5: field 'label' is missing"):
            read(broken)


def test_the_key_changes_with_cleaning_only(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"text": review(i), "label": "ab"[i % 2]} for i in range(10)]

    def key(**clean: Any) -> str:
        config = config_of(tmp_path, tiny_model, rows, clean=clean)
        return prepared_key(config, tasks()["seq_cls"], "classification")

    plain = prepared_key(
        config_of(tmp_path, tiny_model, rows), tasks()["seq_cls"], "classification"
    )
    assert key() == key(mask=[], control_characters=False) == plain
    kinds = [{"unicode": form} for form in ("NFC", "NFKC")]
    kinds += [{name: value} for name, value in CLEAN.items() if name != "unicode"]
    assert len({plain, key(near_duplicates=0.9), *(key(**one) for one in kinds)}) == 9
