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
    "lora_fan_in_fan_out": "the model's config says it",
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
    sets = [_set(taken, entry, "datasets") for entry in taken.take("datasets", [])]
    forms = {form for _, form in sets}
    if len(forms) == 1 and (form := forms.pop()) is not None:
        taken.put("data.format", form, "datasets.type")
    if len(forms) > 1:  # each set is read in a form of its own
        mixture: list[dict[str, Any]] = [
            {"path": paths, **({} if form is None else {"format": form})} for paths, form in sets
        ]
        taken.put("data.train", mixture, "datasets")
    elif files := [path for paths, _ in sets for path in paths]:
        taken.put("data.train", files[0] if len(files) == 1 else files, "datasets")
    held_out = [path for entry in taken.take("test_datasets", []) for path in _set(taken, entry, "test_datasets")[0]]
    if held_out:
        taken.put("data.validation", held_out[0] if len(held_out) == 1 else held_out, "test_datasets")
        if taken.take("val_set_size") is not None:
            taken.spare("val_set_size", "test_datasets are held out")
    else:
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


def _set(taken: Taken, entry: Any, theirs: str) -> tuple[list[str], str | None]:
    """Where a set lies and the form of its rows, None: to be told by their content; what else is said of it is lost."""
    if not isinstance(entry, Mapping):
        return [str(entry)], None
    rest = dict(entry)
    path, files, kind = str(rest.pop("path", "")), names(rest.pop("data_files", None) or []), rest.pop("type", None)
    if (ending := rest.pop("ds_type", None)) is not None:
        taken.spare(f"{theirs}.ds_type", f"{ending}: the file's own ending says it")
    form = None if isinstance(kind, Mapping) else _FORMS.get(str(kind))
    if taken.values.get("rl") and kind is not None:
        taken.spare(f"{theirs}.type", "pairs are told by their content")
        form = None
    elif form is None and kind is not None:
        taken.lose(f"{theirs}.type", kind, "rows are told by their content: see data.format and data.template")
    for key, value in rest.items():
        if (key, value) in (("split", "train"), ("train_on_eos", "turn"), ("roles_to_train", ["assistant"])):
            taken.spare(f"{theirs}.{key}", "it is so here")
        else:
            taken.lose(f"{theirs}.{key}", value, "columns are told by their names, or by data.template")
    return files or [path], form


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
        taken.put("quantization.kind", "nf4", "load_in_4bit" if four else "adapter")
        taken.put("quantization.double", True)
        if eight:
            taken.lose("load_in_8bit", True, "four bits were asked for, too")
    elif eight:
        taken.put("quantization.kind", "int8", "load_in_8bit")


def _lora(taken: Taken) -> None:
    taken.put("method.kind", "lora", "adapter")
    if taken.take("peft_use_dora"):
        taken.put("method.kind", "dora", "peft_use_dora")
    rank = int(taken.take("lora_r", 8))
    taken.put("method.rank", rank, "lora_r")
    taken.put("method.alpha", number(taken.take("lora_alpha", rank)), "lora_alpha")
    taken.move("lora_dropout", "method.dropout")
    targets = taken.take("lora_target_modules")
    if taken.take("lora_target_linear"):
        taken.put("method.targets", "all-linear", "lora_target_linear")
        if targets is not None:
            taken.spare("lora_target_modules", "lora_target_linear has them all")
    elif targets is None or str(targets) == "all-linear":
        taken.put("method.targets", "all-linear", "" if targets is None else "lora_target_modules")
    else:
        taken.put("method.targets", names(targets), "lora_target_modules")
    taken.move("peft_layers_to_transform", "method.layers")
    if taken.take("peft_use_rslora"):
        taken.put("method.rslora", True, "peft_use_rslora")
    taken.move("loraplus_lr_ratio", "method.lr_ratio")
    taken.move("lora_model_dir", "method.from")


def _objective(taken: Taken) -> None:
    said = taken.take("rl")
    name = "sft" if said is None else str(said)
    kind, fixed = PREFERENCES.get(name, (name, {}))
    put_objective(taken, kind, "" if said is None else "rl", *(
        (key, ours, number(taken.take(key)))
        for key, ours in (
            ("dpo_beta", "beta"), ("rl_beta", "beta"), ("orpo_alpha", "beta"), ("simpo_gamma", "gamma"), ("cpo_alpha", "alpha"),
            ("dpo_label_smoothing", "label_smoothing"), ("kto_desirable_weight", "desirable_weight"),
            ("kto_undesirable_weight", "undesirable_weight"), ("neftune_noise_alpha", "noise"),
        )
    ), **fixed)  # fmt: skip


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
    _dtype(taken)
    _trackers(taken)
    if taken.take("shuffle_merged_datasets") is False:
        taken.lose("shuffle_merged_datasets", False, "rows are always shuffled")
    taken.move("seed", "seed", 42)
    put_output(taken)


def _dtype(taken: Taken) -> None:
    """Their switches of number formats: on, off, `auto` (bf16 where the device has it), or `full` (weights too)."""
    for theirs, dtype in (("fp16", "fp16"), ("bf16", "bf16")):
        said = taken.take(theirs)
        if said is True or said == "full":
            taken.put("model.dtype", dtype, theirs)
        elif said == "auto":
            taken.put("model.dtype", "auto", theirs)


def _trackers(taken: Taken) -> None:
    """Which trackers are on. Where they keep what is told is theirs to say, by variables of their own."""
    on = []
    for tracker in ("wandb", "mlflow"):
        said = {key: taken.take(key) for key in list(taken.values) if key.removeprefix("use_").startswith(tracker)}
        if not any(said.values()) or said.get(f"use_{tracker}") is False or said.get("wandb_mode") == "disabled":
            continue
        on.append(tracker)
        for key, value in said.items():
            if value and key != f"use_{tracker}":
                taken.lose(key, value, f"{tracker} itself is told by its variables, such as {key.upper()}")
    if taken.take("use_tensorboard"):
        on.append("tensorboard")
    if on:
        taken.put("training.trackers", on, ", ".join(f"use_{tracker}" for tracker in on))
