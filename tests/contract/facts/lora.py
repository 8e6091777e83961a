"""LoRA, worked out by hand."""

SETTINGS = {"r": 4, "lora_alpha": 16}
LEARNING_RATE = 2e-2


def trained(sizes, task):
    update = SETTINGS["r"] * (2 * sizes["block_lora"] + sizes["after_lora"])
    return update + sizes["whole"]


def declared(names, task):
    heads = {n for n in names if ".modules_to_save." in n}
    return heads | {n for n in names if ".lora_A." in n or ".lora_B." in n}
