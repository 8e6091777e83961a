"""Config files: what is accepted, and what every kind of wrong input is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from distft import plugin
from distft.config import RunConfig
from distft.config_file import load, parse
from distft.errors import ConfigError

BASE = "model: asset:minilm-l6\ndata:\n  train: reviews.csv\n"


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text), overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{folder}/", "")


def test_load_fills_in_defaults_and_name(tmp_path: Path) -> None:
    config = load(write(tmp_path, BASE, "My Reviews (2).yaml"))
    assert config.name == "my-reviews-2"
    assert config.model.id == "asset:minilm-l6"
    assert config.method.name == "lora"
    assert config.task is None
    assert config.run_dir == Path("runs/my-reviews-2")


@pytest.mark.parametrize(
    ("file_name", "name"),
    [("_.yaml", "run"), ("\u5ba2\u670d.yaml", "run"), ("a" * 80 + ".yaml", "a" * 63)],
)
def test_load_makes_a_safe_name_of_any_stem(tmp_path: Path, file_name: str, name: str) -> None:
    assert load(write(tmp_path, BASE, file_name)).name == name


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "0.0001", "1.0e-4", ".1e-3"])
def test_load_reads_scientific_notation_as_a_number(tmp_path: Path, number: str) -> None:
    config = load(write(tmp_path, f"{BASE}train: {{learning_rate: {number}}}\n"))
    assert config.train.learning_rate == pytest.approx(1e-4)


def test_load_takes_a_bare_no_for_eval_strategy(tmp_path: Path) -> None:
    config = load(write(tmp_path, BASE + "train: {eval_strategy: no}\n"))
    assert config.train.eval_strategy == "no"


def test_load_reads_yaml_merge_keys(tmp_path: Path) -> None:
    text = BASE + "cluster: &c {num_workers: 2}\ntrain: {<<: {seed: 1}, max_steps: 3}\n"
    config = load(write(tmp_path, text))
    assert (config.train.seed, config.train.max_steps) == (1, 3)


def test_method_keys_alone_belong_to_the_default_method(tmp_path: Path) -> None:
    assert load(write(tmp_path, BASE + "method: {r: 4}\n")).method.r == 4
    assert load(write(tmp_path, BASE), ["method.r=4"]).method.r == 4


def test_overrides_win_and_are_read_as_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, BASE + "train: {max_steps: 5}\n")
    config = load(
        path,
        [
            "train.max_steps=7",
            "train.learning_rate=1e-4",
            "data.train=[a.csv, b.csv]",
            "model.revision=main",
            "method=freeze",
            "method.trainable_layers=1",
            "name=other",
        ],
    )
    assert config.train.max_steps == 7
    assert config.train.learning_rate == pytest.approx(1e-4)
    assert config.data.train == ["a.csv", "b.csv"]
    assert (config.model.id, config.model.revision) == ("asset:minilm-l6", "main")
    assert (config.method.name, config.method.trainable_layers) == ("freeze", 1)
    assert config.name == "other"


def test_an_override_leaves_a_section_shared_by_an_anchor_alone(tmp_path: Path) -> None:
    text = "model: m\ndata: {train: a, columns: &c {text: t}}\ntask: {name: sft}\nmethod: lora\n"
    config = load(write(tmp_path, text), ["data.columns.label=stars"])
    assert config.data.columns == {"text": "t", "label": "stars"}


@pytest.mark.parametrize("method", sorted(plugin.methods()))
@pytest.mark.parametrize("task", [None, *sorted(plugin.tasks())])
def test_dump_loads_back_to_the_same_config(tmp_path: Path, method: str, task: str | None) -> None:
    text = f"{BASE}method: {method}\ntrain: {{eval_strategy: no, learning_rate: 1e-5}}\n"
    config = load(write(tmp_path, text), [f"task={task}"] if task else [])
    again = load(write(tmp_path, yaml.safe_dump(config.dump()), "again.yaml"))
    assert again == config
    assert again.hash("k", 16) == config.hash("k", 16)


def hash_with(folder: Path, *overrides: str) -> str:
    return load(write(folder, BASE), overrides).hash("key", 16)


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "output_dir=elsewhere",
        "data.train=moved/reviews.csv",
        "cluster.num_workers=2",
        "train.logging_steps=1",
        "train.save_steps=1",
        "train.per_device_train_batch_size=1",
        "report_to=[tensorboard]",
    ],
)
def test_hash_ignores_what_does_not_change_what_is_learnt(tmp_path: Path, override: str) -> None:
    assert hash_with(tmp_path, override) == hash_with(tmp_path)


@pytest.mark.parametrize(
    "override", ["train.seed=1", "train.learning_rate=1e-4", "method.r=4", "model.revision=abc"]
)
def test_hash_follows_what_changes_what_is_learnt(tmp_path: Path, override: str) -> None:
    assert hash_with(tmp_path, override) != hash_with(tmp_path)
    base = load(write(tmp_path, BASE))
    assert len({base.hash("a", 16), base.hash("b", 16), base.hash("a", 8)}) == 3


def test_unknown_key_names_file_line_path_and_nearest_key(tmp_path: Path) -> None:
    message = refusal(tmp_path, BASE + "train:\n  max_steps: 3\n  learning_rat: 1e-4\n")
    assert message.startswith("run.yaml:6: train.learning_rat: unknown key; did you mean")
    assert "did you mean learning_rate?" in message
    assert "allowed here: learning_rate, num_train_epochs" in message


# addition to BASE -> what the message must say
WRONG = {
    "trian: {}": "run.yaml:4: trian: unknown key; did you mean train?",
    "train: {max_steps: many}": 'run.yaml:4: train.max_steps: must be a whole number; got "many"',
    "train: {max_steps: 1.5}": "train.max_steps: must be a whole number; got 1.5",
    "train: {bf16: 1}": "train.bf16: must be true or false; got 1",
    "train: {seed: -1}": "train.seed: must be greater than or equal to 0; got -1",
    "train: {learning_rate: .inf}": "train.learning_rate: must be a finite number; got Infinity",
    "train: {learning_rate: .nan}": "train.learning_rate: must be a finite number",
    "train: {lr_scheduler_type: cosin}": "did you mean cosine; got",
    "train: 5": "run.yaml:4: train: must be a section, that is keys and values; got 5",
    "name: ../x": "run.yaml:4: name: a name becomes a directory: lower-case letters",
    "name: ''": "run.yaml:4: name: a name becomes a directory",
    'name: "a\\n"': "run.yaml:4: name: a name becomes a directory",
    "name: Upper": 'digit, at most 63 characters; got "Upper"',
    "output_dir: ''": "output_dir: must not be empty",
    "method: lorra": "run.yaml:4: method: unknown method 'lorra'; did you mean lora?",
    "task: {name: seqcls}": "run.yaml:4: task: unknown task 'seqcls'; did you mean seq_cls?",
    "task: {max_new_tokens: 3}": "run.yaml:4: task: must be a name or a mapping with a name",
    "method: 5": "run.yaml:4: method: must be a name or a mapping with a name; allowed: ",
    "method:\n  name: lora\n  rank: 8": "run.yaml:6: method.rank: unknown key; did you mean rank_",
    "method:\n  r: 0": "run.yaml:5: method.r: must be greater than or equal to 1; got 0",
    "report_to: wandb": 'run.yaml:4: report_to: must be a list; got "wandb"',
    "report_to: [wandbb]": "report_to: unknown tracker 'wandbb'; did you mean wandb?; allowed: ",
    "cluster: {offload: gpu}": "cluster.offload: must be 'none', 'cpu' or 'nvme'",
    "cluster: {offload: nvme}": "cluster: nvme_path must be set with offload: nvme",
    "cluster: {nvme_path: disk}": "cluster.nvme_path: must be an absolute path of letters",
    "  eval: 2": "run.yaml:4: data.eval: must be less than 1 or must be a string or must be a list",
    "  mix: g.jsonl": "run.yaml:4: data.mix: must be a section, that is keys and values",
    "  mix: {g.jsonl: 1.0}": "run.yaml:4: data.mix.g.jsonl: must be less than 1; got 1.0",
    "  mix: {g.jsonl: 0.6, h.jsonl: 0.4}": "data.mix: the shares must sum to less than 1: the rest",
    "  mix: {g.jsonl: 0.33333}": "the share of g.jsonl must have at most 4 decimals, such as",
    "  mix: {g.jsonl: 0.00001}": "must have at most 4 decimals, such as 0.0001, so that",
    "  format: clasification": "run.yaml:4: data.format: unknown format 'clasification'; did you",
    "  columns: {text: 3}": "run.yaml:4: data.columns.text: must be a string; got 3",
    "  cutoff_len: 1": "data.cutoff_len: must be greater than or equal to 8; got 1",
    "model: b": "run.yaml:4: not valid YAML: the key 'model' stands twice",
    "train: {seed: 1, seed: 2}": "run.yaml:4: not valid YAML: the key 'seed' stands twice",
    "5: 6": "run.yaml:4: 5: keys should be strings",
    "? [a, b]\n: 6": "run.yaml:4: not valid YAML: found unhashable key",
    "train: {seed: 2020-99-99}": "run.yaml: not valid YAML: month must be in 1..12",
    "\ttrain: 3": "run.yaml:4: not valid YAML: found character",
    "train: [": "run.yaml:5: not valid YAML",
    "train: !!python/object:os.system {}": "run.yaml:4: not valid YAML: could not determine",
}


@pytest.mark.parametrize("addition", WRONG)
def test_a_wrong_line_is_named(tmp_path: Path, addition: str) -> None:
    assert WRONG[addition] in refusal(tmp_path, f"{BASE}{addition}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "run.yaml:1: must be a mapping of keys, got null"),
        ("- a\n", 'run.yaml:1: must be a mapping of keys, got ["a"]'),
        ("just words\n", 'run.yaml:1: must be a mapping of keys, got "just words"'),
        ("data: {train: x}\n", "run.yaml:1: model: this key is required"),
        ("model: x\n", "run.yaml:1: data: this key is required"),
        ("model: x\ndata: {eval: 0.2}\n", "run.yaml:2: data.train: this key is required"),
        ("model: x\ndata: foo.csv\n", "run.yaml:2: data: must be a section, that is keys and"),
        ("model: x\ndata: {train: []}\n", "data.train: must be a string or must not be empty"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.max_steps", "'train.max_steps' is not an override: write KEY=VALUE"),
        ("..=2", "'..=2' is not an override"),
        ("train.max_steps=x", "override: train.max_steps: must be a whole number"),
        ("train.max_step=3", "override: train.max_step: unknown key; did you mean"),
        ("nope.a=1", "override: nope: unknown key"),
        ("data.eval=[1", "the value of the override 'data.eval=[1' is not valid YAML"),
        ("data.train.x=1", 'sets a key of train, but train is "reviews.csv"'),
        ("name=a/b", "override: name: a name becomes a directory"),
        ("method.r=0", "override: method.r: must be greater than or equal to 1; got 0"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, said: str) -> None:
    assert said in refusal(tmp_path, BASE, override)


def test_many_errors_are_cut_and_counted(tmp_path: Path) -> None:
    message = refusal(tmp_path, BASE + "".join(f"zz{i}: 1\n" for i in range(7)))
    assert message.count("unknown key") == 5
    assert message.endswith("... and 2 more")


def test_a_missing_file_a_folder_and_binary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml does not exist"):
        load(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load(tmp_path)
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"model: \xff\xfe\n")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        load(path)


def test_parse_takes_plain_data_without_a_file() -> None:
    config = parse({"model": "m", "data": {"train": "a.csv"}, "name": "n"})
    assert isinstance(config, RunConfig)
    with pytest.raises(ConfigError, match=r"^config: data\.trai: unknown key; did you mean train"):
        parse({"model": "m", "data": {"train": "a", "trai": "b"}})


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml")),
    ids=lambda path: path.name,
)
def test_every_shipped_config_loads(path: Path) -> None:
    assert load(path).name == path.stem
