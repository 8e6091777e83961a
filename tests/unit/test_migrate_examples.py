"""LLaMA-Factory's own examples, all of them: each plans here, or is refused with its reason.

They come from its source distribution, with the demo data they name. No hub is asked: the packaged
SmolLM2-135M-Instruct stands in place of the model an example names (and so its own chat template in
place of one that needs other tokens), demo rows of the same format in place of a data set that lies
on the hub, and 20 training rows are enough. Everything else is as the migration wrote it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distft import api, config_file, plugin
from distft.errors import DistftError
from distft.migrate.convert import migrate
from distft.migrate.writing import config_text

PLANS = "plans"
NO_CONFIG = "is no config of"
IMAGES = "image_max_pixels: 262144 (distft learns from text only)"
NO_TRAINING = "do_train (not set: it trains nothing"
EXPORTS = "do_train (not set: it exports a model"
STORED = "by its name its weights are stored as"
LOSS = "distft has no such loss"

EXPECTED = {
    "accelerate/fsdp2_config.yaml": NO_CONFIG,
    "accelerate/fsdp2_config_qwen35.yaml": NO_CONFIG,
    "accelerate/fsdp_config.yaml": NO_CONFIG,
    "accelerate/fsdp_config_multiple_nodes.yaml": NO_CONFIG,
    "accelerate/fsdp_config_offload.yaml": NO_CONFIG,
    "ascend/qwen3_5_full_sft_fsdp2.yaml": PLANS,
    "ascend/qwen3_full_sft_fsdp2.yaml": PLANS,
    "ascend/qwen3moe_full_sft_fsdp.yaml": PLANS,
    "ascend/qwen3vlmoe_full_sft_fsdp2.yaml": IMAGES,
    "ascend/qwen3vlmoe_lora_sft_fsdp.yaml": IMAGES,
    "extras/adam_mini/qwen2_full_sft.yaml": PLANS,
    "extras/apollo/llama3_full_sft.yaml": PLANS,
    "extras/asft/llama2_full_asft.yaml": LOSS,
    "extras/asft/qwen2_full_asft.yaml": LOSS,
    "extras/badam/llama3_full_sft.yaml": PLANS,
    "extras/dft/qwen2_full_sft.yaml": LOSS,
    "extras/eaft/qwen25_05b_eaft_full.yaml": LOSS,
    "extras/fp8/llama3_fp8_deepspeed_sft.yaml": PLANS,
    "extras/fp8/llama3_fp8_fsdp_sft.yaml": PLANS,
    "extras/fsdp_qlora/llama3_lora_sft.yaml": PLANS,
    "extras/galore/llama3_full_sft.yaml": PLANS,
    "extras/llama_pro/llama3_freeze_sft.yaml": "use_llama_pro: true (distft adds no blocks",
    "extras/loraplus/llama3_lora_sft.yaml": PLANS,
    "extras/mod/llama3_full_sft.yaml": "distft turns no model into a mixture of depths",
    "extras/multi_tokens/tokens_cfg.yaml": NO_CONFIG,
    "extras/muon/qwen2_full_sft.yaml": PLANS,
    "extras/nlg_eval/llama3_lora_predict.yaml": NO_TRAINING,
    "extras/oft/llama3_oft_sft.yaml": PLANS,
    "extras/oft/qwen2_5vl_oft_sft.yaml": IMAGES,
    "extras/pissa/llama3_lora_sft.yaml": PLANS,
    "extras/qoft/llama3_oft_sft_awq.yaml": STORED,
    "extras/qoft/llama3_oft_sft_bnb_npu.yaml": "on a quantized base distft trains LoRA only",
    "extras/qoft/llama3_oft_sft_gptq.yaml": STORED,
    "inference/qwen3.yaml": NO_TRAINING,
    "inference/qwen3_full_sft.yaml": NO_TRAINING,
    "inference/qwen3_lora_sft.yaml": NO_TRAINING,
    "inference/qwen3vl.yaml": NO_TRAINING,
    "ktransformers/accelerate/fsdp2_kt_bf16.yaml": NO_CONFIG,
    "ktransformers/accelerate/fsdp2_kt_int4.yaml": NO_CONFIG,
    "ktransformers/accelerate/fsdp2_kt_int8.yaml": NO_CONFIG,
    "ktransformers/accelerate/fsdp2_kt_int8_1gpu.yaml": NO_CONFIG,
    "ktransformers/accelerate/fsdp2_kt_int8_8gpu.yaml": NO_CONFIG,
    "ktransformers/train_lora/deepseek_v2_lora_sft_kt.yaml": PLANS,
    "ktransformers/train_lora/deepseek_v3_lora_sft_kt.yaml": PLANS,
    "ktransformers/train_lora/qwen3_5moe_lora_sft_kt.yaml": PLANS,
    "ktransformers/train_lora/qwen3moe_lora_sft_kt.yaml": PLANS,
    "megatron/qwen2_vl_full.yaml": IMAGES,
    "megatron/qwen3_moe_full.yaml": PLANS,
    "merge_lora/qwen3_full_sft.yaml": EXPORTS,
    "merge_lora/qwen3_gptq.yaml": EXPORTS,
    "merge_lora/qwen3_lora_sft.yaml": EXPORTS,
    "merge_lora/qwen3vl_lora_sft.yaml": EXPORTS,
    "train_full/qwen3_full_sft.yaml": PLANS,
    "train_full/qwen3vl_full_sft.yaml": IMAGES,
    "train_lora/qwen3_lora_dpo.yaml": "stage: dpo (distft trains stages sft and pt",
    "train_lora/qwen3_lora_kto.yaml": "stage: kto (distft trains stages sft and pt",
    "train_lora/qwen3_lora_pretrain.yaml": PLANS,
    "train_lora/qwen3_lora_reward.yaml": "stage: rm (distft trains stages sft and pt",
    "train_lora/qwen3_lora_sft.yaml": PLANS,
    "train_lora/qwen3_lora_sft_ds3.yaml": PLANS,
    # It names a hub repository for its data sets: --dataset-dir stands in for that.
    "train_lora/qwen3_lora_sft_ray.yaml": PLANS,
    "train_lora/qwen3_preprocess.yaml": PLANS,
    "train_lora/qwen3vl_lora_dpo.yaml": IMAGES,
    "train_lora/qwen3vl_lora_sft.yaml": IMAGES,
    "train_qlora/llama3_lora_sft_aqlm.yaml": STORED,
    "train_qlora/llama3_lora_sft_awq.yaml": STORED,
    "train_qlora/llama3_lora_sft_gptq.yaml": STORED,
    "train_qlora/qwen3_lora_sft_bnb_npu.yaml": PLANS,
    "train_qlora/qwen3_lora_sft_otfq.yaml": PLANS,
    "v1/train_batching_strategy/train_full_fsdp2_batching_normal.yaml": PLANS,
    "v1/train_batching_strategy/train_full_fsdp2_dynamic_batching.yaml": PLANS,
    "v1/train_batching_strategy/train_full_fsdp2_dynamic_padding_free.yaml": PLANS,
    "v1/train_batching_strategy/train_full_fsdp2_padding_free.yaml": PLANS,
    "v1/train_freeze/train_freeze_sft.yaml": PLANS,
    "v1/train_full/train_full_deepspeed.yaml": PLANS,
    "v1/train_full/train_full_fsdp2.yaml": PLANS,
    "v1/train_full/train_full_liger_kernel.yaml": PLANS,
    "v1/train_full/train_full_ulysses_cp.yaml": PLANS,
    "v1/train_lora/export_lora.yaml": "peft_config.export_dir: ./merge_lora_model",
    "v1/train_lora/train_lora_sft.yaml": PLANS,
    "v1/train_lora/train_lora_sft_rank0.yaml": PLANS,
    "v1/train_qlora/quantization.yaml": PLANS,
}
"""Every YAML of the examples: that it plans, or of the reason why not what stands in the error."""

QUICK = (
    "train_full/qwen3_full_sft.yaml",
    "train_lora/qwen3_lora_pretrain.yaml",
    "v1/train_qlora/quantization.yaml",
)
REFUSED = [name for name, said in EXPECTED.items() if said != PLANS]
PLANNED = [
    pytest.param(name, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for name, said in EXPECTED.items()
    if said == PLANS
]


@pytest.fixture(scope="session")
def demo(asset: Callable[[str], Path]) -> Path:
    """Return LLaMA-Factory's folder: `examples` and `data` lie in it."""
    return asset("llamafactory-demo").parents[1]


def test_the_table_names_every_example(demo: Path) -> None:
    examples = demo / "examples"
    assert {str(one.relative_to(examples)) for one in examples.rglob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", REFUSED)
def test_an_example_is_refused_with_its_reason(demo: Path, name: str) -> None:
    with pytest.raises(DistftError) as caught:
        migrate(demo / "examples" / name, demo / "data")
    assert EXPECTED[name] in str(caught.value)
    assert caught.value.exit_code == (2 if EXPECTED[name] == NO_CONFIG else 3)
    assert caught.value.hint


@pytest.mark.parametrize("name", PLANNED)
def test_an_example_plans(
    demo: Path, name: str, asset: Callable[[str], Path], tmp_path: Path
) -> None:
    asset("smollm2-135m-instruct")
    made = migrate(demo / "examples" / name, demo / "data")
    written = tmp_path / "written.yaml"
    written.write_text(config_text(made), encoding="utf-8")
    whole = config_file.load(written)
    stand_ins = ["model.id=asset:smollm2-135m-instruct", "data.max_samples=20"]
    if whole.data.template and plugin.templates()[whole.data.template].tokens:
        stand_ins.append("data.template=null")
    if "://" in str(whole.data.train):
        stand_ins.append(f"data.train={demo / 'data' / 'alpaca_zh_demo.json'}")
    config = config_file.load(written, stand_ins)
    if config.cluster.num_workers > 1:
        config = config_file.load(written, [*stand_ins, "cluster.shape={gpus: 8}"])
    plan = api.plan(config)
    assert plan.rows["train"] == 20
    assert plan.learning_rate == made.config["train"]["learning_rate"]
    assert plan.world_size == made.config["cluster"]["num_workers"]
