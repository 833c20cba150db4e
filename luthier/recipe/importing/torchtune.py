"""torchtune's YAML: https://github.com/pytorch/torchtune, `tune run RECIPE --config FILE`.

Its settings name Python components (`_component_`), whose last words say what they are; `${name}` stands for another value of
the file. Which model is meant is told by the checkpointer's folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from luthier.recipe.importing.common import put_objective, put_output
from luthier.recipe.importing.taken import Taken, number

TOOL = "torchtune"
_COMPONENT = "_component_"
_PLACE = re.compile(r"\$\{([\w.]+)\}")
_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
_FEED_FORWARD = ["gate_proj", "up_proj", "down_proj"]
_SETS = {
    "alpaca_dataset": "tatsu-lab/alpaca",
    "alpaca_cleaned_dataset": "yahma/alpaca-cleaned",
    "samsum_dataset": "Samsung/samsum",
    "grammar_dataset": "liweili/c4_200m",
    "slimorca_dataset": "Open-Orca/SlimOrca-Dedup",
    "wikitext_dataset": "EleutherAI/wikitext_document_level",
}

_NEEDLESS = {
    "compile": "operations are written for speed instead",
    "enable_activation_offloading": "memory is bounded by training.tokens_per_micro_batch",
    "log_every_n_steps": "every step is written down",
    "log_peak_memory_stats": "memory is always written down",
    "log_level": "set on the command line",
    "shuffle": "rows are shuffled",
    "resume_from_checkpoint": "luthier resume RUN",
    "save_adapter_weights_only": "the adapter stands apart",
    "profiler": "nothing is profiled",
    "loss": "the objective's",
    "device": "the machine's best",
    "optimizer_in_bwd": "see training.update_in_backward",
}


def recognises(values: Mapping[str, Any]) -> bool:
    """Whether a file's values are such a recipe."""
    parts = [values.get(key) for key in ("model", "tokenizer", "checkpointer")]
    return any(isinstance(part, Mapping) and "torchtune" in str(part.get(_COMPONENT)) for part in parts)


def convert(taken: Taken) -> None:
    """Take every setting that has an equivalent."""
    taken.values = _resolved(taken.values, taken.values)
    _model(taken)
    _data(taken)
    _training(taken)
    taken.leave(_NEEDLESS)
    for block in (
        "model",
        "tokenizer",
        "dataset",
        "dataset_val",
        "checkpointer",
        "optimizer",
        "lr_scheduler",
        "metric_logger",
    ):
        inner = taken.take(block, {})
        for key, value in inner.items() if isinstance(inner, Mapping) else []:
            if key != _COMPONENT and value not in (None, False, [], ""):
                taken.lose(f"{block}.{key}", value, "nothing here corresponds to it")


def _resolved(value: Any, root: Mapping[str, Any]) -> Any:
    """A value with `${name}` filled in; one that leads nowhere stays as it is."""
    if isinstance(value, Mapping):
        return {key: _resolved(inner, root) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, root) for inner in value]
    return _PLACE.sub(lambda place: str(_at(root, place[1], place[0])), value) if isinstance(value, str) else value


def _at(root: Mapping[str, Any], path: str, otherwise: str) -> Any:
    inner: Any = root
    for part in path.split("."):
        if not isinstance(inner, Mapping) or part not in inner:
            return otherwise
        inner = inner[part]
    return inner


def _component(taken: Taken, block: str) -> str:
    return str(taken.take(f"{block}.{_COMPONENT}", "")).rpartition(".")[2]


def _model(taken: Taken) -> None:
    builder = _component(taken, "model")
    taken.put("model.name", taken.take("checkpointer.checkpoint_dir", builder), "checkpointer.checkpoint_dir")
    for key in ("checkpoint_files", "model_type", "recipe_checkpoint", "output_dir", "safe_serialization"):
        if taken.take(f"checkpointer.{key}") is not None:
            taken.needless.append((f"checkpointer.{key}", "the model's folder says it"))
    taken.take("tokenizer.path")
    if taken.take("tokenizer.merges_file") is not None:
        taken.needless.append(("tokenizer.merges_file", "the model's folder says it"))
    if not builder.startswith(("lora_", "qlora_", "dora_", "qdora_")):
        taken.put("method.kind", "full", "model")
        return
    taken.put(
        "method.kind",
        "dora" if builder.startswith(("dora_", "qdora_")) or taken.take("model.use_dora") else "lora",
        "model",
    )
    if builder.startswith("q") or taken.take("model.quantize_base"):
        taken.put("quantization.kind", "nf4", "model")
    taken.move("model.lora_rank", "method.rank", 8)
    taken.put("method.alpha", number(taken.take("model.lora_alpha", 16)), "model.lora_alpha")
    taken.move("model.lora_dropout", "method.dropout")
    targets = [_ATTENTION.get(name, str(name)) for name in taken.take("model.lora_attn_modules", [])]
    if taken.take("model.apply_lora_to_mlp"):
        targets += _FEED_FORWARD
    if taken.take("model.apply_lora_to_output"):
        targets.append("lm_head")
    taken.put("method.targets", targets or "all-linear", "model.lora_attn_modules")


def _data(taken: Taken) -> None:
    is_text = "text_completion" in str(_at(taken.values, f"dataset.{_COMPONENT}", ""))
    for block, ours in (("dataset", "data.train"), ("dataset_val", "data.validation")):
        kind = _component(taken, block)
        source = taken.take(f"{block}.source", _SETS.get(kind))
        files = taken.take(f"{block}.data_files")
        if files is not None or source is not None:
            taken.put(ours, source if files is None else files, block)
    if "validation" not in taken.recipe.get("data", {}):
        taken.put("data.validation", "none")
    put_objective(taken, "clm" if is_text else "sft", "dataset")
    length = int(taken.take("tokenizer.max_seq_len", 2048))
    taken.put("data.max_length", length, "tokenizer.max_seq_len")
    taken.put("data.too_long", "truncate")
    taken.put("training.tokens_per_micro_batch", max(1024, length))
    if taken.take("dataset.train_on_input"):
        taken.put("data.learn", "all", "dataset.train_on_input")
    for key, why in (("packed", "rows are packed without seeing each other"), ("split", "the whole file is read")):
        if taken.take(f"dataset.{key}") is not None:
            taken.needless.append((f"dataset.{key}", why))


def _training(taken: Taken) -> None:
    rows = int(taken.take("batch_size", 1)) * int(taken.take("gradient_accumulation_steps", 1))
    taken.put("training.rows_per_step", rows, "batch_size × gradient_accumulation_steps")
    taken.move("epochs", "training.epochs", 1)
    name = _component(taken, "optimizer")
    kind = {
        "AdamW": "adamw",
        "PagedAdamW8bit": "paged-adamw-8bit",
        "PagedAdamW": "paged-adamw",
        "AdamW8bit": "adamw-8bit",
        "SGD": "sgd",
    }.get(name)
    if kind is None and name:
        taken.lose("optimizer", name, "there is no such optimizer; adamw stands in its place")
    taken.put("training.optimizer.kind", kind or "adamw", "optimizer")
    if (decay := number(taken.take("optimizer.weight_decay"))) is not None:
        taken.put("training.optimizer.weight_decay", decay, "optimizer.weight_decay")
    taken.put("training.peak_lr", number(taken.take("optimizer.lr", 2e-5)), "optimizer.lr")
    taken.take("optimizer.fused")
    schedule = _component(taken, "lr_scheduler")
    taken.put("training.schedule.kind", "cosine" if "cosine" in schedule else "constant", "lr_scheduler")
    warmup = int(taken.take("lr_scheduler.num_warmup_steps", 0))
    taken.put("training.schedule.warmup_fraction", 0.0)
    if warmup:
        taken.put("training.schedule.warmup_steps", warmup, "lr_scheduler.num_warmup_steps")
    taken.put("training.clip_norm", taken.take("clip_grad_norm"), "clip_grad_norm")
    if taken.take("enable_activation_checkpointing"):
        taken.put("training.gradient_checkpointing", True, "enable_activation_checkpointing")
    dtype = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}.get(str(taken.take("dtype", "bf16")), "auto")
    taken.put("model.dtype", dtype, "dtype")
    logger = _component(taken, "metric_logger")
    if logger in ("TensorBoardLogger", "WandBLogger"):
        taken.put("training.trackers", ["tensorboard" if logger.startswith("Tensor") else "wandb"], "metric_logger")
    taken.take("metric_logger.log_dir")
    taken.move("seed", "seed")
    put_output(taken)
