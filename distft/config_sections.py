"""The sections of a configuration, key by key. The field docs are the help and the JSON schema.

`None` means "derive it": `plan` does, and says why.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from distft import languages, masking, plugin
from distft.errors import nearest

Share = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Paths = Text | Annotated[list[Text], Field(min_length=1)]

MOST_SETS = 100
"""Of `data.mix`."""
SMALLEST_SHARE = Decimal("0.0001")
"""Shares of `data.mix` are multiples of it."""
_WORDS = {
    "storage": (
        r"(/[\w.-]+)+",
        "an absolute path of letters, digits, '.', '_' and '-', such as /mnt/distft",
    ),
    "nvme_path": (
        r"(/[\w.-]+)+",
        "an absolute path of letters, digits, '.', '_' and '-', such as /mnt/nvme",
    ),
    "nfs": (r"[\w.-]+:(/[\w.-]*)+", "HOST:/PATH, such as files.example.org:/distft"),
    "image": (r"[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?", "NAME:TAG"),
}
"""Key of `cluster` -> pattern, and what that means."""


class Section(BaseModel):
    """Base of the sections; unknown keys and implicit conversions are errors."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelShapeConfig(Section):
    """A model's sizes, as its config.json has them, so that `plan` needs no hub and no files."""

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"]
    """Architecture."""
    hidden_size: Annotated[int, Field(ge=1)]
    """Width."""
    intermediate_size: Annotated[int, Field(ge=1)]
    """Width of the feed-forward layers."""
    num_hidden_layers: Annotated[int, Field(ge=1)]
    """Blocks."""
    num_attention_heads: Annotated[int, Field(ge=1)]
    """Heads of the queries."""
    num_key_value_heads: Annotated[int, Field(ge=1)]
    """Heads of the keys and values."""
    head_dim: Annotated[int, Field(ge=1)] | None = None
    """Width of a head; default: as the architecture has it."""
    vocab_size: Annotated[int, Field(ge=1)]
    """Tokens."""
    max_position_embeddings: Annotated[int, Field(ge=1)]
    """Longest sequence in tokens."""
    tie_word_embeddings: bool = False
    """The output layer is the embeddings."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelShapeConfig:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads % groups:
            raise ValueError(
                f"num_attention_heads {heads} must be a multiple of num_key_value_heads {groups}"
            )
        if self.head_dim is None and self.hidden_size % heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {heads}"
            )
        return self


class ModelConfig(Section):
    """Which pre-trained model."""

    id: Text
    """Hub id, folder of a saved model, or `asset:NAME` (a model that comes inside a package)."""
    revision: str | None = None
    """Hub commit, tag or branch; pin a commit for a run that can be repeated."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in memory; `train.bf16` alone computes in bfloat16 and keeps float32."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Sets every dropout rate of the model's own configuration; default: as it was pre-trained."""
    trust_remote_code: bool = False
    """Runs Python code that came with the model. Recorded in the run."""
    shape: ModelShapeConfig | None = None
    """Its sizes, so that `plan` reads no file of the model. Training refuses a model of others."""


class CleanConfig(Section):
    """What is done to the rows' texts, and which rows are left out; nothing unless asked for."""

    unicode: Literal["NFC", "NFKC"] | None = None
    """Normal form of all texts; NFKC also makes full-width letters, ligatures and superscripts
    plain ones."""
    control_characters: bool = False
    """Remove control characters, zero-width and direction marks; every line ends with a line
    feed."""
    mask: list[Literal["email", "phone"]] = Field(default_factory=list)
    """Write [EMAIL] and [PHONE] in place of addresses and numbers, in answers too."""
    phone_region: str | None = None
    """Country whose numbers are also masked without +code, such as DE; default: those with it."""
    min_chars: Annotated[int, Field(ge=1)] | None = None
    """Leave out rows whose texts are together shorter."""
    max_chars: Annotated[int, Field(ge=1)] | None = None
    """Leave out rows whose texts are together longer."""
    languages: list[str] = Field(default_factory=list)
    """Leave out rows that are told to be in another language, such as [en, de]; what is too short
    to tell stays."""
    near_duplicates: Annotated[float, Field(ge=0.5, le=1)] | None = None
    """Leave out training rows of whose runs of five words this share is that of an earlier row, an
    eval or a test row, such as 0.8."""

    @field_validator("languages", mode="before")
    @classmethod
    def _yaml_norwegian(cls, codes: Any) -> Any:
        # YAML 1.1 reads a bare `no` as false.
        return ["no" if code is False else code for code in codes] if type(codes) is list else codes

    @field_validator("languages")
    @classmethod
    def _languages_are_known(cls, codes: list[str]) -> list[str]:
        for code in codes:
            if code not in languages.CODES:
                raise ValueError(
                    f"unknown language {code!r}{nearest(code, languages.CODES)}; allowed: "
                    f"{', '.join(languages.CODES)}"
                )
        return codes

    @model_validator(mode="after")
    def _keys_go_together(self) -> CleanConfig:
        if self.min_chars and self.max_chars and self.min_chars > self.max_chars:
            raise ValueError(f"min_chars {self.min_chars} is more than max_chars {self.max_chars}")
        if self.phone_region is not None:
            if "phone" not in self.mask:
                raise ValueError("phone_region is read only where mask names phone")
            if self.phone_region not in masking.regions():
                raise ValueError(
                    f"unknown phone_region {self.phone_region!r}; allowed: ISO 3166 codes in "
                    "capital letters, such as DE, FR or US"
                )
        return self


class AssumedConfig(Section):
    """Data as numbers, so that `plan` needs none."""

    rows: Annotated[int, Field(ge=1)]
    """Usable rows of `data.train`, before eval and test take their shares."""
    mean_tokens: Annotated[float, Field(gt=0)]
    """Tokens of a row on average; the longest are taken to have `data.cutoff_len`."""


class DataConfig(Section):
    """Which rows, and how they are read."""

    train: Paths
    """File, folder, glob, address (`s3://`, `gs://`, `hf://`) or list of them; or `asset:NAME`."""
    eval: Share | Paths = 0.1
    """Rows for choosing (early stopping, best checkpoint): files, or a share of `train`."""
    test: Share | Paths = 0.1
    """Rows seen once, at the end: files, or a share of `train`."""
    format: str | None = None
    """One of `distft formats`; default: detected from the first rows."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role -> column name where yours differ, such as {text: review, label: stars}."""
    cutoff_len: Annotated[int, Field(ge=8)] | None = None
    """Longest sample in tokens; longer ones are truncated and counted. Default: 512 or the
    model's own limit, whichever is smaller."""
    template: str | None = None
    """How conversations are written, one of `distft templates`; default: the tokenizer's own."""
    packing: bool | None = None
    """Samples share rows, each seeing itself only (`causal_lm`, `sft`); default: where the task,
    the method and the model allow it."""
    train_on_prompt: bool = False
    """Of conversations: train on everything, not on the answers only."""
    clean: CleanConfig = Field(default_factory=CleanConfig)
    """What is done to the texts, and which rows are left out for what they say."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Use only the first so many usable rows of `train`."""
    mix: Annotated[dict[Text, Share], Field(max_length=MOST_SETS)] = Field(default_factory=dict)
    """Files -> share of the training samples drawn from them, such as {general.jsonl: 0.2}, against
    forgetting; the rest is drawn from `train`. An epoch is one pass over `train`."""
    on_bad_row: Literal["skip", "fail"] = "skip"
    """skip: count and list unusable rows in the manifest; fail: stop at the first."""
    assumed: AssumedConfig | None = None
    """Plan for data of this size without reading any; only `distft plan` looks at it."""

    @property
    def mix_shares(self) -> tuple[float, ...]:
        """The shares of `mix`, in order."""
        return tuple(self.mix.values())

    @field_validator("mix")
    @classmethod
    def _shares_are_exact(cls, shares: dict[str, float]) -> dict[str, float]:
        for name, share in shares.items():
            if Decimal(str(share)) % SMALLEST_SHARE:
                raise ValueError(
                    f"the share of {name} must have at most 4 decimals, such as "
                    f"{max(share, 1e-4):.4f}, so that it can be kept exactly"
                )
        if sum(Decimal(str(share)) for share in shares.values()) >= 1:
            raise ValueError("the shares must sum to less than 1: the rest is drawn from train")
        return shares

    @field_validator("format", "template")
    @classmethod
    def _is_known(cls, name: str | None, info: ValidationInfo) -> str | None:
        known = plugin.formats() if info.field_name == "format" else plugin.templates()
        if name is not None and name not in known:
            raise ValueError(
                f"unknown {info.field_name} {name!r}{nearest(name, known)}; "
                f"allowed: {', '.join(known)}"
            )
        return name


class TrainConfig(Section):
    """How it is trained; Hugging Face spelling."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; default: the method's own."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the training rows; `max_steps` wins."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps."""
    per_device_train_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Longest samples of one worker's micro-batch; it takes more where they are shorter. Default:
    what one accumulation step needs, at most 8."""
    per_device_eval_batch_size: Annotated[int, Field(ge=1)] = 16
    """Samples of one worker's evaluation batch."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] | None = None
    """Micro-batches of longest samples per optimizer step and worker; default: what
    `global_batch_size` needs."""
    global_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Samples of one optimizer step over all workers; default 16, or the product of the others."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.06
    """Optimizer steps of linear warm-up; below 1: a share of all steps."""
    optim: Literal["adamw_torch", "sgd"] = "adamw_torch"
    """Optimizer; sgd uses `sgd_momentum`."""
    sgd_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled for AdamW, L2 for sgd; never on biases and norms."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's decay of the second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's term against division by zero."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Global gradient norm to clip at; 0 is off."""
    label_smoothing_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of probability spread over all classes; training loss only, never evaluation."""
    bf16: bool = False
    """Compute in bfloat16 (autocast); weights and optimizer stay as `model.dtype` says."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seeds new weights, data order and dropout."""
    eval_strategy: Literal["no", "steps", "epoch"] = "steps"
    """When to evaluate besides the start and the end."""
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between evaluations; default: a fifth of the run."""
    save_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between checkpoints; default: with every evaluation."""
    save_total_limit: Annotated[int, Field(ge=1)] = 2
    """Checkpoints kept; the best one is kept besides."""
    logging_steps: Annotated[int, Field(ge=1)] = 5
    """Optimizer steps between lines of metrics.jsonl."""
    metric_for_best_model: str | None = None
    """Evaluation metric that picks the best checkpoint; default: the task's objective."""
    greater_is_better: bool | None = None
    """Direction of that metric; default: down for losses, up for others."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many evaluations in a row without a better one; default: never."""

    @field_validator("eval_strategy", mode="before")
    @classmethod
    def _yaml_no(cls, value: Any) -> Any:
        # YAML 1.1 reads a bare `no`, which is Hugging Face's spelling, as false.
        return "no" if value is False else value


class ShapeConfig(Section):
    """A cluster as numbers, so that `plan` needs no hardware."""

    nodes: Annotated[int, Field(ge=1)] = 1
    """Machines."""
    cpus: Annotated[int, Field(ge=1)] = 8
    """CPU cores of a node."""
    memory: str = "16GiB"
    """Main memory of a node, such as 64GiB."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """Graphics cards of a node."""
    gpu_memory: str = "80GiB"
    """Memory of one graphics card."""
    head_memory: str | None = None
    """Main memory of the head that `distft submit --emit` asks for: it trains nothing, but loads
    the model to export it. Default: that of a node, at most 64GiB."""


class ClusterConfig(Section):
    """Where it runs. None of it changes what is learnt, so none of it is in the config hash."""

    address: str | None = None
    """Ray address (`auto`, `ray://host:10001`); default: a local Ray that ends with the run."""
    num_workers: Annotated[int, Field(ge=1)] = 1
    """Training processes."""
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    """CPUs Ray reserves for each."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | None = None
    """Graphics cards of each; default: 1 where the cluster has them."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """DeepSpeed ZeRO stage; default: the lowest that fits."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """Where optimizer states live: cpu: in main memory (ZeRO 1-3); nvme: on each node's disk at
    `nvme_path` (ZeRO 3)."""
    nvme_path: str | None = None
    """Absolute path of a folder on each node's own fast disk, for offload=nvme."""
    shape: ShapeConfig | None = None
    """Plan for this cluster instead of the one at hand."""
    storage: str | None = None
    """Absolute path of storage that every node mounts there; a job's relative `output_dir` lies
    below it."""
    nfs: str | None = None
    """NFS export, as HOST:/PATH, that `distft submit --emit ray` mounts as `storage`."""
    image: str | None = None
    """Container image that `distft submit --emit` names; default: `distft:` with the version and
    -cpu or -cuda."""

    @field_validator("storage", "nfs", "image", "nvme_path")
    @classmethod
    def _reads_the_same_everywhere(cls, text: str | None, info: ValidationInfo) -> str | None:
        # These words stand in shell scripts, YAML and lists with colons.
        pattern, allowed = _WORDS[str(info.field_name)]
        if text is not None and not re.fullmatch(pattern, text):
            raise ValueError(f"must be {allowed}")
        return text

    @model_validator(mode="after")
    def _a_disk_has_a_place(self) -> ClusterConfig:
        if self.offload == "nvme" and self.nvme_path is None:
            raise ValueError("nvme_path must be set with offload: nvme, such as /mnt/nvme")
        return self
