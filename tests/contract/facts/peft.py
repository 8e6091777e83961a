"""LoHa by PEFT's own name, worked out by hand."""

SETTINGS = {"peft_type": "LOHA", "options": {"r": 4, "alpha": 8}}
LEARNING_RATE = 3e-2


def trained(sizes, task):
    # A product of two low-rank updates, each of rank r.
    rank = 2 * SETTINGS["options"]["r"]
    update = rank * (2 * sizes["block_lora"] + sizes["after_lora"])
    return update + sizes["whole"]


def declared(names, task):
    heads = {n for n in names if ".modules_to_save." in n}
    return heads | {n for n in names if ".hada_w" in n}
