"""Methods that put vectors before the input: what they answer fits the input, token for token."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distft import hf, plugin, virtual_tokens
from distft.config_sections import ModelConfig
from distft.errors import ConfigError

METHODS, TASKS = plugin.methods(), plugin.tasks()
LABELS = ["bad", "good", "plain"]
VIRTUAL = 5
PROMPTS: dict[str, dict[str, Any]] = {
    "prompt_tuning": {},
    "p_tuning": {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 11},
    "prefix_tuning": {"prefix_projection": True, "encoder_hidden_size": 11},
}
DIRECT = {"prefix_projection": False, "encoder_hidden_size": None}
FOLDERS = {"bert": "tiny_bert", "bert_lm": "bert_lm", "llama": "chat_llama", "t5": "tiny_t5"}
PLACES = [
    ("bert", "seq_cls"),
    ("bert", "token_cls"),
    ("bert_lm", "masked_lm"),
    ("llama", "seq_cls"),
    ("llama", "token_cls"),
    ("llama", "sft"),
    ("t5", "seq2seq"),
]
FRESH = """
import json, sys, torch
from pathlib import Path
from distft import hf, plugin
folder, task, inputs = Path(sys.argv[1]), plugin.tasks()[sys.argv[2]], json.loads(sys.argv[3])
module = hf.load_folder(folder, task)
with torch.inference_mode():
    logits = module(**{key: torch.tensor(value) for key, value in inputs.items()}).logits
print(json.dumps(logits.tolist()))
"""


@pytest.fixture(scope="session")
def bert_lm(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with an output layer for masked tokens."""
    from transformers import AutoConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("bert-lm")
    BertForMaskedLM(AutoConfig.from_pretrained(tiny_bert)).save_pretrained(folder)
    hf.load_tokenizer(ModelConfig(id=str(tiny_bert))).save_pretrained(folder)
    return folder


def attached(folder: Path, task: str, method: str, **keys: Any) -> nn.Module:
    model = hf.load_model(
        ModelConfig(id=str(folder), dropout=0.0),
        TASKS[task],
        LABELS if TASKS[task].classes else [],
        seed=1,
    )
    chosen = METHODS[method]
    settings = {**PROMPTS[method], "num_virtual_tokens": VIRTUAL, **keys}
    torch.manual_seed(3)
    return chosen.attach(model, chosen.config(**settings), TASKS[task]).eval()


def batch_of(module: Any, task: str) -> dict[str, torch.Tensor]:
    """Two rows of six and nine tokens, padded on the right."""
    ids = torch.randint(5, 16, (2, 9), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[0, 6:], ids[0, 6:] = 0, module.config.pad_token_id
    batch = {"input_ids": ids, "attention_mask": mask}
    if task == "seq2seq":
        batch["decoder_input_ids"] = ids[:, :4]
    return batch


@pytest.mark.parametrize("method", PROMPTS)
@pytest.mark.parametrize(("architecture", "task"), PLACES)
def test_logits_fit_the_input_and_padding_changes_nothing(
    architecture: str, task: str, method: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(FOLDERS[architecture])
    module = attached(folder, task, method)
    batch = batch_of(module, task)
    logits = module(**batch).logits
    alone = {
        key: value[:1] if key == "decoder_input_ids" else value[:1, :6]
        for key, value in batch.items()
    }
    by_itself = module(**alone).logits
    if TASKS[task].labels == "tokens":
        assert logits.shape[:2] == batch["input_ids"].shape
        torch.testing.assert_close(logits[:1, :6], by_itself, atol=1e-4, rtol=1e-4)
    else:
        assert logits.shape[0] == 2
        torch.testing.assert_close(logits[:1], by_itself, atol=1e-4, rtol=1e-4)
    by_itself.square().sum().backward()
    vectors = dict(module.named_parameters())["prompt_encoder.default.embedding.weight"]
    assert vectors.grad is not None
    assert vectors.grad.norm() > 1e-4, "the answer depends on the vectors"


@pytest.mark.parametrize("method", PROMPTS)
@pytest.mark.parametrize(("architecture", "task"), PLACES)
def test_without_its_vectors_a_model_is_the_untouched_one(
    architecture: str, task: str, method: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(FOLDERS[architecture])
    names = LABELS if TASKS[task].classes else []
    model = ModelConfig(id=str(folder), dropout=0.0)
    plain = hf.load_model(model, TASKS[task], names, seed=1).eval()
    module = attached(folder, task, method)
    batch = batch_of(module, task)
    with torch.inference_mode():
        wanted, before = plain(**batch).logits, module(**batch).logits
        with virtual_tokens.without(module):
            said = module(**batch).logits
        after = module(**batch).logits
    seen = batch["attention_mask"].bool() if TASKS[task].labels == "tokens" else slice(None)
    torch.testing.assert_close(said[seen], wanted[seen], atol=1e-6, rtol=0)
    assert not torch.allclose(before[seen], wanted[seen], atol=1e-6)
    assert torch.equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize("method", PROMPTS)
def test_a_saved_adapter_says_the_same_in_a_fresh_process(
    method: str, tiny_bert: Path, chat_llama: Path, tmp_path: Path
) -> None:
    for folder, task in ((tiny_bert, "token_cls"), (chat_llama, "sft")):
        module = attached(folder, task, method)
        inputs = batch_of(module, task)
        target = tmp_path / task
        hf.save_folder(module, ModelConfig(id=str(folder)), target)
        given = json.dumps({key: value.tolist() for key, value in inputs.items()})
        done = subprocess.run(
            [sys.executable, "-c", FRESH, str(target), task, given],
            capture_output=True,
            text=True,
            check=True,
        )
        with torch.inference_mode():
            said = module(**inputs).logits
        there = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
        torch.testing.assert_close(there, said, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", PROMPTS)
@pytest.mark.parametrize("saved", [False, True], ids=["attached", "loaded"])
def test_generation_with_padding_on_the_left_equals_row_by_row(
    method: str, saved: bool, chat_llama: Path, tmp_path: Path
) -> None:
    module: Any = attached(chat_llama, "sft", method)
    if saved:
        hf.save_folder(module, ModelConfig(id=str(chat_llama)), tmp_path)
        module = hf.load_folder(tmp_path, TASKS["sft"])
    rows = [torch.arange(40, 46), torch.arange(60, 69)]
    together = torch.zeros(2, 9, dtype=torch.long)
    mask = torch.zeros_like(together)
    for i, row in enumerate(rows):
        together[i, -len(row) :], mask[i, -len(row) :] = row, 1
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ours = module.generate(input_ids=together, attention_mask=mask, **settings)[:, 9:]
    for i, row in enumerate(rows):
        ids = row[None]
        for _ in range(6):
            logits = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        assert ours[i].tolist() == ids[0, len(row) :].tolist()


def test_a_prompt_begins_with_the_text_it_is_given(chat_llama: Path) -> None:
    module = attached(
        chat_llama,
        "sft",
        "prompt_tuning",
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="abc",
    )
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(chat_llama)))
    ids = (tokenizer("abc")["input_ids"] * VIRTUAL)[:VIRTUAL]
    parameters = dict(module.named_parameters())
    vectors = parameters["prompt_encoder.default.embedding.weight"]
    assert torch.equal(vectors, parameters["base_model.model.embed_tokens.weight"][ids])


@pytest.mark.parametrize(
    ("method", "keys", "reason"),
    [
        ("prompt_tuning", {"prompt_tuning_init": "TEXT"}, "go together"),
        ("prompt_tuning", {"prompt_tuning_init_text": "abc"}, "go together"),
        ("prefix_tuning", {"encoder_hidden_size": 8}, "prefix_projection: true"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(
    method: str, keys: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        METHODS[method].config(**keys)


def test_a_prefix_is_refused_where_the_model_takes_none() -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    sizes = {"dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 40, "vocab_size": 18}
    model = DistilBertForSequenceClassification(DistilBertConfig(**sizes))
    chosen = METHODS["prefix_tuning"]
    with pytest.raises(ConfigError, match="distilbert models do not") as caught:
        chosen.attach(model, chosen.config(), TASKS["seq_cls"])
    assert "prompt_tuning" in caught.value.hint


def test_a_prefix_begins_small_and_no_two_of_its_positions_alike(chat_llama: Path) -> None:
    module: Any = attached(chat_llama, "sft", "prefix_tuning", **DIRECT, num_virtual_tokens=40)
    weight = module.prompt_encoder.default.embedding.weight
    assert 0.015 < float(weight.detach().std()) < 0.025
    assert len(weight.detach().unique(dim=0)) == 40
