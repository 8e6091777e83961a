"""`distft migrate`: what becomes of each key, and that none goes unsaid."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distft import config_file
from distft.errors import ConfigError, PlanError
from distft.migrate.convert import PROGRAMS, migrate
from distft.migrate.rules import UNKNOWN, Program, Theirs, shown
from distft.migrate.writing import config_text, listing
from tests.migrations import AXOLOTL, LLAMAFACTORY, V1, make_folder, of, outcome, refusal


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with `data/dataset_info.json` and one file of rows."""
    return make_folder(tmp_path, monkeypatch)


# Every key of the input is said, once.

# Beginning with a letter, so that YAML reads no number.
KEYS = st.text(st.characters(codec="ascii", exclude_characters=".[]"), max_size=12).map("k".__add__)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.floats(0, 2),
    st.sampled_from(["", "auto", "none", "all", "a,b"]),
    st.text(max_size=5),
)
VALUES = st.one_of(PLAIN, st.lists(PLAIN, max_size=2), st.dictionaries(KEYS, PLAIN, max_size=2))
BASES = {"LLaMA-Factory": LLAMAFACTORY, "LLaMA-Factory (v1)": V1, "axolotl": AXOLOTL}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.name)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(more=st.dictionaries(KEYS, VALUES, max_size=5))
def test_every_key_ends_up_in_exactly_one_list(
    folder: Path, program: Program, more: dict[str, Any]
) -> None:
    base = BASES[program.name]
    known = {key.partition(".")[0].removesuffix("[]") for key in program.keys}
    strange = {key: value for key, value in more.items() if key not in known}
    made = of({**strange, **base}, folder)
    assert made.program == program.name
    assert {one.key for one in made.of("absent")} >= set(strange)
    assert all(
        one.outcome.reason.startswith((UNKNOWN, "not set"))
        for one in made.entries
        if one.key in strange
    )
    lists = [one.key for kind in ("mapped", "decided", "absent") for one in made.of(kind)]
    assert sorted(lists) == sorted(one.key for one in made.entries)
    assert len(set(lists)) == len(lists)
    document = made.as_dict()
    assert sum(len(document[kind]) for kind in ("mapped", "decided", "absent")) == len(lists)
    said = listing(made)
    assert all(f"\n  {shown(one.key)}" in said for one in made.entries)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.name)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_of_a_known_key_ends_in_a_traceback(
    folder: Path, program: Program, data: st.DataObject
) -> None:
    single = sorted(key for key in program.keys if not {".", "["} & set(key))
    more = data.draw(st.dictionaries(st.sampled_from(single), VALUES, min_size=1, max_size=3))
    try:
        made = of({**BASES[program.name], **more}, folder)
    except (ConfigError, PlanError):
        return
    assert {one.key for one in made.entries} >= {key for key in more if "." not in key} - {
        "datasets"
    }
    config_file.parse(yaml.safe_load(config_text(made)) | {"name": "run"})


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.name)
def test_a_key_of_the_table_does_something_or_has_a_reason(program: Program) -> None:
    rows = {"path": "rows.jsonl", "type": "chat_template"}
    lists = ("datasets[0]", "test_datasets[0]")
    theirs = Theirs(
        {f"{name}.{key}": one for name in lists for key, one in rows.items()}, Path("theirs.yaml")
    )
    for key, rule in program.keys.items():
        with contextlib.suppress(ConfigError, TypeError, AttributeError):
            told = rule(True, theirs)
            assert told.sets or told.reason, key
            assert not (told.sets and told.verdict in ("absent", "refused")), key


def test_an_empty_list_or_section_is_said_too(folder: Path) -> None:
    made = of({**AXOLOTL, "test_datasets": [], "fsdp_config": {}}, folder)
    assert outcome(made, "test_datasets") == ("absent", {})
    assert outcome(made, "fsdp_config") == ("absent", {})
    made = of({**V1, "quant_config": {}, "peft_config": None}, folder)
    assert outcome(made, "quant_config") == ("absent", {})
    assert outcome(made, "peft_config") == ("absent", {})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**AXOLOTL, "datasets": "rows.jsonl"}, "datasets: rows.jsonl (distft reads it as a list"),
        ({**V1, "peft_config": "lora"}, "peft_config: lora (distft reads it as a section)"),
        ({**AXOLOTL, "datasets": [{"type": "alpaca"}]}, "it names no rows to train on"),
        ({**AXOLOTL, "datasets": []}, "it names no rows to train on"),
    ],
)
def test_a_section_of_another_shape_is_refused(
    folder: Path, config: dict[str, Any], said: str
) -> None:
    assert said in refusal(config, folder)


# Which program it is.


def test_it_says_what_told_the_program(folder: Path) -> None:
    made = of(LLAMAFACTORY, folder)
    assert made.program == "LLaMA-Factory"
    assert made.because == ("model_name_or_path", "finetuning_type", "stage", "dataset")
    assert of(AXOLOTL, folder).because == ("base_model", "datasets")
    assert of(V1, folder).because == ("model", "model_class", "train_dataset")


def test_another_yaml_is_told_from_theirs(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no config of LLaMA-Factory") as caught:
        of({"compute_environment": "LOCAL_MACHINE"}, folder)
    assert "base_model" in str(caught.value)


def test_a_file_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml does not exist"):
        migrate(folder / "gone.yaml")


# The command.


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distft.cli", "migrate", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False
    )


def test_the_command_prints_a_config_and_lists_the_keys(folder: Path) -> None:
    of({**LLAMAFACTORY, "flash_attn": "fa2", "warmup_ratio": 0.1}, folder)
    done = run("theirs.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["train"]["warmup_steps"] == 0.1
    assert "  warmup_steps: 0.1  # warmup_ratio\n" in done.stdout
    assert "# - flash_attn: fa2 (kernels" in done.stdout
    assert "theirs.yaml is a config of LLaMA-Factory (told by model_name_or_path" in done.stderr
    assert "without counterpart: 1\n  flash_attn: fa2 (kernels" in done.stderr


def test_the_command_writes_a_new_file_only(folder: Path) -> None:
    of(LLAMAFACTORY, folder)
    done = run("theirs.yaml", "ours.yaml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["path"] == "ours.yaml"
    assert document["config"] == yaml.safe_load((folder / "ours.yaml").read_text())
    again = run("theirs.yaml", "ours.yaml", cwd=folder)
    assert (again.returncode, again.stdout) == (3, "")
    assert "ours.yaml exists already" in again.stderr
