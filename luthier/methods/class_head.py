"""A new head for classes, trained whole beside an adapter.

An adapter leaves the base as it is, but a head that no file held is random and must learn too. So each adapter has a
weight and a bias of its own in the place of the head's frozen ones: y = x Wᵀ + c. Several adapters over one base each
have their own head. In peft's files these tensors are the `modules_to_save`.
Shapes: N texts, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter_files import AdapterFile
from luthier.methods.bank import AdaptedLinear, LinearBranch, adapted
from luthier.methods.contract import Group
from luthier.models.anatomy import replace_module
from luthier.models.call import Run
from luthier.models.language_model import LanguageModel


class WholeBranch(LinearBranch):
    """W (O, I) and c (O,), fp32, in the place of the frozen ones."""

    def __init__(self, weight_OI: nn.Parameter, bias_O: nn.Parameter | None) -> None:
        super().__init__()
        self.weight_OI, self.bias_O = weight_OI, bias_O

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """Both, as a linear layer calls them."""
        return {"weight": self.weight_OI} | ({} if self.bias_O is None else {"bias": self.bias_O})

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """x Wᵀ + c."""
        bias_O = None if self.bias_O is None else self.bias_O.to(x_NI.dtype)
        return F.linear(x_NI, self.weight_OI.to(x_NI.dtype), bias_O)

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W and c."""
        return self.weight_OI, self.bias_O


class TrainedHead:
    """The layers of a model's head that train whole beside one adapter; none where the base has its head."""

    def __init__(self, model: LanguageModel, name: str, layers: Sequence[str] = ()) -> None:
        """Give each of these layers a branch that begins as the frozen layer."""
        self.model = model
        self.name = name
        self.layers: dict[str, AdaptedLinear] = {}
        self._own: dict[str, WholeBranch] = {}
        for target in layers:
            layer = adapted(model, target)
            assert isinstance(layer, AdaptedLinear)
            bias_O = None if layer.bias is None else _copy(layer.bias)
            self._own[target] = WholeBranch(_copy(layer.weight), bias_O)
            layer.add(name, self._own[target])
            self.layers[target] = layer

    def leave(self) -> None:
        """Take the branches out again, but for places where another head of this name stands by now."""
        for target, layer in self.layers.items():
            if layer.branches[self.name] is self._own[target]:
                del layer.branches[self.name]
        self.layers = {}

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """What trains, by the names that the base has for it."""
        return {
            f"{target}.{ending}": tensor
            for target, layer in self.layers.items()
            for ending, tensor in self._branch(layer).tensors.items()
        }

    @property
    def groups(self) -> tuple[Group, ...]:
        """The weights, which decay, and the biases, which do not."""
        weights = {name: tensor for name, tensor in self.tensors.items() if tensor.dim() > 1}
        biases = {name: tensor for name, tensor in self.tensors.items() if tensor.dim() == 1}
        return tuple(group for group in (Group(weights), Group(biases, decays=False)) if group.tensors)

    @torch.no_grad()
    def load(self, file: AdapterFile) -> None:
        """Take the head of a file. Raises RecipeError for missing, unexpected or misshapen tensors."""
        own = self.tensors
        file.check_head_tensors({name: tuple(tensor.shape) for name, tensor in own.items()})
        for name, tensor in own.items():
            tensor.copy_(file.head[name])

    def merge(self) -> None:
        """Write the trained layers into the base."""
        for target, layer in self.layers.items():
            base = layer.merge(self.name)
            if not layer.branches:
                replace_module(self.model.hf, target, base)
        self.layers = {}

    def _branch(self, layer: AdaptedLinear) -> WholeBranch:
        branch = layer.branch(self.name)
        assert isinstance(branch, WholeBranch)
        return branch


def _copy(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().to(torch.float32, copy=True))


def check_apart(adapted_places: Sequence[str], head_layers: Sequence[str]) -> None:
    """Raise RecipeError if a method names a layer of the head that trains whole."""
    both = sorted(set(adapted_places) & set(head_layers))
    if both:
        raise RecipeError(
            f"{both[0]} belongs to the new head, which trains whole.",
            "Leave it out of method.targets.",
            field="method.targets",
        )
