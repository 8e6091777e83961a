"""The command line as a user meets it: in its own process, by exit status, stdout and stderr."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from distft import __version__, api, cli, machine, plugin
from distft.config_file import load
from distft.errors import DistftError, PlanError, TrainError
from distft.schema import json_schema
from distft.starter import starter

ROOT = Path(__file__).parents[2]

# The ratchet against flag creep: a new command or option is a decision, made here first.
SURFACE = {
    "distft": {"--debug"},
    "data": set(),
    "data preview": {"CONFIG", "KEY=VALUE", "--rows", "--row", "--html", "--json"},
    "plan": {"CONFIG", "KEY=VALUE", "--json"},
    "prepare": {"CONFIG", "KEY=VALUE", "--json"},
    "train": {"CONFIG", "KEY=VALUE", "--fresh", "--json"},
    "tune": {"CONFIG", "KEY=VALUE", "--fresh", "--plain", "--replay", "--json"},
    "evaluate": {"RUN", "--data", "--generate", "--json"},
    "predict": {"RUN", "IN", "OUT", "--json"},
    "export": {"RUN", "DIR", "--merge", "--json"},
    "report": {"RUN", "--json"},
    "init": {"FILE", "--task", "--json"},
    "migrate": {"FILE", "OUT", "--dataset-dir", "--json"},
    "methods": {"NAME", "--matrix", "--json"},
    "tasks": {"NAME", "--json"},
    "formats": {"NAME", "--json"},
    "templates": {"NAME", "--json"},
    "submit": {
        *("CONFIG", "KEY=VALUE", "--address", "--wait", "--command", "--fresh", "--emit"),
        "--json",
    },
    "status": {"JOB", "--address", "--json"},
    "logs": {"JOB", "--follow", "-f", "--address", "--json"},
    "stop": {"JOB", "--address", "--json"},
    "list": {"--address", "--json"},
    "doctor": {"--json"},
    "schema": {"--json"},
    "version": {"--json"},
}


def run(*words: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distft.cli", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False
    )


def names(command: Any) -> set[str]:
    shown = {
        option if parameter.opts[0].startswith("-") else parameter.metavar
        for parameter in command.params
        for option in parameter.opts
    }
    return shown - {"--help"}


def flat(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command by its words, those below a group too."""
    for name, command in group.commands.items():
        yield before + name, command
        if hasattr(command, "commands"):
            yield from flat(command, f"{before}{name} ")


def test_commands_and_options_are_the_frozen_set() -> None:
    group: Any = typer.main.get_command(cli.app)
    found = {name: names(command) for name, command in flat(group)}
    assert {"distft": names(group), **found} == SURFACE


@pytest.mark.parametrize("command", sorted(set(SURFACE) - {"distft"}))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    said = capsys.readouterr().out
    for word in SURFACE[command]:
        assert word in said


def test_no_command_shows_help() -> None:
    done = run()
    assert done.returncode == 0
    assert "Commands:" in done.stdout
    assert "distft data preview" in done.stdout


@pytest.mark.parametrize("table", ["methods", "tasks", "formats", "templates"])
def test_tables_name_every_variant(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = getattr(plugin, table)()
    assert cli.main([table]) == 0
    text = capsys.readouterr().out
    assert cli.main([table, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in document] == list(known)
    for name in known:
        assert name in text
        assert cli.main([table, name]) == 0
        text_of_one = capsys.readouterr().out
        assert cli.main([table, name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == document[list(known).index(name)]
        for key in getattr(known[name], "config", known[name]).__annotations__:
            assert table == "formats" or key in text_of_one


@pytest.mark.parametrize("table", ["methods", "tasks", "formats", "templates"])
def test_tables_fit_80_columns(
    table: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([table]) == 0
    text = capsys.readouterr().out
    assert cli.main([table, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    words = re.sub(r"\s+", "", text)
    assert max(map(len, text.splitlines())) <= 80
    for row in document:
        # A name stands whole on the line of its row, which a wrapped text goes on below.
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [row["name"]]]
        assert row["what"].split()[0] in line
        assert all(word in words for word in row["what"].split())


def test_an_unknown_method_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "lorra"]) == 2
    assert "'lorra' is not known; did you mean lora?; allowed: adalora," in capsys.readouterr().err


def test_version_is_said_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    assert cli.main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": __version__}


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["trian"], 2, "Did you mean 'train'?"),
        (["train"], 2, "Missing argument 'CONFIG'"),
        (["train", "a.yaml", "--jsn"], 2, "No such option: --jsn"),
        (["plan", "nothing.yaml"], 2, "The config file nothing.yaml does not exist."),
        (["plan", "configs/quickstart.yaml", "train.seed=x"], 2, "must be a whole number"),
        (["report", "nowhere"], 2, "nowhere is not a finished run"),
        (["init", "--task", "sff"], 2, "unknown task 'sff'; did you mean sft?"),
        (["init", "Makefile"], 3, "Makefile exists already."),
        (["init", "no/such/folder/x.yaml"], 2, "cannot be written: No such file"),
    ],
)
def test_wrong_input_is_one_paragraph_without_traceback(
    words: list[str], status: int, said: str
) -> None:
    done = run(*words)
    assert done.returncode == status
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_json_error_is_the_only_document_on_stdout() -> None:
    done = run("plan", "nothing.yaml", "--json")
    document = json.loads(done.stdout)
    assert document["error"] == "ConfigError"
    assert document["exit_code"] == done.returncode == 2
    assert document["hint"]
    assert document["message"] in done.stderr


@pytest.mark.parametrize("words", [["--debug", "plan", "x.yaml"], ["plan", "x.yaml", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "Interrupted."),
        (TrainError("loss is not finite", "Lower it."), 4, "loss is not finite Lower it."),
        (PlanError("too big"), 3, "too big"),
        (ZeroDivisionError("oops\nmore"), 4, "ZeroDivisionError: oops --debug shows"),
    ],
)
def test_every_kind_of_failure_has_its_exit_status(
    error: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: Path) -> None:
        raise error

    monkeypatch.setattr(api, "report", fail)
    assert cli.main(["report", "x"]) == status
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_json_keeps_library_chatter_off_stdout() -> None:
    script = """
import subprocess, sys
from distft import api, cli

def chatty(run):
    subprocess.run(["echo", "from a child"], check=True)
    print("from Python")
    return {"html": "report.html"}

api.report = chatty
sys.exit(cli.main(["report", "x", "--json"]))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"html": "report.html"}
    assert "from a child" in done.stderr
    assert "from Python" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_polite_end_give_130_and_one_line(how: signal.Signals) -> None:
    script = """
import sys, time
from distft import api, cli

def wait(run):
    print("waiting", flush=True)
    time.sleep(60)

api.report = wait
sys.exit(cli.main(["report", "x"]))
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting\n"
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip() == "Interrupted. The same command continues a run or a study."


def test_init_writes_the_starter_of_a_task_and_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    done = run("init", path, "--task", "regression")
    assert done.returncode == 0
    assert str(path) in done.stdout
    assert run("init", path).returncode == PlanError.exit_code
    assert path.read_text(encoding="utf-8") == starter("regression")


@pytest.mark.parametrize("task", sorted(plugin.tasks()))
def test_every_commented_key_of_the_starter_is_its_default(task: str, tmp_path: Path) -> None:
    path = tmp_path / "my-run.yaml"
    text = starter(task)
    path.write_text(text, encoding="utf-8")
    config = load(path)
    assert (config.task.name, config.name) == (task, "my-run")
    sections = (config, config.data, config.train, config.cluster)
    keys = {key for section in sections for key in section.model_dump()}
    lines = []
    for line in text.splitlines():
        bare = line.lstrip()
        key = bare.removeprefix("# ").split(":")[0]
        is_key = bare.startswith("# ") and key in keys
        value = bare.removeprefix("# ").removeprefix(f"{key}: ")
        # A doc line may begin with a key's name too; it is no YAML of its own.
        lines.append(line.replace("# ", "", 1) if is_key and " " not in value else line)
    uncommented = tmp_path / "all.yaml"
    uncommented.write_text("\n".join(lines), encoding="utf-8")
    assert len([line for line in lines if "#" not in line]) > 40
    assert load(uncommented) == config


def test_schema_is_valid_and_accepts_what_load_accepts() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for task in plugin.tasks():
        validator.validate(yaml.safe_load(starter(task)))
    minimal = {"model": "m", "data": {"train": "a.csv"}}
    validator.validate(minimal)
    validator.validate({**minimal, "method": {"r": 4}})
    validator.validate({**minimal, "method": {"name": "freeze", "trainable_layers": 1}})
    for wrong in (
        {"model": "m"},
        {**minimal, "trian": {}},
        {**minimal, "method": "lorra"},
        {**minimal, "method": {"name": "full", "r": 4}},
        {**minimal, "train": {"max_steps": "x"}},
    ):
        assert not validator.is_valid(wrong)


def test_schema_documents_every_key() -> None:
    schema = json_schema()
    objects = [schema, *schema["$defs"].values()]
    objects += [
        option for part in ("method", "task") for option in schema["properties"][part]["oneOf"][1:]
    ]
    for document in objects:
        for key, value in document["properties"].items():
            assert value.get("description"), f"{document.get('title')}.{key}"


def test_doctor_finds_this_environment_able(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in document["checks"]}
    assert {"python", "torch", "ray", "deepspeed", "network"} <= set(checks)
    here = machine.look("", {"disk here": Path.cwd()})
    assert {check.name for check in machine.checks(here)} <= set(checks), "as on a cluster's nodes"
    assert [check for check in checks.values() if check["state"] == "bad"] == []
    assert (document["ok"], status) == (True, 0)


def test_doctor_says_what_to_do_where_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["doctor", "--json"]) == PlanError.exit_code
    document = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in document["checks"]}
    assert not document["ok"]
    assert checks["c++ compiler"]["state"] == "bad"
    assert "g++" in checks["c++ compiler"]["advice"]
    assert checks["asset:minilm-l6"]["advice"] == "Run: python -m distft.assets"


def test_every_error_class_maps_to_a_documented_status() -> None:
    assert {each.exit_code for each in DistftError.__subclasses__()} <= {2, 3, 4, 75}
