"""What all methods have in common that add small tensors beside a frozen base: where they sit, their files, `from`.

A new method of this kind is a subclass of `LayerMethod` (linear layers) or `BranchMethod` (any modules) with its settings,
`branch` (what it does at one layer), and the form of its files; of `TargetedMethod` or `PlacedMethod`, with `place`, where
its layers have something in common.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import Field, ValidationError, field_validator
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter_files import AdapterFile, Form, task_type
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, Branch, adapted, put_module
from luthier.methods.class_head import TrainedHead, check_apart
from luthier.methods.contract import Attachment, Group, Method
from luthier.methods.new_tokens import TrainedRows, check_apart_from_rows
from luthier.methods.rows_files import read_adapter, write_rows
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


class AdapterAttachment(Attachment):
    """An adapter at work: its layers by the names that the model knew them by.

    shared: trainable tensors of no single layer, by name. frozen: tensors that do not train but belong into the file.
    head: what of the model's head is new, which trains whole beside the adapter. head_start: what of it the method
    began otherwise than the base has it.
    """

    def __init__(
        self,
        method: AdapterMethod,
        model: LanguageModel,
        name: str,
        layers: Mapping[str, AdaptedLayer],
        *,
        shared: Mapping[str, nn.Parameter] | None = None,
        frozen: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.method = method
        self.model = model
        self.name = name
        self.layers = dict(layers)
        self.shared = dict(shared or {})
        self.frozen = dict(frozen or {})
        self.extra: dict[str, Any] = {}
        self.trained_on = ""
        self.head_start: dict[str, Tensor] = {}
        _check_read(model, name, tuple(self.layers))
        check_apart_from_rows(model, name, tuple(self.layers))
        self.new_rows = TrainedRows(model, name, model.new_tokens)
        self.head = TrainedHead(model, name)
        self.train_head(model.new_head)

    @property
    def notes(self) -> tuple[str, ...]:
        """Whether the adapter that this goes on from was trained on a base of another name."""
        base, name = self.trained_on, self.model.identity.name
        if not base or PurePath(base).name.lower() == PurePath(name).name.lower():
            return ()
        return (
            f"The adapter was trained on {base}, and the model is {name}: if their weights differ, it does not fit.",
        )

    def train_head(self, layers: tuple[str, ...]) -> None:
        """Train these layers of the model's head too, whole. Raises RecipeError if the adapter itself is at one."""
        check_apart(tuple(self.layers), layers)
        self.head.leave()
        self.head = TrainedHead(self.model, self.name, layers)

    def leave_rows(self) -> None:
        """Leave the rows of new tokens to the adapter that this one is a part of."""
        self.new_rows.leave()
        self.new_rows = TrainedRows(self.model, self.name)

    @torch.no_grad()
    def begin_head(self, start: Mapping[str, Tensor]) -> None:
        """Let tensors of the head that trains whole begin as these, by the base's names."""
        self.head_start.update(start)
        for name, tensor in start.items():
            self.head.tensors[name].copy_(tensor)

    @property
    def num_in_head(self) -> int:
        """The numbers of the head that trains whole."""
        return sum(tensor.numel() for tensor in self.head.tensors.values())

    @property
    def branches(self) -> dict[str, Branch]:
        """The adapter's branch at each layer."""
        return {target: layer.branch(self.name) for target, layer in self.layers.items()}

    @property
    def groups(self) -> tuple[Group, ...]:
        """Every branch's tensors, and those they share, in the method's groups; and those of the head."""
        own = {
            f"{target}.{ending}": tensor
            for target, branch in self.branches.items()
            for ending, tensor in branch.tensors.items()
        }
        return (*self.method.grouped({**own, **self.shared}), *self.head.groups, *self.new_rows.groups)

    @property
    def lowest_layer(self) -> int | None:
        """The first layer that the adapter changes; None if it reaches the embedding, or rows of new tokens train there."""
        return None if self.new_rows.tokens else self.lowest_changed

    @property
    def lowest_changed(self) -> int | None:
        """The first layer that the adapter itself changes; None if it reaches the embedding or its norm."""
        return self.model.anatomy.lowest_layer(tuple(self.layers))

    @property
    def occupied(self) -> frozenset[str]:
        """The places that the adapter has for itself among all that bear its name."""
        return frozenset(self.layers)

    @property
    def adapter(self) -> str | None:
        """The adapter's own name."""
        return self.name

    @property
    def draws(self) -> bool:
        """Whether some branch draws at random in training."""
        return any(branch.draws for branch in self.branches.values())

    def state(self) -> dict[str, Tensor]:
        """The frozen tensors: a seed may draw others under another torch or on another device."""
        return {name: tensor.detach().cpu() for name, tensor in self.frozen.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, tensor in self.frozen.items():
            tensor.copy_(state[name])

    def file_settings(self) -> dict[str, Any]:
        """The settings that shape the adapter as it now is."""
        settings = self.method.file_settings()
        if "targets" in settings:
            settings["targets"] = tuple(self.layers)
        return settings

    def file_tensors(self) -> dict[str, Tensor]:
        """What the adapter's file holds, by name."""
        own = {
            f"{target}.{ending}": tensor
            for target, branch in self.branches.items()
            for ending, tensor in branch.file_tensors().items()
        }
        return {**own, **{name: tensor.detach() for name, tensor in self.shared.items()}, **self.frozen}

    @torch.no_grad()
    def load(self, file: AdapterFile) -> None:
        """Take the tensors of a file. Raises RecipeError for missing, unexpected or misshapen ones."""
        self.extra, self.trained_on = file.extra, file.base
        own = self.file_tensors()
        file.check_names(set(own))
        for name, tensor in own.items():
            file.check_shape(name, tuple(tensor.shape))
        for target, branch in self.branches.items():
            branch.load_tensors({ending: file.tensors[f"{target}.{ending}"] for ending in branch.file_tensors()})
        for name, tensor in (*self.shared.items(), *self.frozen.items()):
            tensor.copy_(file.tensors[name])
        if file.head:
            self.head.load(file)
        self.new_rows.load(file)

    def write(self, folder: Path, announce: Callable[[str], None]) -> None:
        """Write the adapter in its method's form."""
        anatomy = self.model.anatomy
        file = AdapterFile(
            str(folder),
            self.file_settings(),
            self.file_tensors(),
            self.model.identity.name,
            self.extra,
            head={name: tensor.detach() for name, tensor in self.head.tensors.items()},
            tokens=self.new_rows.tokens,
            rows={layer: tensor.detach() for layer, tensor in self.new_rows.tensors.items()},
            task=task_type(anatomy),
        )
        reason = self.method.form.unshared(file, anatomy)
        if reason is not None:
            announce(f"The adapter is in Luthier's own form, which other tools do not read: {reason}.")
        is_transposed = any(isinstance(layer, AdaptedLinear) and layer.is_transposed for layer in self.layers.values())
        self.method.form.write(folder, file, anatomy, is_transposed)
        if not file.tokens:
            return
        self.model.tokenizer.save_pretrained(folder)
        if not self.method.form.holds_rows(file, anatomy):
            write_rows(folder, file)
            announce(
                "The rows of the new tokens are in a file of their own, which other tools do not read; export merges them."
            )

    def merge(self) -> None:
        """Fold every update into its layer, and take off banks that then are empty.

        A head that is tied to the embedding is untied first, if the two change apart.
        """
        anatomy = self.model.anatomy
        self.method.prepare_merge(self.model, tuple(self.layers))
        changes_one = {anatomy.embedding, anatomy.head} & set(self.layers) and not self.method.keeps_tie
        if anatomy.is_head_tied and changes_one:
            _untie(self.model)
        for target, layer in self.layers.items():
            base = layer.merge(self.name)
            if not layer.branches:
                put_module(self.model, target, base)
        self.layers = {}
        self.head.merge()
        self.new_rows.merge()


def _check_read(model: LanguageModel, name: str, places: tuple[str, ...]) -> None:
    """Raise RecipeError if an adapter would train at the head, of which the objective asks nothing."""
    idle = set() if model.is_head_read else set(places) & {part.name for part in model.anatomy.head_parts}
    for place in sorted(idle):
        layer = model.hf.get_submodule(place)
        assert isinstance(layer, AdaptedLayer)
        if layer.branch(name).tensors:
            raise RecipeError(
                f"The objective asks nothing of the model's head, so that nothing at {place} would learn.",
                "Leave it out of method.targets.",
                field="method.targets",
            )


def _untie(model: LanguageModel) -> None:
    """Give the head its own copy of the weight that it shares with the embedding."""
    head = model.hf.get_submodule(model.anatomy.head)
    holder = head.base if isinstance(head, AdaptedLinear) else head
    assert isinstance(holder, nn.Linear)
    holder.weight = nn.Parameter(holder.weight.detach().clone(), requires_grad=False)
    model.hf.config.tie_word_embeddings = False
    model.anatomy = replace(model.anatomy, is_head_tied=False)
