"""Which tokens a task reads and which it learns: pairs, tags, masks, targets, ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from distft import hf, plugin
from distft.config_sections import ModelConfig
from distft.errors import ConfigError
from distft.plugin import EncodeContext, UnusableRow

TASKS = plugin.tasks()


def test_pairs_reach_the_model_as_its_own_tokenizer_gives_them(
    tiny_bert: Path, make_place: Any
) -> None:
    rows = [
        {"text": "the film", "pair": "is good", "label": "a"},
        {"text": "poor", "pair": None, "label": "b"},
        {"text": "the acting is dull", "pair": "plain story", "label": "a"},
    ]
    place = make_place(TASKS["seq_cls"], tiny_bert, rows)
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
        trained = place.logits(model, batch).softmax(-1)
    said = place.task.predict(model, place.tokenizer, rows, place.context, place.config.task)
    for share, answer in zip(trained, said, strict=True):
        assert list(answer["scores"].values()) == pytest.approx(share.tolist(), abs=2e-6)
    keys = {place.task.key(row) for row in rows}
    assert keys == {"the film\0is good", "poor", "the acting is dull\0plain story"}


def test_two_texts_are_kept_apart_by_a_tokenizer_that_marks_no_border(
    chat_llama: Path, make_place: Any
) -> None:
    row = {"text": "one", "pair": "two", "label": "a"}
    place = make_place(TASKS["seq_cls"], chat_llama, [row, {**row, "label": "b"}])
    assert place.tokenizer.decode(place.encoded[0].input_ids) == "one\ntwo"
    assert place.encoded[0].second == 0


def test_a_number_that_is_not_finite_is_refused(tiny_bert: Path, make_place: Any) -> None:
    place = make_place(TASKS["regression"], tiny_bert, [{"text": "good", "value": 1.0}])
    with pytest.raises(UnusableRow, match="not finite"):
        place.task.encode({"text": "good", "value": math.nan}, place.tokenizer, place.context)


def test_bioes_is_read_as_bio() -> None:
    row = {"words": list("abcd"), "tags": ["S-X", "B-Y", "E-Y", "O"]}
    assert set(TASKS["token_cls"].classes(row)) == {"B-X", "I-X", "B-Y", "I-Y", "O"}


@pytest.mark.parametrize("folder", ["tiny_bert", "chat_llama"])
def test_a_tag_stands_on_the_first_token_of_its_word(
    folder: str, request: pytest.FixtureRequest, make_place: Any
) -> None:
    words, tags = ["the", "film", "\u00e9\u00e9", "good"], ["O", "B-X", "O", "I-X"]
    rows = [{"words": words, "tags": tags}]
    place = make_place(TASKS["token_cls"], request.getfixturevalue(folder), rows)
    (one,) = place.encoded
    placed = [i for i, label in enumerate(one.labels) if label != -100]
    assert [place.labels[one.labels[i]] for i in placed] == tags
    ends = [*placed[1:], len(one.input_ids)]
    pieces = [one.input_ids[a:b] for a, b in zip(placed, ends, strict=True)]
    plain = [place.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in pieces]
    assert plain == ["the", "film", "" if folder == "tiny_bert" else words[2], "good"]


def test_words_beyond_the_cutoff_get_no_tag(tiny_bert: Path, make_place: Any) -> None:
    rows = [{"words": ["the", "film", "is", "good"], "tags": ["O", "B-X", "I-X", "B-X"]}]
    place = make_place(TASKS["token_cls"], tiny_bert, rows)
    context = EncodeContext(4, place.labels)
    cut = place.task.encode(rows[0], place.tokenizer, context)
    assert (cut.truncated, len(cut.input_ids)) == (True, 4)
    (said,) = place.task.predict(place.model(), place.tokenizer, rows, context, place.config.task)
    assert [tag is None for tag in said["prediction"]] == [False, False, True, True]
    for entity in said["entities"]:
        assert entity["text"] == " ".join(rows[0]["words"][entity["start"] : entity["end"]])


def test_masks_hide_a_share_and_never_a_special_token(
    tiny_bert_mlm: Path, rows: Any, make_place: Any
) -> None:
    place = make_place(TASKS["masked_lm"], tiny_bert_mlm, rows["plain_text"])
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
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(chat_llama)))
    with pytest.raises(ConfigError, match="has no mask token"):
        TASKS["masked_lm"].encode({"text": "a"}, tokenizer, EncodeContext(8))


def test_masked_lm_says_which_texts_hold_no_mask(tiny_bert_mlm: Path, make_place: Any) -> None:
    place = make_place(TASKS["masked_lm"], tiny_bert_mlm, [{"text": "the film"}])
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


def test_seq2seq_bounds_source_and_target_each(tiny_t5: Path, make_place: Any) -> None:
    place = make_place(TASKS["seq2seq"], tiny_t5, [{"source": "good", "target": "bad"}])
    end = place.tokenizer.eos_token_id
    row = {"source": "the film is good", "target": "plain " * 9}
    for cutoff, truncated in ((5, True), (10, False)):
        one = place.task.encode(row, place.tokenizer, EncodeContext(cutoff))
        assert (len(one.input_ids), len(one.labels)) == (5, min(cutoff, 10))
        assert one.truncated is truncated
        assert (one.input_ids[-1], one.labels[-1]) == (end, end)


def test_causal_lm_learns_where_texts_end(chat_llama: Path, make_place: Any) -> None:
    place = make_place(TASKS["causal_lm"], chat_llama, [{"text": "abc"}])
    (one,) = place.encoded
    assert one.input_ids[-1] == place.tokenizer.eos_token_id
    assert one.labels == one.input_ids
    assert place.task.num_targets(one.labels) == 3
