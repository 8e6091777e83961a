"""What all tests share: the packaged models and data, and an honest count of what was skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distft import assets
from distft.errors import ConfigError

MISSING = "missing asset"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-assets",
        action="store_true",
        help="Fail, instead of skip, where a packaged model or data set is missing.",
    )


@pytest.fixture(scope="session")
def asset(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """name -> path of a packaged model (folder) or data set (file); skips when it is missing."""

    def path(name: str) -> Path:
        try:
            return assets.resolve(assets.PREFIX + name, assets.ASSETS[name].kind)
        except ConfigError as error:
            reason = f"{MISSING} {name}: {error.hint}"
            if request.config.getoption("--require-assets"):
                pytest.fail(reason)
            pytest.skip(reason)

    return path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One real local Ray for the whole session."""
    import ray

    ray.init(num_cpus=8, include_dashboard=False)
    yield
    ray.shutdown()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    missing = [report for report in skipped if MISSING in str(report.longrepr)]
    line = f"skipped: {len(skipped)}, of them for a missing asset: {len(missing)}"
    terminalreporter.write_line(line)
