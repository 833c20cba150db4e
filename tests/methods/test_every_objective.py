"""What holds for every method with every objective: the same gradient however a step is cut, and files that bring back what was learned.

A step is taken by the loop itself, so that all that a method and an objective ask of it is there.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods.examples import EXAMPLES, ready
from models.quantized import quantized_for
from models.tiny import CONFIGS, purpose_for, tiny_model
from models.tuned import quiet, randomize
from near import assert_near
from objectives.examples import TASKS, Task, several, whole
from torch import Tensor

from luthier.data.batches import StepBatches
from luthier.data.facts import facts_of, laid_out
from luthier.data.packing import collate
from luthier.data.placeholders import with_placeholders
from luthier.errors import RecipeError
from luthier.methods import Attachment, LeTS, Method
from luthier.models.families import family_of
from luthier.models.heads import ClassHead, Head, is_read
from luthier.models.language_model import LanguageModel
from luthier.models.loading import check_head, load_model
from luthier.models.settings import ModelSettings
from luthier.objectives import OBJECTIVES, JointObjective, kind_of
from luthier.ops.workers import Workers
from luthier.training.checkpoint import Checkpoint
from luthier.training.companions import with_beside
from luthier.training.loop import Outside, Plan, train
from luthier.training.settings import TrainingSettings
from luthier.types import Example

ONE_CUT = 4096
SEED = 3

KIN = (
    "dora", "pissa", "loftq", "vera", "boft", "ia3", "krona", "krona-b", "loha", "lokr", "oft", "ln-tuning",
    "compacter", "parallel", "pfeiffer", "adamix", "ipt", "p-tuning", "mam",
)  # fmt: skip
"""What differs from another method in its formula alone: these learn each objective by one family only."""
_SECOND = (
    "sft-bart",
    "ul2-t5",
    "prefix-lm-t5",
    "distillation-bart",
    *(str(task) for task in TASKS if task.rendered in (whole, several) and task.family == "llama"),
)

_LIKE_DPO = ("dpo-bloom", "kto-llama", "orpo-llama", "simpo-gpt2", "cpo-llama", "reward-bloom", "reward-bert")
_EACH_KIND = ("lora", "full", "adamix", "ladder", "prompt-tuning")
"""What differs from dpo, or from reward of a decoder, in its formula or family alone is learned by a method of each kind."""

CASES = [
    pytest.param(method, task, id=f"{method.kind}-{task}")
    for method in EXAMPLES
    for task in TASKS
    if (method.kind not in KIN or str(task) not in _SECOND)
    and (method.kind in _EACH_KIND or str(task) not in _LIKE_DPO)
]

_NO_MASKS, _NO_BIAS = "fill no masks", "no bias"
REFUSED: dict[tuple[str, str], str] = {
    ("bitfit", "span-corruption-t5"): _NO_BIAS,
    ("bitfit", "ul2-t5"): _NO_BIAS,
    ("bitfit", "prefix-lm-t5"): _NO_BIAS,
    ("warp", "classification-llama"): _NO_MASKS,
    ("warp", "regression-llama"): _NO_MASKS,
    ("warp", "multiple-choice-llama"): _NO_MASKS,
    ("warp", "reward-llama"): _NO_MASKS,
    ("warp", "embedding-llama"): "asks nothing of the head",
    ("warp", "embedding-bert"): "asks nothing of the head",
    ("warp", "token-classification-llama"): "every token has a class",
    ("warp", "token-classification-bert"): "every token has a class",
}
"""(method, task) → what the refusal says."""


def is_idle(method: Method, task: Task, model: LanguageModel, name: str) -> bool:
    """Whether the loss cannot depend on a trained tensor."""
    if task.objective.kind == "multiple-choice" and name == f"{model.anatomy.head}.bias":
        return True  # the same number for every option
    # what is changed after the last layer, at one token of the prompt that no head reads
    return method.kind in ("loreft", "stack") and f".{len(model.anatomy.layers) - 1}." in name and "reft" in name


def head_of(method: Method, task: Task) -> Head | None:
    """The head that a recipe of both has the model loaded with."""
    head = task.objective.head(SEED)
    return method.class_head(head) if isinstance(head, ClassHead) else head


def model_for(method: Method, task: Task) -> LanguageModel:
    """The tiny model as a recipe of both has it loaded. Raises RecipeError if there is no such head."""
    kind = CONFIGS[task.family][0]
    model = tiny_model(task.family, purpose=purpose_for(check_head(family_of(kind), kind, head_of(method, task))))
    model.is_head_read = is_read(task.objective.head(SEED))
    return quantized_for(method, model) if method.needs_quantization else model


def attached(method: Method, task: Task) -> Attachment:
    """The method at work, every trained tensor with values of its own, so that none is without a gradient by its start."""
    attachment = method.attach(model_for(method, task), "default", SEED)
    if not method.tunes_base:
        randomize(attachment)
    return attachment


def placed(task: Task, attachment: Attachment) -> list[Example]:
    rows = task.rows()
    return [with_placeholders(row, attachment.num_virtual, attachment.num_virtual_answer) for row in rows]


def trained(task: Task, attachment: Attachment, steps: int, budget: int) -> list[Checkpoint]:
    """The states after steps of all rows in micro-batches of that size."""
    model, rows = attachment.model, placed(task, attachment)
    budget = max(budget, int(laid_out(facts_of(rows), model.layout).max()))
    batches = StepBatches(
        rows, rows_per_step=len(rows), tokens_per_step=None, budget=budget, workers=1, layout=model.layout,
        pad_id=model.pad_id, seed=SEED, steps=steps,
    )  # fmt: skip
    saved: list[Checkpoint] = []
    plan = Plan(TrainingSettings(clip_norm=None), SEED, steps, 0.01, evaluate_every=steps, checkpoint_every=1)
    outside = Outside(None, saved.append, lambda metrics: None, quiet, Path("."))
    with Workers(1) as workers:
        train(model, attachment, task.objective, batches, plan, outside, workers, companions=task.companions())
    return saved


def gradients(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Those of the first step, by name: AdamW's first moment over 1 − β₁."""
    state = checkpoint.optimizer.items()
    return {key.removeprefix("exp_avg."): moment / 0.1 for key, moment in state if key.startswith("exp_avg.")}


def assert_same_gradient(
    one: dict[str, Tensor], other: dict[str, Tensor], idle: set[str], rounding: float = 5e-5
) -> None:
    """Fail unless they are equal up to rounding; what is 0 but for rounding, as a key's bias, is so beside the largest."""
    assert set(one) == set(other)
    other = {name: gradient for name, gradient in other.items() if name not in idle}
    largest = max(float(gradient.abs().max()) for gradient in other.values())
    for name, gradient in other.items():
        worst = float((one[name] - gradient).abs().max())
        own = float(gradient.abs().max())
        assert worst <= 1e-4 * own + rounding * largest, f"{name}: {worst:.3g} of {own:.3g}"


def said(task: Task, model: LanguageModel, adapter: str | None) -> tuple[Tensor, Tensor]:
    """The states at the targets of all rows, and the loss."""
    count, before_answer = model.num_virtual(adapter), model.num_virtual_answer(adapter)
    rows = [with_placeholders(row, count, before_answer) for row in task.rows()]
    with torch.no_grad():
        batch = collate(rows, model.layout, model.pad_id)
        outputs = with_beside(model.forward(batch, adapter), task.companions().beside(batch))
        return outputs.hidden_ND, task.objective.loss_sum(outputs)


def read_back(method: Method, task: Task, folder: Path) -> LanguageModel:
    """The model with what a run left in its folder."""
    if method.tunes_base:
        return load_model(ModelSettings(name=str(folder / "model")), quiet, head=head_of(method, task))
    model = model_for(method, task)
    method.continued(folder).attach(model, "default", seed=9)
    return model


def test_every_objective_has_a_task() -> None:
    assert {task.objective.kind for task in TASKS} == {kind_of(objective) for objective in OBJECTIVES}


@pytest.mark.parametrize(("method", "task"), CASES)
def test_a_method_learns_by_an_objective_or_says_why_not(method: Method, task: Task, tmp_path: Path) -> None:
    refusal = REFUSED.get((method.kind, str(task)))
    if refusal is not None:
        with pytest.raises(RecipeError, match=refusal) as caught:
            attached(method, task)
        assert caught.value.mend
        return
    method = ready(method, task.family, lambda: tmp_path, purpose_for(head_of(method, task)))
    attachment = attached(method, task)
    steps = 3 if isinstance(method, LeTS) else 1
    cut = trained(task, attached(method, task), steps, 0)[0]
    at_once = trained(task, attachment, steps, ONE_CUT)[0]
    idle = {name for name in at_once.trainables if is_idle(method, task, attachment.model, name)}
    # a contrast divides small differences of likeness by the temperature, and their rounding with them
    rounding = 1e-3 if isinstance(task.objective, JointObjective) else 5e-5
    assert_same_gradient(gradients(cut), gradients(at_once), idle, rounding)
    assert {name for name, gradient in gradients(at_once).items() if not gradient.any()} <= idle
    folder = tmp_path / method.output_folder
    folder.mkdir()
    attachment.write(folder, quiet)
    again = read_back(method, task, tmp_path)
    found, expected = (said(task, model, attachment.adapter) for model in (again, attachment.model))
    assert_near(found[0], expected[0])
    assert_near(found[1], expected[1])
