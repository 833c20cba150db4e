"""Supervised fine-tuning: the cross-entropy of the learned tokens.

loss = − Σ_n w_n log p(y_n | what its document holds before it) / Σ_n w_n, over the whole optimizer step.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

from luthier.objectives.contract import Objective
from luthier.types import Example, Origin, Part, Rendered, Targets


class SFT(Objective):
    """Learn to write the answers."""

    kind: Literal["sft"] = "sft"

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
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

    def loss_sum(self, logprob_N: Tensor, targets: Targets) -> Tensor:
        """Weighted negative log-likelihood, summed."""
        return -(logprob_N * targets.weight_N).sum()
