"""A GGUF file -> a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from distft import hf


def convert_gguf(gguf_file: Path, target: Path) -> None:
    """Write a GGUF file as a plain float32 folder of model and tokenizer.

    A model loaded from GGUF counts as quantized and can neither be trained nor saved, so its
    weights move into a fresh model of the same class.

    Args:
        gguf_file: The file.
        target: Folder to write; made if absent.
    """
    hf.quiet()
    folder, name = gguf_file.parent, gguf_file.name
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    )
    kept = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    config = type(loaded.config).from_dict(kept)
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict(), strict=True)
    plain.tie_weights()
    plain.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)
