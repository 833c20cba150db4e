"""Regression: give a text, or a pair of texts, a number.

loss = Σ_n w_n (z_n − y_n)² / Σ_n w_n, over the rows of the optimizer step, z the one logit of the head, w the row's own weight: where
that is 1, the mean squared error of transformers' heads with `problem_type` regression.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from luthier.models.heads import ClassHead
from luthier.models.outputs import Outputs
from luthier.objectives.contract import Objective
from luthier.objectives.likelihood import summed_by_row
from luthier.objectives.pooling import pooled_at
from luthier.types import Example, Gives, Origin, Part, Rendered

SCORE = "score"
"""What the head calls its one logit."""


class Regression(Objective):
    """Learn to give texts numbers."""

    writes: ClassVar[bool] = False
    takes: ClassVar[Gives] = "scores"
    weighs: ClassVar[bool] = True
    loss_unit: ClassVar[str] = "squared error per text"
    targets_are: ClassVar[str] = "learned scores"

    kind: Literal["regression"] = "regression"

    def head(self, seed: int) -> ClassHead:
        """A head of one number."""
        return ClassHead((SCORE,), seed, is_number=True)

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """One document with one number."""
        assert rendered.score is not None, "rows with scores were asked for"
        return Example(
            parts=(Part(rendered.tokens_T),),
            source_N=np.array([pooled_at(rendered)], dtype=np.int64),
            token_N=np.zeros(1, dtype=np.int64),
            weight_N=np.full(1, rendered.row_weight, dtype=np.float32),
            sample_N=np.zeros(1, dtype=np.int64),
            document=document,
            origin=origin,
            types_P=rendered.types_T,
            value_N=np.array([rendered.score], dtype=np.float32),
        )

    def loss_sum(self, outputs: Outputs) -> Tensor:
        """Squared errors, summed."""
        return _squared_errors(outputs).sum()

    def row_losses(self, outputs: Outputs) -> Tensor:
        """See the base class."""
        return summed_by_row(_squared_errors(outputs), outputs.targets)


def _squared_errors(outputs: Outputs) -> Tensor:
    """Each score's squared error by its weight, shape (N,)."""
    targets = outputs.targets
    assert targets.value_N is not None
    return (outputs.logits_NC[:, 0] - targets.value_N).square() * targets.weight_N
