"""x (A ⊗ B)ᵀ without the Kronecker product itself, which is as large as a weight.

With A (P, Q) and B (R, S), entry (pR + r, qS + s) of A ⊗ B is A[p, q] B[r, s]; so for one token with x as the (Q, S) matrix
X of its rows, the result is the rows of A X Bᵀ. A is the outer factor: A ⊗ B is not B ⊗ A.
Shapes: N tokens, I = Q S inputs, O = P R outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kron_linear(x_NI: Tensor, a_PQ: Tensor, b_RS: Tensor) -> Tensor:
    """x (A ⊗ B)ᵀ, shape (N, O), in the number format of x."""
    a_PQ, b_RS = a_PQ.to(x_NI.dtype), b_RS.to(x_NI.dtype)
    half_NQR = F.linear(x_NI.view(len(x_NI), a_PQ.shape[1], b_RS.shape[1]), b_RS)
    return torch.einsum("nqr,pq->npr", half_NQR, a_PQ).reshape(len(x_NI), len(a_PQ) * len(b_RS))


def kron_linear_reference(x_NI: Tensor, a_PQ: Tensor, b_RS: Tensor) -> Tensor:
    """The same by the whole matrix."""
    return F.linear(x_NI, torch.kron(a_PQ, b_RS).to(x_NI.dtype))
