"""Multiple choice: tell which of a question's options is right.

Each option is read with the question, and the head gives it one number s. Over the N questions of the optimizer step

    loss = − Σ_n log softmax_k(s_nk)[right_n] / N,

the loss of transformers' `ForMultipleChoice` models. Questions may have options in different numbers.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from luthier.models.heads import ClassHead
from luthier.models.outputs import Outputs
from luthier.objectives.contract import Objective
from luthier.objectives.likelihood import nll_sum, row_nll
from luthier.objectives.pooling import apart, pooled_at
from luthier.objectives.regression import SCORE
from luthier.types import Example, Gives, Origin, Rendered


class MultipleChoice(Objective):
    """Learn to choose among options."""

    writes: ClassVar[bool] = False
    takes: ClassVar[Gives] = "choices"
    loss_unit: ClassVar[str] = "nats per question"
    targets_are: ClassVar[str] = "answered questions"

    kind: Literal["multiple-choice"] = "multiple-choice"

    def head(self, seed: int) -> ClassHead:
        """A head of one number."""
        return ClassHead((SCORE,), seed, is_number=True)

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """A document for each option, each with one target: the right one's has weight 1, the others' 0."""
        sources = [np.array([pooled_at(text)], dtype=np.int64) for text in rendered.texts]
        weights = [np.array([index == rendered.chosen], dtype=np.float32) for index in range(len(rendered.texts))]
        return apart(rendered.texts, sources, weights, document, origin)

    def loss_sum(self, outputs: Outputs) -> Tensor:
        """Negative log-likelihood of the right options, summed."""
        return nll_sum(_logprobs(outputs), outputs.targets.weight_N)

    def row_losses(self, outputs: Outputs) -> Tensor:
        """See the base class."""
        return row_nll(_logprobs(outputs), outputs.targets)


def _logprobs(outputs: Outputs) -> Tensor:
    """log p of each option among those of its question, shape (N,)."""
    return grouped_log_softmax(outputs.logits_NC[:, 0], outputs.targets.row_N, outputs.targets.num_rows)


def grouped_log_softmax(score_N: Tensor, row_N: Tensor, num_rows: int) -> Tensor:
    """log softmax of scores among those of the same row, shape (N,)."""
    highest_R = score_N.detach().new_full((num_rows,), -torch.inf)
    highest_R = highest_R.scatter_reduce(0, row_N, score_N.detach(), "amax")
    above_N = score_N - highest_R[row_N]
    total_R = torch.zeros_like(highest_R).index_add(0, row_N, above_N.exp())
    return above_N - total_R.log()[row_N]
