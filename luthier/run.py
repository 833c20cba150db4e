"""Carries out a recipe: data → gate → model → method → loop → checkpoints → adapter and report.

A run folder is begun by writing `recipe.yaml`; from that moment on `resume_run` gives the same final bits, whatever
happens in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.companions import hear, hear_reference
from luthier.courses import Evaluate, of_rollouts, of_rows, plan_of
from luthier.data.rendering import Renderer
from luthier.data.settings import files_of
from luthier.errors import CheckpointNotFound, NotFound, UsageError
from luthier.evaluation.report import NOTHING, write_loss_plot
from luthier.evaluation.reward_report import has_rewards, write_reward_plot
from luthier.evaluation.run_report import ENVIRONMENT, PLOT, REWARDS_PLOT, write_run_report
from luthier.methods import ADAPTER, Attachment
from luthier.models.drawing import with_values
from luthier.models.half_precision import told_of_slow_products
from luthier.objectives import Reward
from luthier.ops.workers import Workers, worker_count
from luthier.prediction.passes import Passes
from luthier.prediction.reward import RewardScorer, settled_scale
from luthier.prediction.scale import Scale, write_scale
from luthier.prediction.surprise import refuse_foreign_tokens
from luthier.prepared import Prepared, announce_gate, check_recipe
from luthier.recipe import Recipe, dump_recipe, load_recipe
from luthier.recipe.model_card import RunFacts, card_numbers, write_card
from luthier.recipe.provenance import check_same, environment, provenance_of
from luthier.recipe.settings import Provenance
from luthier.rlhf import RolloutObjective
from luthier.rlhf.pretraining import PRETRAINING
from luthier.rlhf.told import told_of_rollouts
from luthier.store.files import (
    folder_fault,
    make_folder,
    remove_file,
    remove_folder,
    write_folder,
    write_json,
    write_text,
)
from luthier.store.runs import (
    RECIPE,
    RESOLVED,
    append_metrics,
    cut_metrics,
    read_metrics,
    read_run,
    write_status,
)
from luthier.training.checkpoint import Checkpoint, load_checkpoint, prune_checkpoints, save_checkpoint
from luthier.training.companions import FOLDER as COMPANIONS_FOLDER
from luthier.training.loop import Outside, Plan, train
from luthier.training.memory import give_back
from luthier.training.progress import Progress, progress_of, steps_written
from luthier.training.run_folder import carried_out, is_free, to_go_on
from luthier.training.trackers import Tracker, numbers_of, tracking
from luthier.training.trunk import FOLDER as TRUNK_FOLDER
from luthier.tuned import load_base_of

Announce = Callable[[str], None]
OnStep = Callable[[dict[str, Any]], None]

_ROWS_OF_SCALE = 1000


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    folder: Path
    steps: int
    final_loss: float | None
    best_validation_loss: float | None
    best_step: int | None
    stopped_early: bool


def train_recipe(
    recipe: Recipe, folder: Path, *, announce: Announce, on_step: OnStep, plans: bool = False
) -> RunResult:
    """Carry out a recipe in a new run folder. plans: whether to plan its memory first, and refuse what cannot fit.

    Raises UsageError if the folder holds something already; the errors of every part; Interrupted after Ctrl-C.
    """
    if not is_free(folder):
        raise UsageError(f"{folder} is not empty.", f"Go on with '{to_go_on(folder)}', or choose another --out.")
    make_folder(folder)
    for name in (RESOLVED, RECIPE):  # of a run that failed before its first step
        remove_file(folder / name)
    # the config as it is now, so that the run holds all of its start; the provenance is another run's, if there is one
    recipe = recipe.model_copy(update={"provenance": None, "model": with_values(recipe.model)})
    write_text(folder / RECIPE, dump_recipe(recipe))
    with carried_out(folder, announce):
        return _train(recipe, folder, announce, on_step, plans=plans)


def resume_run(folder: Path, *, announce: Announce, on_step: OnStep) -> RunResult:
    """Go on with a run from its last whole checkpoint, or from its beginning if it has none; a finished run stays as it is.

    Raises NotFound if the folder is no run, and RunMismatch, naming what differs, if model or data have changed.
    """
    for name in (RESOLVED, RECIPE):
        if (folder / name).is_file():
            recipe = load_recipe(folder / name)
            if (result := _finished(recipe, folder)) is not None:
                announce(f"The run {folder} is finished; there is nothing to do.")
                return result
            with carried_out(folder, announce), _moved_told(folder / name):
                return _train(recipe, folder, announce, on_step)
    raise NotFound(
        f"{folder} is not a run: it holds no {RECIPE}.",
        "Look at 'luthier runs', or begin one with 'luthier train RECIPE'.",
        file=str(folder),
    )


@contextmanager
def _moved_told(recipe_file: Path) -> Iterator[None]:
    """Within: what is not found says where its new place can be written."""
    try:
        yield
    except NotFound as error:
        error.mend = f"{error.mend} If it was moved, write its new path into {recipe_file}.".strip()
        raise


def _finished(recipe: Recipe, folder: Path) -> RunResult | None:
    """How a run ended; None if it has not, or if its adapter or model is no longer whole."""
    if read_run(folder).state != "finished" or folder_fault(folder / recipe.method.output_folder) is not None:
        return None
    metrics = read_metrics(folder)
    return _result(folder, metrics, progress_of(metrics, recipe.training.early_stopping))


def _result(folder: Path, metrics: list[dict[str, Any]], progress: Progress) -> RunResult:
    final_loss = float(metrics[-1]["loss"]) if metrics else None
    return RunResult(folder, progress.step, final_loss, progress.best_loss, progress.best_step, progress.stopped_early)


def _train(recipe: Recipe, folder: Path, announce: Announce, on_step: OnStep, *, plans: bool = False) -> RunResult:
    prepared = check_recipe(recipe, announce)
    announce_gate(prepared.gate, announce)
    recipe = _dated(with_template(recipe, prepared.dataset.renderer), prepared.dataset.renderer, announce)
    recipe = recipe.model_copy(update={"objective": prepared.objective})
    if plans:
        from luthier.planner.gate import plan_run  # what pretends to be tensors takes a while to import

        plan_run(recipe, prepared, folder, announce)
    hearing = hear(recipe, prepared, folder, announce)
    model = load_base_of(recipe, announce)
    give_back(model.device)  # what reading took: holes that would stay beside what training takes
    dataset = prepared.dataset
    if recipe.model.config is None and not recipe.model.trust_tokenizer:
        refuse_foreign_tokens(model, dataset.train)
    attachment = recipe.method.attach(model, ADAPTER, recipe.seed, fast=recipe.training.fast.lora)
    in_head = f", {attachment.num_in_head:,} of them in the new head" if attachment.num_in_head else ""
    announce(f"Method {recipe.method.kind}: {attachment.num_trainable:,} numbers train{in_head}.")
    for note in attachment.notes:
        announce(note)
    if isinstance(recipe.objective, RolloutObjective):
        course = of_rollouts(recipe, prepared, model, attachment, folder, announce)
    else:
        companions = hear_reference(hearing, recipe, prepared, model, folder, announce)
        course = of_rows(recipe, prepared, model, attachment, companions, folder, announce)
    recipe, attachment = course.recipe, course.attachment
    plan = plan_of(recipe, course.num_steps, model)
    for sentence in told_of_slow_products(model, plan.autocast):
        announce(sentence)
    write_status(folder, "running", total_steps=plan.num_steps)
    mixed_in = {} if prepared.texts is None else {PRETRAINING: prepared.texts.sha256}
    made_from = provenance_of(model.identity.sha256, dataset, {**hearing.sha256, **mixed_in})
    _settle_provenance(recipe, folder, made_from, model.device, announce)
    checkpoint = _last_checkpoint(recipe, folder, announce)
    steps_before = 0 if checkpoint is None else steps_written(checkpoint)
    cut_metrics(folder, steps_before)
    values = recipe.model_dump(mode="json")
    with (
        tracking(recipe.training.trackers, folder, values, steps_before) as trackers,
        Workers(worker_count(recipe.training.workers, model.device)) as workers,
        ExitStack() as exits,
    ):
        steps, companions, held_out = course.begin(plan, workers, exits)
        outside = _outside(recipe, folder, held_out, plan, trackers, announce, on_step)
        progress = train(model, attachment, recipe.objective, steps, plan, outside, workers, checkpoint, companions)
    begun = _Begun(recipe, folder, prepared, attachment, plan, made_from)
    return _finish(begun, progress, announce)


def with_template(recipe: Recipe, renderer: Renderer) -> Recipe:
    """The recipe with the text of the chat template that it names, so that the run's model is asked by the same one ever after."""
    chat = renderer.chat
    if chat is None or chat.source is None or chat.source == recipe.data.chat_template:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"chat_template": chat.source})})


def _dated(recipe: Recipe, renderer: Renderer, announce: Announce) -> Recipe:
    """The recipe with the day that its chat template prints, so that the rows become the same tokens on a later one."""
    chat = renderer.chat
    if chat is None or not chat.prints_date or recipe.data.today is not None:
        return recipe
    today = chat.day.isoformat()
    announce(f"The chat template prints the date; for this run and its model it stays {today} (data.today).")
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"today": today})})


def _last_checkpoint(recipe: Recipe, folder: Path, announce: Announce) -> Checkpoint | None:
    try:
        checkpoint = load_checkpoint(folder, announce=announce)
    except CheckpointNotFound:
        if recipe.provenance is not None:
            announce("There is no whole checkpoint, so the run starts at its beginning.")
        return None
    announce(f"Going on from step {checkpoint.step}.")
    return checkpoint


def _settle_provenance(recipe: Recipe, folder: Path, now: Provenance, device: torch.device, announce: Announce) -> None:
    """Write what the run is made from, or compare it with what it was begun with."""
    if recipe.provenance is None:
        write_text(folder / RESOLVED, dump_recipe(recipe.model_copy(update={"provenance": now})))
    else:
        check_same(recipe.provenance, now, recipe.model.name, folder / RESOLVED, announce)
    if recipe.provenance is None or not (folder / ENVIRONMENT).is_file():
        write_json(folder / ENVIRONMENT, environment(device))


def _outside(
    recipe: Recipe,
    folder: Path,
    evaluate: Evaluate | None,
    plan: Plan,
    trackers: Sequence[Tracker],
    announce: Announce,
    on_step: OnStep,
) -> Outside:
    """The loop's view of the run folder, the held-out rows and the trackers."""

    def save(checkpoint: Checkpoint) -> None:
        save_checkpoint(folder, checkpoint)
        _prune(recipe, folder, checkpoint.step, checkpoint.state["progress"]["best_step"])

    def record(metrics: dict[str, Any]) -> None:
        append_metrics(folder, metrics)
        for tracker in trackers:
            tracker.log(metrics["step"], numbers_of(metrics))
        on_step({**metrics, "total_steps": plan.num_steps})

    return Outside(evaluate, save, record, announce, folder)


def _prune(recipe: Recipe, folder: Path, step: int, best_step: int | None) -> None:
    """Delete the checkpoints that the recipe does not keep, and what a dead process left of them."""
    # this step too: a damaged later one, which the run went back from, must not push it out
    keep = {step} if best_step is None else {step, best_step}
    prune_checkpoints(folder, recipe.training.keep_last, keep)


@dataclass(frozen=True)
class _Begun:
    """What a run is made of, for its end. recipe: settled. made_from: as `provenance_of` gives it."""

    recipe: Recipe
    folder: Path
    prepared: Prepared
    attachment: Attachment
    plan: Plan
    made_from: Provenance


def _finish(begun: _Begun, progress: Progress, announce: Announce) -> RunResult:
    """Write the adapter or model, the plot and the reports."""
    recipe, folder, attachment = begun.recipe, begun.folder, begun.attachment
    _prune(recipe, folder, progress.step, progress.best_step)
    if recipe.training.early_stopping is not None and progress.best_step not in (None, progress.step):
        _go_back(folder, attachment, progress, announce)
    for kept in (TRUNK_FOLDER, COMPANIONS_FOLDER):
        remove_folder(folder / kept)
    output, metrics = folder / recipe.method.output_folder, read_metrics(folder)
    num_rows = len(begun.prepared.dataset.train), len(begun.prepared.dataset.validation)
    numbers = card_numbers(attachment.model, attachment.num_trainable, num_rows)
    scale = _scale(begun, announce)

    def fill(partial: Path) -> None:
        attachment.write(partial, announce)
        write_card(partial, RunFacts(recipe, begun.made_from, metrics, numbers))
        if scale is not None:
            write_scale(scale, partial)

    write_folder(output, fill, replace=True)
    write_loss_plot(metrics, folder / PLOT, type(recipe.objective))
    if has_rewards(metrics):
        write_reward_plot(metrics, folder / REWARDS_PLOT)
    facts = {
        "Model": recipe.model.name,
        "Method": f"{recipe.method.kind}, {attachment.num_trainable:,} numbers trained",
        "Data": ", ".join(files_of(recipe.data.train)),
        "Steps": str(progress.step),
        "Result": str(output),
    }
    told = told_of_rollouts(folder) if isinstance(recipe.objective, RolloutObjective) else NOTHING
    write_run_report(folder, facts, numbers.model_dump(), type(recipe.objective), told)
    return _result(folder, metrics, progress)


def _scale(begun: _Begun, announce: Announce) -> Scale | None:
    """The scale of a reward model that has just been trained; None for what else was learned."""
    recipe, prepared = begun.recipe, begun.prepared
    if not isinstance(recipe.objective, Reward):
        return None
    model, training, rows = begun.attachment.model, recipe.training, prepared.dataset.validation or prepared.first_rows
    model.trunk_cache = None  # it knows the rows of the training by their numbers
    scorer = RewardScorer(model, prepared.dataset.renderer, begun.attachment.adapter)
    with Workers(worker_count(training.workers, model.device)) as workers:
        passes = Passes(workers, training.tokens_per_micro_batch, compute_in=begun.plan.autocast)
        rows = [rows[index] for index in range(min(len(rows), _ROWS_OF_SCALE))]
        return settled_scale(scorer, recipe.objective, rows, passes, announce)


def _go_back(folder: Path, attachment: Attachment, progress: Progress, announce: Announce) -> None:
    """Give the model the weights of its best step; where their checkpoint is lost, it keeps those of the last."""
    try:
        best = load_checkpoint(folder, step=progress.best_step)
    except CheckpointNotFound as error:
        announce(
            f"The best step was {progress.best_step}, but its checkpoint is lost, so the weights of the last step, "
            f"{progress.step}, are kept. {error.found}"
        )
        return
    announce(f"The best step was {progress.best_step}; its weights are the ones kept.")
    attachment.load_state(best.method)
    with torch.no_grad():
        for name, tensor in attachment.trainables.items():
            tensor.copy_(best.trainables[name])
