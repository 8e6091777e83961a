"""What cleaning does to a row of each kind, what it leaves alone, and what it shows of it."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from distft import languages
from distft.config_file import parse
from distft.config_sections import CleanConfig
from distft.data.clean import Change, CleanedOut, clean_row, visible
from distft.data.survey import RowReader
from distft.data.tally import SAMPLES, Tally, packed, summary
from distft.errors import ConfigError
from distft.masking import MASKS, masked
from distft.plugin import Row

DECOMPOSED, COMPOSED = "cafe\u0301", "caf\u00e9"
PIECES = [
    *(DECOMPOSED, COMPOSED, "\ufb01lm", "\u00b2", "\u0301", "\u0338", "e", "<", ">", " "),
    *("\r", "\n", "\t", "\x00", "\x0b", "\x85", "\u200b", "\u200d", "\u2028", "\ufeff", "\u00ad"),
    *("ann@example.org", "ann", "@", "example", ".", "org", "0", "1", "+", "-", "("),
    *("+49 170 1234567", "030 1234567", "1701234567", "+1 650-253-0000", "\u4f60\u597d", "\uff20"),
]
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
rows = st.one_of(
    st.fixed_dictionaries({"text": texts, "label": texts}),
    st.fixed_dictionaries({"text": texts, "pair": texts, "value": st.just(1.5)}),
    st.fixed_dictionaries({"text": texts, "labels": st.lists(texts, max_size=2)}),
    st.fixed_dictionaries({"source": texts, "target": st.none() | texts}),
    st.lists(texts, min_size=1, max_size=6).map(
        lambda words: {"words": words, "tags": [f"B-{word}" for word in words]}
    ),
    st.lists(texts, min_size=1, max_size=3).map(
        lambda said: {
            "messages": [{"role": "user", "content": text} for text in said],
            "tools": [{"name": "\u200b"}],
        }
    ),
)
configs = st.builds(
    CleanConfig,
    unicode=st.sampled_from([None, "NFC", "NFKC"]),
    control_characters=st.booleans(),
    mask=st.sampled_from([[], ["email"], ["phone"], ["email", "phone"]]),
)


def learnt(row: Row) -> Row:
    """Return what of a row is no text."""
    rest = {
        key: row[key] for key in row if key not in ("text", "pair", "source", "target", "words")
    }
    if "messages" in row:
        rest["messages"] = [message["role"] for message in row["messages"]]
    return rest


@given(row=rows, config=configs)
def test_cleaning_a_cleaned_row_changes_nothing_and_labels_never_change(
    row: Row, config: CleanConfig
) -> None:
    before = copy.deepcopy(row)
    try:
        once, changes = clean_row(row, config, filters=True)
    except CleanedOut:
        assume(False)
    assert row == before
    assert learnt(once) == learnt(row)
    assert len(once.get("words", ())) == len(row.get("words", ()))
    assert bool(changes) == (once != row)
    assert clean_row(once, config, filters=True) == (once, ())


@given(row=rows)
def test_nothing_is_changed_unless_asked_for(row: Row) -> None:
    assert clean_row(row, CleanConfig(), filters=True) == (row, ())


def test_control_characters_go_and_what_is_seen_stays() -> None:
    assert visible("\ufeffa\x00b\u200bc\u202ed\u00ade") == "abcde"
    assert visible("a\tb\r\nc\rd\u2028e\x0cf\n") == "a\tb\nc\nd\ne\nf\n"
    assert visible("a\r\x00\nb") == "a\nb"
    family, persian = "\U0001f468\u200d\U0001f469", "\u0645\u06cc\u200c\u0634\u0648\u062f"
    assert visible(family + persian + "\u0600") == family + persian + "\u0600"


def test_normal_forms() -> None:
    row = {"text": f"{DECOMPOSED} \ufb01lm \uff12", "label": DECOMPOSED}
    (nfc, _), (nfkc, _) = (
        clean_row(row, CleanConfig(unicode=form), filters=True) for form in ("NFC", "NFKC")
    )
    assert nfc == {"text": f"{COMPOSED} \ufb01lm \uff12", "label": DECOMPOSED}
    assert nfkc["text"] == f"{COMPOSED} film 2"


@pytest.mark.parametrize(
    ("text", "region", "wanted"),
    [
        ("write to ann.b+c@mail.example.co.uk.", None, "write to [EMAIL]."),
        (
            "\u8bf7\u53d1\u5230ann@example.com\u8c22\u8c22",
            None,
            "\u8bf7\u53d1\u5230[EMAIL]\u8c22\u8c22",
        ),
        ("m\u00fcller@stra\u00dfe.example", None, "[EMAIL]"),
        ("a@b, @handle, 3 @ 4.50 and x@y stay", None, "a@b, @handle, 3 @ 4.50 and x@y stay"),
        ("call +49 170 1234567 now", None, "call [PHONE] now"),
        # The number is seen once the address is gone.
        ("+49 170 1234567 6502530000-ann@example.org", None, "[PHONE] [EMAIL]"),
        ("a" * 65 + "@example.org", None, "a" * 65 + "@example.org"),
        ("call (650) 253-0000 now", None, "call (650) 253-0000 now"),
        ("call (650) 253-0000 now", "US", "call [PHONE] now"),
        ("on 2023-10-12 for 1234567 EUR", "US", "on 2023-10-12 for 1234567 EUR"),
    ],
)
def test_addresses_and_numbers_are_masked(text: str, region: str | None, wanted: str) -> None:
    assert masked([text], ["email", "phone"], region) == [wanted]
    assert masked([text], [], region) == [text]


def test_a_number_of_several_words_is_masked_in_each_of_them() -> None:
    row = {"words": ["Call", "+49", "170", "1234567", ",", "Ann"], "tags": list("OOOOOB")}
    cleaned, _ = clean_row(row, CleanConfig(mask=["phone"]), filters=True)
    assert cleaned["words"] == ["Call", "[PHONE]", "[PHONE]", "[PHONE]", ",", "Ann"]
    assert cleaned["tags"] == row["tags"]


def test_a_long_run_without_an_address_is_searched_in_linear_time() -> None:
    # Quadratic search of a megabyte would take hours: the test would not end.
    text = "a" * 1_000_000 + "@" + "b." * 500_000
    assert masked([text], ["email"], None) == [text]


@pytest.mark.parametrize(
    ("config", "text", "reason"),
    [
        (CleanConfig(min_chars=4), "abc", "shorter than 4 characters (data.clean.min_chars)"),
        (CleanConfig(min_chars=3), "abc", None),
        (CleanConfig(max_chars=2), "abc", "longer than 2 characters (data.clean.max_chars)"),
        (CleanConfig(max_chars=3), "abc", None),
        (CleanConfig(control_characters=True), "\u200b \x00", "a text is empty after cleaning"),
        (
            CleanConfig(control_characters=True, min_chars=4),
            "abc\u200b",
            "shorter than 4 characters (data.clean.min_chars)",
        ),
    ],
)
def test_filters_see_what_the_model_would_see(
    config: CleanConfig, text: str, reason: str | None
) -> None:
    if reason is None:
        assert clean_row({"text": text}, config, filters=True) == ({"text": text}, ())
        return
    with pytest.raises(CleanedOut) as out:
        clean_row({"text": text}, config, filters=True)
    assert str(out.value) == reason


GERMAN = "Das ist ein wirklich schlechter Film, den man nicht sehen sollte."
ENGLISH = "This is a truly bad film that nobody should have to see."


def test_rows_in_another_language_are_left_out() -> None:
    config = CleanConfig(languages=["en", "zh"])
    for text in (ENGLISH, "\u8fd9\u90e8\u7535\u5f71\u5f88\u597d", "ok", "12 + 3", "film 5, gut"):
        assert clean_row({"text": text}, config, filters=True) == ({"text": text}, ())
    with pytest.raises(CleanedOut, match=r"language de \(data\.clean\.languages\)"):
        clean_row({"text": GERMAN}, config, filters=True)
    assert clean_row({"text": GERMAN}, config, filters=False) == ({"text": GERMAN}, ())
    # A conversation is judged as a whole: a foreign word is no reason.
    said = [{"role": "user", "content": "Guten Tag"}, {"role": "assistant", "content": ENGLISH * 3}]
    assert clean_row({"messages": said}, config, filters=True)[1] == ()


def test_samples_never_hold_what_is_masked() -> None:
    config = CleanConfig(
        unicode="NFKC", control_characters=True, mask=["email", "phone"], languages=["en"]
    )
    secret = f"j\u200bohn\uff20example.com or +49\u00a0170\x001234567, {DECOMPOSED}"
    cleaned, changes = clean_row({"text": secret}, config, filters=True)
    assert cleaned == {"text": f"[EMAIL] or [PHONE], {COMPOSED}"}
    assert [change.step for change in changes] == ["control_characters", "unicode", "mask"]
    assert {(change.before, change.after) for change in changes} == {("", cleaned["text"])}
    with pytest.raises(CleanedOut) as out:
        clean_row({"text": f"{GERMAN} john@example.com"}, config, filters=True)
    assert [change.step for change in out.value.changes] == ["mask", "languages"]
    assert "john" not in repr(out.value.changes)


def test_an_excerpt_shows_the_place_that_changed() -> None:
    text = "a" * 500 + "\x07" + "b" * 500
    _, (change,) = clean_row({"text": text}, CleanConfig(control_characters=True), filters=True)
    assert change.before == "..." + "a" * 30 + "\x07" + "b" * 59 + "..."
    assert change.after == "..." + "a" * 30 + "b" * 60 + "..."


def test_a_tally_does_not_depend_on_where_files_are_cut() -> None:
    config = CleanConfig(control_characters=True, min_chars=3)

    def tally(cut: int) -> Tally:
        total = Tally()
        for start in range(0, 200, cut):
            sampled: Counter[str] = Counter()
            for number in range(start, min(start + cut, 200)):
                text = f"{number:03}\x00" if number % 2 else f"{number % 10}"
                try:
                    _, changes = clean_row({"text": text}, config, filters=True)
                except CleanedOut as out:
                    changes = out.changes
                if (found := packed(changes, sampled)) is not None:
                    total.add("f", number, found)
        return total

    change = Change("mask", "x" * 90, "y" * 90)
    assert len(packed([change], Counter({"mask": SAMPLES - 1})) or "") > 180
    assert len(packed([change], Counter({"mask": SAMPLES})) or "") < 40
    whole = tally(200).steps()
    assert whole == tally(7).steps() == tally(1).steps()
    assert list(whole) == ["control_characters", "min_chars"]
    assert [(step.changed, step.dropped, len(step.samples)) for step in whole.values()] == [
        (100, 0, SAMPLES),
        (0, 100, SAMPLES),
    ]
    assert [sample.row for sample in whole["min_chars"].samples] == list(range(0, 40, 2))
    assert summary(whole).splitlines() == [
        "control_characters changed 100 rows, first at f:1",
        "min_chars dropped 100 rows, first at f:0",
    ]


def test_rows_to_predict_are_cleaned_and_never_left_out(tmp_path: Any) -> None:
    from distft.data import files, source

    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "a\\u0000b"}\n{"text": "\\u200b"}\n')
    config = CleanConfig(control_characters=True, min_chars=10, languages=["de"])
    ((file,), columns) = source.scan(files.expand(str(path), "data")), {"text": "text"}
    read = {
        training: [
            (reading.value, reading.reason, reading.error.removeprefix(str(path)))
            for reading in RowReader("text", columns, training, config).read(file.chunks[0])
        ]
        for training in (True, False)
    }
    empty = (None, "a text is empty after cleaning", ":2: a text is empty after cleaning")
    short = "shorter than 10 characters (data.clean.min_chars)"
    assert read == {
        True: [(None, short, f":1: {short}"), empty],
        False: [({"text": "ab"}, "", ""), empty],
    }


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"unicod": "NFC"}, "did you mean unicode"),
        ({"unicode": "NFD"}, "NFC"),
        ({"languages": ["eng"]}, "unknown language 'eng'"),
        ({"min_chars": 9, "max_chars": 3}, "min_chars 9 is more than max_chars 3"),
        ({"phone_region": "DE"}, "mask names phone"),
        ({"mask": ["phone"], "phone_region": "de"}, "capital letters"),
        ({"near_duplicates": 0.3}, "0.5"),
        ({"mask": ["name"]}, "email"),
    ],
)
def test_wrong_keys_teach(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse({"name": "x", "model": "m", "data": {"train": "t.csv", "clean": keys}})
    assert said in str(error.value)


def test_norwegian_may_be_written_bare() -> None:
    # YAML 1.1 reads `no` as false.
    assert CleanConfig(languages=["en", False]).languages == ["en", "no"]  # type: ignore[list-item]


def test_the_languages_allowed_are_those_of_the_model() -> None:
    assert list(languages.CODES) == sorted(languages._identifier().labels)


def test_masks_survive_normalisation() -> None:
    import unicodedata

    for mask in MASKS.values():
        for mark in map(chr, range(0x300, 0x370)):
            assert unicodedata.normalize("NFKC", mask + mark).startswith(mask)
