"""Written answers against reference answers: BLEU, chrF, ROUGE and exact matches.

sacrebleu and rouge-score count; what a word is, is decided here. Their defaults find none in
scripts without spaces: a Chinese answer equal to its reference would have ROUGE 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

LEAST_SHARE = 0.1
"""Share of the references' words from which a script counts when BLEU's tokenizer is chosen."""

_CHINESE = r"\p{Han}"
_UNSPACED = r"\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# Korean has spaces, but writes its particles to the word before them.


@cache
def _pattern(text: str) -> Any:
    import regex

    return regex.compile(text, regex.VERSION1)


def words(text: str) -> list[str]:
    """Return the words of a text as ROUGE counts them here.

    Args:
        text: In any script.

    Returns:
        Lower-cased runs of letters and digits. A character of a script without spaces (Chinese,
        Japanese, Korean, Thai ...) and a symbol such as an emoji are words of their own. For ASCII
        it is what rouge-score's default tokenizer returns.
    """
    alone = rf"{_CHINESE}{_UNSPACED}\p{{So}}"
    # An accent or a vowel sign (M) belongs to the letter before it.
    word = rf"[{alone}]\p{{M}}*|(?:[[\p{{L}}\p{{N}}]--[{alone}]]\p{{M}}*)+"
    found: list[str] = _pattern(word).findall(text.lower())
    return found


def bleu_tokenizer(references: Sequence[str]) -> str:
    """Return which of sacrebleu's tokenizers fits the references' scripts.

    Args:
        references: All of them.

    Returns:
        `13a` where fewer than a tenth of the words are characters of scripts without spaces, else
        `zh` where these are Chinese characters, with less than a tenth of others, else `char`.
    """
    everything = [word for text in references for word in words(text)]
    chinese = sum(bool(_pattern(f"[{_CHINESE}]").match(word)) for word in everything)
    unspaced = sum(bool(_pattern(f"[{_UNSPACED}]").match(word)) for word in everything)
    if chinese + unspaced < LEAST_SHARE * max(1, len(everything)):
        return "13a"
    return "zh" if unspaced < LEAST_SHARE * (chinese + unspaced) else "char"


class _Words:
    """`words` as rouge-score asks for it."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def compare(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Return how near written answers are to the reference answers.

    Args:
        predictions: What was written; a text may be empty.
        references: What should have been, one for each, at least one.

    Returns:
        `bleu` and `chrf` of the corpus, 0 to 100 (sacrebleu); `rouge1, rouge2, rougeL`, F-measures
        from 0 to 1, their means over the rows (rouge-score); `exact_match`, the share of answers
        equal but for white space around them; `answers`, how many; and `scored_with`, by which
        settings. BLEU counts n-grams up to 4, or up to the longest there is (`eff:yes`): answers of
        fewer than 4 words would all have 0. ROUGE-2 of one word is 0.
    """
    from rouge_score import rouge_scorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    said = [text.strip() for text in predictions]
    wanted = [text.strip() for text in references]
    bleu = BLEU(tokenize=bleu_tokenizer(wanted), effective_order=True, force=True)
    chrf = CHRF()
    found: dict[str, Any] = {
        "bleu": float(bleu.corpus_score(said, [wanted]).score),
        "chrf": float(chrf.corpus_score(said, [wanted]).score),
    }
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = rouge_scorer.RougeScorer(kinds, tokenizer=_Words())
    pairs = list(zip(wanted, said, strict=True))
    rows = [scorer.score(reference, answer) for reference, answer in pairs]
    found |= {kind: float(sum(row[kind].fmeasure for row in rows) / len(rows)) for kind in kinds}
    found["exact_match"] = sum(reference == answer for reference, answer in pairs) / len(pairs)
    found["answers"] = len(pairs)
    found["scored_with"] = {
        "bleu": str(bleu.get_signature()),
        "chrf": str(chrf.get_signature()),
        "rouge": "lower-cased words; Chinese, Japanese, Korean and Thai by character; no stemming",
    }
    return found
