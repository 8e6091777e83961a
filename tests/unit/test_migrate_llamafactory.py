"""`distft migrate` of LLaMA-Factory: keys, data sets and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distft import plugin
from distft.errors import ConfigError
from distft.migrate.convert import migrate
from distft.migrate.writing import config_text, listing
from tests.migrations import LLAMAFACTORY, V1, make_folder, of, outcome, refusal


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with `data/dataset_info.json` and one file of rows."""
    return make_folder(tmp_path, monkeypatch)


def test_their_defaults_are_written_where_ours_differ(folder: Path) -> None:
    made = of(LLAMAFACTORY, folder)
    assert made.config["train"] == {
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "gradient_checkpointing": True,
    }
    assert made.config["method"] == {"name": "lora", "lora_alpha": 16}
    assert made.config["data"] == {
        "format": "alpaca",
        "train": "data/chats.json",
        "cutoff_len": 2048,
        "eval": 0.1,
        "test": 0.1,
    }
    assert made.config["cluster"] == {"num_workers": 1}
    assert made.config["task"] == "sft"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"learning_rate": 1e-4}, {"train.learning_rate": 1e-4}),
        ({"warmup_ratio": 0.1}, {"train.warmup_steps": 0.1}),
        ({"warmup_steps": 20}, {"train.warmup_steps": 20}),
        ({"warmup_ratio": 0.1, "lr_scheduler_type": "constant"}, {"train.warmup_steps": 0}),
        ({"lr_scheduler_type": "cosine"}, {"train.lr_scheduler_type": "cosine"}),
        ({"optim": "adamw_torch_fused"}, {"train.optim": "adamw_torch"}),
        ({"optim": "sgd"}, {"train.optim": "sgd", "train.sgd_momentum": 0.0}),
        ({"max_steps": 50}, {"train.max_steps": 50}),
        ({"eval_strategy": "no"}, {"train.eval_strategy": "no"}),
        ({"metric_for_best_model": "eval_loss"}, {"train.metric_for_best_model": "loss"}),
        ({"early_stopping_steps": 3}, {"train.early_stopping_patience": 3}),
        ({"output_dir": "saves/8B/Run 1"}, {"output_dir": "saves/8B", "name": "run-1"}),
        ({"output_dir": "tmp"}, {"output_dir": "runs", "name": "tmp"}),
        ({"bf16": True}, {"train.bf16": True, "model.dtype": "bfloat16"}),
        ({"pure_bf16": True}, {"train.bf16": True, "model.dtype": "bfloat16"}),
        ({"disable_gradient_checkpointing": True}, {"train.gradient_checkpointing": False}),
        ({"cutoff_len": 512}, {"data.cutoff_len": 512}),
        ({"val_size": 0.05}, {"data.eval": 0.05, "data.test": 0.1}),
        ({"max_samples": 100}, {"data.max_samples": 100}),
        ({"template": "llama3"}, {"data.template": "llama3"}),
        ({"packing": True}, {"data.packing": True}),
        ({"neat_packing": True}, {"data.packing": True}),
        ({"packing": False}, {"data.packing": False}),
        ({"train_on_prompt": True}, {"data.train_on_prompt": True}),
        ({"ray_num_workers": 4}, {"cluster.num_workers": 4}),
        ({"resources_per_worker": {"GPU": 1}}, {"cluster.gpus_per_worker": 1}),
        ({"ray_init_kwargs": {"address": "auto"}}, {"cluster.address": "auto"}),
        ({"lora_rank": 16}, {"method.r": 16, "method.lora_alpha": 32}),
        ({"lora_rank": 16, "lora_alpha": 16}, {"method.r": 16, "method.lora_alpha": 16}),
        ({"lora_target": "all"}, {"method.target_modules": "all-linear"}),
        ({"lora_target": "q_proj,v_proj"}, {"method.target_modules": ["q_proj", "v_proj"]}),
        ({"use_dora": True}, {"method.use_dora": True}),
        ({"use_rslora": True}, {"method.use_rslora": True}),
        ({"loraplus_lr_ratio": 16.0}, {"method.loraplus_lr_ratio": 16.0}),
        ({"pissa_init": True}, {"method.init_lora_weights": "pissa_niter_16"}),
        ({"pissa_init": True, "pissa_iter": -1}, {"method.init_lora_weights": "pissa"}),
        ({"quantization_bit": 4}, {"method.name": "qlora", "method.quant_type": "nf4"}),
        ({"quantization_bit": 8}, {"method.name": "qlora", "method.quant_type": "int8"}),
        (
            {"quantization_bit": 4, "quantization_type": "fp4", "double_quantization": False},
            {"method.quant_type": "fp4", "method.use_double_quant": False},
        ),
        ({"finetuning_type": "full"}, {"method.name": "full"}),
        (
            {"finetuning_type": "freeze", "freeze_trainable_layers": -3},
            {"method.name": "freeze", "method.trainable_layers": -3},
        ),
        (
            {"finetuning_type": "oft", "oft_block_size": 16, "oft_target": "all"},
            {"method.name": "oft", "method.oft_block_size": 16},
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_llamafactory_keys(folder: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    made = of({**LLAMAFACTORY, **theirs}, folder)
    for path, value in ours.items():
        section, _, key = path.partition(".")
        assert (made.config[section][key] if key else made.config[section]) == value


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"stage": "dpo"}, "stage: dpo (distft trains stages sft and pt"),
        ({"stage": "ppo"}, "stage: ppo"),
        ({"do_train": False}, "it trains nothing; `distft evaluate`"),
        ({"dataset": None}, "it names no rows to train on"),
        ({"dataset": "pictures"}, "pictures has images; distft learns from text"),
        ({"dataset": "pairs"}, "pairs holds preferences"),
        ({"dataset": "odd"}, "odd tags its turns otherwise (user_tag Q, assistant_tag A)"),
        ({"dataset": "script"}, "script comes by script_url"),
        ({"dataset": "chat"}, "holds no data set 'chat'; did you mean chats?"),
        ({"dataset": "chats,questions"}, "reads one format and one set of columns"),
        ({"image_max_pixels": 9}, "distft learns from text only"),
        ({"finetuning_type": "other"}, "distft carries over full, freeze, lora and oft"),
        ({"quantization_bit": 4, "finetuning_type": "full"}, "on a quantized base"),
        ({"quantization_bit": 2}, "4 or 8 bits"),
        ({"quantization_bit": 4, "quantization_method": "hqq"}, "with bitsandbytes"),
        ({"model_name_or_path": "org/model-AWQ"}, "stored as AWQ"),
        ({"model_name_or_path": "org/model-unsloth-bnb-4bit"}, "stored as BNB-4BIT"),
        ({"adapter_name_or_path": "saves/lora"}, "merge that adapter into it first"),
        ({"additional_target": "embed_tokens"}, "trains new heads only"),
        ({"mask_history": True}, "all answers of a conversation are learnt"),
        ({"deepspeed": "somewhere/custom.json"}, "its name tells no ZeRO stage"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_llamafactory_refusals(folder: Path, theirs: dict[str, Any], said: str) -> None:
    assert said in refusal({**LLAMAFACTORY, **theirs}, folder)


def test_all_reasons_are_said_at_once(folder: Path) -> None:
    said = refusal(
        {**LLAMAFACTORY, "stage": "kto", "dataset": "pairs", "use_dft_loss": True}, folder
    )
    assert [line.split(":")[0] for line in said.splitlines()[1:]] == [
        *("- stage", "- dataset", "- use_dft_loss"),
    ]


@pytest.mark.parametrize(
    ("name", "form", "columns"),
    [
        ("chats", "alpaca", {}),
        ("questions", "prompt_completion", {"prompt": "question", "completion": "answer"}),
        (
            "histories",
            "query_response",
            {"query": "q", "response": "a", "system": "s", "history": "h"},
        ),
        (
            "columns",
            "alpaca",
            {"instruction": "q", "input": "given", "output": "a", "system": "s"},
        ),
        ("tools", "sharegpt", {"tools": "functions"}),
        ("turns", "messages", {"messages": "talk"}),
    ],
)
def test_dataset_info_gives_format_and_columns(
    folder: Path, name: str, form: str, columns: dict[str, str]
) -> None:
    data = of({**LLAMAFACTORY, "dataset": name}, folder).config["data"]
    assert data["format"] == form
    assert data.get("columns", {}) == columns


def test_pretraining_learns_texts(folder: Path) -> None:
    made = of({**LLAMAFACTORY, "stage": "pt", "dataset": "texts", "template": "llama3"}, folder)
    assert made.config["task"] == "causal_lm"
    assert made.config["data"]["format"] == "text"
    assert made.config["data"]["columns"] == {"text": "content"}
    assert outcome(made, "template") == ("absent", {})


def test_a_set_on_the_hub_becomes_an_address_and_is_said(folder: Path) -> None:
    made = of({**LLAMAFACTORY, "dataset": "hub"}, folder)
    assert made.config["data"]["train"] == "hf://datasets/org/rows"
    assert outcome(made, "dataset")[0] == "decided"
    assert "(there: subset en, split train)" in listing(made)


def test_names_of_hub_data_need_no_dataset_info(folder: Path) -> None:
    made = of({**LLAMAFACTORY, "dataset_dir": "ONLINE", "dataset": "org/a,org/b"}, folder)
    assert made.config["data"]["train"] == ["hf://datasets/org/a", "hf://datasets/org/b"]


def test_a_file_that_is_not_here_is_said(folder: Path) -> None:
    said = listing(of({**LLAMAFACTORY, "dataset": "more"}, folder))
    assert "more.json is not on this machine" in said


def test_several_sets_are_a_list_or_a_mix(folder: Path) -> None:
    made = of({**LLAMAFACTORY, "dataset": "chats, more", "max_samples": 10}, folder)
    assert made.config["data"]["train"] == ["data/chats.json", "data/more.json"]
    assert made.config["data"]["max_samples"] == 20
    both = {"dataset": "chats,more", "mix_strategy": "interleave_over", "max_samples": 10}
    mixed = of({**LLAMAFACTORY, **both, "interleave_probs": "0.7,0.3"}, folder).config["data"]
    assert (mixed["train"], mixed["mix"]) == ("data/chats.json", {"data/more.json": 0.3})
    assert mixed["max_samples"] == 10
    assert of({**LLAMAFACTORY, **both}, folder).config["data"]["mix"] == {"data/more.json": 0.5}


def test_eval_sets_are_files_of_their_own(folder: Path) -> None:
    data = of({**LLAMAFACTORY, "eval_dataset": "more"}, folder).config["data"]
    assert (data["eval"], data["test"]) == ("data/more.json", 0.1)


def test_without_dataset_info_the_option_is_named(folder: Path) -> None:
    (folder / "data" / "dataset_info.json").rename(folder / "dataset_info.json")
    with pytest.raises(ConfigError, match=r"data holds no dataset_info\.json") as caught:
        of(LLAMAFACTORY, folder)
    assert caught.value.hint == "Give the folder that does: --dataset-dir DIR."
    assert migrate(folder / "theirs.yaml", folder).config["data"]["train"] == "chats.json"


def test_deepspeed_is_read_from_the_file_or_told_by_its_name(folder: Path) -> None:
    settings_ = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    (folder / "mine.json").write_text(json.dumps(settings_))
    made = of({**LLAMAFACTORY, "deepspeed": "mine.json"}, folder)
    assert outcome(made, "deepspeed")[1] == {"cluster.zero_stage": 2, "cluster.offload": "cpu"}
    made = of({**LLAMAFACTORY, "deepspeed": settings_}, folder)
    assert outcome(made, "deepspeed")[1] == {"cluster.zero_stage": 2, "cluster.offload": "cpu"}
    disk: dict[str, Any] = {"device": "nvme", "nvme_path": "/local"}
    settings_ = {"zero_optimization": {"stage": 3, "offload_optimizer": disk}}
    made = of({**LLAMAFACTORY, "deepspeed": settings_}, folder)
    wanted = {"zero_stage": 3, "offload": "nvme", "nvme_path": "/local"}
    assert outcome(made, "deepspeed")[1] == {f"cluster.{k}": v for k, v in wanted.items()}
    del disk["nvme_path"]
    made = of({**LLAMAFACTORY, "deepspeed": settings_}, folder)
    assert made.config["cluster"]["nvme_path"] == "/mnt/nvme"
    assert "/mnt/nvme is a guess" in str(made)


@pytest.mark.parametrize(
    ("name", "stage", "offload"),
    [
        ("examples/deepspeed/ds_z3_config.json", 3, None),
        ("examples/deepspeed/ds_z2_offload_config.json", 2, "cpu"),
        ("ds_z0_config.json", 0, None),
        ("deepspeed_configs/zero3_bf16_cpuoffload_all.json", 3, "cpu"),
        ("deepspeed_configs/zero1.json", 1, None),
        ("zero2_offload", 2, "cpu"),
        ("configs/ds_config_zero3.json", 3, None),
        ("zero_stage1-offload.json", 1, "cpu"),
    ],
)
def test_the_name_of_a_preset_tells(
    folder: Path, name: str, stage: int, offload: str | None
) -> None:
    cluster = of({**LLAMAFACTORY, "deepspeed": name}, folder).config["cluster"]
    assert (cluster["zero_stage"], cluster.get("offload")) == (stage, offload)


def test_what_does_not_combine_here_is_refused_in_our_words(folder: Path) -> None:
    config = {**LLAMAFACTORY, "quantization_bit": 4, "deepspeed": "ds_z3_config.json"}
    assert "Method qlora does not go with cluster.zero_stage=3" in refusal(config, folder)


def test_two_keys_that_contradict_one_another_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="warmup_ratio and warmup_steps say different things"):
        of({**LLAMAFACTORY, "warmup_ratio": 0.1, "warmup_steps": 5}, folder)


def test_a_wrong_value_names_their_key(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"theirs\.yaml: lora_rank: method\.r: must be"):
        of({**LLAMAFACTORY, "lora_rank": "eight", "lora_alpha": 16}, folder)
    with pytest.raises(ConfigError, match="val_size: got many, which LLaMA-Factory does not allow"):
        of({**LLAMAFACTORY, "val_size": "many"}, folder)


def test_trackers_that_we_have_are_taken(folder: Path) -> None:
    have = list(plugin.trackers())
    made = of({**LLAMAFACTORY, "report_to": [have[0], "swanlab"]}, folder)
    assert made.config["report_to"] == [have[0]]
    assert outcome(made, "report_to")[0] == "decided"
    assert of({**LLAMAFACTORY, "report_to": "none"}, folder).config["report_to"] == []


def test_secrets_are_not_shown(folder: Path) -> None:
    secret = "hf_SECRET"
    made = of(
        {
            **LLAMAFACTORY,
            "hf_hub_token": secret,
            "swanlab_api_key": secret,
            "ray_init_kwargs": {"runtime_env": {"env_vars": {"WANDB_API_KEY": secret}}},
        },
        folder,
    )
    assert secret not in config_text(made) + listing(made) + json.dumps(made.as_dict())
    assert "hf_hub_token: ***" in listing(made)


# LLaMA-Factory v1.


def test_v1_is_read_by_sections(folder: Path) -> None:
    made = of(
        {
            **V1,
            "peft_config": {"name": "lora", "r": 16, "target_modules": "all"},
            "quant_config": {"name": "bnb", "quantization_bit": 8},
            "dist_config": {"name": "deepspeed", "config_file": "ds_z2_config.json"},
            "kernel_config": {"name": "auto", "odd": 1},
            "global_batch_size": 4,
        },
        folder,
    )
    assert made.config["method"] == {
        "name": "qlora",
        "quant_type": "int8",
        "r": 16,
        "target_modules": "all-linear",
        "lora_alpha": 16,
        "lora_dropout": 0.05,
    }
    assert made.config["data"]["train"] == "data/chats.json"
    assert made.config["train"]["lr_scheduler_type"] == "constant"
    assert made.config["cluster"]["zero_stage"] == 2
    assert outcome(made, "kernel_config.odd") == ("absent", {})


def test_v1_rows_need_a_converter(folder: Path) -> None:
    (folder / "sets.yaml").write_text(yaml.safe_dump({"own": {"path": "x.jsonl"}}))
    assert "own holds no rows that distft reads" in refusal(V1, folder)
    assert "no such YAML of data sets" in refusal({**V1, "train_dataset": "org/rows"}, folder)
