"""`distft migrate` of axolotl: keys, data sets and refusals.

The configs are our own, in the style of its documentation.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distft import api, config_file
from distft.migrate.writing import config_text
from tests.migrations import AXOLOTL, make_folder, of, refusal


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with `data/dataset_info.json` and one file of rows."""
    return make_folder(tmp_path, monkeypatch)


def test_axolotl_defaults_are_written_where_ours_differ(folder: Path) -> None:
    made = of(AXOLOTL, folder)
    assert made.config["method"] == {"name": "full"}
    assert made.config["data"] == {
        "format": "messages",
        "train": "chats.jsonl",
        "cutoff_len": 512,
        "eval": 0.1,
        "test": 0.1,
    }
    assert made.config["train"] == {
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1.0,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.0,
        "warmup_steps": 0.03,
        "bf16": True,
    }


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"micro_batch_size": 2}, {"train.per_device_train_batch_size": 2}),
        ({"num_epochs": 4}, {"train.num_train_epochs": 4}),
        ({"optimizer": "adamw_bnb_8bit"}, {"train.optim": "adamw_torch"}),
        ({"lr_scheduler": "linear"}, {"train.lr_scheduler_type": "linear"}),
        ({"val_set_size": 0.05}, {"data.eval": 0.05}),
        ({"sequence_len": 4096}, {"data.cutoff_len": 4096}),
        ({"sample_packing": True}, {"data.packing": True}),
        ({"train_on_inputs": True}, {"data.train_on_prompt": True}),
        ({"gradient_checkpointing": "offload"}, {"train.gradient_checkpointing": True}),
        ({"evals_per_epoch": 1}, {"train.eval_strategy": "epoch"}),
        ({"chat_template": "chatml"}, {"data.template": "chatml"}),
        ({"deepspeed": "deepspeed_configs/zero2.json"}, {"cluster.zero_stage": 2}),
        ({"adapter": "lora", "lora_r": 16}, {"method.name": "lora", "method.r": 16}),
        ({"adapter": "lora", "lora_target_linear": True}, {"method.target_modules": "all-linear"}),
        (
            {"adapter": "lora", "lora_target_modules": ["q_proj"]},
            {"method.target_modules": ["q_proj"]},
        ),
        ({"adapter": "lora", "peft_use_dora": True}, {"method.use_dora": True}),
        ({"adapter": "lora", "load_in_8bit": True}, {"method.quant_type": "int8"}),
        (
            {"adapter": "qlora", "load_in_4bit": True, "lora_dropout": 0.05},
            {"method.name": "qlora", "method.quant_type": "nf4", "method.lora_dropout": 0.05},
        ),
        ({"adapter": "lora", "bf16": "auto"}, {"model.dtype": "bfloat16"}),
        ({"test_datasets": [{"path": "chats.jsonl", "type": "chat_template"}]}, {"data.test": 0.1}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_axolotl_keys(folder: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    made = of({**AXOLOTL, **theirs}, folder)
    for path, value in ours.items():
        section, _, key = path.partition(".")
        assert made.config[section][key] == value


@pytest.mark.parametrize(
    ("section", "data"),
    [
        ({"path": "chats.jsonl", "type": "alpaca"}, {"format": "alpaca", "template": "alpaca"}),
        (
            {"path": "s3://bucket/rows.jsonl", "type": "chat_template"},
            {"train": "s3://bucket/rows.jsonl"},
        ),
        ({"path": "org/rows", "type": "chat_template"}, {"train": "hf://datasets/org/rows"}),
        (
            {"path": "json", "data_files": ["chats.jsonl"], "type": "chat_template"},
            {"train": "chats.jsonl"},
        ),
        (
            {"path": "chats.jsonl", "type": "sharegpt", "conversation": "chatml"},
            {"format": "sharegpt"},
        ),
        (
            {
                "path": "chats.jsonl",
                "type": "chat_template",
                "field_messages": "conversations",
                "message_property_mappings": {"role": "from", "content": "value"},
            },
            {"format": "sharegpt"},
        ),
        (
            {"path": "chats.jsonl", "type": "chat_template", "field_messages": "talk"},
            {"format": "messages", "columns": {"messages": "talk"}},
        ),
        (
            {
                "path": "chats.jsonl",
                "type": {
                    "field_instruction": "q",
                    "field_output": "a",
                    "format": "Q: {instruction}",
                },
            },
            {"format": "alpaca", "columns": {"instruction": "q", "output": "a"}},
        ),
        (
            {"path": "chats.jsonl", "type": "completion", "field": "content"},
            {"format": "text", "columns": {"text": "content"}},
        ),
    ],
    ids=lambda value: str(value.get("type", "")) if isinstance(value, dict) else None,
)
def test_axolotl_data_sets(folder: Path, section: dict[str, Any], data: dict[str, Any]) -> None:
    made = of({**AXOLOTL, "datasets": [section]}, folder)
    assert {key: made.config["data"][key] for key in data} == data
    assert made.config["task"] == ("causal_lm" if section["type"] == "completion" else "sft")
    assert {f"datasets[0].{key}" for key in section} <= {one.key for one in made.entries}


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"rl": "dpo"}, "rl: dpo (distft learns from no preferences"),
        ({"datasets": None}, "it names no rows to train on"),
        ({"datasets": [{"path": "x.jsonl", "type": "input_output"}]}, "is of type input_output"),
        (
            {"datasets": [{"path": "x.jsonl", "type": "chat_template", "split": "test"}]},
            "name the files",
        ),
        ({"learning_rate": None}, "axolotl asks for it"),
        ({"model_type": "AutoModelForSequenceClassification"}, "causal language models"),
        ({"tokens": ["<a>"]}, "the tokenizer stays"),
        ({"adapter": "llama-adapter"}, "lora, qlora and training without an adapter"),
        ({"load_in_4bit": True}, "adapter: qlora"),
        ({"lora_modules_to_save": ["embed_tokens"]}, "new heads only"),
        ({"chat_template": "jinja"}, "save the template"),
        (
            {
                "datasets": [
                    {"path": "x.jsonl", "type": "chat_template", "roles_to_train": ["user"]}
                ]
            },
            "distft learns answers",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_axolotl_refusals(folder: Path, theirs: dict[str, Any], said: str) -> None:
    assert said in refusal({**AXOLOTL, **theirs}, folder)


def test_an_axolotl_config_plans(folder: Path, asset: Callable[[str], Path]) -> None:
    asset("smollm2-135m-instruct")
    made = of(
        {
            "base_model": "asset:smollm2-135m-instruct",
            "adapter": "qlora",
            "load_in_4bit": True,
            "lora_r": 8,
            "lora_alpha": 16,
            "lora_target_linear": True,
            "datasets": [{"path": "chats.jsonl", "type": "chat_template"}],
            "sequence_len": 256,
            "sample_packing": True,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_epochs": 2,
            "optimizer": "paged_adamw_8bit",
            "lr_scheduler": "cosine",
            "learning_rate": 2e-4,
            "warmup_ratio": 0.1,
            "val_set_size": 0.1,
            "bf16": "auto",
            "tf32": True,
            "flash_attention": True,
            "wandb_project": None,
            "special_tokens": {"pad_token": "<|im_end|>"},
            "output_dir": "./outputs/qlora",
        },
        folder,
    )
    (folder / "ours.yaml").write_text(config_text(made))
    plan = api.plan(config_file.load(folder / "ours.yaml"))
    assert (plan.global_batch_size, plan.rows["train"]) == (4, 24)
    assert plan.total_steps == 12
