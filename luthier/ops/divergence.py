"""How far two forward passes over the same tokens disagree, each pulled to the other and not past it.

Wu et al. 2021 (R-Drop), https://arxiv.org/abs/2106.14448, as AdaMix uses it:
    d_n = ½ KL(p_n ‖ sg q_n) + ½ KL(q_n ‖ sg p_n),   with p and q the distributions over the vocabulary, sg no gradient.
Shapes: N learned positions, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.ops.head import LogitsOf, in_chunks


def divergence_of_logits(p_NV: Tensor, q_NV: Tensor) -> Tensor:
    """d_n (nats, fp32) from the logits of both passes, shape (N,)."""
    log_p_NV, log_q_NV = F.log_softmax(p_NV.float(), dim=-1), F.log_softmax(q_NV.float(), dim=-1)
    p_from_q_N = (log_p_NV.exp() * (log_p_NV - log_q_NV.detach())).sum(-1)
    q_from_p_N = (log_q_NV.exp() * (log_q_NV - log_p_NV.detach())).sum(-1)
    return 0.5 * (p_from_q_N + q_from_p_N)


def divergence_reference(p_ND: Tensor, q_ND: Tensor, head_of_p: LogitsOf, head_of_q: LogitsOf) -> Tensor:
    """d_n from the hidden states of both passes, all logits at once."""
    return divergence_of_logits(head_of_p(p_ND, 0), head_of_q(q_ND, 0))


def divergence_recomputed(p_ND: Tensor, q_ND: Tensor, head_of_p: LogitsOf, head_of_q: LogitsOf) -> Tensor:
    """The same, chunk by chunk, each chunk's logits computed again in the backward pass."""

    def of_chunk(p: Tensor, q: Tensor, start: int) -> Tensor:
        return divergence_of_logits(head_of_p(p, start), head_of_q(q, start))

    return torch.cat(in_chunks(of_chunk, p_ND, q_ND))
