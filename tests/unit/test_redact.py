"""Secrets: what is hidden, what stays readable."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from distft import redact
from distft.records import write_json, write_text

AT = {
    "postgresql://me:pass@host/db": "postgresql://me:***@host/db",
    "postgresql://me:p@ss/w0rd@host/db": "postgresql://me:***@host/db",
    "s3://AKIA123:abc/d+e=@bucket/rows.jsonl": "s3://***:***@bucket/rows.jsonl",
    "https://ghp_1234@example.org/x": "https://***@example.org/x",
    "'https://u:p@h' and 'https://v:q@h'": "'https://u:***@h' and 'https://v:***@h'",
    "https://h/x?X-Amz-Signature=abc&part=1": "https://h/x?X-Amz-Signature=***&part=1",
    "s3://b/x?access_key=a&secret_key=b&region=c": "s3://b/x?access_key=***&secret_key=***&region=c",
}
PLAIN = [
    "s3://bucket/rows.jsonl",
    "http://localhost:5000/a@b",
    "ann@example.org wrote to https://host, see a/b@c",
    "ray://head:10001",
    "lora: {r: 8}",
    "C:\\x",
]


@pytest.mark.parametrize(("text", "shown"), AT.items())
def test_an_address_keeps_what_is_no_secret(text: str, shown: str) -> None:
    assert redact.hide(text) == shown
    assert redact.hide(shown) == shown


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_stay(text: str) -> None:
    assert redact.hide(text) == text


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "WANDB_API_KEY", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"),
        *("MLFLOW_TRACKING_PASSWORD", "CLIENT_SECRET", "AZURE_STORAGE_KEY", "hf_token"),
    ],
)
def test_values_of_the_environment_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "val-5.7*x")
    assert redact.hide("got val-5.7*x, val-5.7xx") == "got ***, val-5.7xx"


def test_what_is_no_secret_of_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("MY_TOKEN", "1"),
        ("TOKENIZERS_PARALLELISM", "false-value"),
        ("KEYBOARD", "querty-long"),
        ("OTHER_TOKEN", ""),
    ):
        monkeypatch.setenv(name, value)
        assert redact.hide(f"1 {value} 1") == f"1 {value} 1"


def test_the_longer_of_two_secrets_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdef")
    monkeypatch.setenv("B_TOKEN", "abcdef-ghi")
    assert redact.hide("x abcdef-ghi y") == "x *** y"


def test_files_hide_them_also_where_json_escapes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", 'quo"ted\\one')
    given = {"a": ['say quo"ted\\one', 3, None], "url": "https://u:p@h"}
    write_json(tmp_path / "x.json", given)
    held = json.loads((tmp_path / "x.json").read_text())
    assert held == {"a": ["say ***", 3, None], "url": "https://u:***@h"}
    write_text(tmp_path / "x.yaml", "a: https://u:p@h\n")
    assert (tmp_path / "x.yaml").read_text() == "a: https://u:***@h\n"
    write_text(tmp_path / "rows", "a: https://u:p@h\n", verbatim=True)
    assert (tmp_path / "rows").read_text() == "a: https://u:p@h\n"


def test_streams_hide_them_and_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdef")
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with redact.streams():
        print("an abcdef", file=sys.stderr)
    assert out.getvalue() == "an ***\n"
    assert sys.stderr is out
