"""Distillation: what the loss is, who gets a gradient, and when the teacher is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from models.rows import batch_of
from models.tiny import VOCABULARY, tiny_model
from near import assert_apart, assert_near
from pydantic import ValidationError

from luthier.models.outputs import Beside, Outputs
from luthier.models.settings import ModelSettings
from luthier.objectives import SFT, Distillation
from luthier.ops.imitation import Measure, likeliest_words
from luthier.training.companions import with_beside
from luthier.types import Batch

TEACHER = ModelSettings(name="teacher")
DIRECTIONS: list[dict[str, Any]] = [{}, {"direction": "reverse"}, {"direction": "jsd", "beta": 0.2}]


class Unasked(Mapping[str, Beside]):
    """A teacher that nobody is to ask."""

    def __getitem__(self, role: str) -> Beside:
        raise AssertionError(f"{role} was asked")

    def __iter__(self) -> Any:
        return iter(("teacher",))

    def __len__(self) -> int:
        return 1


def said(name: str, batch: Batch) -> Outputs:
    return tiny_model(name).forward(batch)


def both(batch: Batch) -> Outputs:
    """A student beside its teacher, which has other layers but the same words."""
    with torch.no_grad():
        teacher = said("mistral", batch)
    return with_beside(said("llama", batch), {"teacher": teacher})


@pytest.fixture
def batch() -> Batch:
    return batch_of((9, 6, 150), "packed")  # more targets than a chunk holds


@pytest.mark.parametrize("settings", DIRECTIONS, ids=str)
def test_the_loss_is_a_share_of_the_plain_one_and_the_rest_the_distance_of_whole_logits(
    settings: dict[str, Any], batch: Batch
) -> None:
    outputs, alpha, heat = both(batch), 0.3, 1.7
    teacher = outputs.beside["teacher"]
    assert isinstance(teacher, Outputs)
    measure = Measure(settings.get("direction", "forward"), heat, settings.get("beta", 0.5))
    logits = [each.head.logits(each.hidden_ND) for each in (outputs, teacher)]
    far = (measure.of_logits(*logits) * batch.targets.weight_N).sum()
    objective = Distillation(teacher=TEACHER, alpha=alpha, temperature=heat, **settings)
    assert_near(objective.loss_sum(outputs), alpha * SFT().loss_sum(outputs) + (1 - alpha) * heat**2 * far)
    assert_near(objective.held_out_sum(outputs), objective.loss_sum(outputs))


def test_with_alpha_1_the_teacher_is_never_asked_and_the_loss_is_the_plain_one(batch: Batch) -> None:
    outputs = with_beside(said("llama", batch), Unasked())
    assert_near(Distillation(teacher=TEACHER, alpha=1.0).loss_sum(outputs), SFT().loss_sum(outputs))
    with pytest.raises(AssertionError, match="was asked"):
        Distillation(teacher=TEACHER, alpha=0.9).loss_sum(outputs)


@pytest.mark.parametrize("settings", DIRECTIONS, ids=str)
def test_a_student_that_is_its_teacher_has_nothing_to_learn_of_it(settings: dict[str, Any], batch: Batch) -> None:
    model = tiny_model("llama")
    head = model.hf.get_parameter("lm_head.weight").requires_grad_(True)
    outputs = model.forward(batch)
    outputs = with_beside(outputs, {"teacher": model.forward(batch)})
    loss = Distillation(teacher=TEACHER, alpha=0.0, **settings).loss_sum(outputs)
    assert abs(float(loss.detach())) < 1e-3
    (gradient,) = torch.autograd.grad(loss, head)
    assert float(gradient.abs().max()) < 1e-4
    (plain,) = torch.autograd.grad(SFT().loss_sum(outputs), head)
    assert float(plain.abs().max()) > 1e-2


def test_only_the_student_has_a_gradient(batch: Batch) -> None:
    teacher, student = tiny_model("mistral"), tiny_model("llama")
    tensors = [model.hf.get_parameter("lm_head.weight").requires_grad_(True) for model in (teacher, student)]
    outputs = with_beside(student.forward(batch), {"teacher": teacher.forward(batch)})
    loss = Distillation(teacher=TEACHER).loss_sum(outputs)
    of_teacher, of_student = torch.autograd.grad(loss, tensors, allow_unused=True)
    assert of_teacher is None
    assert of_student.any()


@pytest.mark.parametrize("settings", DIRECTIONS, ids=str)
def test_kept_words_give_less_than_the_distance_and_all_but_one_the_distance_itself(
    settings: dict[str, Any], batch: Batch
) -> None:
    outputs = both(batch)
    teacher = outputs.beside["teacher"]
    assert isinstance(teacher, Outputs)
    objective = Distillation(teacher=TEACHER, temperature=2.0, **settings)
    whole_N = objective.distances(outputs)
    nearer = torch.zeros_like(whole_N)
    for count in (1, 4, VOCABULARY - 1):
        known = likeliest_words(teacher.hidden_ND, teacher.head.logits, count, VOCABULARY, 2.0)
        found_N = objective.distances(with_beside(outputs, {"teacher": known}))
        assert bool((found_N >= nearer - 1e-6).all()), "more words tell more"
        nearer = found_N
        if count == 4:
            assert_apart(found_N, whole_N, 1e-3)
    assert_near(nearer, whole_N)


@pytest.mark.parametrize(
    ("values", "field", "found"),
    [
        ({"teacher": {"config": "llama-2m"}}, "objective.teacher.config", "random weights"),
        ({"teacher": {"name": "m", "add_tokens": ("<a>",)}}, "objective.teacher.add_tokens", "untrained"),
        ({"teacher": "m", "beta": 0.5}, "objective.beta", "jsd"),
    ],
)
def test_a_teacher_that_knows_nothing_and_settings_without_effect_are_refused(
    values: dict[str, Any], field: str, found: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        Distillation.model_validate(values)
    (error,) = refused.value.errors()
    assert error["ctx"]["field"] == field
    assert found in error["msg"]
