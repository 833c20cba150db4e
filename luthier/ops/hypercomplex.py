"""A product with a sum of Kronecker products whose second factors have low rank, without ever building the matrix.

Zhang et al. 2021, https://arxiv.org/abs/2102.08597 (hypercomplex multiplication with learned rules), with the low-rank
factors of Compacter, https://arxiv.org/abs/2106.04647:

    y = x Hmat,   Hmat = Σ_k A_k ⊗ (S_k T_k)   (I, O)

With x cut into M blocks of P = I / M:  y[c, q] = Σ_k Σ_r (Σ_a A_k[a, c] Σ_p x[a, p] S_k[p, r]) T_k[r, q],
which costs M R (I + O + M²) products a token, where Hmat would cost I O.
Shapes: N tokens, I inputs, O outputs, K terms, A and C blocks of inputs and outputs (K = A = C = M), P = I / M,
Q = O / M, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kronecker_product_reference(x_NI: Tensor, rule_KAC: Tensor, left_KPR: Tensor, right_KRQ: Tensor) -> Tensor:
    """x Hmat, Hmat built."""
    terms = zip(rule_KAC, left_KPR @ right_KRQ, strict=True)
    matrix_IO = torch.stack([torch.kron(rule_AC, low_rank_PQ) for rule_AC, low_rank_PQ in terms]).sum(0)
    return x_NI @ matrix_IO.to(x_NI.dtype)


def kronecker_product(x_NI: Tensor, rule_KAC: Tensor, left_KPR: Tensor, right_KRQ: Tensor) -> Tensor:
    """x Hmat, in the dtype of x."""
    num_terms, num_blocks, _ = rule_KAC.shape
    rule_KAC, left_KPR, right_KRQ = (tensor.to(x_NI.dtype) for tensor in (rule_KAC, left_KPR, right_KRQ))
    left_PKR = left_KPR.transpose(0, 1).flatten(1)
    narrow_NAKR = (x_NI.unflatten(-1, (num_blocks, -1)) @ left_PKR).unflatten(-1, (num_terms, -1))
    mixed_NCKR = torch.einsum("nakr,kac->nckr", narrow_NAKR, rule_KAC)
    return (mixed_NCKR.flatten(2) @ right_KRQ.flatten(0, 1)).flatten(1)
