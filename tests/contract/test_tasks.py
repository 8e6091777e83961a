"""What every task promises, and its numbers against those of transformers and scikit-learn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distft import hf, plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.data.shards import Sample
from distft.errors import ConfigError
from distft.plugin import EncodeContext, Encoded, LossSettings, Task, UnusableRow
from distft.train.batch import Collator, make_collator
from distft.train.model import builder

TASKS = plugin.tasks()
ARCHITECTURES = {
    "AutoModelForSequenceClassification": "tiny_bert",
    "AutoModelForTokenClassification": "tiny_bert",
    "AutoModelForMaskedLM": "tiny_bert_mlm",
    "AutoModelForCausalLM": "chat_llama",
    "AutoModelForSeq2SeqLM": "tiny_t5",
}
"""Auto class -> the tiny model that has its head."""


@pytest.fixture(scope="session")
def tiny_bert_mlm(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with the output layer it would have been pre-trained with."""
    from transformers import AutoConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("tiny-bert-mlm")
    torch.manual_seed(14)
    BertForMaskedLM(AutoConfig.from_pretrained(tiny_bert)).save_pretrained(folder)
    hf.load_tokenizer(_model(tiny_bert)).save_pretrained(folder)
    return folder


def _model(folder: Path) -> Any:
    from distft.config_sections import ModelConfig

    return ModelConfig(id=str(folder), dropout=0.0)


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


@pytest.fixture(params=TASKS)
def place(request: pytest.FixtureRequest, rows: Any) -> Place:
    task = TASKS[request.param]
    folder = request.getfixturevalue(ARCHITECTURES[task.auto_class])
    # Few rows of unequal length, every class among them.
    return Place(task, folder, rows[task.rows[0]][::4])


def logits_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**{key: value for key, value in batch.items() if key != "labels"}).logits


def test_loss_is_the_models_own(place: Place) -> None:
    """Transformers divides by the number of targets; vectors by rows and outputs."""
    batch = place.collate(place.samples)
    model = place.model()
    with torch.inference_mode():
        own = model(**batch)
        ours = place.task.loss(logits_of(model, batch), batch["labels"], LossSettings())
    counted = sum(place.task.num_targets(sample.labels.tolist()) for sample in place.samples)
    assert counted > 0
    assert ours.dtype == torch.float32
    assert ours.item() / counted == pytest.approx(own.loss.item(), rel=1e-5)


def test_a_dummy_adds_nothing(place: Place) -> None:
    model = place.model()
    batch = place.collate([])
    logits = logits_of(model, batch)
    logits.retain_grad()
    loss = place.task.loss(logits, batch["labels"], LossSettings(0.1))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_micro_batches_sum_to_the_whole(place: Place) -> None:
    model = place.model()

    def loss(samples: list[Sample]) -> float:
        batch = place.collate(samples, step=7)
        with torch.inference_mode():
            return place.task.loss(logits_of(model, batch), batch["labels"], LossSettings()).item()

    parts = [place.samples[:1], place.samples[1:4], [], place.samples[4:]]
    assert math.fsum(map(loss, parts)) == pytest.approx(loss(place.samples), rel=1e-5)


def test_scores_add_up_to_the_loss_and_are_one_per_row(place: Place) -> None:
    batch = place.collate(place.samples)
    with torch.inference_mode():
        logits = logits_of(place.model(), batch)
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


@pytest.mark.parametrize(("method", "rate"), [("full", 3e-3), ("lora", 2e-2)])
def test_a_task_is_learnt_saved_and_loaded(
    place: Place, method: str, rate: float, tmp_path: Path
) -> None:
    raw = {**place.config.dump(), "method": {"name": method}}
    config = parse(raw)
    module = builder(config, place.labels)(None)
    batch = place.collate(place.samples)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    losses = []
    for _ in range(20):
        loss = place.task.loss(logits_of(module, batch), batch["labels"], LossSettings())
        (loss / len(place.samples)).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    hf.save_folder(module, config.model, tmp_path)
    again = hf.load_folder(tmp_path, place.task)
    with torch.inference_mode():
        said, wanted = logits_of(again, batch), logits_of(module.eval(), batch)
    torch.testing.assert_close(said, wanted, atol=1e-5, rtol=1e-5)


def test_one_row_has_finite_metrics(place: Place) -> None:
    batch = place.collate(place.samples[:1])
    with torch.inference_mode():
        columns = place.task.score(logits_of(place.model(), batch), batch["labels"], place.labels)
    metrics = place.task.metrics({k: v.numpy() for k, v in columns.items()}, place.labels)
    json.dumps(metrics, allow_nan=False)


def test_predict_answers_every_row_in_order(place: Place) -> None:
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


def test_rows_without_targets_can_be_asked(place: Place) -> None:
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
def test_any_text_is_encoded_within_the_cutoff(place: Place, text: str) -> None:
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


def test_pairs_reach_the_model_as_its_own_tokenizer_gives_them(tiny_bert: Path) -> None:
    rows = [
        {"text": "the film", "pair": "is good", "label": "a"},
        {"text": "poor", "pair": None, "label": "b"},
        {"text": "the acting is dull", "pair": "plain story", "label": "a"},
    ]
    place = Place(TASKS["seq_cls"], tiny_bert, rows)
    own = place.tokenizer(
        [row["text"] for row in rows], [row["pair"] or "" for row in rows], padding=True
    )
    batch = place.collate(place.samples)
    for i in (0, 2):
        assert batch["input_ids"][i].tolist()[: len(place.samples[i].input_ids)] == [
            one for one in own["input_ids"][i] if one != place.tokenizer.pad_token_id
        ]
        assert batch["token_type_ids"][i].tolist() == own["token_type_ids"][i]
    assert not batch["token_type_ids"][1].any()
    model = place.model()
    with torch.inference_mode():
        trained = logits_of(model, batch).softmax(-1)
    said = place.task.predict(model, place.tokenizer, rows, place.context, place.config.task)
    for share, answer in zip(trained, said, strict=True):
        assert list(answer["scores"].values()) == pytest.approx(share.tolist(), abs=2e-6)
    keys = {place.task.key(row) for row in rows}
    assert keys == {"the film\0is good", "poor", "the acting is dull\0plain story"}


def test_two_texts_are_kept_apart_by_a_tokenizer_that_marks_no_border(chat_llama: Path) -> None:
    row = {"text": "one", "pair": "two", "label": "a"}
    place = Place(TASKS["seq_cls"], chat_llama, [row, {**row, "label": "b"}])
    assert place.tokenizer.decode(place.encoded[0].input_ids) == "one\ntwo"
    assert place.encoded[0].second == 0


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def weights_of(name: str, wanted: Any, names: list[str], counts: list[int], rows: int) -> Any:
    task = TASKS[name]
    config = task.config.model_validate({"name": name, "class_weights": wanted})
    task.check(config, names)
    return task.class_weights(config, names, counts, rows)


def test_balanced_weights_are_sklearns() -> None:
    """The figures are what scikit-learn 1.9.1 gave outside this repository."""
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 7 + [1] * 2 + [2])
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    ours = weights_of("seq_cls", "balanced", ["a", "b", "c"], [7, 2, 1], 10)
    assert ours == pytest.approx(theirs.tolist())
    assert ours == pytest.approx([0.47619047619047616, 1.6666666666666667, 3.3333333333333335])
    assert weights_of("seq_cls", "balanced", ["a", "b"], [4, 0], 4) == [0.5, 1.0]


def test_a_balanced_label_weighs_as_much_present_as_absent() -> None:
    """The ratio of scikit-learn's weights of the two sides is what `pos_weight` asks for."""
    from sklearn.utils.class_weight import compute_class_weight

    held = (numbers(50, 3) > torch.tensor([-1.0, 0.2, 1.2])).numpy().astype(int)
    counts = held.sum(0).tolist()
    ours = weights_of("multilabel_cls", "balanced", list("abc"), counts, 50)
    for column, weight in zip(held.T, ours, strict=True):
        absent, present = compute_class_weight("balanced", classes=np.arange(2), y=column)
        assert weight == pytest.approx(present / absent)
    assert weights_of("multilabel_cls", "balanced", ["a", "b", "c"], [8, 2, 0], 8) == [1, 3, 1]


@pytest.mark.parametrize("name", ["seq_cls", "multilabel_cls"])
def test_given_weights_and_unknown_classes(name: str) -> None:
    assert weights_of(name, None, ["a", "b"], [1, 1], 2) is None
    assert weights_of(name, {"b": 3}, ["a", "b"], [1, 1], 2) == [1.0, 3.0]
    assert weights_of(name, {1: 2.0}, ["0", "1"], [1, 1], 2) == [1.0, 2.0]
    assert weights_of(name, {True: 2.0}, ["false", "true"], [1, 1], 2) == [1.0, 2.0]
    with pytest.raises(ConfigError, match="no class 'goood'; did you mean good"):
        weights_of(name, {"goood": 1.0}, ["bad", "good"], [1, 1], 2)


def test_class_weights_change_the_training_loss_only() -> None:
    weights = torch.tensor([1.0, 3.0, 0.5])
    settings = LossSettings(class_weights=weights)
    logits, labels = numbers(6, 3), torch.tensor([0, 1, 2, 1, -100, 0])
    task = TASKS["seq_cls"]
    each = task.score(logits, labels, ["a", "b", "c"])["loss_sum"]
    wanted = sum(each[i] * weights[label] for i, label in enumerate(labels) if label >= 0)
    assert task.loss(logits, labels, settings).item() == pytest.approx(float(wanted), rel=1e-5)
    many, held = TASKS["multilabel_cls"], torch.tensor([[1.0, 0.0, 1.0]] * 6)
    p = logits.double().sigmoid()
    by_hand = -(weights * held * p.log() + (1 - held) * (1 - p).log()).sum()
    assert many.loss(logits, held, settings).item() == pytest.approx(by_hand.item(), rel=1e-5)
    plain = -(held * p.log() + (1 - held) * (1 - p).log()).sum()
    assert many.score(logits, held, [])["loss_sum"].sum().item() == pytest.approx(
        plain.item(), rel=1e-5
    )


def scored(name: str, logits: torch.Tensor, labels: torch.Tensor, names: list[str]) -> Any:
    task = TASKS[name]
    columns = {k: v.numpy() for k, v in task.score(logits, labels, names).items()}
    return task.metrics(columns, names)


def test_multilabel_metrics_are_sklearns() -> None:
    from sklearn import metrics

    logits = numbers(40, 4)
    logits[:, 3] -= 20
    labels = (numbers(4, 40).T > 0.3).float()
    found = scored("multilabel_cls", logits, labels, list("abcd"))
    truth, guess = labels.numpy(), (logits > 0).numpy()
    for average in ("micro", "macro"):
        for key, function in (
            ("precision", metrics.precision_score),
            ("recall", metrics.recall_score),
            ("f1", metrics.f1_score),
        ):
            theirs = function(truth, guess, average=average, zero_division=0)
            assert found[f"{key}_{average}"] == pytest.approx(theirs)
    assert found["subset_accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess))
    assert found["label_accuracy"] == pytest.approx(1 - metrics.hamming_loss(truth, guess))
    assert found["per_class"]["d"]["f1"] == 0.0
    assert found["per_class"]["a"]["support"] == truth[:, 0].sum()


def test_regression_metrics_by_definition() -> None:
    said, true = numbers(30, 1), numbers(2, 30)[1][:, None]
    found = scored("regression", said, true, [])
    x, y = said[:, 0].double().numpy(), true[:, 0].double().numpy()
    error = x - y
    assert found["mse"] == pytest.approx((error**2).mean()) == pytest.approx(found["loss"])
    assert found["rmse"] == pytest.approx(math.sqrt((error**2).mean()))
    assert found["mae"] == pytest.approx(np.abs(error).mean())
    assert found["r2"] == pytest.approx(1 - (error**2).sum() / ((y - y.mean()) ** 2).sum())
    assert found["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    ranks = np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1]
    assert found["spearman"] == pytest.approx(ranks)
    assert found["mean_mse"] == pytest.approx(y.var())
    constant = scored("regression", torch.zeros(5, 1), numbers(5, 1), [])
    assert (constant["pearson"], constant["spearman"]) == (0.0, 0.0)


def test_a_number_that_is_not_finite_is_refused(tiny_bert: Path) -> None:
    place = Place(TASKS["regression"], tiny_bert, [{"text": "good", "value": 1.0}])
    with pytest.raises(UnusableRow, match="not finite"):
        place.task.encode({"text": "good", "value": math.nan}, place.tokenizer, place.context)


TAGGED = [
    ("B-PER I-PER O B-LOC O", "B-PER I-PER O B-LOC O"),
    ("B-PER I-PER O B-LOC O", "B-PER O O B-PER O"),
    ("I-ORG I-ORG O O B-ORG", "B-ORG I-ORG O O O"),
    ("B-LOC B-LOC I-LOC O O", "B-LOC I-LOC I-LOC O O"),
    ("B-PER I-LOC O O O", "B-PER I-PER O O I-LOC"),
    ("O O O O O", "O O B-LOC I-LOC O"),
]
"""(true tags, predicted tags)."""
TAGS = ["B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER", "O"]


SEQEVAL: dict[str, Any] = {
    "precision": 0.3333333333333333,
    "recall": 0.3,
    "f1": 0.3157894736842105,
    "f1_macro": 0.39153439153439157,
    "accuracy": 0.7,
    "per_class": {
        "LOC": {"precision": 0.25, "recall": 0.2, "f1": 0.2222222222222222, "support": 5},
        "ORG": {"precision": 1.0, "recall": 0.5, "f1": 0.6666666666666666, "support": 2},
        "PER": {"precision": 0.25, "recall": 0.3333333333333333, "f1": 0.2857142857142857}
        | {"support": 3},
    },
}
"""What seqeval 1.2.2 says of TAGGED in its default mode, computed outside this repository."""


def tagged(pairs: list[tuple[str, str]], names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels with an ignored position before, between and after the words."""
    logits = torch.zeros(len(pairs), 11, len(names))
    labels = torch.full((len(pairs), 11), -100)
    for row, (true, said) in enumerate(pairs):
        for word, (one, other) in enumerate(zip(true.split(), said.split(), strict=True)):
            labels[row, 2 * word + 1] = names.index(one)
            logits[row, 2 * word + 1, names.index(other)] = 9.0
    return logits, labels


def test_entity_metrics_are_those_of_seqeval() -> None:
    found = scored("token_cls", *tagged(TAGGED, TAGS), TAGS)
    assert found["entity_precision"] == pytest.approx(SEQEVAL["precision"])
    assert found["entity_recall"] == pytest.approx(SEQEVAL["recall"])
    assert found["entity_f1"] == pytest.approx(SEQEVAL["f1"])
    assert found["entity_f1_macro"] == pytest.approx(SEQEVAL["f1_macro"])
    assert found["token_accuracy"] == pytest.approx(SEQEVAL["accuracy"])
    for kind, figures in SEQEVAL["per_class"].items():
        assert found["per_class"][kind] == pytest.approx(figures)


def test_tags_without_prefix_are_one_word_each() -> None:
    names = ["NOUN", "VERB"]
    found = scored("token_cls", *tagged([("NOUN NOUN VERB", "NOUN VERB VERB")], names), names)
    assert found["entity_f1"] == found["token_accuracy"] == pytest.approx(2 / 3)
    assert found["per_class"]["NOUN"]["support"] == 2


def test_bioes_is_read_as_bio() -> None:
    row = {"words": list("abcd"), "tags": ["S-X", "B-Y", "E-Y", "O"]}
    assert set(TASKS["token_cls"].classes(row)) == {"B-X", "I-X", "B-Y", "I-Y", "O"}


@pytest.mark.parametrize("folder", ["tiny_bert", "chat_llama"])
def test_a_tag_stands_on_the_first_token_of_its_word(
    folder: str, request: pytest.FixtureRequest
) -> None:
    words, tags = ["the", "film", "\u00e9\u00e9", "good"], ["O", "B-X", "O", "I-X"]
    rows = [{"words": words, "tags": tags}]
    place = Place(TASKS["token_cls"], request.getfixturevalue(folder), rows)
    (one,) = place.encoded
    placed = [i for i, label in enumerate(one.labels) if label != -100]
    assert [place.labels[one.labels[i]] for i in placed] == tags
    ends = [*placed[1:], len(one.input_ids)]
    pieces = [one.input_ids[a:b] for a, b in zip(placed, ends, strict=True)]
    plain = [place.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in pieces]
    assert plain == ["the", "film", "" if folder == "tiny_bert" else words[2], "good"]


def test_words_beyond_the_cutoff_get_no_tag(tiny_bert: Path) -> None:
    rows = [{"words": ["the", "film", "is", "good"], "tags": ["O", "B-X", "I-X", "B-X"]}]
    place = Place(TASKS["token_cls"], tiny_bert, rows)
    context = EncodeContext(4, place.labels)
    cut = place.task.encode(rows[0], place.tokenizer, context)
    assert (cut.truncated, len(cut.input_ids)) == (True, 4)
    (said,) = place.task.predict(place.model(), place.tokenizer, rows, context, place.config.task)
    assert [tag is None for tag in said["prediction"]] == [False, False, True, True]
    for entity in said["entities"]:
        assert entity["text"] == " ".join(rows[0]["words"][entity["start"] : entity["end"]])


def test_masks_hide_a_share_and_never_a_special_token(tiny_bert_mlm: Path, rows: Any) -> None:
    place = Place(TASKS["masked_lm"], tiny_bert_mlm, rows["plain_text"])
    special = set(place.tokenizer.all_special_ids)
    asked = set()
    for step in range(30):
        labels = place.collate(place.samples, step)["labels"]
        assert not {int(one) for one in labels[labels != -100]} & special
        for row, sample in zip(labels, place.samples, strict=True):
            words = len(sample.input_ids) - 2
            assert (row != -100).sum() == max(1, round(0.15 * words))
        asked |= {tuple(place) for place in (labels != -100).nonzero().tolist()}
    every = sum(len(sample.input_ids) - 2 for sample in place.samples)
    assert len(asked) > 0.9 * every


def test_masked_lm_needs_a_mask_token(chat_llama: Path) -> None:
    tokenizer = hf.load_tokenizer(_model(chat_llama))
    with pytest.raises(ConfigError, match="has no mask token"):
        TASKS["masked_lm"].encode({"text": "a"}, tokenizer, EncodeContext(8))


def test_masked_lm_says_which_texts_hold_no_mask(tiny_bert_mlm: Path) -> None:
    place = Place(TASKS["masked_lm"], tiny_bert_mlm, [{"text": "the film"}])
    asked = [{"text": "good"}, {"text": "the [MASK] is [MASK]"}]
    first, second = place.task.predict(
        place.model(), place.tokenizer, asked, place.context, place.config.task
    )
    assert first == {"error": "the text holds no [MASK] to fill"}
    assert [len(fill) for fill in second["fills"]] == [5, 5]
    likeliest = [fill[0]["token"] for fill in second["fills"]]
    for fill in second["fills"]:
        shares = [one["score"] for one in fill]
        assert shares == sorted(shares, reverse=True)
    assert set(likeliest) - {"[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"} <= set(
        second["prediction"].split()
    )


def test_seq2seq_bounds_source_and_target_each(tiny_t5: Path) -> None:
    place = Place(TASKS["seq2seq"], tiny_t5, [{"source": "good", "target": "bad"}])
    end = place.tokenizer.eos_token_id
    row = {"source": "the film is good", "target": "plain " * 9}
    for cutoff, truncated in ((5, True), (10, False)):
        one = place.task.encode(row, place.tokenizer, EncodeContext(cutoff))
        assert (len(one.input_ids), len(one.labels)) == (5, min(cutoff, 10))
        assert one.truncated is truncated
        assert (one.input_ids[-1], one.labels[-1]) == (end, end)


def test_causal_lm_learns_where_texts_end(chat_llama: Path) -> None:
    place = Place(TASKS["causal_lm"], chat_llama, [{"text": "abc"}])
    (one,) = place.encoded
    assert one.input_ids[-1] == place.tokenizer.eos_token_id
    assert one.labels == one.input_ids
    assert place.task.num_targets(one.labels) == 3
