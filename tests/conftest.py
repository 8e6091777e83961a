"""What all tests share: the packaged models and data, and an honest count of what was skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distft import assets
from distft.errors import ConfigError


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-assets",
        action="store_true",
        help="Fail when a test was skipped for a missing packaged model or data set.",
    )


@pytest.fixture(scope="session")
def asset() -> Callable[[str], Path]:
    """name -> path of a packaged model (folder) or data set (file); skips when it is missing."""

    def path(name: str) -> Path:
        try:
            return assets.resolve(assets.PREFIX + name, assets.ASSETS[name].kind)
        except ConfigError as error:
            pytest.skip(f"{name}: {error.hint}")

    return path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One real local Ray for the whole session."""
    import ray

    ray.init(num_cpus=8, include_dashboard=False)
    yield
    ray.shutdown()


def missing_assets(config: pytest.Config) -> list[str]:
    """Return the tests skipped for an asset; every such skip ends with the install line."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    return [report.nodeid for report in skipped if assets.INSTALL_LINE in str(report.longrepr)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--require-assets") and missing_assets(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    skipped = len(terminalreporter.stats.get("skipped", []))
    missing = len(missing_assets(config))
    terminalreporter.write_line(f"skipped: {skipped}, of them for a missing asset: {missing}")
    if missing:
        terminalreporter.write_line(f"fetch the assets: {assets.INSTALL_LINE}")
