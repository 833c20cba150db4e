"""A fine-tuning job of OpenAI's API as JSON: the request that creates one, or the job itself.

The hosted model cannot be had; another one stands in its place. A multiplier of the learning rate multiplies our method's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.methods.lora import LoRA
from luthier.recipe.importing.common import put_objective
from luthier.recipe.importing.taken import Taken, number

TOOL = "OpenAI fine-tuning job"
_STANDS_IN = "smollm2-135m"

_NEEDLESS = dict.fromkeys(("id", "object", "created_at", "finished_at", "estimated_finish", "status", "trained_tokens", "organization_id", "result_files", "error", "fine_tuned_model", "user_provided_suffix", "usage_metrics", "shared_with_openai"), "a fact of the job that was")  # fmt: skip


def recognises(values: Mapping[str, Any]) -> bool:
    """Whether a file's values are such a job."""
    return "training_file" in values and "model" in values


def convert(taken: Taken) -> None:
    """Take every setting that has an equivalent."""
    taken.lose("model", taken.take("model"), f"a hosted model; {_STANDS_IN} stands in its place")
    taken.put("model", _STANDS_IN)
    for theirs, ours in (("training_file", "data.train"), ("validation_file", "data.validation")):
        name = taken.take(theirs)
        if name is not None:
            taken.put(ours, name, theirs)
            if str(name).startswith("file-"):
                taken.lose(theirs, name, "an uploaded file's number: put the path of your copy here")
    kind = str(taken.take("method.type", "supervised"))
    block = f"method.{kind}.hyperparameters"
    shared = taken.take("hyperparameters", {})
    given = {**shared, **taken.take(block, {})}
    taken.take("method")
    _objective(taken, kind, given)
    _hyperparameters(taken, given)
    taken.move("seed", "seed")
    for key in ("suffix", "metadata"):
        if (value := taken.take(key)) is not None:
            taken.needless.append(
                (key, f"name the run: luthier train RECIPE --out runs/{value}" if key == "suffix" else "kept by nobody")
            )
    trackers = [each["type"] for each in taken.take("integrations", []) if each.get("type") in ("wandb",)]
    if trackers:
        taken.put("training.trackers", trackers, "integrations")
    taken.leave(_NEEDLESS)


def _objective(taken: Taken, kind: str, given: dict[str, Any]) -> None:
    beta = number(given.pop("beta", None))
    if kind == "dpo":
        put_objective(taken, "dpo", "method.type", beta=None if beta == "auto" else beta)
    elif kind == "supervised":
        put_objective(taken, "sft", "method.type")
    else:
        put_objective(taken, {"reinforcement": "grpo"}.get(kind, kind), "method.type")


def _hyperparameters(taken: Taken, given: dict[str, Any]) -> None:
    for theirs, ours in (("n_epochs", "training.epochs"), ("batch_size", "training.rows_per_step")):
        value = given.pop(theirs, "auto")
        if value != "auto":
            taken.put(ours, value, theirs)
    multiplier = number(given.pop("learning_rate_multiplier", "auto"))
    if isinstance(multiplier, int | float):
        taken.put("training.peak_lr", multiplier * LoRA.default_lr, "learning_rate_multiplier")
    for key, value in given.items():
        if value != "auto":
            taken.lose(key, value, "nothing here corresponds to it")
