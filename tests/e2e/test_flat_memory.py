"""Ten times the text takes the same memory, to prepare and to stream.

As a script it is one measurement, in a process of its own: `python test_flat_memory.py MEGABYTES
FOLDER` prints its figures as JSON. Memory is the proportional set size (PSS) of that process and of
all that it starts, Ray's processes and its object store included, each shared page counted once.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

MODEL = "asset:smollm2-135m-instruct"
SMALL, LARGE = 200, 2000
"""Megabytes of text."""
TOLERANCE = 0.10
"""Of the peak; the driver alone keeps some 50 bytes a row, 24 MB more of the larger file."""


def documents() -> Iterator[str]:
    """Yield, without end, seeded texts of about 4 KB."""
    drawn = random.Random(5)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    words = ["".join(drawn.choices(syllables, k=drawn.choice((1, 2, 3)))) for _ in range(5000)]
    passages = [" ".join(drawn.choices(words, k=200)) for _ in range(2000)]
    for number in range(sys.maxsize):
        yield f"{number} {' '.join(drawn.choices(passages, k=4))}"


def write(path: Path, megabytes: int) -> int:
    """Write so much text as JSON lines; return the rows."""
    texts, rows = documents(), 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 10**6:
            file.write(json.dumps({"text": next(texts)}) + "\n")
            rows += 1
    return rows


def main(megabytes: int, folder: Path) -> dict[str, Any]:
    """Prepare and stream; return rows, seconds and peaks."""
    import numpy as np

    from distft.config_file import parse
    from distft.data.order import plan_steps
    from distft.data.pack import Budget
    from distft.data.prepare import prepare
    from distft.data.shards import open_split
    from distft.data.stream import stream
    from distft.launch.session import connected

    rows = write(folder / "rows.jsonl", megabytes)
    data = {"train": str(folder / "rows.jsonl"), "eval": 0.002, "test": 0.002, "cutoff_len": 256}
    config = parse(
        {"name": "x", "output_dir": str(folder), "model": MODEL, "task": "causal_lm", "data": data}
    )
    watch = Watch()
    began = time.perf_counter()
    with connected(config.cluster):
        root, manifest = prepare(config)
        prepared_s, prepared_peak = time.perf_counter() - began, watch.peak()
        reader = open_split(root, "train")
        steps = -(-reader.rows // 64)
        plans = plan_steps(
            seed=1,
            row_groups=reader.row_groups,
            lengths=reader.lengths,
            global_batch_size=64,
            budget=Budget(micro_batch_tokens=8 * 256),
            world_size=1,
            rank=0,
            start_step=0,
            total_steps=steps,
        )
        seen = np.zeros(reader.rows, np.int64)
        for plan, micro_batches in islice(stream(root, "train", plans), steps):
            ids = [sample.sample_id for micro in micro_batches for sample in micro]
            assert ids == plan.ids
            seen[ids] += 1
        assert (seen == 1).all()
        streamed_peak = watch.peak()
    return {
        "megabytes": megabytes,
        "rows": rows,
        "tokens": sum(info.tokens for info in manifest.splits.values()),
        "prepared_s": prepared_s,
        "streamed_s": time.perf_counter() - began - prepared_s,
        "prepared_peak_bytes": prepared_peak,
        "streamed_peak_bytes": streamed_peak,
    }


class Watch:
    """Measures four times a second."""

    def __init__(self) -> None:
        self._peak = 0
        threading.Thread(target=self._measure, daemon=True).start()

    def peak(self) -> int:
        """Return the peak since the last call."""
        peak, self._peak = self._peak, 0
        return peak

    def _measure(self) -> None:
        import psutil

        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self._peak = max(self._peak, total)
            time.sleep(0.25)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_memory_stays_flat(tmp_path: Path) -> None:
    found = {}
    for megabytes in (SMALL, LARGE):
        folder = tmp_path / str(megabytes)
        folder.mkdir()
        ran = subprocess.run(
            [sys.executable, __file__, str(megabytes), str(folder)],
            check=False,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        found[megabytes] = json.loads(ran.stdout.splitlines()[-1])
        print(found[megabytes])
    assert found[LARGE]["rows"] > 9 * found[SMALL]["rows"]
    for peak in ("prepared_peak_bytes", "streamed_peak_bytes"):
        assert found[LARGE][peak] <= (1 + TOLERANCE) * found[SMALL][peak], peak


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), Path(sys.argv[2]))))
