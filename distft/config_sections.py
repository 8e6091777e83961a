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
    field_serializer,
    field_validator,
    model_validator,
)

from distft import languages, masking, plugin, space
from distft.errors import nearest

Share = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Paths = Text | Annotated[list[Text], Field(min_length=1)]

MOST_SETS = 100
"""Of `data.mix`."""
SMALLEST_SHARE = Decimal("0.0001")
"""Shares of `data.mix` are multiples of it."""


class Section(BaseModel):
    """Base of the sections; unknown keys and implicit conversions are errors."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


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
    offload: Literal["none", "cpu"] = "none"
    """cpu: optimizer states live in main memory (ZeRO 1-3)."""
    shape: ShapeConfig | None = None
    """Plan for this cluster instead of the one at hand."""


class PolicyConfig(Section):
    """When the search stops a trial early; `policy: X` is short for `policy: {name: X}`."""

    name: Literal["successive_halving", "none"] = "successive_halving"
    """successive_halving: at each rung the better share goes on; none: every trial runs to its
    end."""
    rungs: list[Share] | None = None
    """Where trials are compared, as shares of `tune.max_samples`, rising; default: as replays of
    recorded searches found best."""
    keep: list[Share] | None = None
    """Share of the trials that goes on, for each rung."""


class BudgetConfig(Section):
    """What the search may spend besides `tune.num_trials`; what is reached first ends it."""

    wall_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours the search may run, over all its continuations."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of trials times graphics cards of each."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """Training samples over all trials."""


class TuneConfig(Section):
    """The search over method, rank and learning rate; Optuna decides, Ray Tune executes."""

    num_trials: Annotated[int, Field(ge=1)] = 16
    """Trials, those stopped early, failed or reused included."""
    methods: Annotated[list[Text], Field(min_length=1)] | Literal["all"] | None = None
    """Methods to choose from; all: every one that goes with the task; default: full, freeze and
    lora."""
    space: dict[str, Any] = Field(default_factory=dict)
    """Dotted path -> {low, high, log}, a list of choices or a constant; wins over the methods' own
    ranges, such as {train.learning_rate: {low: 1e-5, high: 1e-3, log: true}, method.r: [4, 16]}."""
    sampler: Literal["tpe", "random", "grid", "gp", "nsga2"] = "tpe"
    """Which configurations are tried; nsga2 is for several objectives. grid tries five values of a
    range."""
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """When a trial is stopped early."""
    objective: Text | Annotated[list[Text], Field(min_length=2)] | None = None
    """Metric on the eval rows; default: the task's plain loss. Several, of which the first decides
    the winner, also `trainable_params`, `peak_memory` and `duration_s`: no trial is stopped."""
    constraints: list[Text] = Field(default_factory=list)
    """Limits a trial's plan must keep, such as `trainable_params <= 10M`, `peak_memory <= 24GB`."""
    budget: BudgetConfig = Field(default_factory=BudgetConfig)
    """What the search may spend."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Training samples of one trial; default: those of the whole training. The learning rate's
    schedule spans them."""
    num_workers: Annotated[int, Field(ge=1)] | None = None
    """Workers of one trial; default: 1 where the model fits one, else `cluster.num_workers`."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials side by side; default: as many as the resources allow."""
    confirm: Annotated[int, Field(ge=0)] = 2
    """Best configurations trained again with further seeds at full budget; below 2: none."""
    confirm_seeds: Annotated[int, Field(ge=2)] = 3
    """Further seeds of each."""
    tolerance: Annotated[float, Field(ge=0)] | None = None
    """The cheapest configuration whose mean is this near to the best one wins; default: one
    standard error of the difference, pooled over those confirmed."""
    storage: str | None = None
    """Optuna storage URL; default: the file study.journal in the study's directory."""

    @field_serializer("storage")
    def _without_password(self, url: str | None) -> str | None:
        # What is dumped ends in records and reports; a password must not.
        return url and re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)

    @field_validator("methods")
    @classmethod
    def _methods_are_known(cls, names: list[str] | str | None) -> list[str] | str | None:
        known = plugin.methods()
        for name in names if isinstance(names, list) else ():
            if name not in known:
                raise ValueError(
                    f"unknown method {name!r}{nearest(name, known)}; allowed: {', '.join(known)}"
                )
        return names

    @field_validator("space")
    @classmethod
    def _space_reads(cls, given: dict[str, Any]) -> dict[str, Any]:
        for path, value in given.items():
            space.parse_values(path, value)
        return given

    @model_validator(mode="after")
    def _refusals_teach(self) -> TuneConfig:
        if self.sampler == "gp" and self.constraints:
            raise ValueError(
                "sampler gp does not learn from refused trials; allowed with constraints: tpe, "
                "random, grid, nsga2"
            )
        return self

    @field_validator("constraints")
    @classmethod
    def _constraints_read(cls, given: list[str]) -> list[str]:
        for text in given:
            space.parse_limit(text)
        return given
