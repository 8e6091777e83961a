"""distft: which fine-tuning method is worth it, trained, proven and exported."""

__version__ = "0.1.0"
