"""Classification: tell which of some classes a text, or a pair of texts, belongs to.

loss = − Σ_n w_n log p(class_n | text_n) / Σ_n w_n, over the rows of the optimizer step, with p the softmax over the classes.

The target of a row is an ordinary one: its source is the token that the head reads (the first of an encoder's row, the
last of a decoder's), its token the number of the class, its weight w the row's own, which is 1 if it says nothing.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from luthier.models.heads import ClassHead
from luthier.models.outputs import Outputs
from luthier.objectives.classes import OverClasses
from luthier.objectives.likelihood import nll_sum, row_nll
from luthier.objectives.pooling import pooled_at
from luthier.types import Example, Gives, Origin, Part, Rendered


class Classification(OverClasses):
    """Learn to tell classes apart."""

    takes: ClassVar[Gives] = "labels"
    weighs: ClassVar[bool] = True
    loss_unit: ClassVar[str] = "nats per text"
    targets_are: ClassVar[str] = "learned labels"

    kind: Literal["classification"] = "classification"

    def head(self, seed: int) -> ClassHead:
        """A head for the classes."""
        return ClassHead(self.settled_classes, seed)

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """One document with one target. Raises DataError, at its line, for a label that is no class."""
        return Example(
            parts=(Part(rendered.tokens_T),),
            source_N=np.array([pooled_at(rendered)], dtype=np.int64),
            token_N=np.array([self.number_of(rendered.label, origin, "label")], dtype=np.int64),
            weight_N=np.full(1, rendered.row_weight, dtype=np.float32),
            sample_N=np.zeros(1, dtype=np.int64),
            document=document,
            origin=origin,
            types_P=rendered.types_T,
        )

    def loss_sum(self, outputs: Outputs) -> Tensor:
        """Negative log-likelihood of the classes, summed."""
        return nll_sum(outputs.logprob_N, outputs.targets.weight_N)

    def row_losses(self, outputs: Outputs) -> Tensor:
        """See the base class."""
        return row_nll(outputs.logprob_N, outputs.targets)
