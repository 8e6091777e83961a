"""AdaLoRA, worked out by hand."""

SETTINGS = {"init_r": 6, "target_r": 3, "lora_alpha": 16}
LEARNING_RATE = 5e-2


def trained(sizes, task):
    # One singular value besides a row and a column for each rank.
    layers = 2 * sizes["block_linears"] + sizes["after_linears"]
    update = SETTINGS["init_r"] * (2 * sizes["block_lora"] + sizes["after_lora"] + layers)
    return update + sizes["whole"]


def declared(names, task):
    heads = {n for n in names if ".modules_to_save." in n}
    return heads | {n for n in names if any(f".lora_{part}." in n for part in "ABE")}
