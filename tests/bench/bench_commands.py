"""How long a user waits for the commands that launch nothing; `make bench` prints it.

Each is run three times in a fresh process; the fastest and the slowest wall time are printed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNS = 3


@pytest.mark.parametrize(
    "words",
    [["--help"], ["methods"], ["schema"], ["plan", "configs/quickstart.yaml"]],
    ids=" ".join,
)
def test_wait_for_a_command(words: list[str], asset: Callable[[str], Path]) -> None:
    asset("minilm-l6")
    asset("vader-amazon")
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        command = [sys.executable, "-m", "distft.cli", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=False)
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0
    print(f"\ndistft {' '.join(words)}: {min(seconds):.2f} to {max(seconds):.2f} s")
