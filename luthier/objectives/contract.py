"""What an objective owes the loop.

It says how an example is made from a rendered row, and turns what the model gives at the targets into a loss. The loop
divides by the whole step's weight, so that any cut into micro-batches gives the same gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from luthier.corruption.vocabulary import Vocabulary
from luthier.models.heads import Head
from luthier.models.outputs import Outputs
from luthier.models.settings import ModelSettings
from luthier.objectives.asking import AS_WRITTEN, Asking
from luthier.types import Example, Gives, ModelKind, Origin, Rendered, Settings, TextsAs

Corrupt = Callable[[Example, np.random.Generator], Example]
"""Makes of a text the example of one epoch, from draws that belong to the text and the epoch alone."""


Sums = tuple[Tensor, float]
"""A sum, of shape (), and the number or weight of what it is of: their mean over a step is that of any cut into micro-batches."""


@dataclass(frozen=True)
class Whole:
    """What a joint loss is a function of: a vector for each text, the row that it is of, and which of its texts it is.

    Shapes: M texts, D width.
    """

    vector_MD: Tensor
    row_M: Tensor
    sample_M: Tensor


def joined(parts: Sequence[Whole]) -> Whole:
    """Several micro-batches' texts as one, their rows numbered on."""
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + int(part.row_M.max()) + 1)
    return Whole(
        torch.cat([part.vector_MD for part in parts]),
        torch.cat([part.row_M + start for part, start in zip(parts, starts, strict=False)]),
        torch.cat([part.sample_M for part in parts]),
    )


@dataclass(frozen=True)
class Kept:
    """What of a model is kept before step 1, so that it need not be there in training: its `count` likeliest words.

    temperature: what its logits are divided by. folder: where they stay when the run has ended; None: in the run's, until then.
    """

    count: int
    temperature: float = 1.0
    folder: str | None = None


@dataclass(frozen=True)
class Companion:
    """Another model that an objective hears of each batch's targets: `Outputs.beside[role]`.

    model: which; its name may be a run's folder. None: the objective's own model, as it was before anything trained. field:
    where the recipe names it. kept: None where it is asked at each step.
    """

    role: str
    model: ModelSettings | None
    field: str
    kept: Kept | None = None


class Objective(Settings, ABC):
    """The settings of an objective; its `kind` names it in a recipe.

    takes: what rows must hold for it to learn from. reads: how a plain text becomes tokens for it. splits: whether texts
    that are too long are cut into pieces, each a row of its own. kinds: which models it is for. learns_ends: whether a model
    that never learned to end a text is broken. writes: whether the model that comes out writes text. in_place: whether a target is learned at its own place, rather than at the
    one before. is_likelihood: whether the loss, of a model that writes, is nats a token, which a guess among all words bounds.
    needs_others: whether a row has something of the row before it, as `beside_other` makes it. weighs: whether rows and answers
    count in its loss as much as they say.
    loss_unit: what the loss is, and of what the mean. targets_are: what its targets are called.
    """

    takes: ClassVar[Gives] = "text"
    reads: ClassVar[TextsAs] = "written"
    splits: ClassVar[bool] = False
    kinds: ClassVar[tuple[ModelKind, ...]] = ("decoder", "encoder", "encoder-decoder")
    learns_ends: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    in_place: ClassVar[bool] = False
    is_likelihood: ClassVar[bool] = True
    needs_others: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    loss_unit: ClassVar[str] = "nats per learned token"
    targets_are: ClassVar[str] = "learned tokens"

    kind: str

    @abstractmethod
    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """What one rendered row teaches. Raises DataError for a row that it cannot teach."""

    @abstractmethod
    def loss_sum(self, outputs: Outputs) -> Tensor:
        """The loss summed over a micro-batch's targets, before the division by the step's weight; shape ()."""

    def held_out_sum(self, outputs: Outputs) -> Tensor:
        """The same as it is measured on held-out rows: without what only training adds to it."""
        return self.loss_sum(outputs)

    def row_losses(self, outputs: Outputs) -> Tensor | None:
        """`held_out_sum` row by row, shape (R,): what the tasks of a mixture cost; None where it is not told by task in training."""
        return None

    @property
    def embedding_noise(self) -> float:
        """α of the noise on the embeddings while it trains; 0 for none."""
        return 0.0

    def longest_text(self, max_length: int) -> int:
        """The most tokens of a text that comes to `max_length` tokens, or fewer, whatever is drawn for it."""
        return max_length

    def corruption(self, vocabulary: Vocabulary) -> Corrupt | None:
        """What is done to an example anew in each epoch; None for nothing. Raises RecipeError for tokens that are missing."""
        return None

    def asking(self, vocabulary: Vocabulary) -> Asking:
        """How a model that learned by it is asked. Raises RecipeError as `corruption` does."""
        return AS_WRITTEN

    def settled(self, labels: tuple[str, ...]) -> Self:
        """The same with what it takes from the labels of the training rows, each once, in order."""
        return self

    def head(self, seed: int) -> Head | None:
        """The head that the model needs; None for the one that it writes with."""
        return None

    @property
    def companions(self) -> tuple[Companion, ...]:
        """The other models that it hears of each batch."""
        return ()

    @property
    def others(self) -> tuple[Companion, ...]:
        """Those that are not its own model."""
        return tuple(each for each in self.companions if each.model is not None)

    def beside_other(self, example: Example, other: Example, longest: int) -> Example:
        """A row with what it needs of the row before it, where it `needs_others`. longest: most tokens of what is made."""
        return example

    def measured(self, outputs: Outputs) -> dict[str, Sums]:
        """What of a micro-batch is written down beside the loss: by name a sum, and how many it is over."""
        return {}

    @property
    def alone(self) -> Objective:
        """What measures held-out rows where no companion is at hand."""
        return self

    def with_paths(self, found: Callable[[str], str]) -> Self:
        """These settings with every path that they name as `found` gives it."""
        return self


class JointObjective(Objective):
    """An objective whose loss of a row depends on the other rows of the step."""

    @abstractmethod
    def whole(self, outputs: Outputs) -> Whole:
        """What the loss is a function of, for a micro-batch."""

    @abstractmethod
    def joint_loss(self, whole: Whole) -> Tensor:
        """The loss summed over the rows of a whole step, before the division by its weight; shape ()."""

    def measured_jointly(self, whole: Whole) -> dict[str, Sums]:
        """What of a whole step is written down beside the loss, as `measured` has it."""
        return {}

    def loss_sum(self, outputs: Outputs) -> Tensor:
        """The loss of a micro-batch that is a step of its own."""
        return self.joint_loss(self.whole(outputs))
