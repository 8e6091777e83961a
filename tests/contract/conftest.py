"""Rows that a tiny model learns in a few steps, and tasks on tiny models of their kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distft import hf, plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.config_sections import ModelConfig
from distft.data.shards import Sample
from distft.plugin import EncodeContext, Encoded, Task
from distft.train.batch import Collator, make_collator

ARCHITECTURES = {
    "AutoModelForSequenceClassification": "tiny_bert",
    "AutoModelForTokenClassification": "tiny_bert",
    "AutoModelForMaskedLM": "tiny_bert_mlm",
    "AutoModelForCausalLM": "chat_llama",
    "AutoModelForSeq2SeqLM": "tiny_t5",
}
"""Auto class -> the tiny model that has its head."""
_OPINIONS = {"good": "good great fine", "bad": "bad poor dull", "plain": "plain"}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """More threads than one only get in each other's way on models this small."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def rows() -> dict[str, list[dict[str, Any]]]:
    """Kind of row -> canonical rows."""
    labelled = [
        {"text": f"the {noun} {verb} {word}", "label": label}
        for label, words in _OPINIONS.items()
        for word in words.split()
        for noun in ("film", "story", "acting")
        for verb in ("is", "was")
    ]
    conversations = [
        {
            "messages": [
                {"role": "user", "content": f"say {word}"},
                {"role": "assistant", "content": word * 2},
            ]
        }
        for word in ["good", "bad", "fine", "poor"]
    ]
    plain = [{"text": row["text"]} for row in labelled]
    return {
        "labelled_text": labelled,
        "multi_labelled_text": [
            {"text": row["text"], "labels": [row["label"]] * (row["label"] != "plain")}
            for row in labelled
        ],
        "rated_text": [
            {"text": row["text"], "value": {"good": 4.0, "bad": 1.0, "plain": 2.5}[row["label"]]}
            for row in labelled
        ],
        "tagged_words": [
            {"words": row["text"].split(), "tags": ["O", "B-THING", "O", f"B-{row['label']}"]}
            for row in labelled
        ],
        "plain_text": plain,
        "text_to_text": [{"source": row["text"], "target": row["label"]} for row in labelled],
        "conversation": conversations,
    }


@pytest.fixture(scope="session")
def tiny_bert_mlm(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with the output layer it would have been pre-trained with."""
    from transformers import AutoConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("tiny-bert-mlm")
    torch.manual_seed(14)
    BertForMaskedLM(AutoConfig.from_pretrained(tiny_bert)).save_pretrained(folder)
    hf.load_tokenizer(ModelConfig(id=str(tiny_bert))).save_pretrained(folder)
    return folder


class Place:
    """A task on a tiny model, and its rows encoded."""

    def __init__(self, task: Task, folder: Path, rows: list[dict[str, Any]]) -> None:
        raw = {
            "name": "contract",
            "model": {"id": str(folder), "dropout": 0.0},
            "task": task.name,
            "data": {"train": "none"},
        }
        self.config: RunConfig = parse(raw)
        self.task, self.rows = task, rows
        names = {name for row in rows for name in (task.classes(row) if task.classes else ())}
        self.labels = sorted(names)
        self.tokenizer = hf.load_tokenizer(self.config.model)
        self.context = EncodeContext(64, self.labels)
        self.encoded: list[Encoded] = [task.encode(r, self.tokenizer, self.context) for r in rows]
        kind = np.float32 if task.labels == "vector" else np.int32
        self.samples = [
            Sample(i, np.array(one.input_ids), np.array(one.labels, kind), one.second)
            for i, one in enumerate(self.encoded)
        ]
        self.collate: Collator = make_collator(self.config, task, self.labels)

    def model(self) -> nn.Module:
        return hf.load_model(self.config.model, self.task, self.labels, seed=3).eval()

    def logits(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        said: torch.Tensor = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        return said


@pytest.fixture(scope="session")
def make_place() -> Callable[[Task, Path, list[dict[str, Any]]], Place]:
    """(task, folder of a tiny model, rows) -> their place."""
    return Place


@pytest.fixture(params=plugin.tasks())
def place(request: pytest.FixtureRequest, rows: Any) -> Place:
    task = plugin.tasks()[request.param]
    folder = request.getfixturevalue(ARCHITECTURES[task.auto_class])
    # Few rows of unequal length, every class among them.
    return Place(task, folder, rows[task.rows[0]][::4])
