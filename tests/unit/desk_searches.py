"""Searches whose desk is tried: an executor in process, and trials with a known best rate."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage

from distft.records import TrialRecord
from distft.search.desk import Launch
from distft.search.phases import Search
from distft.search.sample import build_space
from distft.search.setting import Setting

SIM = runpy.run_path(str(Path(__file__).parents[1] / "search_sim.py"))
RATE = "train.learning_rate"
LAYERS = {"method.trainable_layers": [1, 2]}

Train = Callable[[Launch], Any]


def loss(launch: Launch, samples: int) -> float:
    best = {"full": 5e-5, "freeze": 4e-4, "lora": 1e-3}[launch.config.method.name]
    off = math.log10(launch.order.plan.learning_rate / best)
    seed = launch.config.train.seed % 7 / 1000
    return 1.1 - (0.4 - seed) * math.exp(-(off**2)) * samples / 1600


def plain(launch: Launch) -> Any:
    return SIM["curve"](launch, lambda samples: loss(launch, samples))


def maker(folder: Path, model: Path) -> Callable[..., Search]:
    """Return: tune section, storage, concurrency -> a search."""

    def search(
        tune: dict[str, Any], storage: BaseStorage | None = None, concurrent: int = 2
    ) -> Search:
        tune = {"space": LAYERS, "num_trials": 6, "confirm_seeds": 2, **tune}
        setting: Setting = SIM["make_setting"](folder, model, tune, concurrent=concurrent)
        space = build_space(setting.config)
        return Search(storage or InMemoryStorage(), setting, space, "hash")

    return search


def run(search: Search, train: Train = plain) -> list[TrialRecord]:
    search.run(lambda desk, setting: SIM["run"](desk, setting, train))
    return search._desk.records()
