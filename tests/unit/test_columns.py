"""`data.columns` that name no role, or no column of the file, are named themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from distft.config_file import parse
from distft.data.resolve import detect
from distft.errors import ConfigError


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": "txet"}, "data.columns.text: .* no column 'txet'; did you mean text"),
        ({"text": "review"}, "no column 'review'; they hold text, mark"),
        ({"labels_": "mark"}, "no format has the role 'labels_'; did you mean labels"),
    ],
)
def test_a_wrong_column_is_named(columns: dict[str, str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,mark\nfine,good\n", encoding="utf-8")
    config = parse({"model": "any", "data": {"train": str(path), "columns": columns}})
    with pytest.raises(ConfigError, match=said):
        detect(config)


def test_the_tasks_that_fit_are_offered(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("a line\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="causal_lm, masked_lm") as caught:
        detect(parse({"model": "any", "data": {"train": str(path)}}))
    assert "task: causal_lm" in caught.value.hint
