"""The same numbers, however a step is cut, sharded, offloaded or interrupted.

Losses, gradient norms and final weights are compared with a single-process torch run. AdamW with
clipping hides a wrong scale of the gradient; SGD without clipping shows it, so both run.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.train import checkpoint

STEPS = 12
SLOW = pytest.mark.slow
LOSS_TOLERANCE = 2e-5
WEIGHT_TOLERANCE = 2e-4

Run = tuple[list[dict[str, Any]], Path]
OPTIMIZERS = {
    "adamw": {"optim": "adamw_torch", "learning_rate": 1e-2, "max_grad_norm": 1.0},
    "sgd": {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0},
}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "r": 5, "lora_alpha": 40},
    "freeze": {"name": "freeze", "trainable_layers": 1},
}


@pytest.fixture
def make_case(
    tiny_llama: Path, progressions: Path, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Keywords of the train section, and `method`, `optim`, `world`, `stage` -> a case."""
    number = itertools.count()

    def make(
        *, method: str = "full", optim: str = "adamw", world: int = 1, stage: int = 0, **more: Any
    ) -> dict[str, Any]:
        run_dir = more.pop("run_dir", tmp_path / f"run-{next(number)}")
        run_dir.mkdir(exist_ok=True)
        cluster = {
            "num_workers": world,
            "zero_stage": stage,
            "offload": more.pop("offload", "none"),
            "nvme_path": more.pop("nvme_path", None),
        }
        train = {
            "global_batch_size": 8,
            "max_steps": STEPS,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 2,
            "weight_decay": 0.1,
            "logging_steps": 1,
            "eval_steps": 4,
            **OPTIMIZERS[optim],
        }
        model = {"id": str(more.pop("model", tiny_llama)), "dtype": more.pop("dtype", "float32")}
        if "dropout" in more:
            model["dropout"] = more.pop("dropout")
        task = more.pop("task", "sft")
        data_root = more.pop("data_root", progressions)
        packing = more.pop("packing", None)
        driver = {
            key: more.pop(key) for key in ("stop_at", "deepspeed", "swap_group") if key in more
        }
        return {
            "run_dir": str(run_dir),
            "data_root": str(data_root),
            "config": {
                "name": "golden",
                "model": model,
                "task": task,
                "data": {"train": "none", "packing": packing},
                "method": METHODS[method],
                "train": train | more,
                "cluster": cluster,
            },
            **driver,
        }

    return make


def losses(lines: list[dict[str, Any]], key: str = "loss") -> torch.Tensor:
    return torch.tensor([line[key] for line in lines if "loss" in line])


def weights(case: dict[str, Any], step: int = STEPS) -> dict[str, torch.Tensor]:
    folder = checkpoint.step_dir(Path(case["run_dir"]), step)
    assert checkpoint.verify(folder) is None
    read = checkpoint.read_state(folder)
    from safetensors import safe_open

    names: set[str] = set()
    for path in (folder / "state").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= {key.rpartition("|")[0] for key in file.keys()}  # noqa: SIM118 - not a mapping
    return {name: read(name)["param"] for name in names}


def assert_same(
    ours: tuple[list[dict[str, Any]], dict[str, Any]],
    reference: tuple[list[dict[str, Any]], dict[str, Any]],
    record: Callable[[str, float], None],
) -> None:
    for key in ("loss", "grad_norm", "learning_rate"):
        difference = (losses(ours[0], key) - losses(reference[0], key)).abs()
        scale = losses(reference[0], key).abs().max()
        record(key, float(difference.max() / scale))
        assert difference.max() <= LOSS_TOLERANCE * scale, key
        # A one-sided shift is the signature of a wrong scale even where each point passes.
        assert difference.mean() <= LOSS_TOLERANCE / 2 * scale, key
    mine, theirs = weights(ours[1]), weights(reference[1])
    assert mine.keys() == theirs.keys()
    worst = max(float((mine[name] - theirs[name]).abs().max()) for name in mine)
    record("weights", worst)
    assert worst <= WEIGHT_TOLERANCE
    evaluations = [
        [line["eval_loss"] for line in lines if "eval_loss" in line]
        for lines, _ in (ours, reference)
    ]
    torch.testing.assert_close(*map(torch.tensor, evaluations), atol=1e-4, rtol=0)


@pytest.fixture
def differences(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Keep the largest differences seen, for the test report (`--junit-xml`) and `-rA`."""

    def record(key: str, value: float) -> None:
        record_property(key, value)
        print(f"largest difference in {key}: {value:.2e}")

    return record


@pytest.mark.parametrize(
    ("method", "optim"),
    [
        ("full", "adamw"),
        ("lora", "sgd"),
        pytest.param("full", "sgd", marks=SLOW),
        pytest.param("lora", "adamw", marks=SLOW),
    ],
)
def test_zero_stages_equal_torch(one, two, make_case, differences, method, optim) -> None:
    reference_case = make_case(method=method, optim=optim, gradient_accumulation_steps=2)
    reference = one.run(reference_case)
    fallen = losses(reference)
    assert fallen[-1] < 0.8 * fallen[0], "a loss that does not fall proves nothing"
    for stage in range(4):
        case = make_case(
            method=method, optim=optim, world=2, stage=stage, gradient_accumulation_steps=2
        )
        assert_same((two.run(case), case), (reference, reference_case), differences)


@pytest.mark.parametrize("stage", [pytest.param(1, marks=SLOW), 2, pytest.param(3, marks=SLOW)])
def test_offload_equals_torch(one, two, make_case, differences, stage) -> None:
    reference_case = make_case(optim="adamw")
    reference = one.run(reference_case)
    case = make_case(world=2, stage=stage, offload="cpu")
    assert_same((two.run(case), case), (reference, reference_case), differences)


@SLOW
@pytest.mark.parametrize("optim", ["adamw", "sgd"])
def test_states_on_a_disk_equal_torch_and_survive(
    one, two, make_case, differences, wide_llama, tmp_path, optim
) -> None:
    """Needs libaio-dev. Groups of a megabyte go to the disk, several of them, the rest do not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    same = {"optim": optim, "model": wide_llama, "learning_rate": 1e-3}
    reference_case = make_case(**same)
    reference = one.run(reference_case)
    same |= {"world": 2, "stage": 3, "offload": "nvme", "nvme_path": str(disk), "save_steps": 3}
    case = make_case(**same, swap_group=300_000)
    whole = two.run(case)
    assert_same((whole, case), (reference, reference_case), differences)
    broken = make_case(**same, swap_group=300_000, stop_at=8)
    two.run(broken)
    resumed = two.run({**broken, "stop_at": None})
    torch.testing.assert_close(losses(resumed), losses(whole)[6:], atol=0, rtol=0)
    mine, theirs = weights(broken), weights(case)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert list(disk.iterdir()) == []


def test_freeze_under_zero_3_equals_torch(one, two, make_case, differences) -> None:
    reference_case = make_case(method="freeze", optim="sgd")
    reference = one.run(reference_case)
    case = make_case(method="freeze", optim="sgd", world=2, stage=3)
    assert_same((two.run(case), case), (reference, reference_case), differences)


@pytest.mark.parametrize(
    ("world", "accumulation", "micro"), [(1, 1, 8), (1, 2, 4), (1, 8, 1), (2, 1, 4), (2, 4, 1)]
)
def test_splits_of_a_step_are_equal(
    one, two, make_case, differences, world, accumulation, micro
) -> None:
    """The reference gives each sample a row of its own; the others pack."""
    reference_case = make_case(optim="sgd", gradient_accumulation_steps=3, packing=False)
    reference = one.run(reference_case)
    case = make_case(
        packing=True,
        optim="sgd",
        world=world,
        stage=2 if world == 2 else 0,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=micro,
    )
    group = two if world == 2 else one
    lines = group.run(case)
    assert_same((lines, case), (reference, reference_case), differences)
    assert losses(lines, "padding").mean() < losses(reference, "padding").mean()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("optim", ["adamw", pytest.param("sgd", marks=SLOW)])
def test_interrupted_equals_uninterrupted(two, make_case, stage, optim) -> None:
    """Dropout is on: its masks are keyed by place, not by what ran before."""
    same = {"optim": optim, "world": 2, "stage": stage, "method": "lora", "save_steps": 3}
    whole_case = make_case(**same)
    whole = two.run(whole_case)
    # Stops after step 8, so the steps since the checkpoint of step 6 are lost and done again.
    broken = make_case(**same, stop_at=8)
    two.run(broken)
    resumed_case = {**broken, "stop_at": None}
    resumed = two.run(resumed_case)
    assert [line["note"] for line in resumed if "note" in line] == ["continued from step 6"]
    tail = losses(whole)[6:]
    torch.testing.assert_close(losses(resumed), tail, atol=0, rtol=0)
    mine, theirs = weights(resumed_case), weights(whole_case)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("first", "then"), [((2, 3), (1, 0)), ((1, 0), (2, 1)), ((2, 2), (2, 3))])
@pytest.mark.parametrize("optim", ["adamw", pytest.param("sgd", marks=SLOW)])
def test_checkpoint_continues_at_another_world_and_stage(
    one, two, make_case, differences, first, then, optim
) -> None:
    groups = {1: one, 2: two}
    whole_case = make_case(optim=optim)
    whole = one.run(whole_case)
    broken = make_case(optim=optim, world=first[0], stage=first[1], save_steps=4, stop_at=6)
    groups[first[0]].run(broken)
    case = make_case(
        optim=optim, world=then[0], stage=then[1], save_steps=4, run_dir=Path(broken["run_dir"])
    )
    resumed = groups[then[0]].run(case)
    difference = (losses(resumed) - losses(whole)[4:]).abs().max()
    differences("loss", float(difference))
    assert difference <= LOSS_TOLERANCE * losses(whole).max()


@SLOW
def test_killed_anywhere_and_continued_the_joined_log_is_the_unbroken_one(
    one, two, make_case
) -> None:
    """Half a step is nothing: what came after the newest checkpoint is done again, by anyone."""
    groups = {1: one, 2: two}

    def log(case: dict[str, Any]) -> dict[int, list[int]]:
        steps: dict[int, list[int]] = {}
        for path in Path(case["run_dir"]).glob("logs/samples-*.jsonl"):
            for line in map(json.loads, path.read_text().splitlines()):
                steps.setdefault(line["step"], []).extend(line["sample_ids"])
        return {step: sorted(ids) for step, ids in sorted(steps.items())}

    whole = make_case()
    one.run(whole)
    unbroken = log(whole)
    assert [len(ids) for ids in unbroken.values()] == [8, 8, 8, 8, 5] * 2 + [8, 8]

    @settings(max_examples=8, deadline=None)
    @given(
        kills=st.lists(
            st.tuples(st.sampled_from([1, 2]), st.integers(1, STEPS - 1)), min_size=1, max_size=3
        ),
        save_steps=st.integers(1, 5),
        last=st.sampled_from([1, 2]),
    )
    def check(kills: list[tuple[int, int]], save_steps: int, last: int) -> None:
        run_dir = None
        for world, stop_at in kills:
            more = {} if run_dir is None else {"run_dir": run_dir}
            case = make_case(world=world, save_steps=save_steps, stop_at=stop_at, **more)
            run_dir = Path(case["run_dir"])
            groups[world].run(case)
        case = make_case(world=last, save_steps=save_steps, run_dir=run_dir)
        groups[last].run(case)
        assert log(case) == unbroken

    check()


def test_damaged_checkpoint_is_passed_over(one, make_case) -> None:
    broken = make_case(save_steps=2, stop_at=7)
    one.run(broken)
    newest = checkpoint.step_dir(Path(broken["run_dir"]), 6)
    state = next((newest / "state").glob("*.safetensors"))
    state.write_bytes(state.read_bytes()[:-100])
    resumed = one.run({**broken, "stop_at": None})
    notes = [line["note"] for line in resumed if "note" in line]
    assert "step-00000006 is not used" in notes[0]
    assert "damaged" in notes[0]
    assert notes[1] == "continued from step 4"


@SLOW
def test_bfloat16_weights_train_alike_at_every_stage(two, make_case) -> None:
    """The master weights are float32, so the loss falls; bfloat16 rounds, so only roughly alike."""
    runs = [two.run(make_case(world=2, stage=stage, dtype="bfloat16")) for stage in (1, 2, 3)]
    for lines in runs:
        assert losses(lines)[-1] < 0.8 * losses(lines)[0]
        torch.testing.assert_close(losses(lines), losses(runs[0]), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("world", "stage"), [(1, 0), pytest.param(2, 2, marks=SLOW), pytest.param(2, 3, marks=SLOW)]
)
def test_bf16_autocast_follows_float32(one, two, make_case, world, stage) -> None:
    group = two if world == 2 else one
    exact = losses(group.run(make_case(world=world, stage=stage)))
    rounded = losses(group.run(make_case(world=world, stage=stage, bf16=True)))
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, atol=0.05, rtol=0)


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 3)])
@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=SLOW)])
def test_gradient_checkpointing_changes_nothing(
    one, two, make_case, differences, world, stage, method
) -> None:
    group = two if world == 2 else one
    reference_case = make_case(method=method, world=world, stage=stage)
    case = make_case(method=method, world=world, stage=stage, gradient_checkpointing=True)
    assert_same((group.run(case), case), (group.run(reference_case), reference_case), differences)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_new_head_is_the_same_at_every_stage(
    one, two, make_case, differences, asset, two_classes, method
) -> None:
    """A real pre-trained body, a head drawn anew, also where ZeRO-3 partitions while loading."""
    same = {
        "method": method,
        "model": asset("minilm-l6"),
        "dropout": 0.0,
        "task": "seq_cls",
        "data_root": two_classes,
        "learning_rate": 5e-4,
        "max_steps": 4,
    }
    reference = one.run(make_case(**same))
    for stage in (2, 3):
        lines = two.run(make_case(**same, world=2, stage=stage))
        difference = (losses(lines) - losses(reference)).abs().max()
        differences(f"loss at stage {stage}", float(difference))
        assert difference <= LOSS_TOLERANCE
        assert abs(lines[0]["eval_loss"] - reference[0]["eval_loss"]) <= LOSS_TOLERANCE


def test_early_stopping_returns_to_the_best_weights(one, make_case) -> None:
    case = make_case(
        method="full",
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_steps=60,
        eval_steps=2,
        early_stopping_patience=2,
        seed=11,
    )
    lines = one.run(case)
    evaluations = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    result = lines[-1]
    best = min((step for step in evaluations if step), key=evaluations.__getitem__)
    assert result["best_step"] == best
    assert result["step"] == max(evaluations) < 60
    later = [step for step in sorted(evaluations) if step > best]
    assert later == [best + 2, best + 4]
    kept = {path.name for path in (Path(case["run_dir"]) / "checkpoints").iterdir()}
    assert checkpoint.step_dir(Path(case["run_dir"]), best).name in kept
    assert result["test"]["tuned"]["eval_loss"] < result["test"]["base"]["eval_loss"]


def test_a_metric_that_is_not_measured_is_refused_before_the_first_step(one, make_case) -> None:
    case = make_case(metric_for_best_model="brilliance")
    with pytest.raises(AssertionError, match="eval_brilliance is not measured"):
        one.run(case)
    assert not (Path(case["run_dir"]) / "metrics.jsonl").exists()


def test_patience_does_not_outlive_a_better_evaluation(one, make_case) -> None:
    lines = one.run(make_case(learning_rate=5e-3, eval_steps=3, early_stopping_patience=1))
    steps = [line["step"] for line in lines if "eval_loss" in line]
    losses_seen = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses_seen == sorted(losses_seen, reverse=True), "each evaluation is better"
    assert steps == [0, 3, 6, 9, 12]


def test_tensorboard_gets_what_metrics_jsonl_gets(one, make_case) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    case = make_case()
    case["config"]["report_to"] = ["tensorboard"]
    lines = one.run(case)
    events = EventAccumulator(str(Path(case["run_dir"]) / "tensorboard"))
    events.Reload()
    seen = torch.tensor([event.value for event in events.Scalars("loss")])
    torch.testing.assert_close(seen, losses(lines))
    assert [event.step for event in events.Scalars("eval_loss")] == [0, 4, 8, 12]
