"""Answers against references: the libraries' numbers, numbers worked out by hand, every script."""

from __future__ import annotations

import math
from typing import Any

import pytest

from distft.overlap import bleu_tokenizer, compare, words

ROUGE = ("rouge1", "rouge2", "rougeL")

CHINESE = "\u4eca\u5929\u5929\u6c14\u5f88\u597d"
ALMOST = "\u4eca\u5929\u5929\u6c14\u4e0d\u597d"
"""One of six characters is another."""
JAPANESE = "\u4eca\u65e5\u306f\u3068\u3066\u3082\u5929\u6c17\u304c\u3044\u3044\u3067\u3059"
KOREAN = "\uc624\ub298 \ub0a0\uc528\uac00 \uc88b\uc2b5\ub2c8\ub2e4"
THAI = "\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49\u0e2d\u0e32\u0e01\u0e32\u0e28\u0e14\u0e35"
ARABIC = "\u0627\u0644\u0637\u0642\u0633 \u062c\u0645\u064a\u0644 \u0627\u0644\u064a\u0648\u0645"
HEBREW = "\u05de\u05d6\u05d2 \u05d4\u05d0\u05d5\u05d5\u05d9\u05e8 \u05d9\u05e4\u05d4"
RUSSIAN = "\u0441\u0435\u0433\u043e\u0434\u043d\u044f \u0445\u043e\u0440\u043e\u0448\u043e"
HINDI = "\u0906\u091c \u0939\u093f\u0928\u094d\u0926\u0940"
EMOJI = "\U0001f44d\U0001f3fd \u2764\ufe0f"
ENGLISH = "the weather is fine today"


def test_a_known_bleu() -> None:
    """Six words: 5, 3, 2 and 1 of 6, 5, 4 and 3 n-grams are right, the lengths are equal."""
    found = compare(["the cat sat on the mat"], ["the cat sat on a mat"])
    assert found["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert found["rouge1"] == found["rougeL"] == pytest.approx(5 / 6)
    assert found["rouge2"] == pytest.approx(3 / 5)
    assert found["exact_match"] == 0


def test_a_known_brevity() -> None:
    """Every n-gram is right, but 4 words of 8 are missing."""
    found = compare(["a b c d"], ["a b c d e f g h"])
    assert found["bleu"] == pytest.approx(100 * math.exp(1 - 8 / 4))
    assert found["rouge1"] == pytest.approx(2 * (1.0 * 0.5) / 1.5)


def test_bleu_counts_over_the_corpus_and_rouge_over_the_rows() -> None:
    """7 of 8 words, 5 of 6, 3 of 4, 1 of 2; the mean of the two rows' own BLEU would be lower."""
    said, wanted = ["a b c d", "e f g x"], ["a b c d", "e f g h"]
    found = compare(said, wanted)
    assert found["bleu"] == pytest.approx(100 * (7 / 8 * 5 / 6 * 3 / 4 * 1 / 2) ** 0.25)
    assert found["rouge1"] == pytest.approx((1 + 3 / 4) / 2)
    assert found["rouge2"] == pytest.approx((1 + 2 / 3) / 2)
    assert (found["exact_match"], found["answers"]) == (0.5, 2)


@pytest.mark.parametrize(
    "text", [ENGLISH, CHINESE, JAPANESE, KOREAN, THAI, ARABIC, HEBREW, RUSSIAN, HINDI, EMOJI]
)
def test_an_equal_answer_is_all_right_in_every_script(text: str) -> None:
    found = compare([f" {text}\n"], [text])
    assert found["bleu"] == pytest.approx(100)
    assert found["chrf"] == pytest.approx(100)
    assert found["exact_match"] == 1
    assert [found[name] for name in ROUGE] == [1, 1, 1]


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, JAPANESE, KOREAN, THAI, ARABIC, EMOJI])
@pytest.mark.parametrize("other", ["", "zzz", "zzz qqq jjj kkk vvv"])
def test_an_answer_with_nothing_in_common_is_all_wrong(text: str, other: str) -> None:
    found = compare([other], [text])
    assert [found[name] for name in ("bleu", "chrf", *ROUGE, "exact_match")] == [0] * 6


def test_chinese_is_told_apart_where_the_defaults_cannot() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    by_default = BLEU().corpus_score([ALMOST, ALMOST], [[CHINESE, CHINESE]]).score
    assert by_default == 0, "each sentence is one word, and a wrong one"
    assert RougeScorer(["rouge1"]).score(CHINESE, CHINESE)["rouge1"].fmeasure == 0
    found = compare([ALMOST, ALMOST], [CHINESE, CHINESE])
    # Characters: 5 of 6; pairs 3 of 5; threes 2 of 4; fours 1 of 3.
    assert found["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert found["rouge1"] == pytest.approx(5 / 6)
    assert found["rouge2"] == pytest.approx(3 / 5)
    assert "tok:zh" in found["scored_with"]["bleu"]


@pytest.mark.parametrize(
    ("references", "tokenizer"),
    [
        ([ENGLISH], "13a"),
        ([CHINESE], "zh"),
        ([f"{CHINESE} with PyTorch and Ray"], "zh"),
        ([ENGLISH, CHINESE], "zh"),
        ([ENGLISH] * 10 + [CHINESE[:2]], "13a"),
        ([JAPANESE], "char"),
        ([KOREAN], "char"),
        ([THAI], "char"),
        ([ARABIC, HEBREW, RUSSIAN, HINDI], "13a"),
        ([EMOJI], "13a"),
        (["", "..."], "13a"),
    ],
)
def test_the_references_script_chooses_bleus_tokenizer(
    references: list[str], tokenizer: str
) -> None:
    assert bleu_tokenizer(references) == tokenizer
    scored_with = compare(["x"] * len(references), references)["scored_with"]
    assert f"tok:{tokenizer}|" in scored_with["bleu"]


@pytest.mark.parametrize(
    "text",
    [
        "Hello, the_world! It's 3.5 foo-bar\u00a0x",
        "  ",
        "a\tb\nc\x00d",
        "".join(map(chr, range(128))),
    ],
)
def test_ascii_words_are_those_of_rouge_score(text: str) -> None:
    from rouge_score.tokenize import tokenize

    assert words(text) == tokenize(text, None)


def test_words_keep_their_accents_and_vowel_signs() -> None:
    assert words("Na\u00efve \u041f\u0440\u0438\u0432\u0435\u0442") == [
        "na\u00efve",
        "\u043f\u0440\u0438\u0432\u0435\u0442",
    ]
    assert words(HINDI) == HINDI.split()
    assert words(f"{CHINESE[:2]}GPT2{CHINESE[-1]}") == [*CHINESE[:2], "gpt2", CHINESE[-1]]
    assert words("ok\U0001f44d\U0001f44d") == ["ok", "\U0001f44d", "\U0001f44d"]


LONG = "a few words of a long answer, repeated " * 50
SAID = ["the cat sat on the mat", "", "it is a dog .", LONG, "yes", "\U0001f44d ok"]
WANTED = ["a cat sat on the mat", "nothing", "it was a dog.", LONG + "and an end", "yes", "ok"]


def test_the_numbers_are_the_libraries_own() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf

    found = compare(SAID, WANTED)
    assert found["bleu"] == pytest.approx(corpus_bleu(SAID, [WANTED]).score)
    assert found["chrf"] == pytest.approx(corpus_chrf(SAID, [WANTED]).score)
    assert 0 < found["bleu"] < 100
    # Without symbols, which the default drops and we count.
    said, wanted = SAID[:-1], WANTED[:-1]
    scorer = RougeScorer(list(ROUGE))
    rows: list[Any] = [scorer.score(w, s) for s, w in zip(said, wanted, strict=True)]
    found = compare(said, wanted)
    for name in ROUGE:
        mean = sum(row[name].fmeasure for row in rows) / len(rows)
        assert found[name] == pytest.approx(mean)
        assert 0 < found[name] < 1


def test_short_answers_are_scored_by_the_n_grams_they_have() -> None:
    """Sacrebleu's default calls two right words wrong: they hold no three and no four."""
    from sacrebleu import corpus_bleu

    assert corpus_bleu(["fine thanks"], [["fine thanks"]]).score == 0
    found = compare(["fine thanks", "no"], ["fine thanks", "no"])
    assert found["bleu"] == pytest.approx(100)
    assert "eff:yes" in found["scored_with"]["bleu"]
