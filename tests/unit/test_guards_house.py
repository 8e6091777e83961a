"""Sizes, errors, shipped configs, and what the repository must never name."""

from __future__ import annotations

import ast
import pickle
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distft import api, errors
from distft.config_file import load
from distft.errors import DistftError

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "distft").rglob("*.py"))
MOST_MODULE_LINES = 400
MOST_FUNCTION_LINES = 80
BANNED_NAMES = {"utils", "helpers", "misc", "other", "common", "manager"}

ERRORS = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, DistftError)
]

# Where packages and files come from is the user's configuration, never the repository's: no option
# names an index, and the only hosts are those of licences, schemas and conventions.
FORBIDDEN = re.compile(
    r"--(extra-)?index-url|--find-links|--trusted-host"
    r"|https?://(?!keepachangelog\.com|www\.apache\.org|json-schema\.org)[\w-]+\.\w",
    re.IGNORECASE,
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def long_functions(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MOST_FUNCTION_LINES:
                yield f"{node.name}: {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_modules_and_functions_stay_small(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MOST_MODULE_LINES
    assert list(long_functions(source)) == []


def test_the_size_guard_sees() -> None:
    body = "    x = 1\n" * MOST_FUNCTION_LINES
    assert list(long_functions(f"def big():\n{body}")) == ["big: 81 lines"]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_modules_are_ascii_documented_and_named_for_what_they_are(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.isascii()
    assert path.stem not in BANNED_NAMES
    assert ast.get_docstring(ast.parse(source)) or not source.strip()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_errors_pickle_with_hint_and_exit_code(error: type[DistftError]) -> None:
    made = error("what was got", "what to do")
    copy = pickle.loads(pickle.dumps(made))
    assert type(copy) is error
    assert (str(copy), copy.hint) == ("what was got", "what to do")
    assert copy.exit_code in (2, 3, 4, 75)
    assert copy.as_dict() == made.as_dict()
    assert copy.as_dict()["error"] == error.__name__


def test_the_repository_names_no_registry_host_and_no_workplace() -> None:
    found = [
        f"{relative(path)}:{number}: {line.strip()[:80]}"
        for path in tracked()
        if path.suffix not in (".png", ".jpg") and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    ["--index-url x", "--find-links y", "https://index.example/simple", "http://hub.example/a/b"],
)
def test_the_name_guard_sees(line: str) -> None:
    assert FORBIDDEN.search(line)
    assert not FORBIDDEN.search("see https://keepachangelog.com/en and an index of links")


def test_constraints_pin_every_direct_dependency_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    known = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(each for extra in extras for each in extra)]
    names = {re.split(r"[\[<>=!~;]", each)[0].strip().lower() for each in wanted}
    assert {re.sub(r"[-_.]+", "-", name) for name in names} <= known
    assert {"pip", "setuptools", "wheel"} <= known
    assert all(re.fullmatch(r"[\w.!]+", version) for version in pins.values())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_config_plans(path: Path, asset: Callable[[str], Path]) -> None:
    config = load(path)
    for spec in (config.model.id, config.data.train):
        if isinstance(spec, str) and spec.startswith("asset:"):
            asset(spec.removeprefix("asset:"))
    plan = api.plan(config)
    assert plan.total_steps >= 1
    assert 0 < plan.trainable_params <= plan.params
    assert plan.memory.peak_bytes <= plan.memory.available_bytes
    assert "steps" in plan.render()
