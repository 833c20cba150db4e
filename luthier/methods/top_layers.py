"""Top layers: train the last transformer layers of the base, and what follows them.

Lee, Tang & Lin 2019, https://arxiv.org/abs/1911.03090: the last quarter of the layers reached 90 % of the quality of all.
Nothing below the first trained layer needs a backward pass, or keeps anything for one.

A head that is tied to the embedding does not train here: its gradient would reach the embedding, and with it every layer.
In an encoder-decoder the layers are the decoder's (our choice); what the encoder gives stays as it is.

Merges: it is the base. Deep backward: no, only through the trained layers. Over 4 bits: yes, where the
trained layers stay as they are. Identity at the start: exact.
Trainable numbers: those of K layers + final norm + head.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from luthier.errors import RecipeError
from luthier.methods.contract import Kin, Method, Traits
from luthier.methods.full import FullAttachment
from luthier.models.anatomy import Anatomy, LayerAnatomy
from luthier.models.language_model import LanguageModel


class TopLayers(Method):
    """The last layers of the base."""

    family: ClassVar[Kin] = "selective"
    paper: ClassVar[str] = "https://arxiv.org/abs/1911.03090"
    count: ClassVar[str] = "the size of the last K layers + final norm + head"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=False, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 5e-5
    output_folder: ClassVar[str] = "model"
    tunes_base: ClassVar[bool] = True

    kind: Literal["top-layers"] = "top-layers"
    num_layers: int | None = Field(
        None, ge=1, description="How many of the last layers train; unset: a quarter of all, at least one."
    )
    include_final_norm: bool = Field(True, description="Whether the final norm trains too.")
    include_head: bool | None = Field(
        None,
        description="Whether the head trains too; unset: only if it is not tied to the embedding. A new head for classes always trains.",
    )

    @property
    def without_new_tokens(self) -> str | None:
        """The embedding does not train."""
        return "it trains the last layers, and the embedding is below them"

    def keeps_full(self, anatomy: Anatomy) -> tuple[str, ...]:
        """The linear layers of the layers that train."""
        return tuple(name for layer in self._trained(anatomy) for name in layer.linears)

    def attach(self, model: LanguageModel, name: str, seed: int, *, fast: bool = True) -> FullAttachment:
        """Unfreeze the last layers, in fp32."""
        anatomy = model.anatomy
        layers = self._trained(anatomy)
        trains_head = (
            not anatomy.is_head_tied and model.is_head_read if self.include_head is None else self.include_head
        )
        if trains_head and not model.is_head_read:
            raise RecipeError(
                "The objective asks nothing of the model's head, so that nothing of it would learn.",
                "Leave method.include_head out.",
                field="method.include_head",
            )
        if trains_head and anatomy.is_head_tied:
            raise RecipeError(
                "The model's head is its embedding, so training it would train the embedding below every layer.",
                "Set method.include_head to false, or choose method.kind full with train_embedding.",
                field="method.include_head",
            )
        places = [layer.name for layer in layers]
        if self.include_final_norm and anatomy.final_norm is not None:
            places.append(anatomy.final_norm)
        places += anatomy.head_linears if trains_head else model.new_head
        inside = tuple(place + "." for place in places)
        return FullAttachment(model, tuple(name for name, _ in model.hf.named_parameters() if name.startswith(inside)))

    def _trained(self, anatomy: Anatomy) -> tuple[LayerAnatomy, ...]:
        """The layers that train. Raises RecipeError if there are not so many."""
        total = len(anatomy.answering)
        chosen = max(1, total // 4) if self.num_layers is None else self.num_layers
        if chosen > total:
            raise RecipeError(
                f"The model has {total} layers, of which the last {chosen} cannot be taken.",
                f"Set method.num_layers to at most {total}.",
                field="method.num_layers",
            )
        return anatomy.answering[total - chosen :]
