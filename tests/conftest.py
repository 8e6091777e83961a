"""Fixtures every test may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One real local Ray for the whole session."""
    import ray

    ray.init(num_cpus=8, include_dashboard=False)
    yield
    ray.shutdown()
