"""P-tuning: vectors in front of the embedded input, written by a small trained network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from distft.plugin import Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class PTuningConfig(VariantConfig):
    """Keys of `method: {name: p_tuning}`; PEFT's names. Only the vectors are saved."""

    name: str = "p_tuning"
    """The method. The vectors take positions of the model: a row plus num_virtual_tokens must fit.
    A model that classifies by its first token (BERT) then does so by the first vector."""
    num_virtual_tokens: Annotated[int, Field(ge=1)] = 20
    """Vectors, each as long as a token's embedding."""
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    """The network: three linear layers, or two layers of a bidirectional LSTM and two linear ones
    (as in the paper)."""
    encoder_hidden_size: Annotated[int, Field(ge=1)] | None = None
    """Width of the network; unset: the model's own."""


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    import peft

    from distft import heads, virtual_tokens

    assert isinstance(config, PTuningConfig)
    sizes = model.config.get_text_config()
    wanted = peft.PromptEncoderConfig(
        task_type=task.peft_type,
        num_virtual_tokens=config.num_virtual_tokens,
        # PEFT looks for them under fewer names than there are (DistilBERT).
        token_dim=sizes.hidden_size,
        num_attention_heads=sizes.num_attention_heads,
        num_transformer_submodules=1,
        encoder_reparameterization_type=config.encoder_reparameterization_type,
        encoder_hidden_size=config.encoder_hidden_size,  # None: PEFT's own
        modules_to_save=heads.trained_whole(model, task) or None,
    )
    return virtual_tokens.align(peft.get_peft_model(model, wanted))


def _virtual_tokens(config: VariantConfig) -> int:
    assert isinstance(config, PTuningConfig)
    return config.num_virtual_tokens


METHOD = Method(
    name="p_tuning",
    summary="vectors in front of the embedded input, written by a small network",
    source="Liu et al. 2021 (GPT Understands, Too), arXiv 2103.10385",
    config=PTuningConfig,
    learning_rate=5e-3,
    space={
        "train.learning_rate": Range(1e-4, 3e-2, log=True),
        "method.num_virtual_tokens": (5, 10, 20, 50),
    },
    attach=_attach,
    adapter=True,
    merges=False,
    virtual_tokens=_virtual_tokens,
)
