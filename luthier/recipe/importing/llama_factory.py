"""LLaMA-Factory's YAML: https://github.com/hiyouga/LLaMA-Factory, `llamafactory-cli train FILE`.

Its defaults are written down where ours differ: rank 8, one epoch's rate 5e-5 falling in a line, no warm-up, rows cut at 2,048
tokens. Names of data sets are looked up in its `dataset_info.json`, if that lies where `dataset_dir` says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
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

TOOL = "LLaMA-Factory"
_MARKS = frozenset(("finetuning_type", "dataset_dir", "cutoff_len", "lora_target", "stage"))

_NEEDLESS = {
    "do_train": "luthier train trains",
    "do_eval": "held-out rows are measured along the way",
    "overwrite_output_dir": "runs get folders of their own",
    "overwrite_cache": "caches are kept by content",
    "preprocessing_num_workers": "all cores are used where it pays",
    "dataloader_num_workers": "batches are made beside the steps",
    "packing": "rows are packed without seeing each other",
    "neat_packing": "rows are packed without seeing each other",
    "plot_loss": "every run has a plot",
    "logging_steps": "every step is written down",
    "save_only_model": "checkpoints hold what resuming needs, and the result stands apart",
    "ddp_timeout": "no processes wait for each other",
    "resume_from_checkpoint": "luthier resume RUN",
    "flash_attn": "the fastest attention that is there is used",
    "per_device_eval_batch_size": "bounded by training.tokens_per_micro_batch",
    "eval_strategy": "held-out rows are measured along the way",
    "save_strategy": "checkpoints are written along the way",
    "trust_remote_code": "code of strangers is not run",
    "enable_thinking": "the chat template decides",
}


def recognises(values: Mapping[str, Any]) -> bool:
    """Whether a file's values are such a recipe."""
    return "model_name_or_path" in values and bool(_MARKS & values.keys())


def convert(taken: Taken) -> None:
    """Take every setting that has an equivalent."""
    taken.move("model_name_or_path", "model.name")
    _data(taken)
    _method(taken)
    _objective(taken)
    _quantization(taken)
    _training(taken)
    taken.leave(_NEEDLESS)


def _data(taken: Taken) -> None:
    folder = taken.folder / str(taken.take("dataset_dir", "data"))
    for theirs, ours in (("dataset", "data.train"), ("eval_dataset", "data.validation")):
        found = [_file_of(taken, folder, name, theirs) for name in names(taken.take(theirs, ""))]
        if found:
            taken.put(ours, found[0] if len(found) == 1 else found, theirs)
    if "validation" not in taken.recipe.get("data", {}):
        put_held_out(taken, "val_size")
    put_length(taken, "cutoff_len", 2048)
    taken.move("max_samples", "data.max_rows")
    if taken.take("train_on_prompt"):
        taken.put("data.learn", "all", "train_on_prompt")
    elif taken.take("mask_history"):
        taken.put("data.learn", "last_answer", "mask_history")
    template = taken.take("template")
    if template == "chatml":
        taken.put("data.chat_template", template, "template")
    elif template is not None:
        taken.lose(
            "template", template, "the model's own chat template is used; see what it makes of rows with luthier check"
        )


def _file_of(taken: Taken, folder: Path, name: str, theirs: str) -> str:
    """The file that a data set's name stands for."""
    try:
        known = json.loads((folder / "dataset_info.json").read_text("utf-8"))
        entry = known[name]
        if "file_name" in entry:
            return str(folder / entry["file_name"])
        return str(entry["hf_hub_url"])
    except (OSError, ValueError, KeyError, TypeError):
        taken.lose(theirs, name, "its file is not known here: name it in the recipe, or with --data")
        return f"{name}.jsonl"


def _method(taken: Taken) -> None:
    kind = str(taken.take("finetuning_type", "lora"))
    if kind == "lora":
        _lora(taken)
    elif kind == "full":
        taken.put("method.kind", "full", "finetuning_type")
    elif kind == "freeze":
        taken.put("method.kind", "top-layers", "finetuning_type")
        taken.move("freeze_trainable_layers", "method.num_layers", 2)
    else:
        taken.lose(
            "finetuning_type", kind, "there is no such method by that name (luthier methods); lora stands in its place"
        )


def _lora(taken: Taken) -> None:
    variant = "lora"
    for theirs, ours in (("use_dora", "dora"), ("pissa_init", "pissa")):
        if taken.take(theirs):
            variant = ours
            taken.same.append((theirs, "method.kind"))
    taken.put("method.kind", variant, "finetuning_type")
    rank = int(taken.take("lora_rank", 8))
    taken.put("method.rank", rank, "lora_rank")
    taken.put("method.alpha", number(taken.take("lora_alpha", 2 * rank)), "lora_alpha")
    taken.move("lora_dropout", "method.dropout")
    target = taken.take("lora_target", "all")
    taken.put("method.targets", "all-linear" if str(target) == "all" else names(target), "lora_target")
    if taken.take("use_rslora"):
        taken.put("method.rslora", True, "use_rslora")
    taken.move("loraplus_lr_ratio", "method.lr_ratio")
    taken.move("adapter_name_or_path", "method.from")


def _objective(taken: Taken) -> None:
    stage = str(taken.take("stage", "sft"))
    noise = number(taken.take("neftune_noise_alpha"))
    if stage == "sft":
        put_objective(taken, "sft", "stage", noise=noise)
    elif stage == "pt":
        put_objective(taken, "clm", "stage")
    elif stage in ("dpo", "kto"):
        loss = str(taken.take("pref_loss", "sigmoid"))
        kind = "kto" if stage == "kto" else PREFERENCES.get(loss, "dpo")
        put_objective(
            taken, kind, "stage", beta=number(taken.take("pref_beta", 0.1)) if kind in ("dpo", "kto") else None
        )
    else:
        put_objective(taken, {"rm": "reward", "ppo": "ppo"}.get(stage, stage), "stage")


def _quantization(taken: Taken) -> None:
    bits = taken.take("quantization_bit")
    double = taken.take("double_quantization", True)
    method = taken.take("quantization_method", "bnb")
    if bits is None:
        return
    if str(method) not in ("bnb", "bitsandbytes") or int(bits) not in (4, 8):
        taken.lose(
            "quantization_bit",
            bits,
            "only four and eight bits of bitsandbytes have an equivalent: see quantization.kind",
        )
        return
    taken.put("quantization.kind", "nf4" if int(bits) == 4 else "int8", "quantization_bit")
    if int(bits) == 4:
        taken.put("quantization.double", bool(double), "double_quantization")


def _training(taken: Taken) -> None:
    rows = int(taken.take("per_device_train_batch_size", 8)) * int(taken.take("gradient_accumulation_steps", 1))
    taken.put("training.rows_per_step", rows, "per_device_train_batch_size × gradient_accumulation_steps")
    taken.move("num_train_epochs", "training.epochs", 3.0)
    if (steps := int(taken.take("max_steps", -1))) > 0:
        taken.put("training.steps", steps, "max_steps")
    taken.put("training.peak_lr", number(taken.take("learning_rate", 5e-5)), "learning_rate")
    put_optimizer(taken, "optim")
    put_schedule(taken, "linear")
    put_trainer_arguments(taken)
    for theirs, dtype in (("bf16", "bf16"), ("fp16", "fp16")):
        if taken.take(theirs):
            taken.put("model.dtype", dtype, theirs)
    trackers = [name for name in names(taken.take("report_to", "none")) if name in ("tensorboard", "wandb", "mlflow")]
    if trackers:
        taken.put("training.trackers", trackers, "report_to")
    taken.move("seed", "seed", 42)
    put_output(taken)
