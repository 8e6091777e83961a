"""A run's metrics where Prometheus fetches Ray's: at the metrics port of the node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

_SCRIPT = """
import json, sys, threading, urllib.request
import ray
from distft import api, config_file

ray.init(address="local", num_cpus=3, include_dashboard=False, object_store_memory=200 << 20)
node = ray.nodes()[0]
url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
seen, ended = {}, threading.Event()

def watch():
    while not ended.wait(0.3):
        with urllib.request.urlopen(url, timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("ray_distft_"):
                    labels, value = line.rsplit(" ", 1)
                    seen.setdefault(labels, []).append(float(value))

thread = threading.Thread(target=watch)
thread.start()
try:
    api.train(config_file.load(sys.argv[1], []))
finally:
    ended.set()
    thread.join()
    ray.shutdown()
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_a_running_training_is_seen_by_prometheus(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [f"the film is {word} {n},{word}" for n in range(40) for word in ("good", "bad")]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    config = {
        "model": str(tiny_bert),
        "task": "seq_cls",
        "data": {"train": "rows.csv"},
        "report_to": [],
        "train": {"max_steps": 150, "logging_steps": 1, "eval_steps": 50},
    }
    (tmp_path / "seen.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, "seen.yaml"],
        cwd=tmp_path,
        env={**os.environ, "RAY_metrics_report_interval_ms": "500"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    seen = {text.split("{")[0]: values for text, values in found.items() if 'run="seen"' in text}
    lines = (tmp_path / "runs" / "seen" / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "loss" in line]
    names = ("step", "loss", "learning_rate", "grad_norm", "tokens_per_s", "eval_loss")
    assert {f"ray_distft_{name}" for name in (*names, "total_steps")} <= set(seen)
    assert set(seen["ray_distft_total_steps"]) == {150.0}
    losses = {round(line["loss"], 6) for line in steps}
    assert {round(value, 6) for value in seen["ray_distft_loss"]} <= losses
    assert len(set(seen["ray_distft_step"])) > 1, "it moves"
