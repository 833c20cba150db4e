"""Distances of a student from a teacher: the formulas, TRL's, and the same in chunks whose logits are not held."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from near import assert_near
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from luthier.ops.head import CHUNK
from luthier.ops.imitation import Measure, distance_recomputed, distance_reference

N, D, E, V = CHUNK + 9, 8, 6, 31
MEASURES = (Measure("forward", 1.7), Measure("reverse", 1.7), Measure("jsd", 1.7, beta=0.3))


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed))


def formula(measure: Measure, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """The distance by torch's own distributions."""
    q = Categorical(logits=student_NV / measure.temperature)
    p = Categorical(logits=teacher_NV / measure.temperature)
    if measure.direction == "jsd":
        m = Categorical(probs=measure.beta * p.probs + (1 - measure.beta) * q.probs)
        return measure.beta * kl_divergence(p, m) + (1 - measure.beta) * kl_divergence(q, m)
    return kl_divergence(p, q) if measure.direction == "forward" else kl_divergence(q, p)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.direction)
def test_a_distance_and_its_gradient_are_the_formulas(measure: Measure) -> None:
    student_NV, teacher_NV = logits(0).requires_grad_(), logits(1).requires_grad_()
    found, expected = measure.of_logits(student_NV, teacher_NV), formula(measure, student_NV, teacher_NV)
    assert_near(found, expected)
    gradients = [torch.autograd.grad(each.sum(), student_NV)[0] for each in (found, expected)]
    assert_near(*gradients)
    assert not measure.of_logits(student_NV.detach(), teacher_NV).requires_grad


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.direction)
def test_a_student_that_is_its_teacher_is_at_no_distance(measure: Measure) -> None:
    assert float(measure.of_logits(logits(0), logits(0)).abs().max()) < 1e-6
    assert float(measure.of_logits(logits(0), logits(1)).min()) > 1e-3


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
def test_the_distances_are_those_of_trl() -> None:
    from trl.experimental.gkd import GKDTrainer

    for measure, beta in ((MEASURES[0], 0.0), (MEASURES[1], 1.0), (MEASURES[2], 0.3)):
        summed = GKDTrainer.generalized_jsd_loss(
            logits(0)[None], logits(1)[None], beta=beta, temperature=measure.temperature, reduction="sum"
        )
        assert_near(measure.of_logits(logits(0), logits(1)).sum(), summed)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.direction)
def test_in_chunks_the_distances_and_gradients_are_the_same(measure: Measure) -> None:
    draw = torch.Generator().manual_seed(2)
    student_ND, teacher_NE = torch.randn(N, D, generator=draw), torch.randn(N, E, generator=draw)
    own_VD, other_VE = torch.randn(V, D, generator=draw), torch.randn(V, E, generator=draw)

    def computed(distance: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        hidden_ND, head_VD = student_ND.clone().requires_grad_(), own_VD.clone().requires_grad_()
        distance_N = distance(
            hidden_ND, teacher_NE, lambda h, start: h @ head_VD.t(), lambda h, start: h @ other_VE.t(), measure
        )
        return (distance_N, *torch.autograd.grad(distance_N.square().sum(), (hidden_ND, head_VD)))

    for one, other in zip(computed(distance_recomputed), computed(distance_reference), strict=True):
        assert_near(one, other)
