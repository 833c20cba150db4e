"""What several tools call alike: optimizers, schedules, the transformers arguments that they hand on."""

from __future__ import annotations

from typing import Any

from luthier.objectives import kind_of
from luthier.recipe.importing.taken import Taken, number
from luthier.recipe.known_objectives import KNOWN_OBJECTIVES

OPTIMIZERS = {
    "adamw": "adamw", "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "adamw_bnb_8bit": "adamw-8bit",
    "adamw_8bit": "adamw-8bit", "paged_adamw": "paged-adamw", "paged_adamw_32bit": "paged-adamw",
    "paged_adamw_8bit": "paged-adamw-8bit", "adafactor": "adafactor", "lion_32bit": "lion", "lion": "lion", "sgd": "sgd",
    "muon": "muon", "galore_adamw": "galore",
}  # fmt: skip
_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine",
}
PREFERENCES = {"dpo": "dpo", "ipo": "dpo", "kto": "kto", "orpo": "orpo", "simpo": "simpo", "cpo": "cpo"}


def put_optimizer(taken: Taken, theirs: str) -> None:
    """Their optimizer's name, AdamW's numbers and weight decay."""
    name = str(taken.take(theirs, "adamw_torch"))
    kind = OPTIMIZERS.get(name, "adamw")
    taken.put("training.optimizer.kind", kind, theirs if name in OPTIMIZERS else "")
    if name not in OPTIMIZERS:
        taken.lose(theirs, name, "there is no such optimizer; adamw stands in its place")
    for key, ours in (("adam_beta1", "beta1"), ("adam_beta2", "beta2"), ("adam_epsilon", "eps")):
        value = number(taken.take(key))
        if value is not None and kind.endswith(("adamw", "adamw-8bit")):
            taken.put(f"training.optimizer.{ours}", value, key)
    decay = number(taken.take("weight_decay"))
    if decay is not None and kind != "adafactor":
        taken.put("training.optimizer.weight_decay", decay, "weight_decay")


def put_schedule(taken: Taken, default: str) -> None:
    """Their schedule, and its warm-up, which is none where they name none."""
    name = taken.take("lr_scheduler_type", taken.take("lr_scheduler", default))
    if str(name) not in _SCHEDULES:
        taken.lose("lr_scheduler", name, "there is no such schedule; cosine stands in its place")
    taken.put("training.schedule.kind", _SCHEDULES.get(str(name), "cosine"), "lr_scheduler")
    share, steps = number(taken.take("warmup_ratio")), taken.take("warmup_steps")
    if steps:
        taken.put("training.schedule.warmup_steps", int(steps), "warmup_steps")
    taken.put("training.schedule.warmup_fraction", share or 0.0, "warmup_ratio" if share else "")


def put_length(taken: Taken, theirs: str, default: int) -> None:
    """Their longest row: longer ones are cut there without a word, so they are cut here."""
    length = int(taken.take(theirs, default))
    taken.put("data.max_length", length, theirs)
    taken.put("data.too_long", "truncate")
    taken.put("training.tokens_per_micro_batch", max(1024, length))


def put_held_out(taken: Taken, theirs: str) -> None:
    """Their share of held-out rows; a number of rows has no equivalent."""
    size = number(taken.take(theirs, 0))
    if not size:
        taken.put("data.validation", "none")
    elif 0 < size < 1:
        taken.put("data.validation_fraction", min(0.2, size), theirs)
        if size > 0.2:
            taken.lose(theirs, size, "at most a fifth of the rows is held out")
    else:
        taken.lose(theirs, size, "rows are held out by share: see data.validation_fraction")


def put_objective(taken: Taken, kind: str, theirs: str, **settings: Any) -> None:
    """An objective, if there is one of this kind."""
    known = {kind_of(each) for each in KNOWN_OBJECTIVES}
    if kind not in known:
        taken.lose(
            theirs, kind, f"there is no such objective (there are {', '.join(sorted(known))}); sft stands in its place"
        )
        return
    taken.put("objective.kind", kind, theirs)
    for name, value in settings.items():
        if value is not None:
            taken.put(f"objective.{name}", value)


def put_trainer_arguments(taken: Taken) -> None:
    """What both hand on to the trainer of transformers as it is."""
    taken.move("max_grad_norm", "training.clip_norm")
    taken.move("save_steps", "training.checkpoint_every")
    taken.move("save_total_limit", "training.keep_last")
    taken.move("eval_steps", "training.evaluate_every")


def put_output(taken: Taken) -> None:
    """Their folder of results, which is an option of a command here."""
    if (folder := taken.take("output_dir")) is not None:
        taken.needless.append(("output_dir", f"luthier train RECIPE --out {folder}"))
