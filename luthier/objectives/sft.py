"""Supervised fine-tuning: the cross-entropy of the learned tokens.

loss = Σ_n w_n ℓ_n / Σ_n w_n over the whole optimizer step, with, for a target y after what its document holds before it,

    ℓ = (1 − ε) (− log p(y)) + ε mean_v(− log p(v)) + ζ (log Σ_v exp z_v)²

The plain loss has ε = ζ = 0. ε is label smoothing (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7), ζ the
z-loss of PaLM (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, section 5), and `noise` is NEFTune's α (Jain et al.
2023, https://arxiv.org/abs/2310.05914): in training, u α / √(L D) is added to what enters the model at each of a document's
L tokens, u uniform in (−1, 1) for each of the D numbers. Held-out rows are measured by the plain loss.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.objectives.contract import Objective
from luthier.objectives.likelihood import nll_sum, row_nll
from luthier.ops.head import Spread
from luthier.types import Example, Origin, Part, Rendered


class SFT(Objective):
    """Learn to write the answers."""

    weighs: ClassVar[bool] = True

    kind: Literal["sft"] = "sft"
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="ε: how much of each target is spread over the whole vocabulary."
    )
    z_loss: float = Field(
        0.0, ge=0.0, description="ζ: weight of the squared logarithm of the softmax's denominator; 1e-4 is usual."
    )
    noise: float = Field(
        0.0, ge=0.0, description="α of NEFTune: noise on the embeddings while training; 5 is usual, 0 adds none."
    )

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """One document; each learned token is a target at the position before it."""
        return written(rendered, document, origin)

    @property
    def embedding_noise(self) -> float:
        """NEFTune's α."""
        return self.noise

    def loss_sum(self, outputs: Outputs) -> Tensor:
        """The loss of each target, weighted and summed."""
        if self.label_smoothing == self.z_loss == 0:
            return nll_sum(outputs.logprob_N, outputs.targets.weight_N)
        loss_N = smoothed(outputs.spread, self.label_smoothing) + self.z_loss * outputs.spread.logsumexp_N.square()
        return (loss_N * outputs.targets.weight_N).sum()

    def held_out_sum(self, outputs: Outputs) -> Tensor:
        """Weighted negative log-likelihood, summed."""
        return nll_sum(outputs.logprob_N, outputs.targets.weight_N)

    def row_losses(self, outputs: Outputs) -> Tensor:
        """See the base class."""
        return row_nll(outputs.logprob_N, outputs.targets)


def smoothed(spread: Spread, epsilon: float) -> Tensor:
    """(1 − ε) (− log p(y)) + ε mean_v(− log p(v)) of each target, shape (N,)."""
    return -(1 - epsilon) * spread.logprob_N - epsilon * spread.mean_logprob_N


def written(rendered: Rendered, document: int, origin: Origin) -> Example:
    """One document; each learned token is a target at the position before it."""
    (learned_N,) = np.nonzero(rendered.weight_T[1:] > 0)
    return Example(
        parts=(Part(rendered.tokens_T),),
        source_N=learned_N.astype(np.int64),
        token_N=rendered.tokens_T[learned_N + 1],
        weight_N=rendered.weight_T[learned_N + 1],
        sample_N=np.zeros(len(learned_N), dtype=np.int64),
        document=document,
        origin=origin,
        source_S=rendered.source_S,
    )
