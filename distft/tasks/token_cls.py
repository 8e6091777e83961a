"""Tagging of words, such as named entities: a label on each word's first token."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from distft import scoring, texts
from distft.plugin import (
    EncodeContext,
    Encoded,
    Row,
    Task,
    UnusableRow,
    VariantConfig,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

OUTSIDE = "O"
BEGIN, INSIDE = "B-", "I-"
_AS_BIO = {"S-": BEGIN, "U-": BEGIN, "E-": INSIDE, "L-": INSIDE}
"""Prefixes of BIOES and BILOU; BIO marks the same spans without them."""

Span = tuple[int, int, str]
"""First word, word after the last, kind."""


class TokenClsConfig(VariantConfig):
    """Keys of `task: {name: token_cls}`."""

    name: str = "token_cls"
    """The task."""


def _bio(tag: str) -> str:
    return _AS_BIO.get(tag[:2], tag[:2]) + tag[2:]


def _classes(row: Row) -> tuple[str, ...]:
    """Return the tags of a row; B-X brings I-X along, which a small training set may lack."""
    found: dict[str, None] = {}
    for tag in map(_bio, row["tags"]):
        kind = _kind(tag)
        wanted = (BEGIN + kind, INSIDE + kind) if tag.startswith((BEGIN, INSIDE)) else (tag,)
        found |= dict.fromkeys(wanted)
    return tuple(found)


def _kind(tag: str) -> str:
    return tag[2:] if tag.startswith((BEGIN, INSIDE)) else tag


def _kinds(names: Sequence[str]) -> list[str]:
    return sorted({_kind(name) for name in names} - {OUTSIDE})


def _spans(tags: Sequence[str]) -> Iterator[Span]:
    """Yield the spans as conlleval reads them; a tag without prefix is a span of one word."""
    start, kind = 0, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        if tag.startswith(INSIDE) and tag[2:] == kind:
            continue
        if kind:
            yield start, place, kind
        start, kind = place, ""
        if tag.startswith((BEGIN, INSIDE)):
            kind = tag[2:]
        elif tag != OUTSIDE:
            yield place, place + 1, tag


def _encode(row: Row, tokenizer: PreTrainedTokenizerBase, context: EncodeContext) -> Encoded:
    words, tags = row["words"], row.get("tags")
    if tags is not None and len(tags) != len(words):
        raise UnusableRow("there are not as many tags as words")
    ids, firsts, truncated = _aligned(words, tokenizer, context.cutoff_len)
    labels = [scoring.IGNORED] * len(ids)
    for word, place in firsts.items():
        labels[place] = 0 if tags is None else context.labels.index(_bio(tags[word]))
    return Encoded(ids, labels, truncated)


def _aligned(
    words: Sequence[str], tokenizer: PreTrainedTokenizerBase, cutoff_len: int
) -> tuple[list[int], dict[int, int], bool]:
    """Return the ids, the place of each word's first token, and whether words were cut off."""
    texts.check_places(tokenizer)
    if not words:
        raise UnusableRow("there is no word")
    text = " ".join(words)
    asked = {"return_offsets_mapping": True, "verbose": False}
    batch = tokenizer(text, **asked)
    truncated = len(batch["input_ids"]) > cutoff_len
    if truncated:
        batch = tokenizer(text, truncation=True, max_length=cutoff_len, **asked)
    starts = [0, *accumulate(len(word) + 1 for word in words[:-1])]
    spaces = {start - 1 for start in starts}
    firsts: dict[int, int] = {}
    for place, (start, stop) in enumerate(batch["offset_mapping"]):
        # Some tokenizers count the space before a word as its own.
        first = start + (start in spaces)
        if first < stop:
            firsts.setdefault(bisect_right(starts, first) - 1, place)
    return batch["input_ids"], firsts, truncated


def _score(
    logits: torch.Tensor, labels: torch.Tensor, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    import torch

    kinds = {kind: i for i, kind in enumerate(_kinds(names))}
    counts = torch.zeros(3, len(labels), len(kinds), dtype=torch.long)
    for row, (said, wanted) in enumerate(zip(logits.argmax(-1), labels, strict=True)):
        trained = wanted != scoring.IGNORED
        expected, predicted = (
            set(_spans([names[i] for i in ids[trained].tolist()])) for ids in (wanted, said)
        )
        for column, found in enumerate((expected, predicted, expected & predicted)):
            for _, _, kind in found:
                counts[column, row, kinds[kind]] += 1
    expected_counts, predicted_counts, correct_counts = counts
    return {
        **scoring.token_scores(logits, labels, names),
        "expected": expected_counts,
        "predicted": predicted_counts,
        "correct": correct_counts,
    }


def _metrics(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    totals = [columns[name].sum(0) for name in ("correct", "predicted", "expected")]
    precision, recall, f1 = _ratios(*(int(total.sum()) for total in totals))
    per_class = {}
    for i, kind in enumerate(_kinds(names)):
        ratios = _ratios(*(int(total[i]) for total in totals))
        per_class[kind] = dict(zip(("precision", "recall", "f1"), ratios, strict=True))
        per_class[kind]["support"] = int(totals[2][i])
    targets = int(columns["num_targets"].sum())
    return {
        "loss": float(columns["loss_sum"].sum() / targets),
        "entity_precision": precision,
        "entity_recall": recall,
        "entity_f1": f1,
        "entity_f1_macro": sum(one["f1"] for one in per_class.values()) / max(1, len(per_class)),
        "token_accuracy": float(columns["num_correct"].sum() / targets),
        "entities": int(totals[2].sum()),
        "targets": targets,
        "rows": len(columns["num_targets"]),
        "per_class": per_class,
    }


def _ratios(correct: int, predicted: int, expected: int) -> tuple[float, float, float]:
    """Return precision, recall and F1; 0 where they are undefined."""
    return (
        correct / max(1, predicted),
        correct / max(1, expected),
        2 * correct / max(1, predicted + expected),
    )


def _predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    context: EncodeContext,
    config: VariantConfig,
) -> list[dict[str, Any]]:
    read: list[tuple[Sequence[str], dict[int, int]]] = []

    def encode_one(row: Row) -> Encoded:
        ids, firsts, truncated = _aligned(row["words"], tokenizer, context.cutoff_len)
        read.append((row["words"], firsts))
        return Encoded(ids, [], truncated)

    def answer(encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        said = texts.logits(model, tokenizer, encoded).argmax(-1)
        return [
            _answer(
                words, {word: context.labels[int(ids[place])] for word, place in firsts.items()}
            )
            for (words, firsts), ids in zip(read, said, strict=True)
        ]

    return texts.answers(rows, encode_one, answer)


def _answer(words: Sequence[str], tags: Mapping[int, str]) -> dict[str, Any]:
    """Return the tag of every word, None for one that the model did not see, and the spans."""
    every = range(len(words))
    spans = _spans([tags.get(word, OUTSIDE) for word in every])
    return {
        "prediction": [tags.get(word) for word in every],
        "entities": [
            {"type": kind, "text": " ".join(words[start:stop]), "start": start, "end": stop}
            for start, stop, kind in spans
        ],
    }


TASK = Task(
    name="token_cls",
    summary="tagging of words, such as named entities in BIO tags",
    source="CoNLL-2003 (Tjong Kim Sang and De Meulder 2003), as BERT (Devlin et al. 2019) does it",
    config=TokenClsConfig,
    rows=("tagged_words",),
    auto_class="AutoModelForTokenClassification",
    peft_type="TOKEN_CLS",
    new_head=True,
    labels="tokens",
    headline="entity_f1",
    key=lambda row: " ".join(row["words"]),
    classes=_classes,
    encode=_encode,
    num_targets=scoring.token_targets,
    loss=scoring.token_loss,
    score=_score,
    metrics=_metrics,
    predict=_predict,
)
