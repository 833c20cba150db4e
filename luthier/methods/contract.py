"""What a fine-tuning method owes the rest of the package.

A method is a frozen settings object (its file, its paper) that can `attach` itself to a model under a name. What comes
back, the attachment, is all that the loop, the checkpoints and the export ask:

- which tensors train, in fp32, grouped by learning rate and decay, and the lowest layer that needs a backward pass;
- the loss of a micro-batch (one forward pass, if the method has nothing else in mind), what the method itself adds to a
  step's loss, and what it does after each step;
- how the trained state is written for other tools, and how it is folded into the base, if it can be.

Nothing else of a method is known outside its file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn

from luthier.models.anatomy import Anatomy
from luthier.models.heads import ClassHead
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import Outputs
from luthier.models.streaming import Prepare, only_packed
from luthier.models.taps import Taps, taps_below
from luthier.types import Settings

ADAPTER = "default"
"""The name that a run's own adapter bears."""

REFERENCE = "reference"
"""The name that a frozen copy of a run's adapter bears, as it was before anything trained."""

Kin = Literal["full", "low-rank", "selective", "adapter", "soft-prompt", "additive"]
"""What a method trains, as the table of methods groups them.

full: all weights. low-rank: a small factored change of weights (and kin of it). selective: some of the base's own numbers.
adapter: small networks between the layers. soft-prompt: vectors that stand before the tokens. additive: anything else that
is added beside the base.
"""


@dataclass(frozen=True)
class Traits:
    """Facts about a method that do not depend on its settings."""

    merges: bool
    deep_backward: bool
    over_4bit: bool
    identity_at_start: bool


@dataclass(frozen=True)
class Group:
    """Trainable tensors by name that share a learning rate: the recipe's, times `lr_factor`."""

    tensors: dict[str, nn.Parameter]
    lr_factor: float = 1.0
    decays: bool = True


@dataclass(frozen=True)
class StepDone:
    """An optimizer step just taken: its number (from 1), how many there will be, and the gradients it used, by name."""

    number: int
    num_steps: int
    gradients: Mapping[str, Tensor]


Forward = Callable[[int], Outputs]
"""A forward pass over a micro-batch; passes of different numbers have different random draws."""


class Attachment(ABC):
    """A method at work on one model."""

    model: LanguageModel

    @property
    @abstractmethod
    def groups(self) -> tuple[Group, ...]:
        """The trainable tensors; each belongs to exactly one group."""

    @property
    @abstractmethod
    def lowest_layer(self) -> int | None:
        """The first layer that needs a backward pass; None where it reaches the embedding."""

    @property
    def taps(self) -> Taps:
        """Which states of the base are all that the method reads of it.

        Nothing below them depends on what trains; none where it does from the embedding or the first layer on.
        """
        return taps_below(self.model.anatomy, self.lowest_layer)

    @property
    @abstractmethod
    def adapter(self) -> str | None:
        """The name to pass as `adapters` so that the method takes part; None if the method is the model itself."""

    @property
    def draws(self) -> bool:
        """Whether training draws for each document (dropout): documents then cannot share the tokens of a prefix."""
        return False

    @property
    def is_random(self) -> bool:
        """Whether training passes of the same rows differ, by what is drawn for each document or for all of them."""
        return self.draws

    @property
    def num_virtual(self) -> int:
        """How many placeholder tokens every document must begin with, because the method puts virtual tokens there.

        In an encoder-decoder, the source must.
        """
        return 0

    @property
    def num_virtual_answer(self) -> int:
        """How many an encoder-decoder's answer must begin with."""
        return 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the method was put to work."""
        return ()

    def loss_sum(self, forward: Forward, loss_of: Callable[[Outputs], Tensor]) -> Tensor:
        """The summed loss of a micro-batch, from as many passes as the method wants; `loss_of` is the objective's."""
        return loss_of(forward(0))

    def extra_loss(self) -> Tensor | None:
        """What the method itself adds to the mean loss of a step, whatever the data; None for nothing."""
        return None

    def after_step(self, done: StepDone) -> bool:
        """Take notice of an optimizer step; may change trained tensors in place, or exchange them for others.

        Whether it exchanged some: `groups` then gives the others. A group of the same tensors keeps its optimizer's state,
        any other begins without.
        """
        return False

    def state(self) -> dict[str, Tensor]:
        """What `after_step` remembers, by name: part of every checkpoint."""
        return {}

    def trained_shapes(self, state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """The shapes that the trained tensors had, by name, when `state` gave this: those of now, unless steps exchange some."""
        return {name: tuple(tensor.shape) for name, tensor in self.trainables.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave. Trained tensors come to have the shapes of then; their values are the caller's to load."""
        assert not state, "a method that remembers something takes it up itself"

    @abstractmethod
    def write(self, folder: Path, announce: Callable[[str], None]) -> None:
        """Write the trained state into `folder` (which exists) as files that other tools read."""

    @abstractmethod
    def merge(self) -> None:
        """Fold the trained state into the base for good; the attachment is used up."""

    @property
    def trainables(self) -> dict[str, nn.Parameter]:
        """All trainable tensors by name."""
        return {name: tensor for group in self.groups for name, tensor in group.tensors.items()}

    @property
    def num_trainable(self) -> int:
        """How many numbers train."""
        return sum(tensor.numel() for tensor in self.trainables.values())

    @property
    def num_in_head(self) -> int:
        """How many of them are those of a new head, which any method trains."""
        return 0


@dataclass(frozen=True)
class Reference:
    """How a model still speaks as it did before anything trained: under this adapter, or under none."""

    adapter: str | None


class Method(Settings, ABC):
    """The settings of a method; its `kind` names it in a recipe.

    family: what it trains. paper: where it comes from. count: the formula of its trainable numbers. default_lr: the peak
    learning rate of a recipe that gives none. output_folder: what a finished run calls its result. tunes_base: whether
    the base's own weights train, so that the result is a whole model and not an adapter beside one. needs_quantization:
    whether it makes sense over a quantized base alone.
    """

    family: ClassVar[Kin]
    paper: ClassVar[str]
    count: ClassVar[str]
    traits: ClassVar[Traits]
    default_lr: ClassVar[float]
    output_folder: ClassVar[str]
    tunes_base: ClassVar[bool] = False
    needs_quantization: ClassVar[bool] = False

    kind: str

    @abstractmethod
    def attach(self, model: LanguageModel, name: str, seed: int, *, fast: bool = True) -> Attachment:
        """Put the method to work on a frozen model.

        name: how `LanguageModel.forward(adapters=…)` calls it. seed: decides the random start, each tensor by its name.
        fast: use the operations of `ops`. Raises RecipeError, naming the field, if the model has no place for it.
        """

    @property
    def begins_at_base(self) -> bool:
        """Whether a model that it is attached to says what the base says, until something trains."""
        return self.traits.identity_at_start

    def reference(self, model: LanguageModel, seed: int, *, fast: bool = True) -> Reference | None:
        """Have a model that the method is attached to go on to speak as it did before anything trained.

        Where the adapter begins at the base, the base itself speaks; else a frozen copy of the adapter stands beside it, made
        again from the same file and the same seed. None where the base's own weights train: then what it says must be kept
        before step 1, or a second model held. Arguments and Raises: as `attach`.
        """
        if self.tunes_base:
            return None
        if self.begins_at_base:
            return Reference(None)
        for tensor in self.attach(model, REFERENCE, seed, fast=fast).trainables.values():
            tensor.requires_grad_(False)
        return Reference(REFERENCE)

    @property
    def without_new_tokens(self) -> str | None:
        """Why the rows of tokens that are added to the model cannot train with it; None if they do."""
        return "it trains no rows of the embedding"

    def class_head(self, head: ClassHead) -> ClassHead:
        """The head for the objective's classes that the method needs, where the model is loaded with one."""
        return head

    def keeps_full(self, anatomy: Anatomy) -> tuple[str, ...]:
        """The linear layers that must stay as they are where the others are quantized, because the method trains them."""
        return ()

    def prepare_weights(self, anatomy: Anatomy) -> Prepare:
        """What becomes of a layer's full weight where the base is quantized: packed as it is, if the method wants nothing else."""
        return only_packed

    def lacking(self, takes_labels: bool) -> tuple[str, ...]:
        """Which settings are missing, beside those that always must be given: it depends on whether labels name the classes."""
        return ()

    def continued(self, folder: Path) -> Method:
        """The method that, attached, takes up what a finished run of this one left in its folder."""
        return self
