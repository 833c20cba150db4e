"""What several tools call alike: optimizers, schedules, the transformers arguments that they hand on."""

from __future__ import annotations

from typing import Any

from luthier.objectives import SFT, kind_of
from luthier.recipe.importing.taken import Taken, number
from luthier.recipe.known_objectives import KNOWN_OBJECTIVES
from luthier.training.optimizers import OPTIMIZERS as OUR_OPTIMIZERS

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
PREFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {}), "sigmoid": ("dpo", {}), "ipo": ("dpo", {"loss": "ipo"}), "hinge": ("dpo", {"loss": "hinge"}),
    "kto": ("kto", {}), "orpo": ("orpo", {}), "simpo": ("simpo", {}), "cpo": ("cpo", {}),
}  # fmt: skip
"""Their names of losses over preferences: the objective, and what it is set to."""


def put_optimizer(taken: Taken, theirs: str) -> None:
    """Their optimizer's name, AdamW's numbers and weight decay."""
    name = str(taken.take(theirs, "adamw_torch"))
    kind = OPTIMIZERS.get(name, "adamw")
    taken.put("training.optimizer.kind", kind, theirs if name in OPTIMIZERS else "")
    if name not in OPTIMIZERS:
        taken.lose(theirs, name, "there is no such optimizer; adamw stands in its place")
    for key, ours in (
        ("adam_beta1", "beta1"),
        ("adam_beta2", "beta2"),
        ("adam_epsilon", "eps"),
        ("weight_decay", "weight_decay"),
    ):
        put_of_optimizer(taken, kind, key, ours, number(taken.take(key)))


def put_of_optimizer(taken: Taken, kind: str, theirs: str, ours: str, value: Any) -> None:
    """A number of an optimizer of ours, if it has one by that name that means what theirs does."""
    if value is None:
        return
    means_another = ours == "eps" and kind == "adafactor"  # added to squares there, to roots in theirs
    if ours in _fields_of_optimizer(kind) and not means_another:
        taken.put(f"training.optimizer.{ours}", value, theirs)
    else:
        taken.lose(theirs, value, f"{kind} has no such setting")


def _fields_of_optimizer(kind: str) -> frozenset[str]:
    settings = next(each for each in OUR_OPTIMIZERS if each.model_fields["kind"].default == kind)
    return frozenset(settings.model_fields)


def put_schedule(taken: Taken, default: str) -> None:
    """Their schedule, and its warm-up, which is none where they name none."""
    said = {key: taken.take(key) for key in ("lr_scheduler", "lr_scheduler_type")}
    theirs, name = next(((key, str(value)) for key, value in said.items() if value is not None), ("", default))
    if name in _SCHEDULES:
        taken.put("training.schedule.kind", _SCHEDULES[name], theirs)
    else:
        taken.lose(theirs, name, "there is no such schedule; cosine stands in its place")
        taken.put("training.schedule.kind", "cosine")
    share, steps = number(taken.take("warmup_ratio")), taken.take("warmup_steps")
    if steps:
        taken.put("training.schedule.warmup_steps", int(steps), "warmup_steps")
    if share and steps:
        taken.spare("warmup_ratio", "warmup_steps goes before it")
    taken.put("training.schedule.warmup_fraction", share or 0.0, "warmup_ratio" if share and not steps else "")


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


def put_objective(taken: Taken, kind: str, theirs: str, *settings: tuple[str, str, Any], **fixed: Any) -> None:
    """An objective, if there is one of this kind.

    settings: their name, our field, and the value; a field that the objective does not have makes the setting lost. fixed: fields
    that the kind itself says.
    """
    known = {kind_of(each): each for each in KNOWN_OBJECTIVES}
    if kind in known:
        taken.put("objective.kind", kind, theirs)
    else:
        taken.lose(
            theirs, kind, f"there is no such objective (there are {', '.join(sorted(known))}); sft stands in its place"
        )
        taken.put("objective.kind", "sft")
    for name, value in fixed.items():
        taken.put(f"objective.{name}", value)
    ours = known.get(kind, SFT)
    for key, name, value in settings:
        if value is None:
            continue
        if name in ours.model_fields:
            taken.put(f"objective.{name}", value, key)
        else:
            taken.lose(key, value, f"objective {kind_of(ours)} has no such setting")


def put_trainer_arguments(taken: Taken) -> None:
    """What both hand on to the trainer of transformers as it is."""
    clip = number(taken.take("max_grad_norm"))
    if clip is not None:
        taken.put("training.clip_norm", clip or None, "max_grad_norm")  # 0 is no clipping
    taken.move("save_total_limit", "training.keep_last")
    for theirs, ours in (("save_steps", "training.checkpoint_every"), ("eval_steps", "training.evaluate_every")):
        every = number(taken.take(theirs))
        if every is not None and every < 1:
            taken.lose(theirs, every, f"a share of the run has no equivalent: {ours} is in steps")
        elif every is not None:
            taken.put(ours, int(every), theirs)
    if taken.take("trust_remote_code"):
        taken.lose("trust_remote_code", True, "code of strangers is not run")


def put_output(taken: Taken) -> None:
    """Their folder of results, which is an option of a command here."""
    if (folder := taken.take("output_dir")) is not None:
        taken.spare("output_dir", f"luthier train RECIPE --out {folder}")
