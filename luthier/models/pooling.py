"""What a head for classes reads where it reads no one token.

Shapes: B rows, T tokens of a row, N places, D width.
"""

from __future__ import annotations

from torch import Tensor


def row_means(hidden_BTD: Tensor, is_own_BT: Tensor, source_N: Tensor) -> Tensor:
    """The mean of the states of a row's own tokens, for the rows that these places are in, shape (N, D)."""
    own_BT1 = is_own_BT.unsqueeze(-1).float()
    mean_BD = (hidden_BTD.float() * own_BT1).sum(1) / own_BT1.sum(1)
    return mean_BD.to(hidden_BTD.dtype).index_select(0, source_N // hidden_BTD.shape[1])
