"""What preparing short documents costs beside `datasets`, from JSON lines to Parquet.

    make bench PYTEST_ARGS="-k prepare"
    CASES=sft REPEATS=1 make bench PYTEST_ARGS="-k prepare"

200,000 documents, where starting processes is a good part of it; a million, where it is not; 20,000
conversations and ten times as many.

Three sides take turns, each in a process of its own with the same threads: `distft`, which reads
the rows twice (the first time to look for broken ones, repetitions and classes), writes token ids,
labels and lengths, and the SHA-256 of all it read and wrote; `datasets`, as its documentation does
it: `load_dataset`, `map(batched=True, num_proc=2)` with what the tokenizer returns unasked, and
labels, then `to_parquet`; and `datasets, ids only`, the least it can do. Rows a second count from
the call to the last byte written, the tokenizer's loading too, with Ray's start and without; the
token ids of every row must be the same. Processor seconds are those of all processes of a side,
which other load changes less.
Nothing is asserted about time; the numbers go to build/bench/prepare.json, and what it holds
already is not run again: stop and start it at will.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "build" / "bench" / "prepare.json"
REPEATS = int(os.environ.get("REPEATS", "3"))
MODEL = "asset:smollm2-135m-instruct"
CUTOFF_LEN = 512
ROWS = {
    "causal_lm": 200_000,
    "causal_lm million": 1_000_000,
    "sft": 20_000,
    "sft many": 200_000,
}
TEMPLATES = {"causal_lm": None, "sft": "chatml"}
"""The template has generation blocks, by which both sides tell the answers."""
SIDES = ("distft", "datasets", "datasets, ids only")
CPUS = 2
THREADS = {
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def documents(count: int) -> Iterator[str]:
    """Yield sentences of 8 to 60 made-up words, a few of them frequent, as in a language."""
    drawn = random.Random(0)
    syllables = [c + v for c in "bcdfghklmnprstvwz" for v in "aeiou"] + ["the", "ing", "st"]
    words = ["".join(drawn.choices(syllables, k=drawn.choice((1, 2, 3)))) for _ in range(20_000)]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    for number in range(count):
        said = drawn.choices(words, cum_weights=weights, k=drawn.randint(8, 60))
        yield f"{' '.join(said).capitalize()}. {number}"


def write_rows(case: str, path: Path) -> None:
    """Write a case's rows: texts, or a question and an answer of one text each."""
    with path.open("w", encoding="utf-8") as file:
        if task_of(case) == "causal_lm":
            rows: Iterator[Any] = ({"text": text} for text in documents(ROWS[case]))
        else:
            said = documents(2 * ROWS[case])
            rows = ({"messages": _turns(one, next(said))} for one in said)
        file.writelines(json.dumps(row) + "\n" for row in rows)


def task_of(case: str) -> str:
    """Return the task of a case."""
    return case.partition(" ")[0]


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def run_distft(case: str, rows: Path, folder: Path) -> dict[str, Any]:
    """Prepare the rows, all of them as training rows, in their order."""
    from distft.config_file import parse
    from distft.data.prepare import prepare
    from distft.launch.session import connected

    held = folder / "held.jsonl"
    held.write_text(rows.read_text().split("\n", 1)[0].replace(" 0", " held") + "\n")
    other = folder / "other.jsonl"
    other.write_text(rows.read_text().split("\n", 1)[0].replace(" 0", " other") + "\n")
    data = {"train": str(rows), "eval": str(held), "test": str(other), "cutoff_len": CUTOFF_LEN}
    template = TEMPLATES[task_of(case)]
    data |= {"template": template} if template else {}
    config = parse(
        {
            "name": "x",
            "output_dir": str(folder),
            "model": MODEL,
            "task": task_of(case),
            "data": data,
        }
    )
    before_s, began = processor_s(), time.perf_counter()
    with connected(config.cluster):
        ready = time.perf_counter()
        root, manifest = prepare(config)
        ended = time.perf_counter()
        cpu_s = processor_s() - before_s
    files = [root / shard.file for shard in manifest.splits["train"].shards]
    return {"start_s": ready - began, "s": ended - ready, "cpu_s": cpu_s} | told(files)


def run_datasets(case: str, rows: Path, folder: Path, *, ids_only: bool) -> dict[str, Any]:
    """Do with `datasets` what comes to the same token ids."""
    import datasets

    from distft import hf
    from distft.config_sections import ModelConfig

    before_s, began = processor_s(), time.perf_counter()
    tokenizer: Any = hf.load_tokenizer(ModelConfig(id=MODEL), TEMPLATES[task_of(case)])
    end = tokenizer.eos_token_id

    def texts(batch: dict[str, list[str]]) -> dict[str, Any]:
        found = tokenizer(batch["text"], verbose=False, return_attention_mask=not ids_only)
        ids = [[*one, end][:CUTOFF_LEN] for one in found["input_ids"]]
        if ids_only:
            return {"input_ids": ids}
        masks = [[1] * len(one) for one in ids]
        return {"input_ids": ids, "attention_mask": masks, "labels": ids}

    def conversations(batch: dict[str, list[Any]]) -> dict[str, Any]:
        settings = {} if ids_only else {"return_assistant_tokens_mask": True}
        found = tokenizer.apply_chat_template(
            batch["messages"], tokenize=True, return_dict=True, **settings
        )
        ids = [one[:CUTOFF_LEN] for one in found["input_ids"]]
        if ids_only:
            return {"input_ids": ids}
        labels = [
            [token if wanted else -100 for token, wanted in zip(one, mask, strict=False)]
            for one, mask in zip(ids, found["assistant_masks"], strict=True)
        ]
        return {"input_ids": ids, "attention_mask": found["attention_mask"], "labels": labels}

    encode: Callable[..., Any] = texts if task_of(case) == "causal_lm" else conversations
    target = folder / "rows.parquet"
    dataset = datasets.load_dataset(
        "json", data_files=str(rows), split="train", cache_dir=str(folder)
    )
    columns = dataset.column_names
    dataset = dataset.map(encode, batched=True, num_proc=CPUS, remove_columns=columns)
    dataset.to_parquet(str(target))
    ended = time.perf_counter()
    cpu_s = processor_s() - before_s
    return {"start_s": 0.0, "s": ended - began, "cpu_s": cpu_s} | told([target])


def processor_s() -> float:
    """Return the processor seconds of this process and all it has started."""
    import psutil

    me = psutil.Process()
    while True:
        # What a process took that ends meanwhile is its parent's, a moment later.
        with contextlib.suppress(psutil.NoSuchProcess):
            return sum(sum(one.cpu_times()[:4]) for one in [me, *me.children(recursive=True)])


def told(files: list[Path]) -> dict[str, Any]:
    """Return how many rows and tokens files hold, and a hash of all token ids in order."""
    import hashlib

    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    digest, rows, tokens = hashlib.sha256(), 0, 0
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(columns=["input_ids"]):
            ids = batch["input_ids"]
            rows, tokens = rows + len(ids), tokens + len(ids.flatten())
            digest.update(pc.list_value_length(ids).cast("int32").to_numpy().tobytes())
            digest.update(ids.flatten().cast("int32").to_numpy().tobytes())
    return {"rows": rows, "tokens": tokens, "sha256": digest.hexdigest()}


def run_alone(side: str, case: str, rows: Path) -> dict[str, Any]:
    """Run a side in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, side, case, str(rows), folder],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **THREADS},
        )
    assert done.returncode == 0, f"{side}/{case}: {done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "load": os.getloadavg()[0]}


@pytest.mark.timeout(6000)
def test_prepare_beside_datasets(tmp_path: Path) -> None:
    from importlib.metadata import version

    names = ("ray", "datasets", "transformers", "tokenizers", "pyarrow")
    print(f"\n{time.strftime('%Y-%m-%d')}, {CPUS} CPUs, load {os.getloadavg()[0]:.1f}")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print(", ".join(f"{name}={value}" for name, value in THREADS.items()), "in every process")
    done = json.loads(TARGET.read_text()) if TARGET.is_file() else {}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    for case in os.environ.get("CASES", ",".join(ROWS)).split(","):
        rows = tmp_path / f"{case}.jsonl"
        write_rows(case, rows)
        for repeat in range(REPEATS):
            for side in SIDES:
                key = f"{case}/{side}/{repeat}"
                if key not in done:
                    done[key] = run_alone(side, case, rows)
                    TARGET.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n")
                one = done[key]
                print(
                    f"{key}: {one['rows'] / one['s']:.0f} rows/s, {one['s']:.1f} s and "
                    f"{one['start_s']:.1f} s to start, {one['cpu_s']:.1f} processor seconds",
                    flush=True,
                )
        compare(case, done)


def compare(case: str, done: dict[str, Any]) -> None:
    """Hold the token ids to each other and print what one side takes of another."""
    sides = {side: [done[f"{case}/{side}/{i}"] for i in range(REPEATS)] for side in SIDES}
    assert len({(one["rows"], one["sha256"]) for runs in sides.values() for one in runs}) == 1
    one = sides["distft"][0]
    print(f"{case}: {one['rows']} rows, {one['tokens']} tokens, the same on all sides")

    def median(side: str, seconds: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(map(seconds, sides[side]))

    measures: dict[str, Callable[[dict[str, float]], float]] = {
        "rows/s": lambda run: run["s"],
        "rows/s, Ray's start counted": lambda run: run["s"] + run["start_s"],
        "rows per processor second": lambda run: run["cpu_s"],
    }
    for side in SIDES[1:]:
        for said, seconds in measures.items():
            ratio = median(side, seconds) / median("distft", seconds)
            print(f"{case}: {ratio:.2f} times the {said} of {side} (medians)")


def main(side: str, case: str, rows: str, folder: str) -> None:
    """Run one side in this process and print what it found."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CPUS])
    if side == "distft":
        found = run_distft(case, Path(rows), Path(folder))
    else:
        ids_only = side.endswith("ids only")
        found = run_datasets(case, Path(rows), Path(folder), ids_only=ids_only)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:5])
