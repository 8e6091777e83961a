"""Tasks against numbers worked out another way, and which tokens instruction tuning trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distft import hf, plugin
from distft.config_sections import ModelConfig
from distft.errors import ConfigError
from distft.plugin import EncodeContext, LossSettings, Row, TrainsNothing, UnusableRow

SEQ_CLS = plugin.tasks()["seq_cls"]
SFT = plugin.tasks()["sft"]
GREETING = "\u4f60\u597d\uff0c\u4e16\u754c\uff01"
ANSWER = "\u4f60\u597d\uff01\u5f88\u9ad8\u5174\u3002"
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = math.fsum(math.exp(x - top) for x in row)
    return [x - top - math.log(total) for x in row]


def cross_entropy(row: list[float], target: int, smoothing: float) -> float:
    """By its definition: the target shares `smoothing` with all classes alike."""
    shares = log_softmax(row)
    spread = -math.fsum(shares) / len(shares)
    return -(1 - smoothing) * shares[target] + smoothing * spread


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)) * 3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_seq_cls_loss_by_hand(smoothing: float) -> None:
    logits, labels = numbers(6, 4), torch.tensor([0, 3, -100, 2, 2, 1])
    by_hand = math.fsum(
        cross_entropy(row, label, smoothing)
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
        if label != -100
    )
    assert SEQ_CLS.loss(logits, labels, LossSettings(smoothing)).item() == pytest.approx(
        by_hand, rel=1e-5
    )
    assert SEQ_CLS.loss(logits.bfloat16(), labels, LossSettings(smoothing)).dtype == torch.float32


def test_a_dummy_batch_adds_nothing_to_loss_or_gradient() -> None:
    for task, shape, labels in (
        (SEQ_CLS, (1, 4), torch.tensor([-100])),
        (SFT, (1, 8, 4), torch.full((1, 8), -100)),
    ):
        logits = numbers(*shape).requires_grad_()
        loss = task.loss(logits, labels, LossSettings(0.1))
        loss.backward()
        assert loss.item() == 0.0
        assert logits.grad is not None
        assert logits.grad.abs().sum().item() == 0.0


def test_seq_cls_metrics_are_sklearns() -> None:
    from sklearn import metrics

    names = ["a", "b", "c", "never predicted"]
    logits = numbers(60, 4)
    logits[:, 3] -= 20
    labels = torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(2))
    scores = {key: value.numpy() for key, value in SEQ_CLS.score(logits, labels, []).items()}
    found = SEQ_CLS.metrics(scores, names)
    guess = logits.argmax(-1).numpy()
    truth = labels.numpy()
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess))
    for key, function in (
        ("precision_macro", metrics.precision_score),
        ("recall_macro", metrics.recall_score),
        ("f1_macro", metrics.f1_score),
    ):
        assert found[key] == pytest.approx(function(truth, guess, average="macro", zero_division=0))
    assert found["loss"] == pytest.approx(
        metrics.log_loss(truth, logits.softmax(-1).double().numpy(), labels=range(4)), rel=1e-5
    )
    assert found["majority_accuracy"] == np.bincount(truth).max() / 60
    assert found["rows"] == 60
    assert found["confusion"]["matrix"] == metrics.confusion_matrix(truth, guess).tolist()
    assert found["per_class"]["never predicted"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": int((truth == 3).sum()),
    }


def test_seq_cls_metrics_know_classes_a_split_lacks() -> None:
    logits, labels = numbers(5, 3), torch.zeros(5, dtype=torch.long)
    scores = {key: value.numpy() for key, value in SEQ_CLS.score(logits, labels, []).items()}
    found = SEQ_CLS.metrics(scores, ["a", "b", "c"])
    assert found["majority_accuracy"] == 1.0
    assert np.array(found["confusion"]["matrix"]).shape == (3, 3)
    assert [found["per_class"][name]["support"] for name in "abc"] == [5, 0, 0]


def test_seq_cls_cuts_before_the_closing_token(tiny_bert: Path) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(tiny_bert)))
    row = {"text": "the film is good " * 5, "label": "b"}
    whole = SEQ_CLS.encode(row, tokenizer, EncodeContext(64, ["a", "b"]))
    cut = SEQ_CLS.encode(row, tokenizer, EncodeContext(9, ["a", "b"]))
    assert (len(whole.input_ids), whole.truncated, whole.labels) == (22, False, [1])
    assert (len(cut.input_ids), cut.truncated, cut.labels) == (9, True, [1])
    assert cut.input_ids == [*whole.input_ids[:8], tokenizer.sep_token_id]
    assert SEQ_CLS.encode({**row, "label": None}, tokenizer, EncodeContext(9)).labels == []


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sft_loss_by_hand(smoothing: float) -> None:
    """A position is scored on the token after it; the first token is nobody's target."""
    logits = numbers(2, 5, 7)
    labels = torch.tensor([[6, -100, 3, 2, -100], [-100, 1, -100, -100, 4]])
    terms = [
        cross_entropy(logits[row, place - 1].tolist(), int(labels[row, place]), smoothing)
        for row in range(2)
        for place in range(1, 5)
        if labels[row, place] != -100
    ]
    assert len(terms) == 4
    assert SFT.loss(logits, labels, LossSettings(smoothing)).item() == pytest.approx(
        math.fsum(terms), rel=1e-5
    )
    assert sum(SFT.num_targets(row) for row in labels.tolist()) == 4


def test_sft_loss_is_the_models_own(chat_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(chat_llama).eval()
    ids = torch.randint(0, 250, (3, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.masked_fill(torch.arange(12) < 5, -100)
    with torch.inference_mode():
        output = model(input_ids=ids, labels=labels)
    ours = SFT.loss(output.logits, labels, LossSettings()) / sum(
        map(SFT.num_targets, labels.tolist())
    )
    assert ours.item() == pytest.approx(output.loss.item(), rel=1e-5)


def test_sft_metrics_weigh_tokens_not_rows() -> None:
    logits = numbers(3, 6, 5)
    labels = torch.tensor([[-100, 1, 2, 3, 4, 0], [-100] * 5 + [2], [-100, 4, 4, -100, -100, -100]])
    columns = {key: value.numpy() for key, value in SFT.score(logits, labels, []).items()}
    found = SFT.metrics(columns, [])
    places = [(r, c) for r in range(3) for c in range(1, 6) if labels[r, c] != -100]
    losses = [cross_entropy(logits[r, c - 1].tolist(), int(labels[r, c]), 0.0) for r, c in places]
    hits = [int(logits[r, c - 1].argmax()) == int(labels[r, c]) for r, c in places]
    assert found["targets"] == len(places) == 8
    assert found["loss"] == pytest.approx(math.fsum(losses) / 8, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(math.fsum(losses) / 8), rel=1e-5)
    assert found["token_accuracy"] == sum(hits) / 8
    assert found["rows"] == 3


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def smollm(asset: Callable[[str], Path]) -> Any:
    return hf.load_tokenizer(ModelConfig(id=str(asset("smollm2-135m-instruct"))))


def trained(tokenizer: Any, messages: list[dict[str, str]], cutoff_len: int = 512) -> Any:
    encoded = SFT.encode({"messages": messages}, tokenizer, EncodeContext(cutoff_len))
    assert len(encoded.labels) == len(encoded.input_ids)
    assert all(
        label in (-100, token)
        for label, token in zip(encoded.labels, encoded.input_ids, strict=True)
    )
    return encoded


def runs_of(tokenizer: Any, encoded: Any) -> list[str]:
    """The trained stretches as text."""
    stretches: list[list[int]] = []
    before = -100
    for label in encoded.labels:
        if label != -100:
            if before == -100:
                stretches.append([])
            stretches[-1].append(label)
        before = label
    return [tokenizer.decode(stretch) for stretch in stretches]


CONVERSATIONS: dict[str, tuple[list[dict[str, str]], list[str]]] = {
    "one turn": ([turn("user", "Hi"), turn("assistant", "Hello!")], ["Hello!"]),
    "system": (
        [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Yes.")],
        ["Yes."],
    ),
    "many turns": (
        [
            turn("user", "1 + 1?"),
            turn("assistant", "2"),
            turn("user", "And 2 + 2?"),
            turn("assistant", "4\n\nAnything else?"),
            turn("user", "No."),
            turn("assistant", "Bye."),
        ],
        ["2", "4\n\nAnything else?", "Bye."],
    ),
    "Chinese": (
        [
            turn("user", GREETING),
            turn("assistant", ANSWER),
            turn("user", "?"),
            turn("assistant", GREETING),
        ],
        [ANSWER, GREETING],
    ),
    "an answer that repeats the question": (
        [turn("user", "echo"), turn("assistant", "echo")] * 2,
        ["echo", "echo"],
    ),
    "the user speaks last": (
        [turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
        ["b"],
    ),
    "emoji and spaces": (
        [turn("user", " x "), turn("assistant", "\U0001f600 ok  ")],
        ["\U0001f600 ok  "],
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_sft_trains_the_answers_and_their_ends_only(name: str, smollm: Any) -> None:
    """Padding is the end-of-turn token here: masking by its id would untrain every end."""
    assert smollm.pad_token_id == smollm.eos_token_id
    messages, answers = CONVERSATIONS[name]
    encoded = trained(smollm, messages)
    assert runs_of(smollm, encoded) == [f"{answer}<|im_end|>" for answer in answers]
    assert encoded.labels.count(smollm.eos_token_id) == len(answers)
    assert SFT.num_targets(encoded.labels) == sum(label != -100 for label in encoded.labels)
    system = [m for m in messages if m["role"] == "system"] or [turn("system", DEFAULT_SYSTEM)]
    text = "".join(
        f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
        for m in [*system, *(m for m in messages if m["role"] != "system")]
    )
    assert smollm.decode(encoded.input_ids) == text
    assert encoded.input_ids == smollm(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
            lambda text: text.strip() and "<|" not in text
        ),
        min_size=2,
        max_size=6,
    )
)
def test_sft_masks_any_text(texts: list[str], smollm: Any) -> None:
    """No token of an answer may be lost to the mask, none of a question may slip in.

    A token that begins in the prompt (its line break and a leading space are one) belongs to it.
    """
    messages = [turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    encoded = trained(smollm, messages)
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    # Compared as ids: half a character's bytes decode to nothing readable.
    expected: list[int] = []
    for answer in answers:
        ids = smollm(f"assistant\n{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
        expected += ids[len(smollm("assistant\n", add_special_tokens=False)["input_ids"]) :]
    assert [label for label in encoded.labels if label != -100] == expected


def test_sft_counts_what_it_cuts(smollm: Any) -> None:
    messages = [turn("user", "Hi"), turn("assistant", "one two three four five six " * 9)]
    whole = trained(smollm, messages)
    length = len(whole.input_ids)
    assert not whole.truncated
    assert not trained(smollm, messages, length).truncated
    cut = trained(smollm, messages, length - 3)
    assert cut.truncated
    assert cut.input_ids == whole.input_ids[: length - 3]
    assert cut.labels == whole.labels[: length - 3]
    assert smollm.eos_token_id not in cut.labels


def test_sft_cannot_use_an_answer_beyond_the_cutoff(smollm: Any) -> None:
    messages = [turn("user", "word " * 50), turn("assistant", "ok")]
    assert trained(smollm, messages, 40).truncated
    with pytest.raises(TrainsNothing, match="the answer lies beyond cutoff_len"):
        trained(smollm, messages, 20)


def test_sft_cannot_use_a_row_without_an_answer(smollm: Any) -> None:
    with pytest.raises(UnusableRow, match="there is no answer to train on"):
        trained(smollm, [turn("user", "Hi")])


def test_sft_cannot_use_an_answer_to_nothing(smollm: Any) -> None:
    with pytest.raises(UnusableRow, match="begins with the assistant"):
        trained(smollm, [turn("assistant", "Hi"), turn("user", "Hello")])


def test_sft_says_when_a_template_cannot_be_cut_into_turns(chat_llama: Path) -> None:
    """Such as one that counts the messages, so that a prefix reads differently."""
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(chat_llama)))
    tokenizer.chat_template = "{{ messages | length }}" + str(tokenizer.chat_template)
    messages = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    with pytest.raises(UnusableRow, match="does not render this conversation turn by turn"):
        trained(tokenizer, messages)


def test_sft_needs_a_chat_template(tiny_bert: Path) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(tiny_bert)))
    row: Row = {"messages": [turn("user", "Hi"), turn("assistant", "Hello")]}
    with pytest.raises(ConfigError, match="has no chat template, which task sft needs") as caught:
        SFT.encode(row, tokenizer, EncodeContext(64))
    assert "instruction-tuned" in caught.value.hint


def test_keys_and_strata_are_what_a_split_needs() -> None:
    assert SEQ_CLS.key({"text": "a", "label": "x"}) == SEQ_CLS.key({"text": "a", "label": "y"})
    assert SEQ_CLS.stratum({"text": "a", "label": "x"}) == "x"
    talk = [turn("user", GREETING)]
    assert SFT.key({"messages": talk}) == SFT.key({"messages": [{**talk[0]}]})
    assert SFT.key({"messages": talk}) != SFT.key({"messages": [*talk, *talk]})
    assert SFT.stratum({"messages": talk}) is None
