"""What all methods have in common that add small tensors beside a frozen base: where they sit, their files, `from`.

A new method of this kind is a subclass of `LayerMethod` (linear layers) or `BranchMethod` (any modules) with its settings,
`branch` (what it does at one layer), and the form of its files; of `TargetedMethod` or `PlacedMethod`, with `place`, where
its layers have something in common.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import Field, ValidationError, field_validator
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import AdapterFile, Form
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, Branch, adapted
from luthier.methods.contract import Group, Method
from luthier.methods.rows_files import read_adapter
from luthier.models.anatomy import Anatomy, find_targets
from luthier.models.language_model import LanguageModel
from luthier.ops.draws import salt_of


class AdapterMethod(Method):
    """A method that leaves the base as it is and adds tensors of its own.

    form: how its adapters lie on disk. free_fields: settings that a recipe may choose anew when it goes on from an
    adapter, because they do not shape it. keeps_tie: whether it changes an embedding and the head tied to it alike, so
    that they stay tied when it is merged. path_fields: settings that name a file or folder, or several.
    """

    output_folder: ClassVar[str] = "adapter"
    form: ClassVar[Form]
    free_fields: ClassVar[frozenset[str]] = frozenset({"dropout"})
    keeps_tie: ClassVar[bool] = False
    path_fields: ClassVar[tuple[str, ...]] = ("begin_from",)

    begin_from: str | None = Field(
        None,
        alias="from",
        description="Go on from this adapter: a run folder or a folder in peft's format. Its rank, strength and targets hold.",
    )

    @property
    def begins_at_base(self) -> bool:
        """Not where it goes on from an adapter."""
        return self.begin_from is None and super().begins_at_base

    @property
    def without_new_tokens(self) -> str | None:
        """None: each adapter has rows of its own for them beside what it adds."""
        return None

    def attach(self, model: LanguageModel, name: str, seed: int, *, fast: bool = True) -> AdapterAttachment:
        """Put the adapter into the model. With `from`, the file's settings and tensors take the place of these.

        What of the model's head is new trains with it, whole; so does what the file holds of the head.
        """
        if model.new_tokens and self.without_new_tokens is not None:
            raise RecipeError(
                f"The rows of new tokens cannot train with {self.kind}: {self.without_new_tokens}.",
                "Set method.kind to lora or full, or leave model.add_tokens out.",
                field="method.kind",
            )
        if self.begin_from is None:
            return self.place(model, name, seed, fast)
        file = read_adapter(self.form, self.begin_from)
        in_file = file.head_layers(model.anatomy)
        head = tuple(n for n in model.anatomy.head_linears if n in in_file or n in model.new_head)
        return self._from_file(file, head, model, name, seed, fast)

    def attach_without_head(self, model: LanguageModel, name: str, *, fast: bool = True) -> AdapterAttachment:
        """The adapter of the folder that it goes on from, without the head that was trained with it: that of another task."""
        assert self.begin_from is not None
        file = replace(read_adapter(self.form, self.begin_from), whole=(), head={})
        return self._from_file(file, (), model, name, 0, fast)

    def _from_file(
        self, file: AdapterFile, head: tuple[str, ...], model: LanguageModel, name: str, seed: int, fast: bool
    ) -> AdapterAttachment:
        self.check_fits(file, model)
        file = self.understood(file, model)
        self._check_agrees(file, model)
        attachment = self._shaped_by(file).place(model, name, seed, fast)
        attachment.train_head(head)
        attachment.load(file)
        return attachment

    @abstractmethod
    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A fresh adapter in the model, its random start decided by the seed."""

    def check_fits(self, file: AdapterFile, model: LanguageModel) -> None:
        """Raise RecipeError if the file's adapter has places that the model lacks."""

    def understood(self, file: AdapterFile, model: LanguageModel) -> AdapterFile:
        """The file with those settings too that only the model it is for can tell."""
        return file

    def file_settings(self) -> dict[str, Any]:
        """The settings that shape the adapter, automatic values settled, as a file keeps them."""
        return self.model_dump(exclude={"begin_from", "kind"})

    def stated(self, model: LanguageModel) -> dict[str, Any]:
        """The shaping settings that the recipe itself states, to be compared with a file's."""
        shaping = self.model_fields_set - self.free_fields - {"begin_from", "kind"}
        return {field: value for field, value in self.file_settings().items() if field in shaping}

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """The trainable tensors as groups."""
        return (Group(tensors),)

    def prepare_merge(self, model: LanguageModel, layers: tuple[str, ...]) -> None:
        """Make room in the base for what merging will write there. Raises RecipeError, naming the mend, if it has none."""

    def continued(self, folder: Path) -> Method:
        """The method that takes up the adapter in a run's folder, whatever the recipe states."""
        values = {field: getattr(self, field) for field in type(self).model_fields}
        return self.model_construct(_fields_set={"begin_from"}, **{**values, "begin_from": str(folder)})

    def as_recipe(self, *, whole: bool = True) -> dict[str, Any]:
        """The settings as a recipe states them; whole: every one, else those that this one states.

        With `from` it is never every one: in the others the adapter's hold, and their defaults would contradict it.
        """
        if whole and self.begin_from is None:
            return self.model_dump(mode="json", by_alias=True)
        return {"kind": self.kind, **self.model_dump(mode="json", by_alias=True, exclude_unset=True)}

    def with_paths(self, found: Callable[[str], str]) -> Self:
        """These settings with every path that they name as `found` gives it."""
        update: dict[str, Any] = {}
        for field in self.path_fields:
            value = getattr(self, field)
            if isinstance(value, str):
                update[field] = found(value)
            elif value:
                update[field] = tuple(found(path) for path in value)
        return self.model_copy(update=update) if update else self

    def _shaped_by(self, file: AdapterFile) -> Self:
        """These settings over the file's. Raises RecipeError if those make no such method."""
        free = self.model_dump(include=set(self.free_fields))
        try:
            return type(self)(**{**file.settings, **free})
        except ValidationError as error:
            fault = error.errors()[0]
            raise RecipeError(
                f"The adapter's config makes no {self.kind} adapter: {fault['msg']}.",
                "Mend the file, or save the adapter again.",
                file=file.path,
                field=".".join(map(str, fault["loc"])) or None,
            ) from error

    def _check_agrees(self, file: AdapterFile, model: LanguageModel) -> None:
        """Raise RecipeError where the recipe states a shape that the adapter it goes on from does not have."""
        for field, value in self.stated(model).items():
            found = file.settings[field]
            if field == "targets":
                value, found = sorted(value), sorted(found)
            stated, kept = (json.loads(json.dumps(each)) for each in (value, found))  # files hold lists, we have tuples
            if stated != kept:
                raise RecipeError(
                    f"The recipe's {field} is not that of the adapter it goes on from: {value} against {found}.",
                    f"Leave method.{field} out, or begin afresh without method.from.",
                    field=f"method.{field}",
                )


class PlacedMethod(AdapterMethod):
    """A method whose adapter sits at some modules of the model; a subclass has a field `targets` that names them."""

    layers: tuple[int, ...] | None = Field(
        None,
        description="Only in these transformer layers, counted from 0 (an encoder's first, then its decoder's); unset: in all.",
    )

    @abstractmethod
    def places(self, model: LanguageModel) -> tuple[str, ...]:
        """The names of the modules that the adapter has tensors at. Raises RecipeError if there are none."""

    @abstractmethod
    def known(self, anatomy: Anatomy) -> set[str]:
        """The names of all modules that an adapter of this kind may have tensors at."""

    def check_fits(self, file: AdapterFile, model: LanguageModel) -> None:
        """Raise RecipeError if the file adapts a module that the model lacks."""
        file.check_layers(self.known(model.anatomy))

    def stated(self, model: LanguageModel) -> dict[str, Any]:
        """As for any adapter, with the targets by their whole names."""
        stated = super().stated(model)
        stated.pop("layers", None)
        if {"targets", "layers"} & self.model_fields_set:
            stated["targets"] = self.places(model)
        return stated

    def file_settings(self) -> dict[str, Any]:
        """As for any adapter; a file names every layer, so it has no use for `layers`."""
        return self.model_dump(exclude={"begin_from", "kind", "layers"})


class BranchMethod(PlacedMethod):
    """A method whose adapter has one branch at each of its places."""

    @abstractmethod
    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """A fresh branch for a layer; its random start comes from the generator, which is the layer's own."""

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A fresh branch at every place."""
        layers = adapted_layers(model, self.places(model))
        for target, layer in layers.items():
            layer.add(name, self.branch(layer, generator_of(target, seed), fast))
        return AdapterAttachment(self, model, name, layers)


class TargetedMethod(PlacedMethod):
    """A method whose adapter sits at linear layers."""

    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Layers to adapt, by the last parts of their names, or by what they do: role:query, role:key, role:value, role:attention_out, role:up, role:down; all-linear is every linear layer but the head.",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _one_name_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "all-linear" else value

    def places(self, model: LanguageModel) -> tuple[str, ...]:
        """The names of the layers that the adapter has branches at. Raises RecipeError if there are none."""
        return find_targets(model.anatomy, self.targets, self.layers)

    def known(self, anatomy: Anatomy) -> set[str]:
        """The linear layers, the embedding and the head."""
        return {anatomy.embedding, *anatomy.linears, *anatomy.routers, *anatomy.head_linears}


class LayerMethod(TargetedMethod, BranchMethod):
    """A method whose adapter has one branch at each of some linear layers."""


def adapted_layers(model: LanguageModel, names: tuple[str, ...]) -> dict[str, AdaptedLayer]:
    """The layers of these names, each with a bank around it."""
    return {name: adapted(model, name) for name in names}


def linear_of(layer: AdaptedLayer, kind: str) -> AdaptedLinear:
    """The layer as a linear one. Raises RecipeError if it is the embedding, where this kind of method has no place."""
    if isinstance(layer, AdaptedLinear):
        return layer
    raise RecipeError(
        f"The method {kind} is for linear layers; {layer.name} is not one.",
        "Leave the embedding out of method.targets.",
        field="method.targets",
    )


def generator_of(name: str, seed: int) -> torch.Generator:
    """A generator for the random start of one layer: the same whatever other layers there are."""
    return torch.Generator().manual_seed((salt_of(name) ^ seed) & (2**63 - 1))


Made = TypeVar("Made", bound=nn.Module)


def moved(module: Made, device: torch.device) -> Made:
    """A module on a device; one that is there already stays as it is."""
    held = [*module.parameters(), *module.buffers()]
    return module if all(tensor.device == device for tensor in held) else module.to(device)


def trainable(tensor: Tensor, device: torch.device) -> nn.Parameter:
    """A tensor as a trainable one: fp32, on the device."""
    return nn.Parameter(tensor.to(device=device, dtype=torch.float32))
