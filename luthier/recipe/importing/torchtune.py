"""torchtune's YAML: https://github.com/pytorch/torchtune, `tune run RECIPE --config FILE`.

Its settings name Python components (`_component_`), whose last words say what they are; `${name}` stands for another value of
the file. Which model is meant is told by the checkpointer's folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from luthier.recipe.importing.common import put_objective, put_of_optimizer, put_output
from luthier.recipe.importing.taken import Taken, number

TOOL = "torchtune"
_COMPONENT = "_component_"
_SPLIT = re.compile(r"train\[:(\d+)\]")
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
    "resume_from_checkpoint": "luthier resume RUN",
    "save_adapter_weights_only": "the adapter stands apart",
    "profiler": "nothing is profiled",
    "device": "the machine's best",
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
    for block in ("model", "tokenizer", "checkpointer", "optimizer", "lr_scheduler", "metric_logger", "loss"):
        inner = dict(taken.values.pop(block, None) or {})
        inner.pop(_COMPONENT, None)  # of the tokenizer and the checkpointer: the model's folder says what they are
        taken.lose_rest(block, inner)


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
    """What a block's component is; whoever asks tells of it as of the block."""
    name = str(taken.take(f"{block}.{_COMPONENT}", ""))
    taken.untold.pop(f"{block}.{_COMPONENT}", None)
    return _last(name)


def _last(component: Any) -> str:
    return str(component).rpartition(".")[2]


def _model(taken: Taken) -> None:
    builder = _component(taken, "model")
    taken.put("model.name", taken.take("checkpointer.checkpoint_dir", builder), "checkpointer.checkpoint_dir")
    for key in ("checkpoint_files", "model_type", "recipe_checkpoint", "output_dir", "safe_serialization"):
        if taken.take(f"checkpointer.{key}") is not None:
            taken.spare(f"checkpointer.{key}", "the model's folder says it")
    for key in ("path", "merges_file"):
        if taken.take(f"tokenizer.{key}") is not None:
            taken.spare(f"tokenizer.{key}", "the model's folder says it")
    if not builder.startswith(("lora_", "qlora_", "dora_", "qdora_")):
        taken.put("method.kind", "full", "model")
        return
    taken.put("method.kind", "dora" if builder.startswith(("dora_", "qdora_")) else "lora", "model")
    if taken.take("model.use_dora"):
        taken.put("method.kind", "dora", "model.use_dora")
    if builder.startswith("q"):
        taken.put("quantization.kind", "nf4", "model")
    if taken.take("model.quantize_base"):
        taken.put("quantization.kind", "nf4", "model.quantize_base")
    taken.move("model.lora_rank", "method.rank", 8)
    taken.put("method.alpha", number(taken.take("model.lora_alpha", 16)), "model.lora_alpha")
    taken.move("model.lora_dropout", "method.dropout")
    _targets(taken)


def _targets(taken: Taken) -> None:
    targets = [_ATTENTION.get(name, str(name)) for name in taken.take("model.lora_attn_modules", [])]
    told = ["model.lora_attn_modules"]
    for key, more in (("apply_lora_to_mlp", _FEED_FORWARD), ("apply_lora_to_output", ["lm_head"])):
        if taken.take(f"model.{key}"):
            targets += more
            told.append(f"model.{key}")
    taken.put("method.targets", targets or "all-linear", ", ".join(told))


def _data(taken: Taken) -> None:
    kinds: set[str] = set()
    for block, ours in (("dataset", "data.train"), ("dataset_val", "data.validation")):
        entries = taken.values.pop(block, None) or []
        entries = entries if isinstance(entries, list) else [entries]
        found = [_set(taken, dict(each), block, is_whole=len(entries) == 1) for each in entries]
        kinds |= {kind for kind, _ in found} if block == "dataset" else set()
        if files := [file for _, files in found for file in files]:
            theirs = sorted({*taken.untold} & {f"{block}.source", f"{block}.data_files"}) or [block]
            taken.put(ours, files[0] if len(files) == 1 else files, ", ".join(theirs))
    if "validation" not in taken.recipe.get("data", {}):
        taken.put("data.validation", "none")
    _objective(taken, is_text=any("text_completion" in kind for kind in kinds))
    _length(taken)
    if taken.take("shuffle") is False:
        taken.lose("shuffle", False, "rows are always shuffled")
    elif "shuffle" in taken.untold:
        taken.spare("shuffle", "rows are always shuffled")


def _set(taken: Taken, entry: dict[str, Any], block: str, *, is_whole: bool) -> tuple[str, list[str]]:
    """The kind of a set and where it lies. is_whole: whether it is all of the block."""
    kind = _last(entry.pop(_COMPONENT, ""))
    files, source = entry.pop("data_files", None), entry.pop("source", None)
    if files is None:
        taken.untold |= {} if source is None else {f"{block}.source": source}
        source = source or _SETS.get(kind)
    else:
        taken.untold[f"{block}.data_files"] = files
        if source is not None:
            taken.spare(f"{block}.source", "the files' own endings say what they are")
    if entry.pop("train_on_input", False):
        taken.put("data.learn", "all", f"{block}.train_on_input")
    if entry.pop("packed", None) is not None:
        taken.spare(f"{block}.packed", "rows are packed without seeing each other")
    if (split := entry.pop("split", None)) is not None:
        cut = _SPLIT.fullmatch(str(split))
        if split == "train":
            taken.spare(f"{block}.split", "the whole file is read")
        elif cut is not None and block == "dataset" and is_whole:
            taken.put("data.max_rows", int(cut[1]), f"{block}.split")
        else:
            taken.lose(f"{block}.split", split, "the training split is read, from its first row on")
    for key, value in entry.items():
        taken.lose_rest(f"{block}.{key}", value)
    found = source if files is None else files
    return kind, [] if found is None else [str(each) for each in found] if isinstance(found, list) else [str(found)]


def _objective(taken: Taken, is_text: bool) -> None:
    """The loss; those over the next token are the objective's own."""
    loss = _component(taken, "loss")
    if loss == "DPOLoss":
        settings = [(f"loss.{key}", key, number(taken.take(f"loss.{key}"))) for key in ("beta", "label_smoothing")]
        put_objective(taken, "dpo", "loss", *settings)
        return
    if loss and not ("CE" in loss or "CrossEntropy" in loss):
        taken.lose("loss", loss, "there is no such loss; the next token is learned in its place")
    elif loss:
        taken.spare("loss", "the objective's own")
    put_objective(taken, "clm" if is_text else "sft", "dataset")


def _length(taken: Taken) -> None:
    length = taken.take("tokenizer.max_seq_len")
    if length is None:
        taken.lose(
            "tokenizer.max_seq_len", None, "rows are never cut there; here those over data.max_length are refused"
        )
        return
    taken.put("data.max_length", int(length), "tokenizer.max_seq_len")
    taken.put("data.too_long", "truncate")
    taken.put("training.tokens_per_micro_batch", max(1024, int(length)))


_OPTIMIZERS = {
    "AdamW": "adamw", "PagedAdamW8bit": "paged-adamw-8bit", "PagedAdamW": "paged-adamw", "AdamW8bit": "adamw-8bit", "SGD": "sgd",
}  # fmt: skip
_DECAY = 0.01
"""What torch's and bitsandbytes' AdamW take off if nothing is said."""


def _optimizer(taken: Taken) -> None:
    name = _component(taken, "optimizer")
    kind = _OPTIMIZERS.get(name, "adamw")
    if name and name not in _OPTIMIZERS:
        taken.lose("optimizer", name, "there is no such optimizer; adamw stands in its place")
    taken.put("training.optimizer.kind", kind, "optimizer" if name in _OPTIMIZERS else "")
    decay = number(taken.take("optimizer.weight_decay"))
    if decay is None and kind != "sgd":
        taken.put("training.optimizer.weight_decay", _DECAY)
    put_of_optimizer(taken, kind, "optimizer.weight_decay", "weight_decay", decay)
    for index, beta in enumerate(taken.take("optimizer.betas", []), 1):
        put_of_optimizer(taken, kind, "optimizer.betas", f"beta{index}", number(beta))
    for key in ("eps", "momentum", "nesterov"):
        put_of_optimizer(taken, kind, f"optimizer.{key}", key, number(taken.take(f"optimizer.{key}")))
    taken.put("training.peak_lr", number(taken.take("optimizer.lr", 2e-5)), "optimizer.lr")
    if taken.take("optimizer.fused") is not None:
        taken.spare("optimizer.fused", "its steps are fused")


def _schedule(taken: Taken) -> None:
    name = _component(taken, "lr_scheduler")
    if name and "cosine" not in name:
        taken.lose("lr_scheduler", name, "there is no such schedule; a constant rate stands in its place")
    taken.put("training.schedule.kind", "cosine" if "cosine" in name else "constant", "lr_scheduler")
    taken.put("training.schedule.warmup_fraction", 0.0)
    if warmup := int(taken.take("lr_scheduler.num_warmup_steps", 0)):
        taken.put("training.schedule.warmup_steps", warmup, "lr_scheduler.num_warmup_steps")


def _training(taken: Taken) -> None:
    rows = int(taken.take("batch_size", 1)) * int(taken.take("gradient_accumulation_steps", 1))
    taken.put("training.rows_per_step", rows, "batch_size × gradient_accumulation_steps")
    taken.move("epochs", "training.epochs", 1)
    _optimizer(taken)
    _schedule(taken)
    clip = taken.take("clip_grad_norm")
    taken.put("training.clip_norm", clip, "clip_grad_norm")
    if taken.take("optimizer_in_bwd"):
        if clip is None and taken.recipe["method"]["kind"] == "full":
            taken.put("training.update_in_backward", True, "optimizer_in_bwd")
        else:
            taken.lose(
                "optimizer_in_bwd", True, "it is for full tuning without clip_grad_norm: training.update_in_backward"
            )
    if taken.take("enable_activation_checkpointing"):
        taken.put("training.gradient_checkpointing", True, "enable_activation_checkpointing")
    dtype = str(taken.take("dtype", "bf16"))
    if dtype in ("bf16", "fp16", "fp32"):
        taken.put("model.dtype", dtype, "dtype")
    else:
        taken.lose("dtype", dtype, "there is no such number format: see model.dtype")
    _logger(taken)
    taken.move("seed", "seed")
    put_output(taken)


def _logger(taken: Taken) -> None:
    name = _component(taken, "metric_logger")
    tracker = {"TensorBoardLogger": "tensorboard", "WandBLogger": "wandb"}.get(name)
    if tracker is not None:
        taken.put("training.trackers", [tracker], "metric_logger")
    elif name in ("DiskLogger", "StdoutLogger"):
        taken.spare("metric_logger", "every step is written down")
    elif name:
        taken.lose("metric_logger", name, "there is no such tracker: see training.trackers")
    if taken.take("metric_logger.log_dir") is not None:
        taken.spare("metric_logger.log_dir", "a run's metrics lie in its folder")
