"""A pool's workers in a real Ray: order, errors as they were raised, bounds, and its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import psutil
import pytest

from distft.data import pool as module
from distft.data.pool import Pool
from distft.errors import DataError, LostError

pytestmark = pytest.mark.usefixtures("ray_cluster")


@dataclass(frozen=True)
class Pieces:
    """Yields (item, piece, process) for as many pieces as an item asks for."""

    folder: Path
    fails_at: int = -1

    def __call__(self, item: int, pieces: int) -> Iterator[tuple[int, int, int]]:
        if item == self.fails_at:
            raise DataError(f"item {item} is broken", "Mend it.")
        for piece in range(pieces):
            (self.folder / f"{item}-{piece}").touch()
            # Later items are done sooner.
            time.sleep(0.01 / (1 + item))
            yield item, piece, os.getpid()


def waited_for(holds: Callable[[], bool]) -> bool:
    """Wait until something holds, ten seconds at most; return whether it does."""
    for _ in range(100):
        if holds():
            return True
        time.sleep(0.1)
    return False


def test_pieces_come_in_the_order_of_the_items(tmp_path: Path) -> None:
    counts = [5, 0, 1, 40, 0, 3, 7, 2, 0, 1]
    expected = [(item, piece) for item, count in enumerate(counts) for piece in range(count)]
    with Pool(2) as pool:
        assert list(pool.run(Pieces(tmp_path), [])) == []
        # One alone may do it all before the other has started.
        while len({who for _, (*_, who) in pool.run(Pieces(tmp_path), [(0, 2), (1, 2)])}) < 2:
            pass
        found = list(pool.run(Pieces(tmp_path), enumerate(counts)))
        again = list(pool.run(Pieces(tmp_path, fails_at=99), enumerate(counts)))
    assert [(number, item, piece) for number, (item, piece, _) in found] == [
        (item, item, piece) for item, piece in expected
    ]
    processes = {process for _, (*_, process) in found}
    assert len(processes) == 2, "one worker did it all"
    assert {process for _, (*_, process) in again} <= processes, "a pass started its own workers"
    assert waited_for(lambda: not any(map(psutil.pid_exists, processes)))


def test_workers_wait_for_who_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UNREAD_PIECES", 4)
    with Pool(1) as pool:
        found = pool.run(Pieces(tmp_path), [(0, 50), (1, 50), (2, 50)])
        next(found)
        # One is read, four are waiting, one is held by the worker.
        assert waited_for(lambda: len(list(tmp_path.iterdir())) >= 5)
        time.sleep(1)
        assert len(list(tmp_path.iterdir())) <= 6
        assert len(list(found)) == 149


def test_an_error_comes_as_it_was_raised_and_in_its_turn(tmp_path: Path) -> None:
    with Pool(2) as pool:
        found = pool.run(Pieces(tmp_path, fails_at=3), ((i, 2) for i in range(9)))
        read = [number for number, _ in islice(found, 6)]
        with pytest.raises(DataError, match=r"^item 3 is broken$") as caught:
            next(found)
    assert caught.value.hint == "Mend it."
    assert read == [0, 0, 1, 1, 2, 2]


def test_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    with Pool(1) as pool:
        found = pool.run(Pieces(tmp_path), [(0, 5000)])
        _, (*_, process) = next(found)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(LostError, match="rows was ended from outside"):
            list(found)
