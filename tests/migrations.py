"""Configs of other programs, the folder they stand in, and what `distft migrate` makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distft.errors import PlanError
from distft.migrate.convert import Migration, migrate

LLAMAFACTORY: dict[str, Any] = {
    "model_name_or_path": "org/model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "chats",
}
V1: dict[str, Any] = {"model": "org/model", "model_class": "llm", "train_dataset": "sets.yaml"}
AXOLOTL: dict[str, Any] = {
    "base_model": "org/model",
    "datasets": [{"path": "chats.jsonl", "type": "chat_template"}],
    "learning_rate": 2e-4,
}
INFO = {
    "chats": {"file_name": "chats.json"},
    "more": {"file_name": "more.json"},
    "hub": {"hf_hub_url": "org/rows", "split": "train", "subset": "en"},
    "texts": {"file_name": "texts.jsonl", "columns": {"prompt": "content"}},
    "questions": {"file_name": "q.json", "columns": {"prompt": "question", "response": "answer"}},
    "histories": {
        "file_name": "h.json",
        "columns": {"prompt": "q", "response": "a", "system": "s", "history": "h"},
    },
    "columns": {
        "file_name": "c.json",
        "columns": {"prompt": "q", "query": "given", "response": "a", "system": "s"},
    },
    "tools": {
        "file_name": "t.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "tools": "functions"},
    },
    "turns": {
        "file_name": "turns.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        },
    },
    "odd": {
        "file_name": "odd.json",
        "formatting": "sharegpt",
        "tags": {"user_tag": "Q", "assistant_tag": "A"},
    },
    "pairs": {"file_name": "p.json", "ranking": True},
    "pictures": {"file_name": "i.json", "columns": {"images": "images"}},
    "script": {"script_url": "load.py"},
}


def make_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with `data/dataset_info.json` and one file of rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(INFO))
    rows = [{"instruction": f"Say {i}.", "output": str(i)} for i in range(30)]
    (tmp_path / "data" / "chats.json").write_text(json.dumps(rows))
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"Say {i}."},
                {"role": "assistant", "content": str(i)},
            ]
        }
        for i in range(30)
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    sets = {"chats": {"path": "data/chats.json", "source": "local", "converter": "alpaca"}}
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump(sets))
    return tmp_path


def of(config: dict[str, Any], folder: Path) -> Migration:
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return migrate(path)


def refusal(config: dict[str, Any], folder: Path) -> str:
    with pytest.raises(PlanError) as caught:
        of(config, folder)
    return str(caught.value)


def outcome(made: Migration, key: str) -> tuple[str, dict[str, Any]]:
    (entry,) = [one for one in made.entries if one.key == key]
    return entry.outcome.verdict, dict(entry.outcome.sets)
