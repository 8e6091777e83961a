"""Prefix tuning, worked out by hand: keys and values of two blocks."""

SETTINGS = {"num_virtual_tokens": 6}
LEARNING_RATE = 1e-1
KEEPS_OUTPUT = False


def trained(sizes, task):
    return 6 * 2 * 2 * sizes["values"] + sizes["whole"]


def declared(names, task):
    heads = {n for n in names if ".modules_to_save." in n}
    return heads | {"prompt_encoder.default.embedding.weight"}
