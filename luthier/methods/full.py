"""Full tuning: train the base weights themselves, all of them or those of chosen layers.

Merges: it is the base. Deep backward: to the lowest trained layer. Over 4 bits: no. Identity at the start: exact.
Trainable numbers: those of the chosen tensors; a head that is tied to the embedding counts once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from luthier.errors import RecipeError
from luthier.methods.contract import Attachment, Group, Kin, Method, Traits
from luthier.models.language_model import LanguageModel
from luthier.models.writing import write_model


class Full(Method):
    """The base weights themselves."""

    family: ClassVar[Kin] = "full"
    paper: ClassVar[str] = "Howard & Ruder 2018, https://arxiv.org/abs/1801.06146"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=False, identity_at_start=True)
    default_lr: ClassVar[float] = 2e-5
    output_folder: ClassVar[str] = "model"
    tunes_base: ClassVar[bool] = True
    count: ClassVar[str] = "the size of the chosen tensors; a head tied to the embedding counts once"

    kind: Literal["full"] = "full"
    layers: Literal["all"] | tuple[int, ...] = Field(
        "all",
        description="Transformer layers that train, counted from 0 (an encoder's first, then its decoder's), or all of them.",
    )
    train_embedding: bool | None = Field(
        None, description="Whether the embedding trains (with a tied head, both); unset: only if all layers do."
    )
    train_head: bool | None = Field(
        None,
        description="Whether final norm and head train; unset: only if all layers do. A new head for classes always trains.",
    )

    @property
    def without_new_tokens(self) -> str | None:
        """None: embedding and head train, or `attach` says what to set."""
        return None

    def attach(self, model: LanguageModel, name: str, seed: int, *, fast: bool = True) -> FullAttachment:
        """Unfreeze the chosen tensors, in fp32."""
        anatomy = model.anatomy
        whole = self.layers == "all"
        trains_embedding = whole if self.train_embedding is None else self.train_embedding
        trains_head = whole if self.train_head is None else self.train_head
        if anatomy.is_head_tied and trains_head and not trains_embedding:
            raise RecipeError(
                "The model's head is its embedding, so one cannot train without the other.",
                "Set method.train_embedding to true, or method.train_head to false.",
                field="method.train_head",
            )
        if model.new_tokens and not (trains_embedding and (trains_head or anatomy.purpose == "classes")):
            raise RecipeError(
                "The rows of the new tokens would not train, which say nothing yet.",
                "Set method.train_embedding and method.train_head to true.",
                field="method.train_embedding",
            )
        places = [layer.name + "." for layer in anatomy.layers if whole or layer.index in self.layers]
        self._check_layers(len(anatomy.layers))
        if trains_head:
            places += [name + "." for name in (anatomy.final_norm, *anatomy.head_linears) if name is not None]
        places += [name + "." for name in model.new_head]
        if trains_embedding:
            places += [anatomy.embedding + "."]
        unread = unread_head(model)
        names = [
            n
            for n, parameter in model.hf.named_parameters()
            if ((whole and trains_embedding and trains_head) or n.startswith(tuple(places)))
            and id(parameter) not in unread
        ]
        if not names:
            raise RecipeError("Nothing is left to train.", "Name some layers in method.layers.", field="method.layers")
        return FullAttachment(model, tuple(names))

    def _check_layers(self, count: int) -> None:
        for index in () if self.layers == "all" else self.layers:
            if not 0 <= index < count:
                raise RecipeError(
                    f"The model has {count} layers; there is no layer {index}.",
                    f"Use indices from 0 to {count - 1}.",
                    field="method.layers",
                )


def unread_head(model: LanguageModel) -> set[int]:
    """The ids of what of the head alone nothing asks: left to train, it would only decay."""
    if model.is_head_read:
        return set()
    anatomy = model.anatomy
    held = (parameter for part in anatomy.head_parts for parameter in model.hf.get_submodule(part.name).parameters())
    embedding = {id(parameter) for parameter in model.hf.get_submodule(anatomy.embedding).parameters()}
    return {id(parameter) for parameter in held} - embedding


class FullAttachment(Attachment):
    """Base weights at work; vectors (biases and norm gains) do not decay."""

    def __init__(self, model: LanguageModel, names: tuple[str, ...]) -> None:
        self.model = model
        self.file_dtype = model.dtype
        self.tensors: dict[str, nn.Parameter] = {}
        for name in names:
            parameter = model.hf.get_parameter(name)
            parameter.data = parameter.data.to(torch.float32)
            parameter.requires_grad_(True)
            self.tensors[name] = parameter
        for parameter in model.hf.parameters():  # a norm takes no fp32 input beside a half-precision gain
            if parameter.dim() <= 1:
                parameter.data = parameter.data.to(torch.float32)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Matrices, which decay, and vectors, which do not."""
        matrices = {name: tensor for name, tensor in self.tensors.items() if tensor.dim() > 1}
        vectors = {name: tensor for name, tensor in self.tensors.items() if tensor.dim() <= 1}
        return tuple(group for group in (Group(matrices), Group(vectors, decays=False)) if group.tensors)

    @property
    def num_in_head(self) -> int:
        """The numbers of a new head."""
        new = tuple(name + "." for name in self.model.new_head)
        return sum(tensor.numel() for name, tensor in self.tensors.items() if name.startswith(new)) if new else 0

    @property
    def lowest_layer(self) -> int | None:
        """The first trained layer; None if the embedding trains."""
        return self.model.anatomy.lowest_layer(self.tensors)

    @property
    def adapter(self) -> str | None:
        """None: the model itself is what trained."""
        return None

    def write(self, folder: Path, announce: Callable[[str], None]) -> None:
        """Write the whole model as an ordinary transformers folder, in the number format that it was loaded in."""
        write_model(self.model, folder, self.file_dtype)

    def merge(self) -> None:
        """Nothing to fold: freeze the weights again."""
        for parameter in self.tensors.values():
            parameter.requires_grad_(False)
