"""Work that is counted, where no terminal shows a bar."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from distft.report import progress


def told(calls: list[tuple[float, int]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines said of 100 parts; each call comes at a time in seconds, with so many parts done."""
    clock = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    out = io.StringIO()
    with progress.counting("working", Console(file=out)) as tell:
        for at_s, done in calls:
            clock = at_s
            tell(done, 100)
    return out.getvalue().splitlines()


def test_a_log_hears_now_and_then_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 parts in 20 s after the first; what came before it does not count."""
    calls = [(600.0, 10), (620.0, 20), (630.0, 25), (640.0, 30), (780.0, 100)]
    assert told(calls, monkeypatch) == [
        "working ...",
        "working: 20/100  0.5 rows/s  ETA 2 min 40 s",
        "working: 30/100  0.5 rows/s  ETA 2 min 20 s",
    ]


def test_quick_work_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told([(1.0, 50), (2.0, 100)], monkeypatch) == ["working ..."]


def test_a_bar_shows_rate_and_time_left_of_what_is_done_now() -> None:
    """Work that goes on from 6,000 parts of an earlier attempt; 10 s later 1,000 more are done."""
    clock, out = 0.0, io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=120, get_time=lambda: clock, color_system=None
    )
    with progress.counting("working", console) as tell:
        clock = 60.0
        tell(6_000, 10_000)
        clock = 70.0
        tell(7_000, 10_000)
    assert "7000/10000 100 rows/s ETA 00:30" in out.getvalue()
