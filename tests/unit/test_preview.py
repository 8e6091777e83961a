"""Rows as the model sees them: what is marked, what is counted, how it looks."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from distft import api, cli
from distft.config import RunConfig
from distft.config_file import parse
from distft.config_sections import ModelConfig
from distft.data import preview as module
from distft.data import stats
from distft.data.pieces import Piece, pieces
from distft.data.preview import Preview, histogram
from distft.errors import ConfigError, DataError
from distft.hf import load_tokenizer
from distft.report.preview import Screen, problems, visible

EMOJI = "\U0001f44d"
CHINESE = "\u4f60\u597d"
FAMILY = "\U0001f468\u200d\U0001f469"
HOSTILE = "[bold red]x[/] </p><script>alert(1)</script> \x1b[31m \u202e &amp; [/]"


def chat(question: str, *answers: str) -> dict[str, Any]:
    turns = [("user", question), *(("assistant", answer) for answer in answers)]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def write(path: Path, rows: Sequence[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def config(model: Path, train: Path, task: str = "sft", **data: Any) -> RunConfig:
    return parse(
        {"name": "p", "model": str(model), "task": task, "data": {"train": str(train), **data}}
    )


def look(model: Path, train: Path, task: str = "sft", row: int = 0, **data: Any) -> Preview:
    named = f"{train}:{row}" if row else None
    return api.preview(config(model, train, task, **data), rows=99, row=named)


def held_out(folder: Path) -> dict[str, str]:
    """Files for eval and test, so that all rows of the training file are trained on."""
    splits = ("eval", "test")
    return {name: str(write(folder / f"{name}.jsonl", [chat(name, "a")])) for name in splits}


def marked(shown: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in shown if piece.trained)


def printed(preview: Preview, **how: Any) -> str:
    console = Console(file=io.StringIO(), width=250, **how)
    console.print(Screen(preview))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_pieces_hold_every_token_and_together_are_the_text(chat_llama: Path, text: str) -> None:
    tokenizer = load_tokenizer(ModelConfig(id=str(chat_llama)))
    ids = tokenizer(text)["input_ids"]
    found = pieces(ids, [], tokenizer)
    assert [token for piece in found for token in piece.ids] == ids
    assert "".join(piece.text for piece in found) == text


def test_a_character_of_several_tokens_is_one_piece(chat_llama: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(id=str(chat_llama)))
    ids = tokenizer(f"a{EMOJI}{CHINESE}</s>b")["input_ids"]
    found = pieces(ids, [False, True, True], tokenizer)
    assert [piece.text for piece in found] == ["a", EMOJI, *CHINESE, "</s>", "b"]
    assert [len(piece.ids) for piece in found] == [1, 4, 3, 3, 1, 1]
    assert [piece.special for piece in found] == [False] * 4 + [True, False]
    assert marked(found) == EMOJI


def sentence_piece() -> Any:
    """A tokenizer like Llama 2's: a mark for spaces, bytes for what it does not know."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"\u2581ab."]
    tokenizer = Tokenizer(
        models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def bytes_alone() -> Any:
    """A slow tokenizer, which leaves out what is no whole character."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


@pytest.mark.parametrize("make", [sentence_piece, bytes_alone])
def test_other_kinds_of_tokenizers_give_the_text_too(make: Any) -> None:
    tokenizer = make()
    for text in (f"a  b.{EMOJI}{CHINESE} a\n", f"\ufffd\ufffd{CHINESE}b", " a"):
        ids = tokenizer(text)["input_ids"]
        found = pieces(ids, [], tokenizer)
        assert [token for piece in found for token in piece.ids] == ids
        assert "".join(piece.text for piece in found).removesuffix("</s>") == text
    assert EMOJI in {
        piece.text for piece in pieces(tokenizer(f"a{EMOJI}b")["input_ids"], [], tokenizer)
    }


def test_half_a_character_before_a_special_token_takes_nothing_with_it(chat_llama: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(id=str(chat_llama)))
    ids = [*tokenizer(EMOJI)["input_ids"][:2], *tokenizer("</s>a")["input_ids"]]
    assert [piece.text for piece in pieces(ids, [], tokenizer)][-2:] == ["</s>", "a"]


def test_word_pieces_are_joined_as_the_tokenizer_joins_them(asset: Any) -> None:
    tokenizer = load_tokenizer(ModelConfig(id=str(asset("minilm-l6"))))
    ids = tokenizer("Unbelievably good.")["input_ids"]
    found = pieces(ids, [], tokenizer)
    assert len(found) == len(ids)
    assert "".join(piece.text for piece in found) == "[CLS] unbelievably good. [SEP]"


@settings(deadline=None)
@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=50))
def test_a_histogram_counts_every_row_once(lengths: list[int]) -> None:
    bins = histogram(lengths)
    assert len(bins) <= 16
    assert all(bins[i].last + 1 == bins[i + 1].first for i in range(len(bins) - 1))
    assert bins[0].rows * bins[-1].rows > 0
    for each in bins:
        assert each.rows == sum(each.first <= length <= each.last for length in lengths)


def test_answers_and_their_ends_are_marked(tmp_path: Path, chat_llama: Path) -> None:
    rows = [chat(f"q{i}", f"a{i}{EMOJI}") for i in range(20)]
    rows[3]["messages"] += chat("more", "b")["messages"]
    seen = look(chat_llama, write(tmp_path / "t.jsonl", rows))
    assert seen.sampled == len(seen.shown) == seen.rows["train"] == 16
    for row in seen.shown:
        i = row.row - 1
        again = "b</s>" if i == 3 else ""
        assert marked(row.pieces) == f"a{i}{EMOJI}</s>{again}"
        assert "".join(piece.text for piece in row.pieces).startswith(f"<s>user:q{i}</s><s>assi")
        assert row.targets == sum(len(piece.ids) for piece in row.pieces if piece.trained)
    assert seen.trained_tokens == sum(row.targets for row in seen.shown)
    assert seen.tokens == sum(row.tokens for row in seen.shown)
    assert seen.ended == 16
    assert problems(seen) == []


def test_the_prompt_is_marked_where_it_is_trained(tmp_path: Path, chat_llama: Path) -> None:
    train = write(tmp_path / "t.jsonl", [chat(f"q{i}", "a") for i in range(20)])
    (row,) = look(chat_llama, train, row=1, train_on_prompt=True).shown
    # Nothing predicts the first token.
    assert marked(row.pieces) == "user:q0</s><s>assistant:a</s>"


def test_each_task_shows_what_it_learns(tmp_path: Path, tiny_bert: Path, tiny_t5: Path) -> None:
    texts = [f"the film is {word} and great" for word in ("good", "bad", "fine", "poor")] * 5
    texts = [f"{text} {'plot ' * (i % 7)}" for i, text in enumerate(texts)]

    def first(model: Path, task: str, given: Any, format_name: str | None = None) -> Any:
        train = write(tmp_path / f"{task}.jsonl", [given(i, text) for i, text in enumerate(texts)])
        return look(model, train, task, row=1, format=format_name)

    seen = first(tiny_bert, "seq_cls", lambda i, text: {"text": text, "label": "ab"[i % 2]})
    assert (seen.shown[0].answer, seen.trained_tokens, seen.labels) == ("a", None, ["a", "b"])
    assert "".join(p.text for p in seen.shown[0].pieces) == "[CLS] the film is good and great [SEP]"
    assert "to learn: a" in printed(seen)
    many = first(
        tiny_bert, "multilabel_cls", lambda i, text: {"text": text, "labels": [*"xyz"][i % 4 :]}
    )
    assert many.shown[0].answer == "x, y, z"
    none = api.preview(
        config(tiny_bert, tmp_path / "multilabel_cls.jsonl", "multilabel_cls"), rows=99
    )
    assert "no label" in {row.answer for row in none.shown}
    value = first(
        tiny_bert, "regression", lambda i, text: {"text": text, "label": i + 0.5}, "scored"
    )
    assert value.shown[0].answer == "0.5"
    masked = first(tiny_bert, "masked_lm", lambda i, text: {"text": text})
    assert marked(masked.shown[0].pieces) == " the film is good and great"
    assert masked.shown[0].targets == 1
    assert "in [[ ]]: may be hidden and asked for" in printed(masked)
    tags = ["O", "B-X", "I-X", "O"]
    words = ["the", "film", "is", "good"]
    tagged = first(
        tiny_bert,
        "token_cls",
        lambda i, text: {
            "tokens": [*words, *text.split()[3:]],
            "ner_tags": tags + ["O"] * len(text.split()[3:]),
        },
    )
    assert [p.label for p in tagged.shown[0].pieces][:5] == ["", "", "B-X", "I-X", ""]
    assert "[CLS][[ the film/B-X is/I-X good" in printed(tagged)
    written = first(tiny_t5, "seq2seq", lambda i, text: {"source": text, "target": "good film"})
    (row,) = written.shown
    assert (marked(row.pieces), marked(row.target)) == ("", "good film </s>")
    assert "target:\n[[good film </s>]]" in printed(written)
    assert written.trained_tokens == 3 * written.sampled


def test_rows_that_train_nothing_are_shown_and_do_not_stop_it(
    tmp_path: Path, chat_llama: Path
) -> None:
    rows = [chat(f"{i}", "a") for i in range(20)]
    train = write(tmp_path / "t.jsonl", rows)
    seen = look(chat_llama, train, cutoff_len=12)
    assert seen.sampled == seen.untrained == len(seen.shown) == 16
    assert seen.refused == {"the answer lies beyond cutoff_len": 16}
    assert len(seen.refused_rows) == 10
    assert seen.histogram == []
    assert seen.trained_tokens == 0
    assert json.loads(seen.shown[0].raw) == rows[seen.shown[0].row - 1]
    (problem,) = problems(seen)
    assert "16 of 16: the answer lies beyond cutoff_len" in problem
    text = printed(seen)
    assert "train nothing  16 rows (100.0 %)" in text
    assert f"{train}:{seen.refused_rows[0].row}: the answer lies beyond cutoff_len" in text
    assert "and 6 more" in text
    # What a plan needs cannot be had from such rows; it says where to look.
    with pytest.raises(DataError, match="None of 20 usable rows") as caught:
        stats.sample_stats(config(chat_llama, train, cutoff_len=12))
    assert "distft data preview" in caught.value.hint


def test_it_says_when_the_guard_would_stop_a_run(tmp_path: Path, chat_llama: Path) -> None:
    endless = [chat(f"{i}", "a" * 200) for i in range(20)]
    seen = look(chat_llama, write(tmp_path / "t.jsonl", endless), cutoff_len=40)
    assert (seen.truncated, seen.ended, seen.untrained) == (16, 0, 0)
    (problem,) = problems(seen)
    assert problem.startswith("No training row trains the end of an answer: a run stops.")
    rows = [chat(f"{i:03}", "a") for i in range(200)]
    for i in (7, 99, 150):
        # What frames its messages alone is longer than the cutoff.
        rows[i]["messages"].insert(0, {"role": "system", "content": "be good"})
        train = write(tmp_path / f"{i}.jsonl", rows)
        seen = look(chat_llama, train, cutoff_len=26, **held_out(tmp_path))
        assert seen.untrained == len(seen.refused_rows) == (7, 99, 150).index(i) + 1
        assert bool(problems(seen)) is (seen.untrained > 2)
    assert problems(seen)[0].startswith(
        "3 of 200 training rows (1.50 %) train nothing, more than 1%"
    )
    assert [one.row for one in seen.refused_rows] == [8, 100, 151]


def test_dropped_and_truncated_rows_are_counted_and_named(tmp_path: Path, chat_llama: Path) -> None:
    rows: list[Any] = [chat(f"q{i}", "a") for i in range(30)]
    rows[4] = '{"messages": ['
    rows[12] = {"messages": [{"role": "user", "content": "no answer"}]}
    rows[20] = rows[21] = chat("long " * 100, "a")
    train = write(tmp_path / "t.jsonl", rows)
    # A run would stop at the first bad row; here one looks at them.
    seen = look(chat_llama, train, on_bad_row="fail", **held_out(tmp_path))
    no_answer = "field 'messages' holds no answer (assistant turn) to learn"
    assert seen.dropped == {"not valid JSON": 1, no_answer: 1}
    assert [(one.row, one.reason) for one in seen.dropped_rows] == [
        (5, "not valid JSON"),
        (13, no_answer),
    ]
    assert [(one.row, one.reason) for one in seen.truncated_rows] == [
        (21, "shortened to 128 tokens"),
        (22, "shortened to 128 tokens"),
    ]
    text = printed(seen)
    assert f"1 not valid JSON (first {train}:5)" in text
    assert f"truncated      2 rows (7.14 %), first {train}:21, :22" in text


def test_a_row_can_be_asked_for_by_name(tmp_path: Path, chat_llama: Path) -> None:
    rows: list[Any] = [chat(f"q{i}", "a") for i in range(30)]
    rows[4], rows[9] = '{"messages": [', rows[8]
    train = write(tmp_path / "t.jsonl", rows)
    trained = {row.row for row in look(chat_llama, train).shown}
    other = next(row for row in range(11, 31) if row not in trained)
    wanted = {5: "unusable", 10: "duplicate", min(trained): "train"}
    for number, fate in wanted.items():
        (row,) = look(chat_llama, train, row=number).shown
        assert (row.row, row.fate) == (number, fate)
        assert (row.reason[:16], marked(row.pieces)) == (
            ("not valid JSON: ", "") if number == 5 else ("", "a</s>")
        )
    assert look(chat_llama, train, row=other).shown[0].fate in ("eval", "test")
    for name, error, said in (
        ("12", ConfigError, "got '12'; allowed: FILE:ROW"),
        ("other.jsonl:1", ConfigError, "other.jsonl is no file of this config"),
        (f"{train}:31", DataError, "holds no row 31"),
        (f"{train}:0", DataError, "holds no row 0"),
    ):
        with pytest.raises(error, match=re.escape(said)):
            api.preview(config(chat_llama, train), row=name)


def test_a_row_beyond_what_is_surveyed_can_be_asked_for(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "_READ_BYTES", 1)
    for part in range(2):
        rows = [
            {"text": f"good {'film ' * i}{part}", "label": "abcd"[2 * part + i % 2]}
            for i in range(30)
        ]
        write(tmp_path / f"{part}.jsonl", rows)
    both = [str(tmp_path / f"{part}.jsonl") for part in range(2)]
    raw = {"model": str(tiny_bert), "task": "seq_cls", "data": {"train": both}}
    seen = api.preview(parse(raw), row=f"{both[1]}:7")
    assert not seen.complete
    (row,) = seen.shown
    assert (row.fate, row.reason) == ("", "class 'c' is not among those of the training rows")
    assert "extrapolated from the first 64 MiB" in printed(seen)


def test_of_many_rows_those_with_the_smallest_hash_are_tokenized(
    tmp_path: Path, chat_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [chat(f"q{i}", "a") for i in range(60)]
    parts = [write(tmp_path / f"{i}.jsonl", rows[i::3]) for i in range(3)]
    whole = api.preview(
        parse({"model": str(chat_llama), "data": {"train": [str(p) for p in parts]}}), rows=6
    )
    monkeypatch.setattr(module, "SAMPLED_ROWS", 6)
    raw = {"model": str(chat_llama), "data": {"train": [str(p) for p in parts]}}
    seen = api.preview(parse(raw), rows=6)
    assert (whole.sampled, seen.sampled) == (48, 6)
    assert seen.shown == whole.shown
    assert len({row.file for row in seen.shown}) > 1
    assert "6 of 48 training rows" in printed(seen)
    assert api.preview(parse(raw), rows=0).shown == []


def test_nothing_in_a_text_is_markup_or_steers_the_terminal(
    tmp_path: Path, chat_llama: Path
) -> None:
    rows = [chat(f"{i} {HOSTILE}", f"{CHINESE}{FAMILY}\n\tend") for i in range(20)]
    seen = look(chat_llama, write(tmp_path / "t.jsonl", rows), row=1)
    plain = printed(seen, no_color=True)
    assert (
        "<s>user:0 [bold red]x[/] </p><script>alert(1)</script> \\x1b[31m \\u202e &amp; [/]</s>"
        in plain.replace("\n", "")
    )
    assert f"[[{CHINESE}{FAMILY}\u21b5\n" in plain
    assert "end</s>]]" in plain
    assert not re.search("[\x1b\u202e]", plain)
    coloured = printed(seen, force_terminal=True, color_system="truecolor")
    assert f"\x1b[1;32m{CHINESE}{FAMILY}\u21b5\x1b[0m" in coloured
    assert "[[" not in coloured
    assert "marked         bold and green: trained" in re.sub("\x1b\\[[0-9;]*m", "", coloured)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\n", "a\u21b5\nb\\r\u21b5\n"),
        ("\t \u00e9\u0301", "\t \u00e9\u0301"),
        ("\x00\x7f\u200b\ufeff\u2028", "\\x00\\x7f\\u200b\\ufeff\\u2028"),
        (FAMILY, FAMILY),
    ],
)
def test_hidden_characters_are_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_the_page_holds_the_texts_and_loads_nothing(tmp_path: Path, chat_llama: Path) -> None:
    rows = [chat(f"{i} {HOSTILE}", f"{CHINESE}\nend") for i in range(20)]
    rows[7] = chat("q" * 300, "a" * 300)
    page = tmp_path / "look.html"
    seen = api.preview(config(chat_llama, write(tmp_path / "t.jsonl", rows)), rows=99, html=page)
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r"https?://|src=|@import|url\(", text)
    assert "default-src &#39;none&#39;" in text
    assert "script-src &#39;none&#39;" in text
    assert not re.search("[\x1b\u202e]", text)
    words = re.sub(r"<[^>]+>", "", text)
    assert f"all {len(seen.shown)} training rows" in words
    assert html.escape(" [bold red]x[/] </p><script>alert(1)</script> \\x1b[31m") in words
    assert html.escape("\\u202e &amp; [/]</s>") in words
    assert text.count('class="trained"') == sum(
        piece.trained and not piece.special for row in seen.shown for piece in row.pieces
    )
    assert page.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("name", "said"),
    [("data.jsonl", "a file that ends in .html"), ("no/such/x.html", "no/such is no folder")],
)
def test_a_page_that_cannot_be_written_is_refused_first(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        api.preview(parse({"model": "no/model/at/all", "data": {"train": "none"}}), html=Path(name))


def test_the_command_prints_one_document(
    tmp_path: Path, chat_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(tmp_path / "t.jsonl", [chat(f"q{i}", "a") for i in range(20)])
    path = tmp_path / "look.yaml"
    path.write_text(json.dumps({"model": str(chat_llama), "data": {"train": str(train)}}))
    assert cli.main(["data", "preview", str(path), "--rows", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert Preview.model_validate(document).name == "look"
    assert [row["pieces"][-1]["text"] for row in document["shown"]] == ["</s>", "</s>"]
    page = tmp_path / "look.html"
    assert cli.main(["data", "preview", str(path), "--rows", "1", "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "[[a</s>]]" in said
    assert f"Wrote {page}" in said.replace("\n", "")
    assert page.is_file()
    assert cli.main(["data"]) == 0
    assert "preview" in capsys.readouterr().out
    empty = write(tmp_path / "e.jsonl", [])
    assert cli.main(["data", "preview", str(path), f"data.train={empty}"]) == 2
    assert "e.jsonl is empty" in capsys.readouterr().err
