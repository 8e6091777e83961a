"""Texts tokenized together give what each gives alone, with every packaged tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distft import hf
from distft.config_sections import ModelConfig
from distft.data import rows
from distft.data.source import scan
from distft.data.tokenize import encode_row, encode_rows
from distft.plugin import EncodeContext, Encoded, tasks
from distft.texts import Tokens, tokenize

TEXTS = [
    "",
    " ",
    "one",
    "\u0007",
    "\u4f60\u597d world",
    "don't  stop\n\n",
    "<|im_end|> [SEP]",
    "so " * 400,
]


@pytest.fixture(scope="module", params=["minilm-l6", "smollm2-135m-instruct"])
def tokenizer(request: pytest.FixtureRequest, asset: Callable[[str], Path]) -> Any:
    return hf.load_tokenizer(ModelConfig(id=str(asset(request.param))))


def test_texts_tokenized_together_are_those_tokenized_alone(tokenizer: Any) -> None:
    asked = [(text,) for text in TEXTS] + [(text, "a pair") for text in TEXTS] + [("a", "")]
    # A call with a cut leaves the backend cutting, as the file of MiniLM does from the start.
    tokenizer("a b c", truncation=True, max_length=2)
    for one, found in zip(asked, tokenize(asked, tokenizer), strict=True):
        alone = tokenizer(*one, verbose=False)
        types = alone.get("token_type_ids", [])
        assert found == Tokens(alone["input_ids"], types.index(1) if 1 in types else 0), one


def test_a_call_of_a_tokenizers_own_is_used(tokenizer: Any) -> None:
    class Own(type(tokenizer)):  # type: ignore[misc]  # its base is known at run time only
        def __call__(self, *texts: Any, **settings: Any) -> Any:
            return super().__call__(*(f"my {text}" for text in texts), **settings)

    expected = tokenizer("my word")["input_ids"]
    plain = type(tokenizer)
    try:
        tokenizer.__class__ = Own
        assert tokenize([("word",)], tokenizer)[0].ids == expected
    finally:
        tokenizer.__class__ = plain


@pytest.mark.parametrize("cutoff_len", [8, 512])
@pytest.mark.parametrize("name", ["causal_lm", "seq_cls", "seq2seq", "regression"])
def test_rows_encoded_together_are_those_encoded_alone(
    name: str, cutoff_len: int, tokenizer: Any
) -> None:
    task, context = tasks()[name], EncodeContext(cutoff_len, ["a", "b"])
    held = [
        {"text": text, "source": text, "target": "t", "label": "b", "value": 1.0} for text in TEXTS
    ]
    together = encode_rows(held, task, tokenizer, context)
    for row, found in zip(held, together, strict=True):
        alone = encode_row(row, task, tokenizer, context)
        assert (found, type(found)) == (alone, Encoded) or str(found) == str(alone)
    assert sum(isinstance(one, Encoded) for one in together) >= 5


@pytest.mark.parametrize("escape", ["\\ud83d", "\\uD83D", "\\uDC00 \\ud83d"])
def test_half_a_surrogate_pair_is_found_however_it_is_written(escape: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    texts = (escape, "\\ud83d\\ude00", "\\u00e9")
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    found = [row for chunk in scan([str(path)])[0].chunks for row in rows.read_chunk(chunk)]
    assert "half of a surrogate pair" in found[0].reason
    assert [row.value for row in found[1:]] == [{"text": "\U0001f600"}, {"text": "\u00e9"}]
