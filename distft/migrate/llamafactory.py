"""LLaMA-Factory: its keys -> ours, or why not. A new key is one line of `KEYS`."""

from __future__ import annotations

from collections.abc import Mapping

from distft.migrate import llamafactory_rules as read
from distft.migrate import shared_rules, trainer_keys
from distft.migrate.rules import Program, Rule, absent, decided, refused, same

_SPEED = "kernels and attention are transformers' own choice"
_ADAMW = "distft has no such optimizer: AdamW, whose states take more memory"
_LOSS = "distft has no such loss"
_MEDIA = "distft learns from text only"
_MEGATRON = "no tensor, pipeline or expert parallelism: DeepSpeed ZeRO divides the model"
_TOKENIZER = "the tokenizer stays that of the model: add tokens to the model's files first"
_AFTER = "of `distft predict` and `distft evaluate`, after training"
_EXPORT = "`distft export RUN DIR --merge` writes models"
_TOKENIZED = "rows are tokenized once by itself, spread over the cluster"

KEYS: Mapping[str, Rule] = {
    **trainer_keys.KEYS,
    # model
    "model_name_or_path": shared_rules.model,
    "model_revision": same("model.revision"),
    "trust_remote_code": same("model.trust_remote_code"),
    "adapter_name_or_path": refused(
        "distft starts from a model: merge that adapter into it first, and name the merged one"
    ),
    "adapter_folder": absent("see adapter_name_or_path"),
    "create_new_adapter": absent("see adapter_name_or_path"),
    "cache_dir": absent("HF_HOME says where the hub's files are kept"),
    "use_fast_tokenizer": absent("transformers chooses"),
    "low_cpu_mem_usage": absent("transformers chooses"),
    "hf_hub_token": absent("HF_TOKEN in the environment; it stands in no config here"),
    "ms_hub_token": absent("models come from the Hugging Face hub or a folder"),
    "om_hub_token": absent("models come from the Hugging Face hub or a folder"),
    "resize_vocab": refused(_TOKENIZER),
    "split_special_tokens": refused(_TOKENIZER),
    "add_tokens": refused(_TOKENIZER),
    "add_special_tokens": refused(_TOKENIZER),
    "new_special_tokens_config": refused(_TOKENIZER),
    "init_special_tokens": absent("see new_special_tokens_config"),
    "rope_scaling": refused("set it in the model's config.json"),
    "shift_attn": refused("distft has no shifted sparse attention"),
    "mixture_of_depths": refused("distft turns no model into a mixture of depths"),
    "train_from_scratch": refused("distft starts from pre-trained weights"),
    "flash_attn": absent(_SPEED),
    "use_unsloth": absent(_SPEED),
    "use_unsloth_gc": absent(_SPEED),
    "enable_liger_kernel": absent(_SPEED),
    "use_v1_kernels": absent(_SPEED),
    "use_kt": absent("no KTransformers: experts stay on the cards; see cluster.offload"),
    "kt_weight_path": absent("see use_kt"),
    "moe_aux_loss_coef": absent("the model's own configuration says"),
    "upcast_layernorm": absent("model.dtype is that of all weights"),
    "upcast_lmhead_output": absent("losses are always computed in float32"),
    "use_reentrant_gc": absent("gradient checkpointing is never reentrant here"),
    "disable_gradient_checkpointing": read.checkpointing,
    "print_param_status": absent("`distft plan` counts what is trained"),
    "quantization_bit": read.bits,
    "quantization_method": read.bit_method,
    "quantization_type": read.bit_type,
    "double_quantization": shared_rules.of(read.method, ("qlora",), "use_double_quant"),
    "quantization_device_map": absent("each worker loads its own"),
    # method
    "stage": read.stage,
    "do_train": read.do_train,
    "do_eval": absent("evaluated before, during and after training"),
    "do_predict": absent(_AFTER),
    "predict_with_generate": absent("`distft evaluate RUN --generate`, after training"),
    "finetuning_type": read.finetuning_type,
    "lora_rank": read.lora("r"),
    "lora_alpha": read.lora("lora_alpha"),
    "lora_dropout": read.lora("lora_dropout"),
    "lora_target": read.targets,
    "use_rslora": read.lora("use_rslora"),
    "use_dora": read.lora("use_dora"),
    "pissa_init": read.pissa,
    "pissa_iter": read.pissa_iter,
    "pissa_convert": absent("PiSSA is always exported as plain LoRA"),
    "loraplus_lr_ratio": read.lora("loraplus_lr_ratio"),
    "loraplus_lr_embedding": absent("embeddings get no update beside them"),
    "additional_target": refused("beside an adapter distft trains new heads only"),
    "oft_block_size": shared_rules.of(read.method, ("oft",), "oft_block_size"),
    "oft_rank": refused("method oft goes by oft_block_size"),
    "oft_target": read.targets,
    "module_dropout": shared_rules.of(read.method, ("oft",), "module_dropout"),
    "freeze_trainable_layers": read.freeze_layers,
    "freeze_trainable_modules": read.freeze_modules,
    "freeze_extra_modules": refused("method freeze trains blocks, or modules by name"),
    "use_llama_pro": refused("distft adds no blocks, and would train others than those added"),
    "pure_bf16": read.pure_bf16,
    "bf16": read.bf16,
    "use_galore": absent(_ADAMW),
    "use_apollo": absent(_ADAMW),
    "use_badam": absent(_ADAMW),
    "use_adam_mini": absent(_ADAMW),
    "use_muon": absent(_ADAMW),
    **dict.fromkeys(
        (
            *("galore_target", "galore_rank", "galore_update_interval", "galore_scale"),
            *("galore_proj_type", "galore_layerwise", "apollo_target", "apollo_rank"),
            *("apollo_update_interval", "apollo_scale", "apollo_proj", "apollo_scale_type"),
            *("apollo_layerwise", "apollo_scale_front", "badam_mode", "badam_start_block"),
            *("badam_switch_mode", "badam_switch_interval", "badam_update_ratio"),
            *("badam_mask_mode", "badam_verbose"),
        ),
        absent("of an optimizer that distft does not have"),
    ),
    "use_dft_loss": refused(_LOSS),
    "use_asft_loss": refused(_LOSS),
    "asft_alpha": absent(_LOSS),
    "use_eaft_loss": refused(_LOSS),
    "eaft_alpha": absent(_LOSS),
    "fp8": absent("no 8-bit floats: see train.bf16"),
    "fp8_backend": absent("see fp8"),
    "fp8_enable_fsdp_float8_all_gather": absent("see fp8"),
    "use_mca": absent(_MEGATRON),
    **dict.fromkeys(
        (
            *("tensor_model_parallel_size", "pipeline_model_parallel_size", "sequence_parallel"),
            *("expert_model_parallel_size", "bias_activation_fusion", "apply_rope_fusion"),
            *("use_distributed_optimizer", "overlap_param_gather", "overlap_grad_reduce"),
            *("moe_grouped_gemm", "moe_token_dispatcher_type", "recompute_granularity"),
        ),
        absent(_MEGATRON),
    ),
    **dict.fromkeys(
        (
            *("image_max_pixels", "image_min_pixels", "image_do_pan_and_scan", "crop_to_patches"),
            *("video_max_pixels", "video_min_pixels", "video_fps", "video_maxlen"),
            *("use_audio_in_video", "audio_sampling_rate", "media_dir"),
        ),
        refused(_MEDIA),
    ),
    **dict.fromkeys(
        ("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"),
        absent(_MEDIA),
    ),
    **dict.fromkeys(
        (
            *("pref_beta", "pref_ftx", "pref_loss", "pref_bco_weight", "dpo_label_smoothing"),
            *("kto_chosen_weight", "kto_rejected_weight", "simpo_gamma", "reward_model"),
            *("reward_model_type", "ref_model", "ppo_buffer_size", "ppo_epochs", "ppo_target"),
        ),
        absent("of preferences, from which distft does not learn"),
    ),
    # data
    "dataset": read.train_sets,
    "eval_dataset": read.eval_sets,
    "dataset_dir": absent("files are named by themselves: data.train"),
    "template": read.template,
    "tool_format": absent("the chat template writes tools"),
    "default_system": refused("the chat template says: set it in the rows, as a system message"),
    "enable_thinking": absent("the chat template's own default"),
    "preserve_thinking": absent("the chat template's own default"),
    "cutoff_len": same("data.cutoff_len"),
    "train_on_prompt": read.conversations("data.train_on_prompt"),
    "mask_history": read.mask_history,
    "packing": read.packing,
    "neat_packing": read.neat_packing,
    "max_samples": read.max_samples,
    "val_size": read.val_size,
    "eval_on_each_dataset": absent("all eval rows are one set"),
    "mix_strategy": read.interleaved,
    "interleave_probs": read.interleaved,
    "streaming": absent("rows are tokenized once, then streamed; they need not fit memory"),
    "buffer_size": absent("the order is shuffled by itself"),
    "overwrite_cache": absent(_TOKENIZED),
    "preprocessing_batch_size": absent(_TOKENIZED),
    "preprocessing_num_workers": absent(_TOKENIZED),
    "tokenized_path": absent(f"{_TOKENIZED}; `distft prepare` does only that"),
    "data_shared_file_system": absent("output_dir must be seen by every node"),
    "ignore_pad_token_for_loss": absent("padding is never learnt"),
    # training
    "compute_accuracy": absent("token accuracy is always measured"),
    "disable_shuffling": refused("rows come in a shuffled order, the same for the same seed"),
    "early_stopping_steps": read.early_stopping,
    "plot_loss": absent("report.html draws every curve"),
    "include_effective_tokens_per_second": absent("tokens a second are always in metrics.jsonl"),
    "include_num_input_tokens_seen": absent("tokens are always in metrics.jsonl"),
    **dict.fromkeys(
        (
            *("use_swanlab", "swanlab_project", "swanlab_workspace", "swanlab_run_name"),
            *("swanlab_mode", "swanlab_api_key", "swanlab_logdir"),
        ),
        read.swanlab,
    ),
    "ray_init_kwargs": read.ray_init,
    "resources_per_worker": shared_rules.resources,
    "placement_strategy": absent("Ray Train packs the workers"),
    "master_addr": absent("Ray Train finds it"),
    "master_port": absent("Ray Train finds it"),
    # inference and export
    **dict.fromkeys(
        (
            *("infer_backend", "infer_dtype", "do_sample", "temperature", "top_p", "top_k"),
            *("num_beams", "max_length", "max_new_tokens", "repetition_penalty"),
        ),
        absent(_AFTER),
    ),
    **dict.fromkeys(
        (
            *("export_dir", "export_size", "export_device", "export_quantization_bit"),
            *("export_quantization_dataset", "export_legacy_format", "export_hub_model_id"),
        ),
        absent(_EXPORT),
    ),
}

IMPLIED: Mapping[str, Rule] = {
    "do_train": read.no_training,
    "dataset": read.no_rows,
    "stage": lambda value, theirs: decided("their default", task="sft"),
    "finetuning_type": lambda value, theirs: decided(
        "their default", method__name=read.method(theirs)
    ),
    "learning_rate": shared_rules.unset("train.learning_rate", 5e-5),
    "per_device_train_batch_size": shared_rules.unset("train.per_device_train_batch_size", 8),
    "gradient_accumulation_steps": shared_rules.unset("train.gradient_accumulation_steps", 1),
    "weight_decay": shared_rules.unset("train.weight_decay", 0.0),
    "warmup_ratio": shared_rules.unset("train.warmup_steps", 0, unless=("warmup_steps",)),
    "cutoff_len": shared_rules.unset("data.cutoff_len", 2048),
    "disable_gradient_checkpointing": shared_rules.unset(
        "train.gradient_checkpointing", True, unless=("gradient_checkpointing",)
    ),
    "lora_alpha": read.alpha,
    "val_size": read.nothing_held_back,
    "ray_num_workers": shared_rules.workers,
}
"""What a key that is missing means there."""

PROGRAM = Program(
    name="LLaMA-Factory",
    signs=("model_name_or_path", "finetuning_type", "stage", "dataset", "template", "export_dir"),
    keys=KEYS,
    implied=IMPLIED,
)
