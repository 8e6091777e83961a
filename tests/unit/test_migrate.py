"""`distft migrate`: what becomes of each key, and that none goes unsaid.

The axolotl configs here are our own, in the style of its documentation.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distft import api, config_file
from distft.errors import ConfigError, PlanError
from distft.migrate import trainer_keys
from distft.migrate.convert import PROGRAMS, Migration, migrate
from distft.migrate.rules import UNKNOWN, Program, Theirs, shown
from distft.migrate.writing import config_text, listing

LLAMAFACTORY: dict[str, Any] = {
    "model_name_or_path": "org/model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "chats",
}
V1: dict[str, Any] = {"model": "org/model", "model_class": "llm", "train_dataset": "sets.yaml"}
AXOLOTL: dict[str, Any] = {
    "base_model": "org/model",
    "datasets": [{"path": "chats.jsonl", "type": "chat_template"}],
    "learning_rate": 2e-4,
}
INFO = {
    "chats": {"file_name": "chats.json"},
    "more": {"file_name": "more.json"},
    "hub": {"hf_hub_url": "org/rows", "split": "train", "subset": "en"},
    "texts": {"file_name": "texts.jsonl", "columns": {"prompt": "content"}},
    "questions": {"file_name": "q.json", "columns": {"prompt": "question", "response": "answer"}},
    "histories": {
        "file_name": "h.json",
        "columns": {"prompt": "q", "response": "a", "system": "s", "history": "h"},
    },
    "columns": {
        "file_name": "c.json",
        "columns": {"prompt": "q", "query": "given", "response": "a", "system": "s"},
    },
    "tools": {
        "file_name": "t.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "tools": "functions"},
    },
    "turns": {
        "file_name": "turns.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        },
    },
    "odd": {
        "file_name": "odd.json",
        "formatting": "sharegpt",
        "tags": {"user_tag": "Q", "assistant_tag": "A"},
    },
    "pairs": {"file_name": "p.json", "ranking": True},
    "pictures": {"file_name": "i.json", "columns": {"images": "images"}},
    "script": {"script_url": "load.py"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with `data/dataset_info.json` and one file of rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(INFO))
    rows = [{"instruction": f"Say {i}.", "output": str(i)} for i in range(30)]
    (tmp_path / "data" / "chats.json").write_text(json.dumps(rows))
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"Say {i}."},
                {"role": "assistant", "content": str(i)},
            ]
        }
        for i in range(30)
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    sets = {"chats": {"path": "data/chats.json", "source": "local", "converter": "alpaca"}}
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump(sets))
    return tmp_path


def of(config: dict[str, Any], folder: Path) -> Migration:
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return migrate(path)


def refusal(config: dict[str, Any], folder: Path) -> str:
    with pytest.raises(PlanError) as caught:
        of(config, folder)
    return str(caught.value)


def outcome(made: Migration, key: str) -> tuple[str, dict[str, Any]]:
    (entry,) = [one for one in made.entries if one.key == key]
    return entry.outcome.verdict, dict(entry.outcome.sets)


# Every key of the input is said, once.

# Beginning with a letter, so that YAML reads no number.
KEYS = st.text(st.characters(codec="ascii", exclude_characters=".[]"), max_size=12).map("k".__add__)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.floats(0, 2),
    st.sampled_from(["", "auto", "none", "all", "a,b"]),
    st.text(max_size=5),
)
VALUES = st.one_of(PLAIN, st.lists(PLAIN, max_size=2), st.dictionaries(KEYS, PLAIN, max_size=2))
BASES = {"LLaMA-Factory": LLAMAFACTORY, "LLaMA-Factory (v1)": V1, "axolotl": AXOLOTL}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.name)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(more=st.dictionaries(KEYS, VALUES, max_size=5))
def test_every_key_ends_up_in_exactly_one_list(
    folder: Path, program: Program, more: dict[str, Any]
) -> None:
    base = BASES[program.name]
    known = {key.partition(".")[0].removesuffix("[]") for key in program.keys}
    strange = {key: value for key, value in more.items() if key not in known}
    made = of({**strange, **base}, folder)
    assert made.program == program.name
    assert {one.key for one in made.of("absent")} >= set(strange)
    assert all(
        one.outcome.reason.startswith((UNKNOWN, "not set"))
        for one in made.entries
        if one.key in strange
    )
    lists = [one.key for kind in ("mapped", "decided", "absent") for one in made.of(kind)]
    assert sorted(lists) == sorted(one.key for one in made.entries)
    assert len(set(lists)) == len(lists)
    document = made.as_dict()
    assert sum(len(document[kind]) for kind in ("mapped", "decided", "absent")) == len(lists)
    said = listing(made)
    assert all(f"\n  {shown(one.key)}" in said for one in made.entries)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.name)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_of_a_known_key_ends_in_a_traceback(
    folder: Path, program: Program, data: st.DataObject
) -> None:
    single = sorted(key for key in program.keys if not {".", "["} & set(key))
    more = data.draw(st.dictionaries(st.sampled_from(single), VALUES, min_size=1, max_size=3))
    try:
        made = of({**BASES[program.name], **more}, folder)
    except (ConfigError, PlanError):
        return
    assert {one.key for one in made.entries} >= {key for key in more if "." not in key} - {
        "datasets"
    }
    config_file.parse(yaml.safe_load(config_text(made)) | {"name": "run"})


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.name)
def test_a_key_of_the_table_does_something_or_has_a_reason(program: Program) -> None:
    rows = {"path": "rows.jsonl", "type": "chat_template"}
    lists = ("datasets[0]", "test_datasets[0]")
    theirs = Theirs(
        {f"{name}.{key}": one for name in lists for key, one in rows.items()}, Path("theirs.yaml")
    )
    for key, rule in program.keys.items():
        with contextlib.suppress(ConfigError, TypeError, AttributeError):
            told = rule(True, theirs)
            assert told.sets or told.reason, key
            assert not (told.sets and told.verdict in ("absent", "refused")), key


def test_an_empty_list_or_section_is_said_too(folder: Path) -> None:
    made = of({**AXOLOTL, "test_datasets": [], "fsdp_config": {}}, folder)
    assert outcome(made, "test_datasets") == ("absent", {})
    assert outcome(made, "fsdp_config") == ("absent", {})
    made = of({**V1, "quant_config": {}, "peft_config": None}, folder)
    assert outcome(made, "quant_config") == ("absent", {})
    assert outcome(made, "peft_config") == ("absent", {})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**AXOLOTL, "datasets": "rows.jsonl"}, "datasets: rows.jsonl (distft reads it as a list"),
        ({**V1, "peft_config": "lora"}, "peft_config: lora (distft reads it as a section)"),
        ({**AXOLOTL, "datasets": [{"type": "alpaca"}]}, "it names no rows to train on"),
        ({**AXOLOTL, "datasets": []}, "it names no rows to train on"),
    ],
)
def test_a_section_of_another_shape_is_refused(
    folder: Path, config: dict[str, Any], said: str
) -> None:
    assert said in refusal(config, folder)


# Which program it is.


def test_it_says_what_told_the_program(folder: Path) -> None:
    made = of(LLAMAFACTORY, folder)
    assert made.program == "LLaMA-Factory"
    assert made.because == ("model_name_or_path", "finetuning_type", "stage", "dataset")
    assert of(AXOLOTL, folder).because == ("base_model", "datasets")
    assert of(V1, folder).because == ("model", "model_class", "train_dataset")


def test_another_yaml_is_told_from_theirs(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no config of LLaMA-Factory") as caught:
        of({"compute_environment": "LOCAL_MACHINE"}, folder)
    assert "base_model" in str(caught.value)


def test_a_file_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml does not exist"):
        migrate(folder / "gone.yaml")


# LLaMA-Factory.


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
    have = trainer_keys.trackers()
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


# axolotl.


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


# The command.


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distft.cli", "migrate", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False
    )


def test_the_command_prints_a_config_and_lists_the_keys(folder: Path) -> None:
    of({**LLAMAFACTORY, "flash_attn": "fa2", "warmup_ratio": 0.1}, folder)
    done = run("theirs.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["train"]["warmup_steps"] == 0.1
    assert "  warmup_steps: 0.1  # warmup_ratio\n" in done.stdout
    assert "# - flash_attn: fa2 (kernels" in done.stdout
    assert "theirs.yaml is a config of LLaMA-Factory (told by model_name_or_path" in done.stderr
    assert "without counterpart: 1\n  flash_attn: fa2 (kernels" in done.stderr


def test_the_command_writes_a_new_file_only(folder: Path) -> None:
    of(LLAMAFACTORY, folder)
    done = run("theirs.yaml", "ours.yaml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["path"] == "ours.yaml"
    assert document["config"] == yaml.safe_load((folder / "ours.yaml").read_text())
    again = run("theirs.yaml", "ours.yaml", cwd=folder)
    assert (again.returncode, again.stdout) == (3, "")
    assert "ours.yaml exists already" in again.stderr
