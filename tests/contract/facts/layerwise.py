"""Layer by layer, worked out by hand: every parameter moves in the end."""

SETTINGS = {"unfreeze_share": 0.6, "learning_rate_decay": 0.8}
LEARNING_RATE = 3e-3


def trained(sizes, task):
    return sizes["embeddings"] + 2 * sizes["block"] + sizes["after"] + sizes["head"]


def declared(names, task):
    return names
