"""Texts to ids, ids through a model, answers in the order of the rows; what tasks share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from distft.errors import ConfigError
from distft.plugin import EncodeContext, Encoded, Row, UnusableRow

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding, Tokenizer
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def key(row: Row) -> str:
    """Return the input of a row that may hold a second text."""
    return str(row["text"]) if row.get("pair") is None else f"{row['text']}\0{row['pair']}"


class Tokens(NamedTuple):
    """The tokens of a text, or of a pair of texts, as the tokenizer frames them; none is cut."""

    ids: list[int]
    second: int = 0
    """As in `Encoded`."""


@dataclass(frozen=True)
class Whole:
    """A task's `encode` that has texts of its rows tokenized whole, those of many rows at once."""

    texts: Callable[[Row, PreTrainedTokenizerBase], tuple[str, ...]]
    """(row, tokenizer) -> what to tokenize: one text or a pair."""
    finish: Callable[[Row, Tokens, PreTrainedTokenizerBase, EncodeContext], Encoded]
    """(row, its tokens, tokenizer, context) -> the sample. Raises UnusableRow."""

    def __call__(
        self, row: Row, tokenizer: PreTrainedTokenizerBase, context: EncodeContext
    ) -> Encoded:
        """Return the sample of one row; raises what `finish` does."""
        tokens = tokenize([self.texts(row, tokenizer)], tokenizer)[0]
        return self.finish(row, tokens, tokenizer, context)


def tokenize(texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """Return the tokens of texts.

    Args:
        texts: Each one text or a pair.
        tokenizer: The model's.

    Returns:
        What calling the tokenizer with each would give.
    """
    if not _calls_backend(tokenizer):
        found = [tokenizer(*one, verbose=False) for one in texts]
        return [Tokens(one["input_ids"], _second(one.get("token_type_ids", ()))) for one in found]
    # An empty second text is none to a tokenizer's call.
    asked = [one if one[1:] and one[1] else one[0] for one in texts]
    encodings = _backend(tokenizer).encode_batch_fast(asked)
    typed = "token_type_ids" in tokenizer.model_input_names
    return [
        Tokens(one.ids, _second(one.type_ids) if typed and len(text) > 1 else 0)
        for text, one in zip(texts, encodings, strict=True)
    ]


def place(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], Encoding]:
    """Return the tokens of a text and where in it they stand, without what frames a text.

    Args:
        text: Framed already, as a chat template does it; none of it is cut.
        tokenizer: The model's.

    Returns:
        (ids, what tells their places).

    Raises:
        ConfigError: The tokenizer does not know the places.
    """
    check_places(tokenizer)
    if _calls_backend(tokenizer):
        encoding = _backend(tokenizer).encode(text, add_special_tokens=False)
        return encoding.ids, encoding
    batch = tokenizer(text, add_special_tokens=False, verbose=False)
    return batch["input_ids"], batch.encodings[0]


def check_places(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that does not tell where in a text its tokens stand.

    Args:
        tokenizer: The model's.

    Raises:
        ConfigError: It is a slow one.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{tokenizer.name_or_path} has a slow tokenizer, which does not tell where its tokens "
            "stand in the text; tasks sft and token_cls need that.",
            "Take a model with a tokenizer.json.",
        )


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the Rust backend set as any call sets it, whatever its file says."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def _calls_backend(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether a call is nothing but what the Rust backend does, as with most tokenizers.

    The call itself makes Python objects of all that one may ask for, which takes a quarter of it.
    """
    return not has_own(tokenizer, "__call__", "_encode_plus")


def has_own(tokenizer: PreTrainedTokenizerBase, *methods: str) -> bool:
    """Return whether a tokenizer's class does otherwise than the backend's base classes.

    Args:
        tokenizer: The model's.
        *methods: What it may do in its own way.

    Returns:
        True: one of them is its own.
    """
    homes = [f"transformers.tokenization_utils_{name}" for name in ("base", "tokenizers")]
    found = [getattr(type(tokenizer), method, None) for method in methods]
    return any(getattr(method, "__module__", None) not in homes for method in found)


def _second(types: Sequence[int]) -> int:
    return types.index(1) if 1 in types else 0


def parts(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return what is tokenized of a row that may hold a second text.

    Args:
        row: `text`, and `pair` where there is a second one.
        tokenizer: The model's.

    Returns:
        One text, or two where the tokenizer parts them by a mark.
    """
    text, pair = row["text"], row.get("pair")
    if pair is None:
        return (text,)
    marks = tokenizer.num_special_tokens_to_add(pair=True)
    if marks > tokenizer.num_special_tokens_to_add(pair=False):
        return (text, pair)
    # Nothing would show where the first text ends.
    return (f"{text}\n{pair}",)


def sample(
    texts: tuple[str, ...],
    tokens: Tokens,
    tokenizer: PreTrainedTokenizerBase,
    cutoff_len: int,
    labels: Sequence[float],
) -> Encoded:
    """Return the sample of what was tokenized whole, cut where it is too long.

    Args:
        texts: One text or a pair.
        tokens: Of them.
        tokenizer: The model's.
        cutoff_len: Most tokens; of two texts the longer is cut first.
        labels: What the sample is trained on.

    Returns:
        The sample.

    Raises:
        UnusableRow: There is no token in it.
    """
    if not tokens.ids:
        raise UnusableRow("the text has no token")
    if len(tokens.ids) <= cutoff_len:
        return Encoded(tokens.ids, labels, False, tokens.second)
    # Tokenize again: the tokenizer knows where its closing special token belongs.
    batch = tokenizer(*texts, truncation=True, max_length=cutoff_len, verbose=False)
    second = _second(batch.get("token_type_ids", ()))
    return Encoded(batch["input_ids"], labels, True, second)


def second_texts(starts: Sequence[int], attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the token types of a right-padded batch, where any row holds a second text.

    Args:
        starts: Where each row's begins; 0: nowhere.
        attention_mask: (B, T).

    Returns:
        `token_type_ids` (B, T), or nothing.
    """
    import torch

    if not any(starts):
        return {}
    length = attention_mask.shape[1]
    first = torch.tensor([start or length for start in starts])
    second = (torch.arange(length) >= first[:, None]) & attention_mask.bool()
    return {"token_type_ids": second.long()}


def logits(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, encoded: Sequence[Encoded]
) -> torch.Tensor:
    """Return what a model says of samples.

    Args:
        model: In evaluation mode.
        tokenizer: Its own.
        encoded: At least one sample.

    Returns:
        Its logits in float32 on the CPU, the samples in the first dimension.
    """
    import torch

    padding = [{"input_ids": one.input_ids} for one in encoded]
    batch = tokenizer.pad(padding, padding_side="right", return_tensors="pt")
    batch |= second_texts([one.second for one in encoded], batch["attention_mask"])
    device = next(model.parameters()).device
    wanted = ("input_ids", "attention_mask", "token_type_ids")
    with torch.inference_mode():
        inputs = {name: batch[name].to(device) for name in wanted if name in batch}
        said: torch.Tensor = model(**inputs).logits.float().cpu()
    return said


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    max_new_tokens: int,
    **settings: Any,
) -> list[str]:
    """Return what a model writes after prompts, or, with a decoder of its own, to sources.

    Args:
        model: In evaluation mode.
        tokenizer: Its own.
        encoded: At least one sample; each leaves the model a position (see `positions_left`).
        max_new_tokens: Longest text; shorter where the positions end before.
        **settings: More for `generate` of transformers, such as `num_beams`.

    Returns:
        One text per sample, without special tokens.
    """
    left = [positions_left(model, one.input_ids) for one in encoded]
    together = [i for i, positions in enumerate(left) if positions >= max_new_tokens]
    # A row near the end of the positions would cut the others of its batch short.
    alone = [[i] for i in range(len(encoded)) if i not in together]
    said: dict[int, str] = {}
    for group in [together, *alone] if together else alone:
        limit = min(max_new_tokens, *(left[i] for i in group))
        batch = [encoded[i] for i in group]
        said |= zip(group, _generate(model, tokenizer, batch, limit, settings), strict=True)
    return [said[i] for i in range(len(encoded))]


def positions_left(model: nn.Module, ids: Sequence[int]) -> int:
    """Return how many tokens a decoder can still write after a prompt.

    Args:
        model: With virtual tokens or without.
        ids: The prompt.

    Returns:
        At most 0 where the prompt fills the model; very many where the model has no limit.
    """
    config: Any = model.config
    positions = getattr(config, "max_position_embeddings", None)
    if config.is_encoder_decoder or positions is None:
        return sys.maxsize
    adapter = getattr(model, "active_peft_config", None)
    return int(positions - (getattr(adapter, "num_virtual_tokens", None) or 0) - len(ids))


def _generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    max_new_tokens: int,
    settings: Mapping[str, Any],
) -> list[str]:
    import torch

    has_encoder = bool(model.config.is_encoder_decoder)  # type: ignore[union-attr]
    padding = [{"input_ids": one.input_ids} for one in encoded]
    # A decoder alone writes on after the last token, which must therefore not be padding.
    side = "right" if has_encoder else "left"
    batch = tokenizer.pad(padding, padding_side=side, return_tensors="pt")
    device = next(model.parameters()).device
    with torch.inference_mode():
        ids = model.generate(  # type: ignore[operator]  # generate lives on the transformers class
            input_ids=batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            **{"eos_token_id": _ends(model, tokenizer), **settings},
        )
    if not has_encoder:
        ids = ids[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _ends(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids after which nothing more is written: the model's, and the tokenizer's end.

    A template may have taught the model to end with another token than its files name.
    """
    known = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = known if isinstance(known, list) else [known]
    return sorted({one for one in (*ids, tokenizer.eos_token_id) if one is not None})


def answers(
    rows: Sequence[Row],
    encode_one: Callable[[Row], Encoded],
    answer: Callable[[Sequence[Encoded]], Sequence[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Return one answer per row in order; a row that cannot be encoded gets an `error`.

    Args:
        rows: Canonical rows.
        encode_one: Gives a row's sample; may raise UnusableRow.
        answer: Gives the answers of the samples that there are, at least one.

    Returns:
        As many answers as rows.
    """
    outcomes: list[Encoded | str] = []
    for row in rows:
        try:
            outcomes.append(encode_one(row))
        except UnusableRow as error:
            outcomes.append(str(error))
    usable = [outcome for outcome in outcomes if isinstance(outcome, Encoded)]
    said = iter(answer(usable) if usable else ())
    return [{"error": outcome} if isinstance(outcome, str) else next(said) for outcome in outcomes]
