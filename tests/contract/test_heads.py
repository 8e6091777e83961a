"""What a model ends in, where its files hold all of that, a part, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from distft import heads, hf, plugin
from distft.blocks import blocks_of
from distft.config_sections import ModelConfig
from distft.errors import ConfigError, TrainError

METHODS, TASKS = plugin.methods(), plugin.tasks()
LABELS = ["bad", "good", "plain"]
VOCABULARY, HIDDEN = 19, 24
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0}
ENCODERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "bert": (
        {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 40, "max_position_embeddings": 64},
        ["cls.predictions.transform.LayerNorm", "cls.predictions.transform.dense"],
    ),
    "roberta": (
        {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 40, "max_position_embeddings": 64},
        ["lm_head.dense", "lm_head.layer_norm"],
    ),
    "distilbert": (
        {"dim": HIDDEN, "n_layers": 2, "n_heads": 2, "hidden_dim": 40}
        | {"max_position_embeddings": 64},
        ["vocab_layer_norm", "vocab_transform"],
    ),
}
"""Model type -> its sizes, and what its masked language modelling head holds besides the weight
that is tied to the embeddings and that weight's bias."""
TRANSFORM = HIDDEN * HIDDEN + HIDDEN + 2 * HIDDEN


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """A type of model, a folder that holds its body alone, and one that holds its head too."""
    kind: str = request.param
    torch.manual_seed(14)
    config = transformers.AutoConfig.for_model(kind, **SIZES, **ENCODERS[kind][0])
    body, whole = tmp_path_factory.mktemp(kind), tmp_path_factory.mktemp(kind)
    transformers.AutoModel.from_config(config).save_pretrained(body)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(whole)
    return kind, body, whole


def model_of(folder: Path) -> ModelConfig:
    return ModelConfig(id=str(folder), dropout=0.0)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_a_head_that_the_files_lack_is_new_and_its_output_stays_tied(encoder) -> None:
    kind, body, _ = encoder
    task = TASKS["masked_lm"]
    loaded = hf.load_model(model_of(body), task, [], seed=1)
    empty = hf.build_meta(model_of(body), task, [])
    for model in (loaded, empty):
        assert sorted(heads.trained_whole(model, task)) == ENCODERS[kind][1]
        new = sum(p.numel() for p in heads.trained_parameters(model, task))
        assert new == TRANSFORM + VOCABULARY
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    bias = loaded.get_output_embeddings().bias
    assert not bias.any()


@pytest.mark.parametrize("method", ["full", "freeze", "bitfit", "lora", "prompt_tuning"])
def test_what_is_new_is_trained_and_counted(encoder, method: str) -> None:
    kind, body, whole = encoder
    task, chosen = TASKS["masked_lm"], METHODS[method]
    counts = []
    for folder in (body, whole):
        loaded = chosen.attach(
            hf.load_model(model_of(folder), task, [], seed=1), chosen.config(), task
        )
        with torch.device("meta"):
            empty = chosen.attach(hf.build_meta(model_of(folder), task, []), chosen.config(), task)
        assert count(loaded) == count(empty)
        counts.append(count(loaded))
    adds = {
        "full": 0,
        "freeze": TRANSFORM + VOCABULARY,
        # The biases move in any case: of the two layers and of the output.
        "bitfit": HIDDEN * HIDDEN + HIDDEN,
        # Whole instead of by an update of rank 8.
        "lora": TRANSFORM - 8 * 2 * HIDDEN,
        "prompt_tuning": TRANSFORM,
    }
    assert counts[0] - counts[1] == adds[method], kind


def test_a_head_that_the_files_hold_is_the_models_own(encoder) -> None:
    _, _, whole = encoder
    task = TASKS["masked_lm"]
    loaded = hf.load_model(model_of(whole), task, [], seed=1)
    assert heads.trained_whole(loaded, task) == []
    assert heads.trained_parameters(loaded, task) == []
    plain = transformers.AutoModelForMaskedLM.from_pretrained(whole).state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in loaded.state_dict().items())


def test_a_new_head_is_drawn_from_the_seed(encoder) -> None:
    _, body, _ = encoder
    task = TASKS["masked_lm"]
    drawn = []
    for seed in (1, 1, 2):
        model = hf.load_model(model_of(body), task, [], seed=seed)
        drawn.append(torch.cat([p.flatten() for p in heads.trained_parameters(model, task)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("task", "lost"),
    [("masked_lm", "cls.predictions.decoder.weight"), ("causal_lm", "lm_head.weight")],
)
def test_a_weight_that_writes_tokens_is_never_drawn(task: str, lost: str, tmp_path: Path) -> None:
    """Untied and absent: nothing that was pre-trained says which token is which."""
    kind = {"masked_lm": "bert", "causal_lm": "llama"}[task]
    sizes = ENCODERS["bert"][0] | {"tie_word_embeddings": False}
    config = transformers.AutoConfig.for_model(kind, **SIZES, **sizes)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(TrainError, match=f"lacks 1 weights .* {lost}") as caught:
        hf.load_model(model_of(tmp_path), TASKS[task], [], seed=1)
    assert "incomplete" in caught.value.hint


def test_a_sequence_model_without_its_output_layer_is_refused(tmp_path: Path) -> None:
    depth = {"encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    attention = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(
        **SIZES, **depth, **attention, d_model=HIDDEN, tie_word_embeddings=False
    )
    transformers.BartModel(config).save_pretrained(tmp_path)
    with pytest.raises(TrainError, match=r"lacks 1 weights .* lm_head\.weight"):
        hf.load_model(model_of(tmp_path), TASKS["seq2seq"], [], seed=1)


@pytest.mark.parametrize("task", ["masked_lm", "seq_cls"])
def test_a_body_that_lacks_weights_is_refused_when_planned_and_loaded(
    task: str, encoder, tmp_path: Path
) -> None:
    _, body, _ = encoder
    config = transformers.AutoConfig.from_pretrained(body)
    state = transformers.AutoModel.from_pretrained(body).state_dict()
    lost = next(name for name in state if ".0." in name and name.endswith("weight"))
    del state[lost]
    config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainError, match=rf"lacks 1 weights .*{lost}"):
        hf.load_model(model_of(tmp_path), TASKS[task], ["bad", "good"], seed=1)
    if task == "masked_lm":
        with pytest.raises(TrainError, match=rf"lacks 1 weights .*{lost}"):
            hf.build_meta(model_of(tmp_path), TASKS[task], [])


def test_freeze_trains_a_new_head_alone_though_its_output_is_tied(encoder) -> None:
    _, body, whole = encoder
    task, freeze = TASKS["masked_lm"], METHODS["freeze"]
    only_head = freeze.config(trainable_layers=0)
    module = freeze.attach(hf.build_meta(model_of(body), task, []), only_head, task)
    assert count(module) == TRANSFORM + VOCABULARY
    with pytest.raises(ConfigError, match="shares it with its input embeddings"):
        freeze.attach(hf.build_meta(model_of(whole), task, []), only_head, task)


def test_the_head_of_a_model_without_a_body_is_its_output_layer(tiny_t5: Path) -> None:
    task, freeze = TASKS["seq2seq"], METHODS["freeze"]
    model = hf.build_meta(model_of(tiny_t5), task, [])
    assert heads.head_modules(model) == ["lm_head"]
    assert not heads.is_uncertain(model, task)
    with pytest.raises(ConfigError, match="shares it with its input embeddings"):
        freeze.attach(model, freeze.config(trainable_layers=0), task)


def test_a_pooler_that_the_files_lack_is_counted(tiny_bert: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(tiny_bert)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    task, lora = TASKS["seq_cls"], METHODS["lora"]
    labels = ["bad", "good"]
    empty = hf.build_meta(model_of(tmp_path), task, labels)
    assert heads.trained_whole(empty, task) == ["classifier", "bert.pooler.dense"]
    with torch.device("meta"):
        counted = count(lora.attach(empty, lora.config(), task))
    loaded = hf.load_model(model_of(tmp_path), task, labels, seed=1)
    assert counted == count(lora.attach(loaded, lora.config(), task))


@pytest.mark.parametrize("name", METHODS)
def test_new_weights_inside_the_body_are_trained_too(
    name: str, tiny_bert: Path, tmp_path: Path
) -> None:
    """A body that was pre-trained without its pooler: random weights must not stay, nor be lost."""
    from transformers import AutoConfig, BertForMaskedLM

    BertForMaskedLM(AutoConfig.from_pretrained(tiny_bert)).save_pretrained(tmp_path)
    task, chosen = TASKS["seq_cls"], METHODS[name]
    model = hf.load_model(ModelConfig(id=str(tmp_path)), task, LABELS, seed=1)
    assert heads.trained_whole(model, task) == ["classifier", "bert.pooler.dense"]
    module = chosen.attach(model, chosen.config(), task)
    trained = {n for n, p in module.named_parameters() if p.requires_grad and "pooler" in n}
    assert len(trained) == 2, trained
    if chosen.adapter:
        assert all(".modules_to_save." in one for one in trained), "whole, so that it is saved"


def test_names_on_a_real_model(asset: Callable[[str], Path]) -> None:
    task = TASKS["seq_cls"]
    model = hf.load_model(ModelConfig(id=str(asset("minilm-l6"))), task, LABELS, seed=1)
    assert heads.trained_whole(model, task) == ["classifier"]
    blocks = blocks_of(model)
    assert len(blocks) == 6
    assert blocks[-1] is model.get_submodule("bert.encoder.layer.5")
    lora = METHODS["lora"]
    adapted = lora.attach(model, lora.config(), task)
    # r 8; 6 blocks of 4 square and 2 widening layers, the pooler, and the head of 3 classes.
    by_hand = 8 * (6 * (4 * 2 * 384 + 2 * (384 + 1536)) + 2 * 384) + 3 * 384 + 3
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == by_hand
