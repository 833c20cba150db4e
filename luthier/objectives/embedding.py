"""Embedding: texts that mean the same come to lie close to each other, others apart (contrastive learning).

With e the pooled and normalised state of a text and τ the temperature, over the N rows of the optimizer step

    loss = − Σ_n log ( exp(e_n · e⁺_n / τ) / Σ_j exp(e_n · c_j / τ) ) / N,

the candidates c being the positives and negatives of all N rows: in-batch negatives (van den Oord et al. 2018, InfoNCE,
https://arxiv.org/abs/1807.03748; Henderson et al. 2017, https://arxiv.org/abs/1705.00652, section 4.4).

As every row's loss depends on all texts of the step, a step cut into micro-batches is computed twice: once for the
embeddings, then for the gradients that the loss has with respect to them (GradCache, Gao et al. 2021,
https://arxiv.org/abs/2101.06983). So the negatives of a row do not depend on the memory that there is.

Shapes: N targets, M texts, D width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.models.heads import WordsHead
from luthier.models.outputs import Outputs
from luthier.objectives.contract import JointObjective, Whole
from luthier.objectives.pooling import apart, pooled_at
from luthier.types import Example, Gives, IntArray, Origin, Rendered

ANCHOR, POSITIVE = 0, 1
"""The samples of a row: the text itself, the one that means the same, and from 2 on those that do not."""


class Embedding(JointObjective):
    """Learn to place texts by what they mean."""

    writes: ClassVar[bool] = False
    takes: ClassVar[Gives] = "similar"
    loss_unit: ClassVar[str] = "nats per anchor"
    targets_are: ClassVar[str] = "pooled tokens"

    kind: Literal["embedding"] = "embedding"
    temperature: float = Field(0.05, gt=0.0, description="τ: the smaller, the more the nearest negatives count.")
    pooling: Literal["mean", "token"] = Field(
        "mean",
        description="What speaks for a text: the mean of its tokens' states, or one token's (an encoder's first, a decoder's last).",
    )

    def head(self, seed: int) -> WordsHead:
        """None is needed: an encoder's may be missing."""
        return WordsHead(is_read=False)

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """A document for each text; its targets are the tokens that are pooled, of which an anchor's first has weight 1."""
        sources = [self._pooled(text) for text in rendered.texts]
        weights = [np.zeros(len(source_N), dtype=np.float32) for source_N in sources]
        weights[ANCHOR][0] = 1.0
        return apart(rendered.texts, sources, weights, document, origin)

    def _pooled(self, text: Rendered) -> IntArray:
        if self.pooling == "token":
            return np.array([pooled_at(text)], dtype=np.int64)
        return np.arange(len(text.tokens_T), dtype=np.int64)

    def whole(self, outputs: Outputs) -> Whole:
        """The normalised means of the pooled tokens' states."""
        targets = outputs.targets
        key_N = targets.row_N * (int(targets.sample_N.max()) + 1) + targets.sample_N
        _, text_N, count_M = torch.unique_consecutive(key_N, return_inverse=True, return_counts=True)
        first_M = count_M.cumsum(0) - count_M
        hidden_ND = outputs.hidden_ND.float()
        sum_MD = hidden_ND.new_zeros(len(count_M), hidden_ND.shape[1]).index_add(0, text_N, hidden_ND)
        vector_MD = F.normalize(sum_MD / count_M[:, None], dim=-1)
        return Whole(vector_MD, targets.row_N[first_M], targets.sample_N[first_M])

    def joint_loss(self, whole: Whole) -> Tensor:
        """The loss of all rows, summed."""
        return info_nce(whole, self.temperature)


def info_nce(whole: Whole, temperature: float) -> Tensor:
    """The summed loss of every anchor among all positives and negatives, shape ()."""
    return info_nce_of_each(whole, temperature).sum()


def info_nce_of_each(whole: Whole, temperature: float) -> Tensor:
    """The loss of each anchor among all positives and negatives, in the order of the rows, shape (N,)."""
    (anchor_N,), (candidate_C,) = (
        torch.where(is_one) for is_one in (whole.sample_M == ANCHOR, whole.sample_M != ANCHOR)
    )
    score_NC = whole.vector_MD[anchor_N] @ whole.vector_MD[candidate_C].t() / temperature
    is_right_NC = whole.row_M[anchor_N][:, None] == whole.row_M[candidate_C]
    is_right_NC = is_right_NC & (whole.sample_M[candidate_C] == POSITIVE)
    return F.cross_entropy(score_NC, is_right_NC.int().argmax(1), reduction="none")
