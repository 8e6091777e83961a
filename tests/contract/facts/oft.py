"""OFT, worked out by hand."""

SETTINGS = {"oft_block_size": 4}
LEARNING_RATE = 2e-2


def trained(sizes, task):
    # A rotation of b numbers has b (b - 1) / 2 of its own; b divides every width here.
    inputs = 2 * sizes["block_inputs"] + sizes["after_inputs"]
    update = inputs * (SETTINGS["oft_block_size"] - 1) // 2
    return update + sizes["whole"]


def declared(names, task):
    heads = {n for n in names if ".modules_to_save." in n}
    return heads | {n for n in names if ".oft_R." in n}
