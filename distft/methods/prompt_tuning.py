"""Prompt tuning: trained vectors in front of the embedded input; the model is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from distft.plugin import Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class PromptTuningConfig(VariantConfig):
    """Keys of `method: {name: prompt_tuning}`; PEFT's names."""

    name: str = "prompt_tuning"
    """The method. The vectors take positions of the model: a row plus num_virtual_tokens must fit.
    A model that classifies by its first token (BERT) then does so by the first vector."""
    num_virtual_tokens: Annotated[int, Field(ge=1)] = 20
    """Trained vectors, each as long as a token's embedding."""
    prompt_tuning_init: Literal["RANDOM", "SAMPLE_VOCAB", "TEXT"] = "RANDOM"
    """What they begin as: `RANDOM` numbers, the embeddings of tokens drawn from the vocabulary
    (`SAMPLE_VOCAB`), or those of prompt_tuning_init_text (`TEXT`)."""
    prompt_tuning_init_text: Annotated[str, Field(min_length=1)] | None = None
    """For `TEXT`: what to begin with, cut or repeated to num_virtual_tokens tokens."""

    @model_validator(mode="after")
    def _text_where_it_is_used(self) -> PromptTuningConfig:
        if (self.prompt_tuning_init == "TEXT") != (self.prompt_tuning_init_text is not None):
            raise ValueError("prompt_tuning_init: TEXT and prompt_tuning_init_text go together")
        return self


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    import peft

    from distft import heads, virtual_tokens

    assert isinstance(config, PromptTuningConfig)
    reads_text = config.prompt_tuning_init == "TEXT"
    sizes = model.config.get_text_config()
    wanted = peft.PromptTuningConfig(
        task_type=task.peft_type,
        num_virtual_tokens=config.num_virtual_tokens,
        # PEFT looks for them under fewer names than there are (DistilBERT).
        token_dim=sizes.hidden_size,
        num_attention_heads=sizes.num_attention_heads,
        num_transformer_submodules=1,
        prompt_tuning_init=config.prompt_tuning_init,
        prompt_tuning_init_text=config.prompt_tuning_init_text,
        tokenizer_name_or_path=model.name_or_path if reads_text else None,
        modules_to_save=heads.trained_whole(model, task) or None,
    )
    return virtual_tokens.align(peft.get_peft_model(model, wanted))


def _virtual_tokens(config: VariantConfig) -> int:
    assert isinstance(config, PromptTuningConfig)
    return config.num_virtual_tokens


METHOD = Method(
    name="prompt_tuning",
    summary="trained vectors in front of the embedded input",
    source="Lester et al. 2021, arXiv 2104.08691",
    config=PromptTuningConfig,
    learning_rate=3e-2,
    space={
        "train.learning_rate": Range(1e-3, 1e-1, log=True),
        "method.num_virtual_tokens": (5, 10, 20, 50),
    },
    attach=_attach,
    adapter=True,
    merges=False,
    virtual_tokens=_virtual_tokens,
)
