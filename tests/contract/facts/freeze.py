"""Partial fine-tuning, worked out by hand."""

SETTINGS = {"trainable_layers": 1}
LEARNING_RATE = 1e-2


def trained(sizes, task):
    return sizes["last_block"] + sizes["new"]


def declared(names, task):
    tops = {"seq2seq": ("decoder.block.1.",), "masked_lm": ("cls.",)}.get(task.name, ())
    tops += ("bert.encoder.layer.1.", "model.layers.1.")
    tops += ("classifier.", "score.") if task.new_head else ()
    return {n for n in names if n.startswith(tops)}
