"""How far a student's distributions over the vocabulary are from a teacher's, without ever holding the logits.

With p the teacher's distribution and q the student's, both softmax(z / τ):

    forward   KL(p ‖ q)    Hinton et al. 2015, https://arxiv.org/abs/1503.02531 (up to the teacher's entropy)
    reverse   KL(q ‖ p)    Gu et al. 2023 (MiniLLM), https://arxiv.org/abs/2306.08543
    jsd       β KL(p ‖ m) + (1 − β) KL(q ‖ m),  m = β p + (1 − β) q
              Agarwal et al. 2023 (GKD), https://arxiv.org/abs/2306.13649, equation 1

The teacher has no gradient. Shapes: N learned positions, D width of the student, E of the teacher, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.ops.head import LogitsOf, in_chunks

Direction = Literal["forward", "reverse", "jsd"]


@dataclass(frozen=True)
class Measure:
    """Which distance, at which temperature τ; beta: β of jsd, strictly between 0 and 1."""

    direction: Direction
    temperature: float = 1.0
    beta: float = 0.5

    def of_logits(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        """The distance of each pair of distributions (nats, fp32), shape (N,)."""
        log_q_NV = F.log_softmax(student_NV.float() / self.temperature, dim=-1)
        log_p_NV = F.log_softmax(teacher_NV.detach().float() / self.temperature, dim=-1)
        if self.direction == "forward":
            return _kl(log_p_NV, log_q_NV)
        if self.direction == "reverse":
            return _kl(log_q_NV, log_p_NV)
        log_m_NV = torch.logaddexp(log_p_NV + math.log(self.beta), log_q_NV + math.log1p(-self.beta))
        return self.beta * _kl(log_p_NV, log_m_NV) + (1 - self.beta) * _kl(log_q_NV, log_m_NV)


def _kl(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """Σ_v p (log p − log q)."""
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)


def distance_reference(
    student_ND: Tensor, teacher_NE: Tensor, head_of_student: LogitsOf, head_of_teacher: LogitsOf, measure: Measure
) -> Tensor:
    """The distances from the hidden states of both models, all logits at once."""
    return measure.of_logits(head_of_student(student_ND, 0), head_of_teacher(teacher_NE, 0))


def distance_recomputed(
    student_ND: Tensor, teacher_NE: Tensor, head_of_student: LogitsOf, head_of_teacher: LogitsOf, measure: Measure
) -> Tensor:
    """The same, chunk by chunk, each chunk's logits computed again in the backward pass."""

    def of_chunk(student: Tensor, teacher: Tensor, start: int) -> Tensor:
        with torch.no_grad():
            teacher_NV = head_of_teacher(teacher, start)
        return measure.of_logits(head_of_student(student, start), teacher_NV)

    return torch.cat(in_chunks(of_chunk, student_ND, teacher_NE))
