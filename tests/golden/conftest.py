"""A tiny model and data whose loss falls, and long-lived groups of one and two real processes.

The model is random: these tests are about mechanics, that the same numbers come out however a
step is cut, sharded or interrupted.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

WORKER = Path(__file__).with_name("pair_worker.py")
VOCABULARY = 48
ROWS = {"train": 37, "eval": 7, "test": 5}


class Group:
    """Processes of one gloo world; `run` sends a case to all ranks and returns rank 0's lines."""

    def __init__(self, world_size: int, folder: Path) -> None:
        self.world_size = world_size
        self._processes = []
        self._answers = []
        for rank in range(world_size):
            read, write = os.pipe()
            command = [sys.executable, str(WORKER), str(rank), str(world_size)]
            with (folder / f"rank-{rank}.log").open("w") as log:
                process = subprocess.Popen(
                    [*command, str(folder / "store")],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    text=True,
                    pass_fds=[write],
                    env={**os.environ, "DISTFT_ANSWER_FD": str(write), "OMP_NUM_THREADS": "1"},
                )
            os.close(write)
            self._processes.append(process)
            self._answers.append(os.fdopen(read))

    def run(self, case: dict[str, Any]) -> list[dict[str, Any]]:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(case) + "\n")
            process.stdin.flush()
        answers = [json.loads(stream.readline() or '{"error": "died"}') for stream in self._answers]
        for answer in answers:
            assert "error" not in answer, answer["error"]
        lines: list[dict[str, Any]] = answers[0]["lines"]
        return lines

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=60)


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """A world of one process."""
    group = Group(1, tmp_path_factory.mktemp("world-1"))
    yield group
    group.close()


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """A world of two processes."""
    group = Group(2, tmp_path_factory.mktemp("world-2"))
    yield group
    group.close()


def _llama(folder: Path, **sizes: int) -> Path:
    """Write a Llama with odd sizes, which no world divides, and a word tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY + 1,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        attention_bias=True,
        # Wide enough that an adapter on random weights has something to work with.
        initializer_range=0.15,
        pad_token_id=0,
        eos_token_id=1,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCABULARY + 1)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", eos_token="w1"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    return _llama(folder, hidden_size=36, intermediate_size=67, num_hidden_layers=2)


@pytest.fixture(scope="session")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five layers with a million and a half weights, whose states DeepSpeed puts on a disk."""
    folder = tmp_path_factory.mktemp("wide-llama")
    return _llama(folder, hidden_size=168, intermediate_size=379, num_hidden_layers=5)


def _write_shards(
    root: Path, task: str, labels: list[str], rows: Iterator[tuple[Any, Any]]
) -> None:
    """Write prepared data of ROWS rows per split, each (input ids, labels)."""
    from distft import plugin
    from distft.data.manifest import Manifest, TokenizerInfo, save_manifest
    from distft.data.shards import ShardWriter, encoded_schema

    splits = {}
    for split, count in ROWS.items():
        chosen = [next(rows) for _ in range(count)]
        table = {
            "input_ids": [ids for ids, _ in chosen],
            "labels": [targets for _, targets in chosen],
            "second": [0] * count,
            "truncated": [False] * count,
            "ended": [False] * count,
            "place": list(range(count)),
            "targets": [plugin.tasks()[task].num_targets(targets) for _, targets in chosen],
        }
        writer = ShardWriter(root, split, plugin.tasks()[task], len(labels))
        writer.add(pa.table(table, schema=encoded_schema(plugin.tasks()[task])))
        splits[split] = writer.close()
    manifest = Manifest(
        key=root.name,
        task=task,
        format="none",
        columns={},
        labels=labels,
        cutoff_len=64,
        tokenizer=TokenizerInfo(name="none", sha256=""),
        splits=splits,
        dropped={},
        dropped_rows=[],
        sources=[],
    )
    save_manifest(root, manifest)


@pytest.fixture(scope="session")
def write_shards() -> Callable[..., None]:
    """(root, task, labels, rows) -> prepared data of ROWS rows per split in root."""
    return _write_shards


@pytest.fixture(scope="session")
def progressions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of counting sequences of unequal length; only a part of each is trained on."""
    root = tmp_path_factory.mktemp("progressions")
    draw = random.Random(3)

    def rows() -> Iterator[tuple[list[int], list[int]]]:
        while True:
            length, start, stride = draw.randint(5, 24), draw.randint(3, 20), draw.choice([1, 2])
            ids = [3 + (start + stride * i) % (VOCABULARY - 3) for i in range(length)]
            prompt = draw.randint(1, length - 2)
            yield ids, [-100] * prompt + ids[prompt:]

    _write_shards(root, "sft", [], rows())
    return root


@pytest.fixture(scope="session")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of token ids whose class is the range they come from, for a BERT vocabulary."""
    root = tmp_path_factory.mktemp("two-classes")
    draw = random.Random(5)

    def rows() -> Iterator[tuple[list[int], list[int]]]:
        while True:
            label = draw.randint(0, 1)
            body = [draw.randint(2000, 2999) + 1000 * label for _ in range(draw.randint(4, 30))]
            yield [101, *body, 102], [label]

    _write_shards(root, "seq_cls", ["low", "high"], rows())
    return root
