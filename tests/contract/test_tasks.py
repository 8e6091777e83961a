"""What every task promises on a tiny model of its kind, whatever it learns."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from distft import hf
from distft.config_file import parse
from distft.data.shards import Sample
from distft.plugin import EncodeContext, LossSettings
from distft.train.model import builder


def test_loss_is_the_models_own(place: Any) -> None:
    """Transformers divides by the number of targets; vectors by rows and outputs."""
    batch = place.collate(place.samples)
    model = place.model()
    with torch.inference_mode():
        own = model(**batch)
        ours = place.task.loss(place.logits(model, batch), batch["labels"], LossSettings())
    counted = sum(place.task.num_targets(sample.labels.tolist()) for sample in place.samples)
    assert counted > 0
    assert ours.dtype == torch.float32
    assert ours.item() / counted == pytest.approx(own.loss.item(), rel=1e-5)


def test_a_dummy_adds_nothing(place: Any) -> None:
    model = place.model()
    batch = place.collate([])
    logits = place.logits(model, batch)
    logits.retain_grad()
    loss = place.task.loss(logits, batch["labels"], LossSettings(0.1))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_micro_batches_sum_to_the_whole(place: Any) -> None:
    model = place.model()

    def loss(samples: list[Sample]) -> float:
        batch = place.collate(samples, step=7)
        with torch.inference_mode():
            said = place.logits(model, batch)
            return float(place.task.loss(said, batch["labels"], LossSettings()))

    parts = [place.samples[:1], place.samples[1:4], [], place.samples[4:]]
    assert math.fsum(map(loss, parts)) == pytest.approx(loss(place.samples), rel=1e-5)


def test_scores_add_up_to_the_loss_and_are_one_per_row(place: Any) -> None:
    batch = place.collate(place.samples)
    with torch.inference_mode():
        logits = place.logits(place.model(), batch)
        columns = place.task.score(logits, batch["labels"], place.labels)
        loss = place.task.loss(logits, batch["labels"], LossSettings())
    assert all(len(values) == len(place.samples) for values in columns.values())
    assert columns["loss_sum"].sum().item() == pytest.approx(loss.item(), rel=1e-5)
    wanted = [place.task.num_targets(sample.labels.tolist()) for sample in place.samples]
    assert columns["num_targets"].tolist() == wanted
    metrics = place.task.metrics({k: v.numpy() for k, v in columns.items()}, place.labels)
    assert metrics["loss"] == pytest.approx(loss.item() / sum(wanted), rel=1e-5)
    assert place.task.headline in metrics
    assert metrics["rows"] == len(place.samples)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@pytest.mark.parametrize(("method", "rate"), [("full", 3e-3), ("lora", 1e-2)])
def test_a_task_is_learnt_saved_and_loaded(
    place: Any, method: str, rate: float, tmp_path: Path
) -> None:
    raw = {**place.config.dump(), "method": {"name": method}}
    config = parse(raw)
    module = builder(config, place.labels)(None)
    batch = place.collate(place.samples)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    losses = []
    for _ in range(20):
        loss = place.task.loss(place.logits(module, batch), batch["labels"], LossSettings())
        (loss / len(place.samples)).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    hf.save_folder(module, config.model, tmp_path)
    again = hf.load_folder(tmp_path, place.task)
    with torch.inference_mode():
        said, wanted = place.logits(again, batch), place.logits(module.eval(), batch)
    torch.testing.assert_close(said, wanted, atol=1e-5, rtol=1e-5)


def test_one_row_has_finite_metrics(place: Any) -> None:
    batch = place.collate(place.samples[:1])
    with torch.inference_mode():
        said = place.logits(place.model(), batch)
        columns = place.task.score(said, batch["labels"], place.labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = place.task.metrics({k: v.numpy() for k, v in columns.items()}, place.labels)
    json.dumps(metrics, allow_nan=False)


def test_predict_answers_every_row_in_order(place: Any) -> None:
    model = place.model()
    config = place.config.task
    asked = [dict(row) for row in place.rows]
    if place.task.masks_tokens:
        asked = [{"text": row["text"].replace("the", "[MASK]", 1)} for row in asked]
    together = place.task.predict(model, place.tokenizer, asked, place.context, config)
    alone = [place.task.predict(model, place.tokenizer, [r], place.context, config) for r in asked]
    assert json.loads(json.dumps(together, allow_nan=False)) == together
    assert all("prediction" in one for one in together)
    for one, (other,) in zip(together, alone, strict=True):
        if isinstance(one["prediction"], float):
            assert one["prediction"] == pytest.approx(other["prediction"], abs=2e-6)
        else:
            assert one["prediction"] == other["prediction"]


def test_rows_without_targets_can_be_asked(place: Any) -> None:
    targets = ("label", "labels", "value", "tags", "target")
    asked = [{k: None if k in targets else v for k, v in row.items()} for row in place.rows[:2]]
    if place.task.masks_tokens:
        asked = [{"text": "the film is [MASK]"}] * 2
    model = place.model()
    said = place.task.predict(model, place.tokenizer, asked, place.context, place.config.task)
    assert all("prediction" in one for one in said)


@pytest.mark.parametrize(
    "text",
    [
        "\u4eca\u5929\u5929\u6c14\u5f88\u597d good",
        "\U0001f600 fine \U0001f44d\U0001f3fd",
        "\u0645\u0631\u062d\u0628\u0627 good",
        "nul \0 good",
        "good " * 20_000,
    ],
    ids=["Chinese", "emoji", "right to left", "NUL", "100k characters"],
)
def test_any_text_is_encoded_within_the_cutoff(place: Any, text: str) -> None:
    row = dict(place.rows[0])
    for key in ("text", "source"):
        if key in row:
            row[key] = text
    if "words" in row:
        row |= {"words": text.split(), "tags": ["O"] * len(text.split())}
    if "messages" in row:
        row["messages"] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]
    place.context = EncodeContext(64, place.labels if "tags" not in row else ["O"])
    encoded = place.task.encode(row, place.tokenizer, place.context)
    assert 0 < len(encoded.input_ids) <= 64
    assert encoded.truncated == (len(text) > 1000)
    assert place.task.num_targets(encoded.labels) > 0
    if place.task.labels == "tokens":
        assert len(encoded.labels) == len(encoded.input_ids)
