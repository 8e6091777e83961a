"""The only place that loads and saves models: tokenizer, base model, heads, folders."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from distft import adapter, assets, chat, heads, shape, virtual_tokens
from distft.config_sections import ModelConfig
from distft.errors import ConfigError, TrainError
from distft.heads import Gather
from distft.plugin import Quantization, Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def model_path(model: ModelConfig) -> str:
    """Return what `from_pretrained` takes: a folder, or a hub id.

    Args:
        model: Which model.

    Returns:
        An absolute folder for assets and local paths, the id itself otherwise.

    Raises:
        ConfigError: It looks like a path and no model lies there.
    """
    quiet()
    if model.id.startswith("asset:"):
        return str(assets.resolve(model.id, "model"))
    folder = Path(model.id).expanduser()
    looks_local = model.id.startswith((".", "/", "~")) or model.id.count("/") > 1 or folder.exists()
    if not looks_local:
        return model.id
    if not (folder / "config.json").is_file():
        what = "exists but holds no config.json" if folder.exists() else "does not exist"
        raise ConfigError(
            f"model.id: {model.id} is no model: the folder {what}.",
            "Give a folder written by save_pretrained, a hub id such as org/name, or asset:NAME.",
        )
    return str(folder.resolve())


def load_tokenizer(model: ModelConfig, template: str | None = None) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer, padding on the right, with a padding token.

    Args:
        model: Which model.
        template: How it writes conversations; None: as its files say.

    Returns:
        A fast tokenizer where the model has one.

    Raises:
        ConfigError: There is none to load, or it cannot take the template.
    """
    path = model_path(model)
    with _explained(model):
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if template is not None:
        chat.use_template(tokenizer, template)
    return tokenizer


def load_config(
    model: ModelConfig,
    task: Task | None = None,
    labels: Sequence[str] = (),
    *,
    stated: bool = False,
) -> Any:
    """Return the model's configuration with labels and dropout set.

    Args:
        model: Which model.
        task: The task whose head it gets; None leaves the labels alone.
        labels: Class names in id order.
        stated: Take `model.shape` where there is one, and read no file.

    Returns:
        A transformers configuration.

    Raises:
        ConfigError: There is none to load, or it is not what `model.shape` states.
    """
    if stated and model.shape is not None:
        config = shape.configuration(model.shape)
    else:
        config = _read_config(model)
    if task is not None and task.num_outputs is not None:
        config.num_labels = task.num_outputs
    if task is not None and task.labels == "vector":
        # Decides what a pipeline of transformers makes of the outputs.
        config.problem_type = "regression" if task.num_outputs else "multi_label_classification"
    if task is not None and labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    if model.dropout is not None:
        for key, value in config.to_dict().items():
            if ("dropout" in key or key.endswith("_pdrop")) and isinstance(value, float):
                setattr(config, key, model.dropout)
    return config


def _read_config(model: ModelConfig) -> PretrainedConfig:
    path = model_path(model)
    with _explained(model):
        config: PretrainedConfig = transformers.AutoConfig.from_pretrained(
            path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    shape.check(model, config)
    if config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = load_tokenizer(model).pad_token_id
    return config


def decoder_start_id(model: ModelConfig) -> int:
    """Return the id a decoder begins with.

    Args:
        model: An encoder-decoder model.

    Returns:
        From its configuration.

    Raises:
        ConfigError: It says none.
    """
    config = load_config(model)
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise ConfigError(
            f"model.id: the configuration of {model.id} names no decoder_start_token_id.",
            "Take an encoder-decoder model such as T5.",
        )
    return int(start)


def max_positions(model: ModelConfig, *, stated: bool = False) -> int | None:
    """Return the longest sequence the model takes, in tokens; None where it has no limit.

    Args:
        model: Which model.
        stated: Take `model.shape` where there is one, and read no file.

    Returns:
        Its number of positions, without those its architecture reserves.
    """
    config = load_config(model, stated=stated)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return None
    # RoBERTa-like models count positions from padding_idx + 1 (modeling_roberta.py).
    reserved = 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return int(limit) - reserved


def build_meta(model: ModelConfig, task: Task, labels: Sequence[str]) -> PreTrainedModel:
    """Return the model with shapes and no memory, for counting.

    Its files are looked into only where what they hold changes the count; with `model.shape`
    there need be none.

    Args:
        model: Which model.
        task: Decides the head.
        labels: Class names in id order.

    Returns:
        A model whose tensors are all on the meta device.

    Raises:
        ConfigError: There is none to load.
        TrainError: Weights of the pre-trained body are missing from the files.
    """
    quiet()
    config = load_config(model, task, labels, stated=True)
    with torch.device("meta"):
        built = from_config(model, task, config)
    if heads.is_uncertain(built, task):
        _, lacked = _from_files(model, task, config, device_map="meta")
        heads.note_new(built, _checked(model, built, lacked, task))
    return built


def from_config(model: ModelConfig, task: Task, config: PretrainedConfig) -> PreTrainedModel:
    """Return a model of a configuration, its weights as they are drawn where it is built.

    Args:
        model: Whose configuration, for messages and its type of weights.
        task: Decides the head.
        config: Of transformers.

    Returns:
        The model in training mode.

    Raises:
        ConfigError: The architecture has no such head.
    """
    with _explained(model):
        built: PreTrainedModel = _auto(task).from_config(
            config, dtype=_dtype(model), trust_remote_code=model.trust_remote_code
        )
    built.tie_weights()
    built.train()
    return built


def load_model(
    model: ModelConfig,
    task: Task,
    labels: Sequence[str],
    *,
    seed: int,
    gather: Gather = lambda parameters: contextlib.nullcontext(),
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """Return the pre-trained model with the task's head, on the CPU.

    New head weights are drawn from (seed, parameter name), so that they are the same whatever
    the world size, the ZeRO stage and the order of loading.

    Args:
        model: Which model.
        task: Decides the head.
        labels: Class names in id order.
        seed: Seeds the new weights.
        gather: How to make partitioned parameters whole.
        quantization: How the weights of its linear layers are stored; None: as `model.dtype` says.

    Returns:
        The model in training mode.

    Raises:
        ConfigError: There is none to load.
        TrainError: Weights of the pre-trained body are missing from the files.
    """
    config = load_config(model, task, labels)
    quantized = _quantized(model, task, labels, quantization)
    loaded, lacked = _from_files(model, task, config, **quantized)
    new = _checked(model, loaded, lacked, task)
    heads.draw_new(loaded, new, seed, gather)
    heads.note_new(loaded, new)
    loaded.train()
    return loaded


def load_folder(folder: Path, task: Task) -> nn.Module:
    """Return a model that a run wrote, for inference: a plain folder, or an adapter on its base.

    Args:
        folder: What `distft export` or a run wrote.
        task: Decides the head.

    Returns:
        The model in evaluation mode, in float32 or as it was saved.
    """
    quiet()
    if not (folder / "adapter_config.json").is_file():
        plain: nn.Module = _auto(task).from_pretrained(folder, dtype="auto")
        return plain.eval()
    import peft

    from distft import bottleneck  # noqa: F401 - registers its adapters with PEFT

    base_path = peft.PeftConfig.from_pretrained(folder).base_model_name_or_path
    # The adapter's own folder knows the labels; the base would come with a head of another size.
    config = transformers.AutoConfig.from_pretrained(folder)
    base = _auto(task).from_pretrained(
        base_path,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=task.new_head,
        **adapter.take_quantization(config),
    )
    adapter.keep_layout(base)
    adapted: nn.Module = peft.PeftModel.from_pretrained(base, folder)
    return virtual_tokens.align(adapted).eval()


def save_folder(
    module: nn.Module, model: ModelConfig, folder: Path, template: str | None = None
) -> None:
    """Write a trained module and its tokenizer as a Hugging Face folder, weights as safetensors.

    Args:
        module: A transformers model, or a PEFT adapter on one.
        model: Whose tokenizer goes with it.
        folder: Made if absent.
        template: How it was taught to write conversations; None: as its files say.
    """
    module.save_pretrained(folder)  # type: ignore[operator]  # of transformers and of PEFT
    if initial := getattr(module, adapter.INITIAL, None):
        adapter.plain_lora(folder, initial)
    if (folder / "adapter_config.json").is_file():
        # The base's configuration with the labels: whoever loads the adapter needs the head's size.
        module.config.save_pretrained(folder)  # type: ignore[union-attr, operator]  # of transformers
    load_tokenizer(model, template).save_pretrained(folder)


def quiet() -> None:
    """Silence the libraries' progress bars and the warnings that say nothing of a run."""
    if not torch.cuda.is_available():
        # PEFT and accelerate import deepspeed, which otherwise warns that it found no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Says at every layer and step that 8-bit layers multiply in float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # Asks for a kernel of the layout that `adapter.keep_layout` does without.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # PEFT 0.21.2 reads an attribute that transformers 5.23 has renamed.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")


def _auto(task: Task) -> Any:
    return getattr(transformers, task.auto_class)


def _dtype(model: ModelConfig) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, model.dtype)
    return dtype


def _quantized(
    model: ModelConfig, task: Task, labels: Sequence[str], quantization: Quantization | None
) -> dict[str, Any]:
    if quantization is None:
        return {}
    empty = build_meta(model, task, labels)
    kept = adapter.quantized_layers(empty, task)
    return adapter.quantization_arguments(quantization, empty, kept, _dtype(model))


def _from_files(
    model: ModelConfig, task: Task, config: PretrainedConfig, **how: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Return the model and the names of the weights that its files lack, or hold in other sizes."""
    with _explained(model):
        loaded, info = _auto(task).from_pretrained(
            model_path(model),
            config=config,
            revision=model.revision,
            dtype=_dtype(model),
            trust_remote_code=model.trust_remote_code,
            ignore_mismatched_sizes=task.new_head,
            output_loading_info=True,
            **how,
        )
    adapter.keep_layout(loaded)
    mismatched = {name[0] if isinstance(name, tuple) else name for name in info["mismatched_keys"]}
    return loaded, sorted(set(info["missing_keys"]) | mismatched)


def _checked(
    model: ModelConfig, built: PreTrainedModel, lacked: Sequence[str], task: Task
) -> Sequence[str]:
    lost = [name for name in lacked if not heads.may_be_new(built, name, task)]
    if lost:
        raise TrainError(
            f"{model.id} lacks {len(lost)} weights of its own architecture, first {lost[0]}.",
            "The files are incomplete or of another model; a run would train random weights.",
        )
    return lacked


@contextlib.contextmanager
def _explained(model: ModelConfig) -> Any:
    """Turn what the hub client and the loaders raise into one sentence."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise ConfigError(
            f"model.id: {model.id} cannot be loaded{offline}: {reason}",
            "Check the id and the network, or give a local folder or asset:NAME.",
        ) from error
