"""What the documents say is true: commands, file tree, modules, and the worked example."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from distft import cli
from distft.config_file import load

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md")
ENTRY = re.compile(r"^(?P<indent> *)(?P<name>[\w./-]+) {2,}\S")
OUTSIDE_TREE = {".gitignore", ".pre-commit-config.yaml", "distft/__init__.py", "distft/py.typed"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands() -> set[str]:
    group = typer.main.get_command(cli.app)
    below = {name: getattr(command, "commands", {}) for name, command in group.commands.items()}
    return set(below) | {f"{name} {each}" for name in below for each in below[name]}


def make_targets() -> set[str]:
    (line,) = re.findall(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)
    return set(line.split())


def tree() -> set[str]:
    """Return the paths of the README's file tree."""
    (block,) = re.findall(r"```text\n(\.ci/.*?)```", read("README.md"), re.DOTALL)
    found, folder = set(), ""
    for line in block.splitlines():
        entry = ENTRY.match(line)
        assert entry, f"not an entry with a comment: {line!r}"
        if not entry["indent"]:
            folder = entry["name"] if entry["name"].endswith("/") else ""
            found.add(entry["name"])
        else:
            found.add(folder + entry["name"])
    return found


def on_disk() -> set[str]:
    """Return what git knows at the root and in distft/, folders with a slash at the end."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = set()
    for name in listed.stdout.splitlines():
        parts = name.split("/")
        found.add(parts[0] + ("/" if parts[1:] else ""))
        if parts[0] == "distft":
            found.add("/".join(parts[:2]) + ("/" if parts[2:] else ""))
    return found - OUTSIDE_TREE


def test_the_file_tree_is_what_is_there() -> None:
    assert tree() == on_disk()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_named_exists(document: str) -> None:
    text = read(document)
    # In code only: prose says "distft fine-tunes ...".
    code = "\n".join(
        re.findall(r"```bash\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    )
    named = set(re.findall(r"(?:^|[\s/])distft ((?:data )?[a-z]+)\b", code, re.MULTILINE))
    targets = set(re.findall(r"(?:^|\s)make ([a-z-]+)\b", code, re.MULTILINE))
    assert named <= commands()
    assert targets <= make_targets()


def test_the_readme_names_every_command_and_target() -> None:
    text = read("README.md")
    for command in commands():
        assert f"distft {command}" in text
    for target in make_targets():
        assert re.search(rf"\b{target}\b", text)


def test_every_make_target_is_defined() -> None:
    defined = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    assert defined == make_targets()


def test_every_config_shown_loads(tmp_path: Path) -> None:
    shown = [
        block
        for name in DOCUMENTS
        for block in re.findall(r"```yaml\n(.*?)```", read(name), re.DOTALL)
    ]
    assert shown
    for block in shown:
        path = tmp_path / "shown.yaml"
        path.write_text(block, encoding="utf-8")
        load(path)


def test_the_license_is_apache() -> None:
    assert read("LICENSE").lstrip().startswith("Apache License")
    assert "Copyright 2026 The distft authors" in read("LICENSE")


def test_the_architecture_names_every_layer() -> None:
    rows = "\n".join(line for line in read("ARCHITECTURE.md").splitlines() if line.startswith("| "))
    for name in {path.removeprefix("distft/") for path in tree() if path.startswith("distft/")}:
        assert not name or f"`{name.removesuffix('.py')}`" in rows, name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_lead_somewhere(document: str) -> None:
    text = read(document)
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:distft|tests|configs)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


@pytest.fixture
def package_with_example(tmp_path: Path) -> Path:
    """Put CONTRIBUTING's example, and nothing else, into a copy of the package."""
    code = re.findall(r"```python\n(# distft/formats/.*?)```", read("CONTRIBUTING.md"), re.DOTALL)
    assert len(code) == 1
    first, _, rest = code[0].partition("\n")
    shutil.copytree(
        ROOT / "distft", tmp_path / "distft", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / first.removeprefix("# ")).write_text(rest, encoding="utf-8")
    return tmp_path


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_worked_example_of_a_format_is_one_file(package_with_example: Path) -> None:
    folder = package_with_example
    listed = json.loads(run(folder, "-m", "distft.cli", "formats", "--json"))
    assert "question_answer" in [row["name"] for row in listed]
    rows = [{"q": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(30)]
    (folder / "faq.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    script = """
from distft import plugin
from distft.config_file import parse
from distft.data.resolve import detect

config = parse({"model": "m", "data": {"train": "faq.jsonl", "columns": {"question": "q"}}})
print(detect(config))
form = plugin.formats()["question_answer"]
print(form.read(form.example, form.columns))
try:
    form.read({"question": " "}, form.columns)
except plugin.UnusableRow as reason:
    print(reason)
"""
    said = run(folder, "-c", script).splitlines()
    assert said[0] == "('question_answer', 'sft')"
    assert "{'role': 'assistant', 'content': 'Paris.'}" in said[1]
    assert said[2] == "field 'question' must be text that is not empty"


def test_the_worked_example_meets_the_house_rules(package_with_example: Path) -> None:
    path = package_with_example / "distft" / "formats" / "question_answer.py"
    settings = str(ROOT / "pyproject.toml")
    run(ROOT, "-m", "ruff", "check", "--config", settings, "--no-cache", str(path))
    run(ROOT, "-m", "ruff", "format", "--config", settings, "--no-cache", "--check", str(path))
