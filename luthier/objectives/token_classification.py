"""Token classification: give each word of a text its tag, such as the names in it (NER).

loss = − Σ_k w_k log p(tag_k | text) / Σ_k w_k, over the tagged words of the optimizer step, w the weight of the row that a word is
in. A word is told at its first token, as BERT does (Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 5.3); its other tokens teach nothing.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from luthier.models.heads import ClassHead
from luthier.models.outputs import Outputs
from luthier.objectives.classes import OverClasses
from luthier.objectives.likelihood import nll_sum, row_nll
from luthier.types import Example, Gives, Origin, Part, Rendered


class TokenClassification(OverClasses):
    """Learn to tag words."""

    takes: ClassVar[Gives] = "tags"
    weighs: ClassVar[bool] = True
    loss_unit: ClassVar[str] = "nats per tagged word"
    targets_are: ClassVar[str] = "tagged words"

    kind: Literal["token-classification"] = "token-classification"

    def head(self, seed: int) -> ClassHead:
        """A head for the tags, which reads every token."""
        return ClassHead(self.settled_classes, seed, reads="tokens")

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """One document with a target for each word. Raises DataError, at its line, for a tag that is no class."""
        assert rendered.tag_K is not None, "rows with tags were asked for"
        numbers = [self.number_of(tag, origin, f"tags[{index}]") for index, tag in enumerate(rendered.tags)]
        return Example(
            parts=(Part(rendered.tokens_T),),
            source_N=rendered.tag_K,
            token_N=np.array(numbers, dtype=np.int64),
            weight_N=np.full(len(numbers), rendered.row_weight, dtype=np.float32),
            sample_N=np.zeros(len(numbers), dtype=np.int64),
            document=document,
            origin=origin,
            types_P=rendered.types_T,
        )

    def loss_sum(self, outputs: Outputs) -> Tensor:
        """Negative log-likelihood of the tags, summed."""
        return nll_sum(outputs.logprob_N, outputs.targets.weight_N)

    def row_losses(self, outputs: Outputs) -> Tensor:
        """See the base class."""
        return row_nll(outputs.logprob_N, outputs.targets)
