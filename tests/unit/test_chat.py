"""What of a conversation is trained, and what is kept where it is too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distft import chat, hf
from distft.config_sections import ModelConfig
from distft.data.finished import Refused, place_of
from distft.data.guard import check_trained
from distft.data.manifest import SplitInfo
from distft.errors import DataError
from distft.plugin import EncodeContext, Row, TrainsNothing, tasks

BLOCKS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<s>assistant:{% generation %}"
    "{{ m.content }}</s>{% endgeneration %}{% else %}<s>{{ m.role }}:{{ m.content }}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def conversation(*turns: str) -> Row:
    """A system's message, then questions and answers in turn."""
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return {"messages": [{"role": "system", "content": "be brief"}, *said]}


def seen(folder: Path, row: Row, cutoff_len: int = 512, **settings: Any) -> tuple[str, str, bool]:
    """What the model reads, what of it is trained, and whether anything was cut."""
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(folder)))
    tokenizer.chat_template = settings.pop("template", tokenizer.chat_template)
    context = EncodeContext(cutoff_len, **settings)
    sample = tasks()["sft"].encode(row, tokenizer, context)
    assert len(sample.input_ids) <= cutoff_len
    trained = [int(label) for label in sample.labels if label != -100]
    read, learnt = tokenizer.decode(sample.input_ids), tokenizer.decode(trained)
    return str(read), str(learnt), sample.truncated


def test_generation_blocks_and_rendering_by_turns_mark_the_same(chat_llama: Path) -> None:
    row = conversation("a", "b\u4f60", "c", "d\U0001f600")
    by_turns = seen(chat_llama, row)
    assert by_turns[1] == "b\u4f60</s>d\U0001f600</s>"
    assert seen(chat_llama, row, template=BLOCKS) == by_turns
    spaced = BLOCKS.replace("{% generation %}", "{%- generation -%}")
    assert seen(chat_llama, row, template=spaced) == by_turns


def test_the_blocks_of_a_template_decide_where_it_has_them(chat_llama: Path) -> None:
    unlearnt_end = BLOCKS.replace("</s>{% endgeneration %}", "{% endgeneration %}</s>")
    assert seen(chat_llama, conversation("a", "b"), template=unlearnt_end)[1] == "b"


def test_everything_is_trained_where_that_is_asked_for(chat_llama: Path) -> None:
    read, trained, _ = seen(chat_llama, conversation("a", "b"), train_on_prompt=True)
    assert trained == read == "<s>system:be brief</s><s>user:a</s><s>assistant:b</s>"


def test_of_a_long_conversation_the_oldest_exchanges_go_first(chat_llama: Path) -> None:
    row = conversation(*"abcdefgh")
    read, trained, truncated = seen(chat_llama, row, cutoff_len=70)
    assert read.startswith("<s>system:be brief</s><s>user:")
    assert read.endswith("<s>user:g</s><s>assistant:h</s>")
    assert (trained[-6:], truncated) == ("f</s>h</s>"[-6:], True)
    assert "user:a" not in read


def test_of_a_long_question_the_middle_goes_and_the_answer_stays(chat_llama: Path) -> None:
    row = conversation("first " + "long " * 200 + "last", "the answer")
    read, trained, truncated = seen(chat_llama, row, cutoff_len=80)
    assert "<s>user:first " in read
    assert "last</s><s>assistant:the answer</s>" in read
    assert (trained, truncated) == ("the answer</s>", True)
    assert len(read) > 90  # the room there is is used


def test_an_answer_that_is_too_long_by_itself_is_cut_at_its_end(chat_llama: Path) -> None:
    row = conversation("question", "w" * 500)
    read, trained, truncated = seen(chat_llama, row, cutoff_len=128)
    assert (
        read == ("<s>system:be brief</s><s>user:question</s><s>assistant:" + "w" * 500)[: len(read)]
    )
    assert (set(trained), truncated) == ({"w"}, True)
    read, trained, _ = seen(chat_llama, conversation("q" * 500, "w" * 500), cutoff_len=100)
    assert 48 <= len(trained) <= 52
    assert read.count("q") > 5
    with pytest.raises(TrainsNothing, match="the answer lies beyond cutoff_len"):
        seen(chat_llama, row, cutoff_len=20)


def test_what_fits_is_not_touched(chat_llama: Path) -> None:
    tokenizer = hf.load_tokenizer(ModelConfig(id=str(chat_llama)))
    row = conversation("a", "b", "c", "d")
    whole, _, _ = chat.encode(tokenizer, row, 512)
    assert chat.encode(tokenizer, row, len(whole)) == chat.encode(tokenizer, row, 512)
    assert chat.encode(tokenizer, row, len(whole) - 1)[2]


def refused(count: int, untrained: bool) -> list[Refused]:
    return [
        Refused(split="train", place=place_of(0, i), row=i + 7, reason="why", untrained=untrained)
        for i in range(count)
    ]


def test_more_than_one_row_in_a_hundred_that_trains_nothing_stops() -> None:
    task, info = tasks()["sft"], SplitInfo(rows=990, ended=990)
    check_trained(task, info, refused(10, untrained=True), ["rows.jsonl"])
    check_trained(task, info, refused(500, untrained=False), ["rows.jsonl"])
    with pytest.raises(DataError, match=r"11 of 1001 .* \(1\.1%\) .*rows\.jsonl:7: why") as caught:
        check_trained(task, info, refused(11, untrained=True), ["rows.jsonl"])
    assert "data.cutoff_len" in caught.value.hint


def test_answers_that_never_end_stop() -> None:
    with pytest.raises(DataError, match="never learn to stop"):
        check_trained(tasks()["sft"], SplitInfo(rows=10, ended=0), [], [])
    check_trained(tasks()["seq_cls"], SplitInfo(rows=10, ended=0), [], [])
