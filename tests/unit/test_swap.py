"""A process's folder on a disk: its own, gone when it ends, removed later when it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distft.train.swap import SwapFolder, sweep

_HOLD = """
import sys, time
from pathlib import Path
from distft.train.swap import SwapFolder
folder = SwapFolder(Path(sys.argv[1]))
(folder.path / "states.swp").write_bytes(b"0" * 1000)
print(folder.path.name, flush=True)
time.sleep(600)
"""


def test_it_is_gone_when_it_is_closed_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    one, two = SwapFolder(tmp_path), SwapFolder(tmp_path)
    assert one.path != two.path
    (one.path / "deep").mkdir()
    (one.path / "deep" / "states.swp").write_bytes(b"0")
    one.close()
    one.close()
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "mine.txt", two.path])
    two.close()
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.txt"]


def test_what_a_killed_process_left_is_removed_and_no_more(tmp_path: Path) -> None:
    killed, alive = (
        subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    )
    names = []
    for process in (killed, alive):
        assert process.stdout is not None
        names.append(process.stdout.readline().strip())
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (tmp_path / names[0] / "states.swp").exists(), "nobody was there to remove it"
        sweep(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [names[1]]
        mine = SwapFolder(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {names[1], mine.path.name}
        mine.close()
    finally:
        alive.kill()
        alive.wait()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SwapFolder(tmp_path / "absent")
    assert os.listdir(tmp_path) == []
