"""Fixtures of the tests that run real parts."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CORPUS = [
    "this film is good, great and fine; that one is bad, poor and dull",
    "row number 0 1 2 3 4 5 6 7 8 9 says hello to everyone",
    "\u8fd9\u90e8\u7535\u5f71\u5f88\u597d \u90a3\u90e8\u5f88\u5dee",
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny configuration and a byte-level BPE tokenizer trained here.

    Weights are not in it: preparing data needs none.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = _CHAT
    fast.save_pretrained(folder)
    LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the finished runs of `runs` lie, with what they were made of."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def llama_base(chat_llama: Path, runs_folder: Path) -> Path:
    """A copy that a test may change and put back."""
    shutil.copytree(chat_llama, runs_folder / "base")
    return runs_folder / "base"


@pytest.fixture(scope="session")
def runs(
    runs_folder: Path, llama_base: Path, asset: Callable[[str], Path]
) -> Callable[[str], Path]:
    """Kind -> a finished run, made once."""
    train = runpy.run_path(str(Path(__file__).with_name("export_runs.py")))["finished_run"]
    lora = {"name": "lora", "r": 4}
    made: dict[str, Path] = {}
    makers: dict[str, Callable[[], tuple[Any, ...]]] = {
        "bert-lora": lambda: (str(asset("minilm-l6")), "seq_cls", lora, 2e-3),
        "bert-full": lambda: (str(asset("minilm-l6")), "seq_cls", {"name": "full"}, 2e-4),
        "llama-lora": lambda: (str(llama_base), "sft", lora, 2e-2),
    }

    def run(kind: str) -> Path:
        if kind not in made:
            *what, rate = makers[kind]()
            made[kind] = train(runs_folder, kind, *what, learning_rate=rate)
        return made[kind]

    return run
