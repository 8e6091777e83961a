"""Bottleneck adapters, worked out by hand: one to a sublayer, with a norm."""

SETTINGS = {
    "style": "houlsby",
    "reduction_factor": 4,
    "non_linearity": "gelu",
    "ln_before": True,
}
LEARNING_RATE = 3e-2


def trained(sizes, task):
    width = sizes["hidden"]
    narrow = width // 4
    adapter = (width * narrow + narrow) + (narrow * width + width) + 2 * width
    return sizes["sublayers"] * adapter + sizes["whole"]


def declared(names, task):
    heads = {n for n in names if ".modules_to_save." in n}
    return heads | {n for n in names if ".bottleneck_" in n}
