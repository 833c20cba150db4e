"""An adapter at work on one model: what trains of it, its files, and how it merges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter_files import AdapterFile, task_type
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, Branch, put_module
from luthier.methods.class_head import TrainedHead, check_apart
from luthier.methods.contract import Attachment, Group
from luthier.methods.folded import can_fold, folded
from luthier.methods.new_tokens import TrainedRows, check_apart_from_rows
from luthier.methods.rows_files import write_rows
from luthier.models.language_model import LanguageModel

if TYPE_CHECKING:
    from luthier.methods.adapter import AdapterMethod


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

    @contextmanager
    def folded(self) -> Iterator[str]:
        """See the base class. Folded are adapters of linear layers over an fp32 base, which do nothing elsewhere in the model."""
        model, name = self.model, self.name
        is_elsewhere = name in model.virtual_tokens or name in model.sides or name in model.edits
        trains_more = bool(self.head.tensors or self.new_rows.tokens)
        if not self.method.traits.merges or is_elsewhere or trains_more or not can_fold(self.layers, name):
            yield name
            return
        with folded(self.layers, name) as own:
            yield own

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
