"""How a run goes on its way: the steps that a recipe comes to, whom its objective hears, and what measures held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from luthier.data.batches import StepBatches, Steps, evaluation_batches
from luthier.data.dataset import Dataset
from luthier.data.drawn import Drawing
from luthier.data.mixture import by_task
from luthier.errors import RecipeError
from luthier.evaluation.candidates import Candidate
from luthier.evaluation.loss import held_out_by_task
from luthier.evaluation.while_training import answer_metrics
from luthier.methods import Attachment, Method
from luthier.models.language_model import LanguageModel
from luthier.ops.workers import Workers, worker_count
from luthier.prediction.surprise import FEWEST_WORDS
from luthier.prepared import Prepared, check_lengths, placed_draws, placed_rows
from luthier.recipe import Recipe
from luthier.recipe.base import default_lr_of
from luthier.recipe.grader_files import graders_of
from luthier.rewarded import begin, check_policy, num_rollout_steps, others_of
from luthier.rlhf import RolloutObjective
from luthier.training.companions import Companions
from luthier.training.loop import HeldOut, Plan
from luthier.training.trunk import open_trunk_cache

Announce = Callable[[str], None]
Evaluate = Callable[[], HeldOut]
_WORSE_THAN_GUESSING = 1.5  # nats: what a random start may cost beyond a guess


@dataclass(frozen=True)
class Course:
    """A run's steps before its workers are there.

    recipe: with every automatic value settled. attachment: all that trains. begin: gives the steps, whom the objective hears, and
    what measures the held-out rows; what it opens is closed with the stack that it is given.
    """

    recipe: Recipe
    attachment: Attachment
    num_steps: int
    begin: Callable[[Plan, Workers, ExitStack], tuple[Steps, Companions, Evaluate | None]]


def of_rows(
    recipe: Recipe,
    prepared: Prepared,
    model: LanguageModel,
    attachment: Attachment,
    companions: Companions,
    folder: Path,
    announce: Announce,
) -> Course:
    """Steps that take the recipe's rows."""
    drawing = prepared.drawing
    virtual = attachment.num_virtual, attachment.num_virtual_answer
    placed = placed_rows(prepared.dataset, *virtual, draws=drawing is not None)
    check_lengths(placed, model.hf.config, attachment.num_virtual)
    settled, batches = _resolve(recipe, placed, model, attachment, drawing)
    # of what frozen layers say of a row, in each epoch
    is_same = drawing is None and not recipe.objective.embedding_noise
    cache = open_trunk_cache(settled.training, folder, model, attachment, placed, announce) if is_same else None
    if cache is not None:
        model.keep_trunk(cache)

    def begin(plan: Plan, workers: Workers, exits: ExitStack) -> tuple[Steps, Companions, Evaluate | None]:
        evaluate = _held_out(settled, model, attachment, placed, plan, workers, companions)
        return batches, companions, _with_answers(evaluate, settled, prepared.dataset, model, attachment, plan, workers)

    return Course(settled, attachment, batches.num_steps, begin)


def of_rollouts(
    recipe: Recipe,
    prepared: Prepared,
    model: LanguageModel,
    attachment: Attachment,
    folder: Path,
    announce: Announce,
) -> Course:
    """Steps that learn from answers of the model's own to the recipe's prompts."""
    objective, dataset = recipe.objective, prepared.dataset
    assert isinstance(objective, RolloutObjective)
    check_policy(objective, attachment)
    others = others_of(recipe, model, attachment, announce)
    placed = placed_rows(dataset, attachment.num_virtual, attachment.num_virtual_answer)
    check_lengths(placed, model.hf.config, attachment.num_virtual + objective.max_new_tokens)
    prompts_per_step = recipe.training.rows_per_step or 8
    num_steps = num_rollout_steps(objective, len(dataset.train), prompts_per_step, recipe.training)
    workers = worker_count(recipe.training.workers, model.device)
    settled = _settled(recipe, prompts_per_step, workers, num_steps)

    def start(plan: Plan, workers: Workers, exits: ExitStack) -> tuple[Steps, Companions, Evaluate | None]:
        return begin(settled, prepared, model, others, num_steps, workers, plan.autocast, folder, exits, announce)

    return Course(settled, others.attachment, num_steps, start)


def _resolve(
    recipe: Recipe, dataset: Dataset, model: LanguageModel, attachment: Attachment, drawing: Drawing | None
) -> tuple[Recipe, StepBatches]:
    """The recipe with every automatic value settled, and its batches."""
    training = recipe.training
    workers = 1 if training.update_in_backward else worker_count(training.workers, model.device)
    rows_per_step = training.rows_per_step
    if rows_per_step is None and training.tokens_per_step is None:
        rows_per_step = 8
    batches = StepBatches(
        dataset.train,
        rows_per_step=rows_per_step,
        tokens_per_step=training.tokens_per_step,
        budget=training.tokens_per_micro_batch,
        workers=workers,
        layout=model.layout,
        pad_id=model.pad_id,
        seed=recipe.seed,
        shares_prefix=_shares_prefix(recipe, model, attachment)
        and not (attachment.draws or recipe.objective.embedding_noise),
        epochs=training.epochs,
        steps=training.steps,
        vary=None if drawing is None else placed_draws(drawing, attachment.num_virtual, attachment.num_virtual_answer),
        longest=None
        if drawing is None
        else recipe.data.max_length + attachment.num_virtual + attachment.num_virtual_answer,
        mixture=dataset.mixture,
    )
    if training.update_in_backward and (most := batches.most_micro_batches) > 1:
        raise RecipeError(
            f"Some steps need {most} micro-batches, whose gradients would have to be held and added up.",
            "Set training.tokens_per_micro_batch so high that a step fits into one, lower training.rows_per_step, or take "
            "training.update_in_backward out.",
            field="training.update_in_backward",
        )
    return _settled(recipe, rows_per_step, workers, batches.num_steps), batches


def _settled(recipe: Recipe, rows_per_step: int | None, workers: int, num_steps: int) -> Recipe:
    """The recipe with the numbers that its training leaves open."""
    training = recipe.training
    settled = training.model_copy(
        update={
            "workers": workers,
            "rows_per_step": rows_per_step,
            "peak_lr": training.peak_lr or default_lr_of(recipe) * training.optimizer.rate,
            "evaluate_every": training.evaluate_every or max(1, num_steps // 5),
            "checkpoint_every": training.checkpoint_every or max(1, num_steps // 10),
        }
    )
    return recipe.model_copy(update={"training": settled})


def _shares_prefix(recipe: Recipe, model: LanguageModel, attachment: Attachment) -> bool:
    """Whether rows computed together share a common beginning.

    A GPU's variable-length kernel knows no such rows, and a method may treat a token by the document that it stands in.
    """
    return recipe.training.fast.prefix and model.device.type == "cpu" and model.shares_tokens(attachment.adapter)


def plan_of(recipe: Recipe, num_steps: int, model: LanguageModel) -> Plan:
    training = recipe.training
    assert training.peak_lr is not None
    assert training.evaluate_every is not None
    assert training.checkpoint_every is not None
    mixed = is_mixed(recipe.method, model)
    if mixed and training.autocast == "none":
        raise RecipeError(
            "The trained layers are held in fp32 and the frozen ones in half precision, which only autocast computes.",
            "Leave training.autocast out, or set model.dtype to fp32.",
            field="training.autocast",
        )
    wants = training.autocast == "bf16" or (training.autocast == "auto" and (mixed or _pays(model)))
    return Plan(
        settings=training,
        seed=recipe.seed,
        num_steps=num_steps,
        peak_lr=training.peak_lr,
        evaluate_every=training.evaluate_every,
        checkpoint_every=training.checkpoint_every,
        autocast=torch.bfloat16 if wants else None,
        worst_start=worst_start(model, recipe) if recipe.objective.is_likelihood else None,
    )


def is_mixed(method: Method, model: LanguageModel) -> bool:
    """Whether weights train in fp32 among frozen ones in half precision: they meet only in autocast."""
    return method.tunes_base and len({parameter.dtype for parameter in model.hf.parameters()}) > 1


def worst_start(model: LanguageModel, recipe: Recipe) -> float | None:
    """What a model that can read the rows stays below, in nats a token: a guess among all tokens of the tokenizer, and more.

    The model may know more tokens than those; one that puts what it expects on them reads another tokenizer's text.
    A new model, whose weights are random, expects all of its own alike. None where few words make a guess good, the head knows
    no words, or the recipe trusts the tokenizer.
    """
    if model.anatomy.purpose != "words" or model.vocab_size < FEWEST_WORDS or recipe.model.trust_tokenizer:
        return None
    is_new = recipe.model.config is not None
    num_words = model.vocab_size if is_new else min(model.vocab_size, len(model.tokenizer))
    return math.log(num_words) + _WORSE_THAN_GUESSING


def _pays(model: LanguageModel) -> bool:
    """bf16 pays for fp32 weights on a GPU that has it; on CPUs it gains little or nothing."""
    return model.dtype == torch.float32 and model.device.type == "cuda" and torch.cuda.is_bf16_supported()


def _held_out(
    recipe: Recipe,
    model: LanguageModel,
    attachment: Attachment,
    dataset: Dataset,
    plan: Plan,
    workers: Workers,
    companions: Companions,
) -> Evaluate | None:
    """What measures the held-out rows, those of each task for themselves; None if there are none."""
    held_out = {
        task: evaluation_batches(
            rows,
            recipe.training.tokens_per_micro_batch,
            workers.count,
            model.layout,
            model.pad_id,
            shares_prefix=_shares_prefix(recipe, model, attachment),
        )
        for task, rows in by_task(dataset.validation).items()
    }

    def evaluate() -> HeldOut:
        adapter = attachment.adapter
        return held_out_by_task(model, recipe.objective, held_out, adapter, workers, plan.autocast, companions)

    return evaluate if held_out else None


def _with_answers(
    evaluate: Evaluate | None,
    recipe: Recipe,
    dataset: Dataset,
    model: LanguageModel,
    attachment: Attachment,
    plan: Plan,
    workers: Workers,
) -> Evaluate | None:
    """The same, and metrics of what the model answers to held-out rows, where the recipe asks for them.

    Raises DataError, if none of them can be asked or measured; UsageError, NotFound, where a grader's file is at fault.
    """
    settings = recipe.training.evaluate_generated
    if evaluate is None or settings is None:
        return evaluate
    rows = [
        (record, example.origin) for record, example in zip(dataset.validation_records, dataset.validation, strict=True)
    ]
    candidate = Candidate("policy", model, attachment.adapter)
    graders = graders_of(settings.graders)
    answers = answer_metrics(settings, graders, candidate, rows, dataset.renderer, plan.autocast)

    def evaluate_both() -> HeldOut:
        held_out = evaluate()
        return replace(held_out, measured={**held_out.measured, **workers.alone(answers.measured)})

    return evaluate_both
