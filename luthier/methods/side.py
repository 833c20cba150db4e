"""What methods have in common whose adapter is a network beside the base."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from luthier.errors import RecipeError
from luthier.methods.adapter import AdapterMethod, generator_of, moved
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.models.language_model import LanguageModel
from luthier.models.sides import Side
from luthier.models.taps import Taps


class SideMethod(AdapterMethod):
    """A method that trains a network beside the base."""

    @abstractmethod
    def side(self, model: LanguageModel, generator: torch.Generator) -> Side:
        """A fresh side network for the model, its trainable tensors fp32."""

    @property
    def without_new_tokens(self) -> str | None:
        """The base is read as it is."""
        return "the base is read without a backward pass, so that nothing tells the embedding how to change"

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """The side network under the adapter's name. Raises RecipeError for a model that projects after its layers."""
        width = model.hf.get_submodule(model.anatomy.embedding).get_parameter("weight").shape[1]
        if width != model.hf.config.hidden_size:
            raise RecipeError(
                f"The model's layers have width {model.hf.config.hidden_size} and its embedding {width}: what stands beside "
                "its layers cannot take the place of what it projects.",
                "Choose another method, or a model without projections at its ends.",
                field="method.kind",
            )
        side = moved(self.side(model, generator_of(self.kind, seed)), model.device)
        model.add_side(name, side)
        return SideAttachment(self, model, name, {}, shared=dict(_trained(side)))


def _trained(side: Side) -> list[tuple[str, nn.Parameter]]:
    return [(name, tensor) for name, tensor in side.named_parameters() if tensor.requires_grad]


class SideAttachment(AdapterAttachment):
    """A side network at work: all its tensors are shared by all layers, and the base needs no backward pass."""

    @property
    def taps(self) -> Taps:
        """What the side network reads."""
        return self.model.sides[self.name].taps

    def merge(self) -> None:
        """Refused: no weight of the base computes what the side network does."""
        raise RecipeError(
            "A network beside the base cannot be merged into it.",
            "Keep the adapter beside the base model.",
            field="method.kind",
        )
