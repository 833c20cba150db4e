"""A fine-tuning job of OpenAI's API as JSON: the request that creates one, or the job itself.

The hosted model cannot be had; another one stands in its place. A multiplier of the learning rate multiplies our method's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from luthier.errors import UsageError
from luthier.evaluation.grading import Grader, Multi, grader_of
from luthier.methods.lora import LoRA
from luthier.recipe.importing.common import put_objective
from luthier.recipe.importing.taken import Taken, number
from luthier.rlhf.rewards import Reward

TOOL = "OpenAI fine-tuning job"
_STANDS_IN = "smollm2-135m"
_JUDGES = "https://api.openai.com/v1"
"""Where the models that a job's graders ask are served."""

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
    method = dict(taken.take("method", {}))
    kind = str(method.pop("type", "supervised"))
    block = dict(method.pop(kind, None) or {})
    own = {
        f"method.{kind}.hyperparameters.{key}": value
        for key, value in (block.pop("hyperparameters", None) or {}).items()
    }
    shared = {f"hyperparameters.{key}": value for key, value in taken.take("hyperparameters", {}).items()}
    taken.untold.pop("hyperparameters", None)  # each of them is told of by itself
    given = {key: value for key, value in {**shared, **own}.items() if value not in (None, "auto")}
    _objective(taken, kind, given, block.pop("grader", None))
    _hyperparameters(taken, given)
    taken.lose_rest(f"method.{kind}", block)
    taken.lose_rest("method", method)
    taken.move("seed", "seed")
    if (suffix := taken.take("suffix")) is not None:
        taken.spare("suffix", f"name the run: luthier train RECIPE --out runs/{suffix}")
    if taken.take("metadata") is not None:
        taken.spare("metadata", "kept by nobody")
    _integrations(taken)
    taken.leave(_NEEDLESS)


def _objective(taken: Taken, kind: str, given: dict[str, Any], grader: Any) -> None:
    beta = next(((key, "beta", number(given.pop(key))) for key in list(given) if key.endswith(".beta")), None)
    if kind == "reinforcement":
        judges = _judges("method.reinforcement.grader", grader)
        reward = {"grader": grader, "judge": {"url": _JUDGES}} if judges else {"grader": grader}
        fault = "its grader is missing" if grader is None else _fault_of(reward)
        if fault is None:
            put_objective(taken, "grpo", "method", rewards=[reward])
            taken.same.append(("method.reinforcement.grader", "objective.rewards"))
            for key, model in judges:
                taken.lose(
                    key,
                    model,
                    f"it is asked at {_JUDGES}: put a key of yours into a file and set judge.key_file of objective.rewards, or set judge.url and judge.model to a judge of your own",
                )
        else:
            taken.lose("method", kind, "sft stands in its place, until objective.rewards of grpo is written")
            taken.lose_rest("method.reinforcement.grader", grader, fault)
            taken.put("objective.kind", "sft")
    else:
        put_objective(taken, {"supervised": "sft"}.get(kind, kind), "method", *([] if beta is None else [beta]))


def _judges(block: str, grader: Any) -> list[tuple[str, str]]:
    """The settings that name the models which a grader asks, and these; none of a grader that is none of ours."""
    try:
        return _asked(block, grader_of(grader)) if isinstance(grader, Mapping) else []
    except UsageError:
        return []


def _asked(block: str, grader: Grader) -> list[tuple[str, str]]:
    if isinstance(grader, Multi):
        return [each for name, part in grader.graders.items() for each in _asked(f"{block}.graders.{name}", part)]
    return [(f"{block}.model", model or "not named") for model in grader.asked_models]


def _fault_of(reward: dict[str, Any]) -> str | None:
    """What is wrong with a reward as one of ours; None if nothing is."""
    try:
        Reward.model_validate(reward)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    return None


def _hyperparameters(taken: Taken, given: dict[str, Any]) -> None:
    for key, value in given.items():
        name = key.rpartition(".")[2]
        if name == "n_epochs":
            taken.put("training.epochs", value, key)
        elif name == "batch_size":
            taken.put("training.rows_per_step", value, key)
        elif name == "learning_rate_multiplier":
            taken.put("training.peak_lr", number(value) * LoRA.default_lr, key)
        else:
            taken.lose(key, value, "nothing here corresponds to it")


def _integrations(taken: Taken) -> None:
    """Weights & Biases is a tracker here too, which is told by its own variables where it keeps things."""
    for each in taken.take("integrations", []):
        kind = each.get("type")
        if kind == "wandb":
            taken.put("training.trackers", ["wandb"], "integrations")
            taken.lose_rest(
                "integrations.wandb", each.get("wandb"), "wandb itself is told by its variables, such as WANDB_PROJECT"
            )
        else:
            taken.lose("integrations", kind, "there is no such tracker: see training.trackers")
