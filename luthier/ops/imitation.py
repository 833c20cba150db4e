"""How far a student's distributions over the vocabulary are from a teacher's, without ever holding the logits.

With p the teacher's distribution and q the student's, both softmax(z / τ):

    forward   KL(p ‖ q)    Hinton et al. 2015, https://arxiv.org/abs/1503.02531 (up to the teacher's entropy)
    reverse   KL(q ‖ p)    Gu et al. 2023 (MiniLLM), https://arxiv.org/abs/2306.08543
    jsd       β KL(p ‖ m) + (1 − β) KL(q ‖ m),  m = β p + (1 − β) q
              Agarwal et al. 2023 (GKD), https://arxiv.org/abs/2306.13649, equation 1

Of a teacher that is not at hand its K likeliest words are known, and how likely all others are together: then these others are
one word for both, so that the distance is over K + 1 words. It is never more than the whole one (the data-processing
inequality), and 0 where that is.

The teacher has no gradient. Where the vocabularies are padded to different sizes, what both have is compared.
Shapes: N learned positions, D width of the student, E of the teacher, V vocabulary, K known words, L = K + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.ops.head import CHUNK, LogitsOf, in_chunks

Direction = Literal["forward", "reverse", "jsd"]


@dataclass(frozen=True)
class KnownWords:
    """The likeliest words of each distribution, and log p of each and, last, of all others together (nats, fp32).

    num_words: how many words the distribution is over.
    """

    token_NK: Tensor
    logprob_NL: Tensor
    num_words: int


@dataclass(frozen=True)
class Measure:
    """Which distance, at which temperature τ; beta: β of jsd, strictly between 0 and 1."""

    direction: Direction
    temperature: float = 1.0
    beta: float = 0.5

    def of_logits(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        """The distance of each pair of distributions (nats, fp32), shape (N,)."""
        num_words = min(student_NV.shape[-1], teacher_NV.shape[-1])
        log_q_NV = F.log_softmax(student_NV[:, :num_words].float() / self.temperature, dim=-1)
        log_p_NV = F.log_softmax(teacher_NV[:, :num_words].detach().float() / self.temperature, dim=-1)
        return self.of_logprobs(log_q_NV, log_p_NV)

    def of_known(self, student_NV: Tensor, known: KnownWords) -> Tensor:
        """The same over a teacher's known words and all others as one, shape (N,)."""
        scaled_NV = student_NV[:, : known.num_words].float() / self.temperature
        return self.of_logprobs(with_rest(scaled_NV, known.token_NK), known.logprob_NL)

    def of_logprobs(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        """The distance of each student's q from its teacher's p, shape (N,)."""
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


def known_distance_reference(
    student_ND: Tensor, known: KnownWords, head_of_student: LogitsOf, measure: Measure
) -> Tensor:
    """The distances from a teacher's known words, all logits at once."""
    return measure.of_known(head_of_student(student_ND, 0), known)


def known_distance_recomputed(
    student_ND: Tensor, known: KnownWords, head_of_student: LogitsOf, measure: Measure
) -> Tensor:
    """The same, chunk by chunk, each chunk's logits computed again in the backward pass."""

    def of_chunk(student: Tensor, token_NK: Tensor, logprob_NL: Tensor, start: int) -> Tensor:
        part = KnownWords(token_NK, logprob_NL, known.num_words)
        return measure.of_known(head_of_student(student, start), part)

    return torch.cat(in_chunks(of_chunk, student_ND, known.token_NK, known.logprob_NL))


@torch.no_grad()
def likeliest_words(
    hidden_NE: Tensor, head: LogitsOf, count: int, num_words: int, temperature: float = 1.0
) -> KnownWords:
    """The `count` likeliest of the first `num_words` words at each position, fewer than there are, chunk by chunk."""
    tokens, logprobs = [], []
    for start in range(0, max(len(hidden_NE), 1), CHUNK):
        scaled_NV = head(hidden_NE[start : start + CHUNK], start)[:, :num_words].float() / temperature
        token_NK = scaled_NV.topk(count, dim=-1).indices
        tokens.append(token_NK)
        logprobs.append(with_rest(scaled_NV, token_NK))
    return KnownWords(torch.cat(tokens), torch.cat(logprobs), num_words)


def with_rest(scaled_NV: Tensor, token_NK: Tensor) -> Tensor:
    """log p of chosen words and, last, of all others together, from logits, shape (N, K + 1)."""
    rest_N = scaled_NV.scatter(-1, token_NK, -torch.inf).logsumexp(-1, keepdim=True)
    parted_NL = torch.cat([scaled_NV.gather(-1, token_NK), rest_N], dim=-1)
    return parted_NL - scaled_NV.logsumexp(-1, keepdim=True)
