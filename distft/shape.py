"""A model as `model.shape` states it: its configuration, and whether a loaded one agrees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import transformers

from distft.config_sections import ModelConfig, ModelShapeConfig
from distft.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def configuration(shape: ModelShapeConfig) -> PretrainedConfig:
    """Return the configuration of a model of these sizes.

    Args:
        shape: The section of the configuration.

    Returns:
        What is not stated is as its architecture has it.
    """
    sizes = shape.model_dump(exclude={"model_type"}, exclude_none=True)
    config: PretrainedConfig = transformers.AutoConfig.for_model(shape.model_type, **sizes)
    return config


def check(model: ModelConfig, loaded: PretrainedConfig) -> None:
    """Check that a model's own configuration has the sizes that were stated.

    Args:
        model: With or without a shape.
        loaded: From its files.

    Raises:
        ConfigError: It has others: what was planned is another model than what would be trained.
    """
    if model.shape is None:
        return
    stated = model.shape.model_dump(exclude_none=True)
    held = loaded.get_text_config()
    wrong = {
        key: getattr(held, key, None)
        for key, value in stated.items()
        if getattr(held, key, None) != value
    }
    if wrong:
        said = ", ".join(f"{key} {stated[key]} ({model.id}: {held})" for key, held in wrong.items())
        raise ConfigError(
            f"model.shape does not describe {model.id}: {said}.",
            "Correct model.shape, or leave it out: it is for planning where the model is not.",
        )
