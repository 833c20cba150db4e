"""What objectives that corrupt plain text share: a text is an example without targets until its epoch's draws are known."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from luthier.errors import RecipeError
from luthier.models.outputs import Outputs
from luthier.objectives.contract import Objective
from luthier.objectives.likelihood import nll_sum, row_nll
from luthier.types import Example, FloatArray, IntArray, Origin, Part, Rendered


class Pretraining(Objective):
    """An objective that learns from plain text in pieces."""

    splits: ClassVar[bool] = True
    learns_ends: ClassVar[bool] = False

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """The text as it is; its targets are drawn."""
        return targeted(rendered.tokens_T, _NONE, _NONE, document, origin)

    def loss_sum(self, outputs: Outputs) -> Tensor:
        """Negative log-likelihood of the targets, summed."""
        return nll_sum(outputs.logprob_N, outputs.targets.weight_N)

    def row_losses(self, outputs: Outputs) -> Tensor:
        """See the base class."""
        return row_nll(outputs.logprob_N, outputs.targets)


_NONE: IntArray = np.zeros(0, dtype=np.int64)


def targeted(tokens_T: IntArray, source_N: IntArray, token_N: IntArray, document: int, origin: Origin) -> Example:
    """A text of one part with targets of weight 1."""
    return Example((Part(tokens_T),), source_N, token_N, ones(token_N), np.zeros_like(token_N), document, origin)


def ones(token_N: IntArray) -> FloatArray:
    """Weight 1 for each target."""
    return np.ones(len(token_N), dtype=np.float32)


def answered(text: Example, inputs_S: IntArray, targets_N: IntArray, answer_start: int) -> Example:
    """An encoder-decoder's example: the encoder reads the inputs, the decoder writes the targets."""
    return Example(
        parts=(Part(np.concatenate([np.array([answer_start]), targets_N[:-1]])),),
        source_N=np.arange(len(targets_N), dtype=np.int64),
        token_N=targets_N,
        weight_N=ones(targets_N),
        sample_N=np.zeros_like(targets_N),
        document=text.document,
        origin=text.origin,
        source_S=inputs_S,
    )


def continued(text: Example, inputs_S: IntArray, targets_N: IntArray) -> Example:
    """A decoder's example: it reads the inputs in both directions and writes the targets after them."""
    num_inputs = len(inputs_S)
    return Example(
        parts=(Part(inputs_S, causal=False), Part(targets_N, parent=0)),
        source_N=np.arange(num_inputs - 1, num_inputs + len(targets_N) - 1, dtype=np.int64),
        token_N=targets_N,
        weight_N=ones(targets_N),
        sample_N=np.zeros_like(targets_N),
        document=text.document,
        origin=text.origin,
    )


def longest_within(max_length: int, comes_to: dict[int, int]) -> int:
    """The longest text that comes to no more than `max_length` tokens. Raises: RecipeError if none does."""
    fitting = [length for length, total in comes_to.items() if total <= max_length]
    if not fitting:
        raise RecipeError(
            f"No text comes to {max_length} tokens or fewer under this objective.",
            "Raise data.max_length.",
            field="data.max_length",
        )
    return max(fitting)
