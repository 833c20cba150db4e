"""What a step costs by task: each row's own part of the loss, however the step is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.tiny import purpose_for, tiny_model
from near import assert_near
from objectives.examples import TASKS, Task

from luthier.data.packing import collate
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import Outputs
from luthier.training.companions import with_beside
from luthier.training.tally import Tally
from luthier.types import Batch, Example

TOGETHER = ("embedding", "distillation", "kto")
"""Objectives that are told for all tasks together."""

APART = [pytest.param(task, id=str(task)) for task in TASKS if task.objective.kind not in TOGETHER]


def batch_of(task: Task, examples: tuple[Example, ...]) -> Batch:
    return collate(examples, _model(task).layout, pad_id=0)


def _model(task: Task) -> LanguageModel:
    return tiny_model(task.family, purpose=purpose_for(task.objective.head(seed=1)))


@torch.no_grad()
def outputs_of(task: Task, batch: Batch) -> Outputs:
    return with_beside(_model(task).forward(batch), task.companions().beside(batch))


@pytest.mark.parametrize("task", APART)
def test_a_rows_loss_is_the_held_out_loss_of_that_row_alone(task: Task) -> None:
    batch = batch_of(task, task.rows())
    losses_R = task.objective.row_losses(outputs_of(task, batch))
    assert losses_R is not None
    alone = [task.objective.held_out_sum(outputs_of(task, batch_of(task, (row,)))) for row in task.rows()]
    assert_near(losses_R, torch.stack(alone))
    assert_near(losses_R.sum(), task.objective.held_out_sum(outputs_of(task, batch)))


@pytest.mark.parametrize("task", [task for task in TASKS if task.objective.kind in TOGETHER], ids=str)
def test_what_is_not_learned_row_by_row_is_not_told_by_task(task: Task) -> None:
    assert task.objective.row_losses(outputs_of(task, batch_of(task, task.rows()))) is None


def of_task(example: Example, name: str | None) -> Example:
    return replace(example, origin=replace(example.origin, task=name))


@pytest.mark.parametrize("cut", [(0, 3), (0, 1, 3), (0, 1, 2, 3)])
def test_a_task_costs_the_mean_over_its_own_targets_in_any_cut(cut: tuple[int, ...]) -> None:
    task = TASKS[0]
    rows = tuple(of_task(row, name) for row, name in zip(task.rows(), ("b", "a", "b"), strict=True))
    tallies = [Tally() for _ in cut[1:]]
    for tally, start, end in zip(tallies, cut, cut[1:], strict=False):
        batch = batch_of(task, rows[start:end])
        tally.noting(task.objective, task.objective.loss_sum, batch)(outputs_of(task, batch))
    found = Tally().joined(tallies).losses_by_task()
    assert list(found) == ["a", "b"]
    for name, own in (("a", rows[1:2]), ("b", (rows[0], rows[2]))):
        batch = batch_of(task, own)
        expected = task.objective.held_out_sum(outputs_of(task, batch)) / batch.learned_weight
        assert_near(torch.tensor(found[name]), expected)


def test_rows_of_one_task_alone_are_not_told_by_task() -> None:
    task = TASKS[0]
    batch = batch_of(task, task.rows())
    tally = Tally()
    tally.noting(task.objective, task.objective.loss_sum, batch)(outputs_of(task, batch))
    assert batch.tasks == ()
    assert tally.losses_by_task() == {}


def test_a_task_whose_last_row_teaches_nothing_keeps_its_place() -> None:
    task = TASKS[0]
    first, second, third = task.rows()
    learns_nothing = replace(third, source_N=third.source_N[:0], token_N=third.token_N[:0])
    learns_nothing = replace(learns_nothing, weight_N=third.weight_N[:0], sample_N=third.sample_N[:0])
    rows = tuple(of_task(row, name) for row, name in zip((first, second, learns_nothing), "xyz", strict=True))
    batch = batch_of(task, rows)
    tally = Tally()
    tally.noting(task.objective, task.objective.loss_sum, batch)(outputs_of(task, batch))
    assert list(tally.losses_by_task()) == ["x", "y"]
