"""Every known setting of every tool, away from its default, is told of: as one of ours, as needless, or as lost."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe.importing.test_importing import AXOLOTL, JOB, LLAMA_FACTORY, TORCHTUNE

from luthier.recipe import load_recipe
from luthier.recipe.importing import Imported, import_recipe

LLAMA_FACTORY_KEYS: dict[str, Any] = {
    "model_name_or_path": "x/y", "adapter_name_or_path": "saves/a", "cache_dir": "c", "use_fast_tokenizer": False, "resize_vocab": True,
    "add_tokens": "<a>", "add_special_tokens": "<b>", "model_revision": "v2", "rope_scaling": "linear", "flash_attn": "fa2", "shift_attn": True,
    "use_unsloth": True, "enable_liger_kernel": True, "moe_aux_loss_coef": 0.1, "disable_gradient_checkpointing": True, "upcast_layernorm": True,
    "quantization_method": "hqq", "quantization_bit": 8, "quantization_type": "fp4", "double_quantization": False, "trust_remote_code": True,
    "template": "qwen", "dataset": "other", "eval_dataset": "support", "dataset_dir": "sets", "media_dir": "m", "cutoff_len": 99,
    "train_on_prompt": True, "mask_history": True, "streaming": True, "mix_strategy": "interleave_over", "interleave_probs": "0.1,0.9",
    "overwrite_cache": True, "preprocessing_num_workers": 3, "max_samples": 7, "val_size": 30, "packing": True, "neat_packing": True,
    "stage": "pt", "finetuning_type": "full", "lora_rank": 3, "lora_alpha": 5, "lora_dropout": 0.1, "lora_target": "q_proj",
    "additional_target": "embed_tokens", "loraplus_lr_ratio": 16, "use_rslora": True, "use_dora": True, "pissa_init": True, "pissa_iter": 4,
    "freeze_trainable_layers": 3, "freeze_trainable_modules": "mlp", "use_galore": True, "use_apollo": True, "use_badam": True,
    "use_llama_pro": True, "pure_bf16": True, "create_new_adapter": True, "plot_loss": True, "include_num_input_tokens_seen": True,
    "pref_beta": 0.3, "pref_ftx": 0.2, "pref_loss": "hinge", "dpo_label_smoothing": 0.1, "simpo_gamma": 0.7, "kto_chosen_weight": 2.0,
    "kto_rejected_weight": 2.0, "ref_model": "x/z", "reward_model": "r", "ppo_epochs": 2, "ppo_target": 5.0, "neftune_noise_alpha": 5,
    "output_dir": "o", "overwrite_output_dir": True, "do_eval": True, "do_predict": True, "per_device_train_batch_size": 3,
    "per_device_eval_batch_size": 3, "gradient_accumulation_steps": 3, "learning_rate": 3e-4, "weight_decay": 0.1, "adam_beta1": 0.8,
    "adam_beta2": 0.95, "adam_epsilon": 1e-6, "max_grad_norm": 0.3, "num_train_epochs": 2, "max_steps": 20, "lr_scheduler_type": "polynomial",
    "lr_scheduler_kwargs": {"a": 1}, "warmup_ratio": 0.2, "warmup_steps": 4, "logging_steps": 5, "save_steps": 50, "save_total_limit": 3,
    "save_strategy": "epoch", "save_only_model": True, "eval_steps": 0.1, "eval_strategy": "steps", "optim": "sgd", "group_by_length": True,
    "label_smoothing_factor": 0.1, "load_best_model_at_end": True, "seed": 5, "data_seed": 6, "bf16": True, "fp16": True, "report_to": "swanlab",
    "run_name": "n", "ddp_timeout": 5, "deepspeed": "d.json", "resume_from_checkpoint": True, "dataloader_num_workers": 4,
    "disable_shuffling": True, "enable_thinking": False,
}  # fmt: skip

AXOLOTL_KEYS: dict[str, Any] = {
    "base_model": "x/y", "base_model_config": "x/c", "revision_of_model": "v2", "model_type": "LlamaForCausalLM", "tokenizer_type": "T",
    "tokenizer_config": "t", "trust_remote_code": True, "load_in_4bit": True, "load_in_8bit": True, "adapter": "lora", "lora_model_dir": "a",
    "lora_r": 3, "lora_alpha": 5, "lora_dropout": 0.1, "lora_target_modules": ["q_proj"], "lora_target_linear": True,
    "lora_modules_to_save": ["lm_head"], "peft_layers_to_transform": [0], "peft_use_dora": True, "peft_use_rslora": True,
    "peft_init_lora_weights": "pissa", "loraplus_lr_ratio": 16, "loraplus_lr_embedding": 1e-6, "relora_steps": 50, "lora_mlp_kernel": True,
    "lora_fan_in_fan_out": True, "lora_on_cpu": True, "datasets": [{"path": "rows.jsonl", "type": "sharegpt"}],
    "test_datasets": [{"path": "rows.jsonl", "type": "alpaca"}], "shuffle_merged_datasets": False, "dataset_prepared_path": "p",
    "dataset_processes": 3, "dataset_keep_in_memory": True, "skip_prepare_dataset": True, "chat_template": "chatml",
    "chat_template_jinja": "{{ messages }}", "train_on_inputs": True, "group_by_length": True, "sequence_len": 99, "excess_length_strategy": "raise",
    "sample_packing": True, "eval_sample_packing": False, "pad_to_sequence_len": True, "multipack_real_batches": True, "val_set_size": 30,
    "special_tokens": {"pad_token": "<p>"}, "tokens": ["<a>"], "added_tokens_overrides": {"1": "<b>"}, "rl": "ipo", "rl_beta": 0.3,
    "dpo_beta": 0.3, "dpo_label_smoothing": 0.1, "dpo_use_weighting": True, "orpo_alpha": 0.2, "simpo_gamma": 0.6, "cpo_alpha": 0.5,
    "kto_desirable_weight": 2.0, "kto_undesirable_weight": 2.0, "trl": {"beta": 0.1}, "reward_model": True, "process_reward_model": True,
    "neftune_noise_alpha": 5, "micro_batch_size": 3, "gradient_accumulation_steps": 3, "eval_batch_size": 3, "num_epochs": 2, "max_steps": 20,
    "learning_rate": 3e-4, "embedding_lr": 1e-5, "lr_groups": [{"lr": 1e-5}], "optimizer": "adafactor", "optim_args": {"rank": 8},
    "optim_target_modules": ["mlp"], "lr_scheduler": "one_cycle", "lr_scheduler_kwargs": {"a": 1}, "cosine_min_lr_ratio": 0.1,
    "cosine_constant_lr_ratio": 0.5, "lr_quadratic_warmup": True, "warmup_ratio": 0.2, "warmup_steps": 4, "weight_decay": 0.1, "adam_beta1": 0.8,
    "adam_beta2": 0.95, "adam_beta3": 0.9, "adam_epsilon": 1e-6, "max_grad_norm": 0.3, "bf16": "auto", "fp16": True, "bfloat16": True,
    "tf32": True, "gradient_checkpointing": "offload", "gradient_checkpointing_kwargs": {"use_reentrant": True}, "early_stopping_patience": 3,
    "logging_steps": 5, "save_steps": 0.25, "saves_per_epoch": 2, "save_total_limit": 3, "save_strategy": "epoch", "save_only_model": True,
    "eval_steps": 0.1, "evals_per_epoch": 4, "eval_strategy": "epoch", "eval_table_size": 5, "xformers_attention": True, "flash_attention": True,
    "sdp_attention": True, "flex_attention": True, "s2_attention": True, "resume_from_checkpoint": "c", "auto_resume_from_checkpoints": True,
    "output_dir": "o", "seed": 5, "local_rank": 1, "deepspeed": "d.json", "fsdp": ["full_shard"], "fsdp_config": {"a": 1},
    "wandb_project": "p", "wandb_entity": "e", "wandb_name": "n", "wandb_watch": "gradients", "use_wandb": True, "mlflow_tracking_uri": "u",
    "mlflow_experiment_name": "e", "use_mlflow": True, "use_tensorboard": True, "use_comet": True, "comet_project_name": "p", "hub_model_id": "h",
    "plugins": ["x"], "liger_rope": True, "torch_compile": True, "unfrozen_parameters": ["lm_head"], "noisy_embedding_alpha": 5, "strict": True,
    "debug": True, "curriculum_sampling": True, "pretraining_dataset": [{"path": "x"}], "remove_unused_columns": False,
}  # fmt: skip

TORCHTUNE_KEYS: dict[str, Any] = {
    "model._component_": "torchtune.models.llama3_2.lora_llama3_2_1b", "model.lora_attn_modules": ["k_proj"], "model.apply_lora_to_mlp": True,
    "model.apply_lora_to_output": True, "model.lora_rank": 3, "model.lora_alpha": 5, "model.lora_dropout": 0.1, "model.use_dora": True,
    "model.quantize_base": True, "model.attn_dropout": 0.2, "model.max_seq_len": 55, "tokenizer.path": "t", "tokenizer.merges_file": "m",
    "tokenizer.max_seq_len": 99, "tokenizer.prompt_template": "p", "tokenizer.truncation_type": "left", "checkpointer.checkpoint_dir": "/m",
    "checkpointer.checkpoint_files": ["a"], "checkpointer.recipe_checkpoint": "r", "checkpointer.output_dir": "o", "checkpointer.model_type": "Q",
    "checkpointer.keep_last_n_checkpoints": 0, "checkpointer.safe_serialization": False, "dataset._component_": "torchtune.datasets.samsum_dataset",
    "dataset.source": "x/y", "dataset.data_files": "rows.jsonl", "dataset.packed": True, "dataset.split": "train[5:]", "dataset.name": "n",
    "dataset.column_map": {"input": "q"}, "dataset.train_on_input": True, "dataset.new_system_prompt": "s", "dataset.shuffle": False,
    "dataset.conversation_column": "c", "dataset_val.source": "x/v", "dataset_val.split": "train[95%:]", "seed": 5, "shuffle": False,
    "batch_size": 3, "gradient_accumulation_steps": 3, "optimizer._component_": "bitsandbytes.optim.PagedAdamW8bit", "optimizer.fused": True,
    "optimizer.weight_decay": 0.1, "optimizer.lr": 3e-5, "optimizer.betas": [0.8, 0.95], "optimizer.eps": 1e-6, "optimizer.amsgrad": False,
    "optimizer.foreach": False, "optimizer_in_bwd": True, "lr_scheduler._component_": "x.get_exponential_schedule",
    "lr_scheduler.num_warmup_steps": 5, "lr_scheduler.num_cycles": 0.4, "loss._component_": "torchtune.rlhf.loss.RSOLoss",
    "loss.num_output_chunks": 4, "epochs": 2, "max_steps_per_epoch": 9, "clip_grad_norm": 0.5, "compile": True, "run_val_every_n_steps": 5,
    "metric_logger._component_": "torchtune.training.metric_logging.CometLogger", "metric_logger.log_dir": "l", "metric_logger.project": "p",
    "log_every_n_steps": 2, "log_peak_memory_stats": True, "log_level": "INFO", "device": "cuda", "dtype": "fp64",
    "enable_activation_checkpointing": True, "enable_activation_offloading": True, "custom_sharded_layers": ["x"], "fsdp_cpu_offload": True,
    "resume_from_checkpoint": True, "save_adapter_weights_only": True, "profiler": {"enabled": True}, "output_dir": "o",
    "tensor_parallel_dim": 2, "seed_everything": 0,
}  # fmt: skip

OPENAI_KEYS: dict[str, Any] = {
    "model": "gpt-4o", "training_file": "file-abc123", "validation_file": "rows.jsonl", "suffix": "s", "seed": 5, "metadata": {"a": "b"},
    "status": "failed", "trained_tokens": 7, "error": {"code": "x"}, "hyperparameters.n_epochs": 3, "hyperparameters.batch_size": 4,
    "hyperparameters.learning_rate_multiplier": 2, "method.supervised.hyperparameters.n_epochs": 3,
    "method.supervised.hyperparameters.batch_size": 4, "method.supervised.hyperparameters.learning_rate_multiplier": 2,
    "method.supervised.hyperparameters.prompt_loss_weight": 0.1, "method.supervised.response_format": {"type": "json"},
    "method.dpo.hyperparameters.beta": 0.3, "integrations": [{"type": "mlops"}],
}  # fmt: skip
"""`integrations` of wandb, and `method.reinforcement`, have tests of their own."""


def told(found: Imported) -> set[str]:
    """The names of all settings in one of the three lists, and of the blocks that they are in."""
    names = [name for name, *_ in (*found.same, *found.needless, *found.lost)]
    each = {part for name in names for part in re.split(r", | × ", name)}
    return {".".join(name.split(".")[: depth + 1]) for name in each for depth in range(name.count(".") + 1)}


def with_setting(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    whole = copy.deepcopy(values)
    inner, (*outer, last) = whole, key.split(".")
    for part in outer:
        inner = inner.setdefault(part, {})
    inner[last] = value
    return whole


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (LLAMA_FACTORY, LLAMA_FACTORY_KEYS),
        (AXOLOTL, AXOLOTL_KEYS),
        (TORCHTUNE, TORCHTUNE_KEYS),
        (json.dumps(JOB), OPENAI_KEYS),
    ],
    ids=["llama-factory", "axolotl", "torchtune", "openai"],
)
def test_every_known_setting_is_told_of_and_what_comes_out_is_a_recipe(
    text: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    values = yaml.safe_load(text)
    (tmp_path / "rows.jsonl").write_text("{}")
    silent, broken = [], {}
    for key, value in keys.items():
        (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(with_setting(values, key, value)))
        names = told(import_recipe(tmp_path / "theirs.yaml"))
        own = key.removesuffix("._component_")
        silent += [] if own in names else [key]
        found = import_recipe(tmp_path / "theirs.yaml", "rows.jsonl")
        (tmp_path / "ours.yaml").write_text(found.as_yaml("theirs.yaml"))
        for held_out in ("support.jsonl", "data/support.jsonl"):
            (tmp_path / held_out).parent.mkdir(exist_ok=True)
            (tmp_path / held_out).write_text("{}")
        try:
            load_recipe(tmp_path / "ours.yaml")
        except Exception as error:
            broken[key] = str(error)
    assert silent == []
    assert broken == {}
