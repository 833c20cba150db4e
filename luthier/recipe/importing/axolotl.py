"""Axolotl's YAML: https://github.com/axolotl-ai-cloud/axolotl, `axolotl train FILE`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.recipe.importing.common import (
    PREFERENCES,
    put_held_out,
    put_length,
    put_objective,
    put_optimizer,
    put_output,
    put_schedule,
    put_trainer_arguments,
)
from luthier.recipe.importing.taken import Taken, names, number

TOOL = "Axolotl"
_MARKS = frozenset(("datasets", "adapter", "sequence_len", "micro_batch_size", "lora_r"))

_NEEDLESS = {
    "model_type": "the model's config says it",
    "tokenizer_type": "the model's config says it",
    "dataset_prepared_path": "token sets are kept in the cache by content",
    "sample_packing": "rows are packed without seeing each other",
    "eval_sample_packing": "rows are packed without seeing each other",
    "pad_to_sequence_len": "nothing is padded where rows are packed",
    "group_by_length": "rows of like length are put together where they cannot be packed",
    "strict": "settings are always strict",
    "logging_steps": "every step is written down",
    "flash_attention": "the fastest attention that is there is used",
    "sdp_attention": "the fastest attention that is there is used",
    "tf32": "the library's own choice",
    "local_rank": "set by the launcher",
    "resume_from_checkpoint": "luthier resume RUN",
    "lora_mlp_kernel": "its fast operations are always on",
    "lora_qkv_kernel": "its fast operations are always on",
    "lora_o_kernel": "its fast operations are always on",
    "gradient_checkpointing_kwargs": "recomputation is never reentrant",
    "shuffle_merged_datasets": "rows are shuffled",
    "lora_fan_in_fan_out": "the model's config says it",
    "trust_remote_code": "code of strangers is not run",
}


def recognises(values: Mapping[str, Any]) -> bool:
    """Whether a file's values are such a recipe."""
    return "base_model" in values and bool(_MARKS & values.keys())


def convert(taken: Taken) -> None:
    """Take every setting that has an equivalent."""
    taken.move("base_model", "model.name")
    taken.move("revision_of_model", "model.revision")
    _data(taken)
    _method(taken)
    _objective(taken)
    _training(taken)
    taken.leave(_NEEDLESS)


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_FORMS = {
    "alpaca": "alpaca", "sharegpt": "sharegpt", "chat_template": "chat", "completion": "text", "oasst": "oasst",
    "chat_template.default": "auto",
}  # fmt: skip


def _data(taken: Taken) -> None:
    sets = taken.take("datasets", [])
    paths = [_path(taken, entry, "datasets") for entry in sets]
    if paths:
        taken.put("data.train", paths[0] if len(paths) == 1 else paths, "datasets")
    forms = {
        str(entry.get("type")) for entry in sets if isinstance(entry, Mapping) and isinstance(entry.get("type"), str)
    }
    if len(forms) == 1 and (form := _FORMS.get(forms.pop())) is not None:
        taken.put("data.format", form, "datasets.type")
    held_out = [_path(taken, entry, "test_datasets") for entry in taken.take("test_datasets", [])]
    if len(held_out) == 1:
        taken.put("data.validation", held_out[0], "test_datasets")
        taken.take("val_set_size")
    else:
        for path in held_out:
            taken.lose("test_datasets", path, "held-out rows are one file: data.validation")
        put_held_out(taken, "val_set_size")
    put_length(taken, "sequence_len", 512)
    if taken.take("train_on_inputs"):
        taken.put("data.learn", "all", "train_on_inputs")
    template = taken.take("chat_template_jinja")
    if template is not None:
        taken.put("data.chat_template", template, "chat_template_jinja")
    named = taken.take("chat_template", "tokenizer_default")
    if named == "chatml":
        taken.put("data.chat_template", named, "chat_template")
    elif named not in ("tokenizer_default", "jinja"):
        taken.lose("chat_template", named, "the model's own chat template is used, or the text of data.chat_template")
    for theirs in ("tokens", "added_tokens"):
        if (tokens := taken.take(theirs)) is not None:
            taken.put("model.add_tokens", tokens, theirs)


def _path(taken: Taken, entry: Any, theirs: str) -> str:
    """Where a set lies; what else is said of it is lost unless it goes without saying."""
    if not isinstance(entry, Mapping):
        return str(entry)
    files = names(entry.get("data_files", []))
    for key, value in entry.items():
        if key in ("path", "type", "data_files", "ds_type") and not isinstance(value, Mapping):
            continue
        if (key, value) in (("split", "train"), ("train_on_eos", "turn"), ("roles_to_train", ["assistant"])):
            continue
        taken.lose(f"{theirs}.{key}", value, "columns are told by their names, or by data.template")
    if len(files) > 1:
        taken.lose(f"{theirs}.data_files", files[1:], "name each file in data.train")
    return files[0] if files else str(entry.get("path", ""))


# ── method, objective ───────────────────────────────────────────────────────────────────────────────────────────────


def _method(taken: Taken) -> None:
    adapter = str(taken.take("adapter", ""))
    four, eight = taken.take("load_in_4bit", False), taken.take("load_in_8bit", False)
    if adapter in ("lora", "qlora"):
        _lora(taken)
    elif adapter:
        taken.lose(
            "adapter", adapter, "there is no such method by that name (luthier methods); lora stands in its place"
        )
    else:
        taken.put("method.kind", "full", "adapter")
        if four or eight:
            taken.lose("load_in_4bit" if four else "load_in_8bit", True, "full tuning needs whole weights")
        return
    if four or adapter == "qlora":
        taken.put("quantization.kind", "nf4", "load_in_4bit")
        taken.put("quantization.double", True)
    elif eight:
        taken.put("quantization.kind", "int8", "load_in_8bit")


def _lora(taken: Taken) -> None:
    taken.put("method.kind", "dora" if taken.take("peft_use_dora") else "lora", "adapter")
    rank = int(taken.take("lora_r", 8))
    taken.put("method.rank", rank, "lora_r")
    taken.put("method.alpha", number(taken.take("lora_alpha", rank)), "lora_alpha")
    taken.move("lora_dropout", "method.dropout")
    targets = taken.take("lora_target_modules")
    if taken.take("lora_target_linear") or targets is None or str(targets) == "all-linear":
        taken.put("method.targets", "all-linear", "lora_target_linear")
    else:
        taken.put("method.targets", names(targets), "lora_target_modules")
    taken.move("peft_layers_to_transform", "method.layers")
    if taken.take("peft_use_rslora"):
        taken.put("method.rslora", True, "peft_use_rslora")
    taken.move("loraplus_lr_ratio", "method.lr_ratio")
    taken.move("lora_model_dir", "method.from")


def _objective(taken: Taken) -> None:
    kind = taken.take("rl")
    beta = number(taken.take("rl_beta", taken.take("dpo_beta")))
    noise = number(taken.take("neftune_noise_alpha"))
    if kind is None:
        put_objective(taken, "sft", "rl", noise=noise)
    else:
        put_objective(
            taken, PREFERENCES.get(str(kind), str(kind)), "rl", beta=beta if kind in ("dpo", "ipo", "kto") else None
        )


# ── training ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _training(taken: Taken) -> None:
    rows = int(taken.take("micro_batch_size", 1)) * int(taken.take("gradient_accumulation_steps", 1))
    taken.put("training.rows_per_step", rows, "micro_batch_size × gradient_accumulation_steps")
    taken.move("num_epochs", "training.epochs", 1.0)
    taken.move("max_steps", "training.steps")
    taken.put("training.peak_lr", number(taken.take("learning_rate", 5e-5)), "learning_rate")
    put_optimizer(taken, "optimizer")
    put_schedule(taken, "cosine")
    if (least := number(taken.take("cosine_min_lr_ratio"))) is not None:
        taken.put("training.schedule.final_fraction", least, "cosine_min_lr_ratio")
    put_trainer_arguments(taken)
    if (patience := taken.take("early_stopping_patience")) is not None:
        taken.put("training.early_stopping.patience", int(patience), "early_stopping_patience")
    if taken.take("gradient_checkpointing"):
        taken.put("training.gradient_checkpointing", True, "gradient_checkpointing")
    for theirs, dtype in (("bf16", "bf16"), ("fp16", "fp16")):
        if taken.take(theirs) is True:
            taken.put("model.dtype", dtype, theirs)
    for tracker in ("wandb", "mlflow"):
        keys = [key for key in list(taken.values) if key.startswith(f"{tracker}_")]
        if any(taken.take(key) for key in keys):
            taken.put("training.trackers", [tracker], ", ".join(keys))
    taken.move("seed", "seed", 42)
    put_output(taken)
