"""DoRA: learn the length of each row of a weight apart from its direction.

Liu et al. 2024, https://arxiv.org/abs/2402.09353, equation 5, in the layout of `nn.Linear`, where a row is an output:

    W' = diag(m / ν) (W + s B A),   ν = ‖W + s B A‖ by rows, taken as a constant in the backward pass (section 4.3),

with B = 0 and m = ‖W‖ at the start, s = α / R. The bias is never scaled. With dropout, x̃ = drop(x):

    y = x Wᵀ + c + (m/ν − 1) · x̃ Wᵀ + (m/ν) s · x̃ Aᵀ Bᵀ,

so that what is learned, and only that, sees dropped inputs; without the middle term the length would be learned wrongly.
A norm costs two thin products and no matrix of the weight's size: ‖W + sBA‖² = ‖W‖² + 2s Σ (W Aᵀ) ∘ B + s² Σ (B A Aᵀ) ∘ B.
It is computed at every call: the base may change below (another adapter is merged), so nothing is remembered.

Merges: yes. Deep backward: yes, to the lowest adapted layer. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: Σ (R (I + O) + O) over the adapted layers.
Shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.methods.adapter import linear_of, trainable
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, Branch, LinearBranch, low_rank_linear
from luthier.methods.contract import Kin, Traits
from luthier.methods.lora import LORA_FORM, LowRank, fresh_pair
from luthier.methods.peft_files import PeftForm
from luthier.models.call import Run
from luthier.ops.dropout import Dropout
from luthier.ops.products import Weight, lent, plain_linear

_MAGNITUDE = "lora_magnitude_vector"
_TINY = torch.finfo(torch.float32).tiny  # a row of zeros has no direction: it stays zero rather than become 0 / 0


class DoRA(LowRank):
    """Low-rank updates of the rows' directions, and the rows' lengths."""

    family: ClassVar[Kin] = "low-rank"
    paper: ClassVar[str] = "https://arxiv.org/abs/2402.09353"
    count: ClassVar[str] = "Σ (R (I + O) + O) over the adapted layers"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 2e-4
    form: ClassVar[PeftForm] = replace(
        LORA_FORM,
        title="DoRA",
        endings=("lora_A.weight", "lora_B.weight", _MAGNITUDE),
        allowed={**LORA_FORM.allowed, "use_dora": (True,)},
        constants={**LORA_FORM.constants, "use_dora": True},
        stacks=False,
    )

    kind: Literal["dora"] = "dora"

    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """A random, B zero, m the lengths of the frozen weight's rows."""
        linear = linear_of(layer, self.kind)
        scale = self.scale_of(layer.name)
        a_RI, b_OR = fresh_pair(linear, self.rank_of(layer.name), generator)
        m_O = trainable(row_norms(linear.frozen, a_RI, b_OR, scale), linear.device)
        return DoRABranch(a_RI, b_OR, m_O, scale, self.dropout, fast)


class DoRABranch(LinearBranch):
    """A (R, I), B (O, R) and the rows' lengths m (O,)."""

    def __init__(
        self, a_RI: nn.Parameter, b_OR: nn.Parameter, m_O: nn.Parameter, scale: float, drop: float, fast: bool
    ) -> None:
        super().__init__()
        self.a_RI, self.b_OR, self.m_O = a_RI, b_OR, m_O
        self.scale, self.drop, self.fast = scale, drop, fast

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """A, B and m under peft's names."""
        return {"lora_A.weight": self.a_RI, "lora_B.weight": self.b_OR, _MAGNITUDE: self.m_O}

    @property
    def draws(self) -> bool:
        """Whether there is dropout."""
        return self.drop > 0

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """c + (m/ν) · x (W + s B A)ᵀ; with dropout, the base's own part sees all of x."""
        # m/ν − 1 rather than m/ν: half precision has no numbers near 1 for what a step changes
        excess_O = self.m_O / row_norms(layer.frozen, self.a_RI, self.b_OR, self.scale) - 1
        dropout = layer.dropout(self.drop, run)
        if dropout is not None:
            return self._with_dropout(x_NI, layer, excess_O, dropout)
        z_NO = low_rank_linear(self.fast, x_NI, layer.frozen, layer.bias, self.a_RI, self.b_OR, self.scale, None)
        turned_NO = z_NO if layer.bias is None else z_NO - layer.bias.to(z_NO.dtype)
        return torch.addcmul(z_NO, turned_NO, excess_O.to(z_NO.dtype))

    def _with_dropout(self, x_NI: Tensor, layer: AdaptedLinear, excess_O: Tensor, dropout: Dropout) -> Tensor:
        """x Wᵀ + c + (m/ν − 1) · x̃ (W + s B A)ᵀ + s · x̃ Aᵀ Bᵀ: the module's second formula, sorted by m/ν − 1."""
        dropped_NI = dropout(x_NI)
        side_NO = F.linear(F.linear(dropped_NI, self.a_RI.to(x_NI.dtype)), self.b_OR.to(x_NI.dtype)) * self.scale
        turned_NO = plain_linear(dropped_NI, layer.frozen) + side_NO
        return torch.addcmul(layer.product(x_NI) + side_NO, turned_NO, excess_O.to(turned_NO.dtype))

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """diag(m/ν) (W + s B A), and the bias as it is."""
        turned_OI = weight_OI + self.scale * (self.b_OR.float() @ self.a_RI.float())
        length_O = row_norms_reference(weight_OI, self.a_RI, self.b_OR, self.scale)
        return (self.m_O / length_O)[:, None] * turned_OI, bias_O


@torch.no_grad()
def row_norms_reference(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """‖W + s B A‖ by rows, fp32, shape (O,), without a gradient."""
    turned_OI = weight_OI.float() + scale * (b_OR @ a_RI)
    return turned_OI.square().sum(dim=1).clamp_min(_TINY).sqrt()


@torch.no_grad()
def row_norms(weight_OI: Weight, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """The same by thin products; W Aᵀ in the number format of W, as the layer's own output is."""
    weight_OI = lent(weight_OI, torch.float32)
    with torch.autocast(weight_OI.device.type, enabled=False):
        plain_O: Tensor = torch.linalg.vector_norm(weight_OI, dim=1, dtype=torch.float32).square()
        crossed_O = ((weight_OI @ a_RI.to(weight_OI.dtype).t()).float() * b_OR).sum(dim=1)
        added_O = ((b_OR @ (a_RI @ a_RI.t())) * b_OR).sum(dim=1)
        norm_O: Tensor = (plain_O + 2 * scale * crossed_O + scale * scale * added_O).clamp_min(_TINY).sqrt()
        return norm_O
