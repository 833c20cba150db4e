"""What a LoRA does at one layer: at a linear layer or at an embedding.

Shapes: N tokens, I inputs, O outputs, R rank, V vocabulary, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.methods.bank import AdaptedEmbedding, AdaptedLayer, AdaptedLinear, Branch, LowRankBranch
from luthier.models.call import Run
from luthier.ops.lora import Update
from luthier.ops.spectrum import Factors


class LoRABranch(LowRankBranch):
    """A (R, I), B (O, R), the factor on their product, and the dropout on the branch's input."""

    def __init__(self, a_RI: nn.Parameter, b_OR: nn.Parameter, scale: float, drop: float, fast: bool) -> None:
        super().__init__()
        self.a_RI, self.b_OR = a_RI, b_OR
        self.scale, self.drop, self.fast = scale, drop, fast

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """A and B under peft's names."""
        return {"lora_A.weight": self.a_RI, "lora_B.weight": self.b_OR}

    @property
    def draws(self) -> bool:
        """Whether there is dropout."""
        return self.drop > 0

    def low_rank(self, layer: AdaptedLinear, run: Run) -> Update:
        """s · drop(x) Aᵀ Bᵀ."""
        return Update(run.start, run.stop, self.a_RI, self.b_OR, self.scale, layer.dropout(self.drop, run))

    def change(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """s · drop(x) Aᵀ Bᵀ alone."""
        dropout = layer.dropout(self.drop, run)
        branch_NI = x_NI if dropout is None else dropout(x_NI)
        narrow_NR = F.linear(branch_NI, self.a_RI.to(x_NI.dtype))
        return F.linear(narrow_NR, self.b_OR.to(x_NI.dtype)) * self.scale

    def update(self, layer: AdaptedLinear) -> Factors:
        """s B A."""
        return Factors(self.scale * self.b_OR.detach().float(), self.a_RI.detach().float())

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + s B A."""
        return weight_OI + self.scale * (self.b_OR.float() @ self.a_RI.float()), bias_O


class LoRAEmbeddingBranch(Branch):
    """e(t) + s · B A[:, t], with A (R, V) and B (D, R)."""

    def __init__(self, a_RV: nn.Parameter, b_DR: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.a_RV, self.b_DR, self.scale = a_RV, b_DR, scale

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """A and B under peft's names."""
        return {"lora_embedding_A": self.a_RV, "lora_embedding_B": self.b_DR}

    def forward(self, tokens_N: Tensor, layer: AdaptedEmbedding, run: Run) -> Tensor:
        """The adapted rows (N, D)."""
        side_ND = F.linear(F.embedding(tokens_N, self.a_RV.t()), self.b_DR) * (self.scale * layer.row_factor)
        rows_ND = layer.rows(tokens_N)
        return rows_ND + side_ND.to(rows_ND.dtype)

    @torch.no_grad()
    def merge_into(self, layer: AdaptedLayer) -> None:
        """Add the update to the table."""
        table = layer.base.get_parameter("weight")
        table.copy_(table.float() + self.scale * (self.b_DR.float() @ self.a_RV.float()).t())
