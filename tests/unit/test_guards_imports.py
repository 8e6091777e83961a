"""Imports point down only, a foreign library has one address, and looking loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "distft"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the top down; a module may import its own layer and those below (ARCHITECTURE.md).
LAYERS = (
    ("cli", "cli_data", "cli_jobs", "cli_arguments"),
    ("api", "output"),
    ("training", "tuning", "doctor", "schema", "starter", "migrate"),
    ("report", "export", "predict", "search"),
    ("launch", "emit"),
    ("train",),
    ("data", "plan", "stages", "run_dir", "batch_sizes"),
    ("states", "activations"),
    ("hf", "shape", "adapter", "assets", "capacity", "gguf", "machine"),
    ("compat",),
    ("config", "config_file", "config_sections", "config_tune"),
    ("methods", "tasks", "formats", "templates", "trackers"),
    (
        *("plugin", "fields", "records", "space", "chat"),
        *("heads", "virtual_tokens", "bottleneck", "scoring", "texts", "overlap"),
        *("languages", "masking", "blocks", "redact"),
    ),
    ("errors",),
)
RANK = {name: -depth for depth, layer in enumerate(LAYERS) for name in layer}

# (importing layer, imported one): the only imports that point up, and only inside functions.
UPWARD = {
    ("methods", "adapter"): "a PEFT method is attached by what they all share",
}

# foreign library -> where it may be imported at module level; and where only inside functions
HOMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # prepare has Ray send code that came with a tokenizer.
    "ray": (("launch/", "data/pool.py", "data/prepare.py"), ()),
    "ray.job_submission": (("launch/submit.py",), ()),
    "ray.data": (("data/stream.py",), ()),
    "ray.tune": (("search/tune.py", "search/trainable.py"), ()),
    "optuna": (("search/",), ()),
    "deepspeed": (("train/deepspeed_engine.py",), ()),
    "peft": (("bottleneck.py",), ("methods/", "hf.py", "adapter.py")),
    "bitsandbytes": ((), ("methods/", "hf.py")),
    "mlflow": ((), ("trackers/",)),
    "phonenumbers": ((), ("masking.py",)),
    "py3langid": ((), ("languages.py",)),
    "rensa": ((), ("data/near.py",)),
    "rouge_score": ((), ("overlap.py",)),
    "regex": ((), ("overlap.py",)),
    "sacrebleu": ((), ("overlap.py",)),
    "wandb": ((), ("trackers/",)),
    "transformers": (
        ("hf.py", "shape.py", "gguf.py", "train/"),
        ("tasks/", "methods/", "adapter.py", "chat.py"),
    ),
}
HEAVY = ("torch", "ray", "peft", "deepspeed", "transformers", "optuna", "datasets", "pandas")


class Imports(ast.NodeVisitor):
    """Collect (module, line, inside a function) of every import that runs; not for types only."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int, bool]] = []
        self._depth = 0

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name, node.lineno, self._depth > 0) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute"
        module = node.module or ""
        # `from ray import data` imports ray.data; `from distft import hf` imports distft.hf.
        for alias in node.names:
            name = f"{module}.{alias.name}" if module in ("distft", "ray") else module
            self.found.append((name, node.lineno, self._depth > 0))


def imports(source: str) -> list[tuple[str, int, bool]]:
    visitor = Imports()
    visitor.visit(ast.parse(source))
    return visitor.found


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def layer(name: str) -> str:
    return name.removesuffix(".py").split("/")[0].split(".")[0]


def upward(where: str, source: str) -> Iterator[str]:
    if where == "__init__.py":
        return
    for name, line, inside in imports(source):
        if not name.startswith("distft."):
            continue
        target = layer(name.removeprefix("distft."))
        if target == "__version__":
            continue
        if RANK[target] > RANK[layer(where)] and not (inside and (layer(where), target) in UPWARD):
            yield f"{where}:{line} imports {target}, which lies above it"


def homeless(where: str, source: str) -> Iterator[str]:
    for name, line, inside in imports(source):
        known = [library for library in HOMES if name == library or name.startswith(library + ".")]
        if not known:
            continue
        anywhere, lazily = HOMES[max(known, key=len)]
        allowed = (*anywhere, *lazily) if inside else anywhere
        if not where.startswith(allowed or ("\0",)):
            how = "inside a function" if inside else "at module level"
            yield f"{where}:{line} imports {name} {how}; its homes: {HOMES[max(known, key=len)]}"


def test_every_module_has_a_layer() -> None:
    top = {layer(place(path)) for path in MODULES} - {"__init__"}
    assert top == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_imports_point_down(path: Path) -> None:
    assert list(upward(place(path), path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_a_foreign_library_has_one_address(path: Path) -> None:
    assert list(homeless(place(path), path.read_text(encoding="utf-8"))) == []


def test_every_exception_is_still_used() -> None:
    for where, target in UPWARD:
        files = [path for path in MODULES if layer(place(path)) == where]
        found = [each for path in files for each in imports(path.read_text(encoding="utf-8"))]
        assert f"distft.{target}" in {name for name, _, inside in found if inside}


@pytest.mark.parametrize(
    ("where", "source", "refused"),
    [
        ("train/loop.py", "from distft import api", True),
        ("train/loop.py", "from distft.launch.session import x", True),
        ("train/loop.py", "from distft.data import order", False),
        ("tasks/sft.py", "def f():\n    from distft import hf", True),
        ("methods/freeze.py", "def f():\n    from distft import adapter", False),
        ("methods/freeze.py", "from distft import adapter", True),
        ("train/loop.py", "if TYPE_CHECKING:\n    from distft import api", False),
    ],
)
def test_the_direction_guard_sees(where: str, source: str, refused: bool) -> None:
    assert bool(list(upward(where, source))) is refused


@pytest.mark.parametrize(
    ("where", "source", "refused"),
    [
        ("train/loop.py", "import ray", True),
        ("train/loop.py", "def f():\n    import ray.train", True),
        ("launch/trainer.py", "from ray.train.torch import TorchTrainer", False),
        ("launch/trainer.py", "from ray import data", True),
        ("launch/trainer.py", "from ray.job_submission import JobSubmissionClient", True),
        ("data/stream.py", "import ray.data", False),
        ("methods/lora.py", "import peft", True),
        ("methods/lora.py", "def f():\n    import peft", False),
        ("train/torch_engine.py", "import deepspeed", True),
        ("api.py", "import optuna", True),
    ],
)
def test_the_address_guard_sees(where: str, source: str, refused: bool) -> None:
    assert bool(list(homeless(where, source))) is refused


@pytest.mark.parametrize(
    "code",
    [
        "import distft.cli",
        "from distft import cli; cli.main(['--help'])",
        "from distft import cli; cli.main(['train', '--help'])",
        "from distft import cli; cli.main(['data', 'preview', '--help'])",
        "from distft import cli; cli.main(['submit', '--help'])",
        "from distft import cli; "
        "assert cli.main(['submit', 'cluster/settings-cpu.yaml', '--emit', 'kuberay']) == 0",
        "from distft import cli; cli.main(['methods'])",
        "from distft import cli; cli.main(['tasks', '--json'])",
        "from distft import cli; cli.main(['formats'])",
        "from distft import cli; cli.main(['init'])",
        "from distft import cli; cli.main(['schema'])",
        "import distft.migrate.convert, distft.migrate.writing",
        "from distft import cli; cli.main(['version'])",
        "import distft.api, distft.config_file, distft.assets",
    ],
)
def test_looking_loads_nothing_heavy(code: str) -> None:
    assert loaded(code, HEAVY) == []


def loaded(code: str, libraries: tuple[str, ...]) -> list[str]:
    """Return which of these libraries a fresh process has loaded after running the code."""
    tail = f"import sys; sys.stderr.write(repr([m for m in {libraries!r} if m in sys.modules]))"
    command = [sys.executable, "-c", f"{code}\n{tail}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    found: list[str] = ast.literal_eval(done.stderr.splitlines()[-1])
    return found


def test_the_light_guard_sees() -> None:
    assert loaded("import numpy", ("numpy", "torch")) == ["numpy"]


def test_plan_and_preview_load_no_ray(asset: Callable[[str], Path]) -> None:
    asset("minilm-l6")
    asset("vader-amazon")
    config = ROOT / "configs" / "quickstart.yaml"
    code = f"from distft import cli; assert cli.main(['plan', {str(config)!r}]) == 0; "
    code += f"assert cli.main(['data', 'preview', {str(config)!r}]) == 0"
    assert loaded(code, ("ray", "deepspeed")) == []
