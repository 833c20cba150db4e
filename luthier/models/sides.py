"""Networks beside a frozen model: they read what its layers give and make hidden states of their own from it.

A side network never changes the base and needs no backward pass through it: its inputs carry no graph.
Shapes: B rows, T tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from luthier.models.anatomy import Anatomy, LayerAnatomy
from luthier.models.call import Call, current_call
from luthier.models.families import Family
from luthier.models.position_bias import position_bias
from luthier.models.taps import Taps


class Side(nn.Module, ABC):
    """A side network under the name of an adapter."""

    @property
    @abstractmethod
    def taps(self) -> Taps:
        """The states that it reads."""

    @abstractmethod
    def forward(self, tapped: Mapping[int, Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """Hidden states (B, T, D) in the place of those after the base's final norm.

        tapped: what each layer gave, before the final norm, by 1, 2, … L; 0 is what entered the first layer. In an
        encoder-decoder these are the decoder's layers; those of the encoder, if it taps them, the call's source holds.
        inputs: what the base's trunk was called with (positions, masks, cache), but for what an encoder gave.
        """


def tap_layers(hf: PreTrainedModel, anatomy: Anatomy) -> None:
    """From now on, note what each layer gives in the calls that ask for it; each stack is counted on its own."""
    for stack in _stacks(anatomy):
        hf.get_submodule(stack[0].name).register_forward_pre_hook(_note_input, with_kwargs=True)
        for number, layer in enumerate(stack, start=1):
            hf.get_submodule(layer.name).register_forward_hook(_noting(number))


def _stacks(anatomy: Anatomy) -> tuple[tuple[LayerAnatomy, ...], ...]:
    """The layers of each stack."""
    return (anatomy.encoding, anatomy.answering) if anatomy.encoding else (anatomy.answering,)


def _note_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    tapped = current_call().tapped
    if tapped is not None:
        tapped[0] = (args[0] if args else kwargs["hidden_states"]).detach()


def _noting(number: int) -> Any:
    def note(module: nn.Module, args: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        tapped = current_call().tapped
        if tapped is not None:
            tapped[number] = (output if isinstance(output, Tensor) else output[0]).detach()

    return note


_Beside = Callable[..., tuple[Any, ...]]
"""What a layer that computes nothing gives beside its state, by its arguments."""


def skip_layers(hf: PreTrainedModel, anatomy: Anatomy) -> None:
    """From now on, calls that say what enters a layer compute nothing in the layers below it in its stack."""
    for stack in _stacks(anatomy):
        for number, layer in enumerate(stack):
            module = hf.get_submodule(layer.name)
            beside = _given_beside(hf.get_submodule(layer.attention), anatomy.family)
            module.forward = _skipping(module.forward, number, beside)


def _skipping(forward: Callable[..., Any], number: int, beside: _Beside | None) -> Callable[..., Any]:
    def skipping(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        entering = current_call().entering
        if entering is None or number >= entering[0]:
            return forward(hidden_states, *args, **kwargs)
        return entering[1] if beside is None else (entering[1], *beside(entering[1], *args, **kwargs))

    return skipping


def _given_beside(attention: nn.Module, family: Family) -> _Beside | None:
    """What layers with such an attention give beside their state; None where they give their state alone.

    The first layer of a T5's stack makes the bias of positions for all, and each hands it on.
    """

    def bias(states_BTD: Tensor, mask: Tensor | None, given: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        return position_bias(attention, states_BTD, None) if given is None else given, None

    def weights(*args: Any, **kwargs: Any) -> tuple[None]:
        return (None,)

    if family.bias_by_distance:
        return bias
    return weights if family.layer_gives_tuple else None


def combined(hidden_BTD: Tensor, call: Call, by_adapter: Mapping[str, Tensor]) -> Tensor:
    """Each run's tokens from its own side network, or from the base where it has none, shape (B, T, D)."""
    if not by_adapter:
        return hidden_BTD
    flat_ND = hidden_BTD.flatten(0, 1)
    pieces = []
    for run in call.runs:
        own = by_adapter.get(run.adapter or "")
        pieces.append((flat_ND if own is None else own.flatten(0, 1))[run.start : run.stop])
    return torch.cat(pieces).view(hidden_BTD.shape)


class LaterLayers(DynamicCache):
    """The layers of a cache from `offset` on, as a cache of their own: where a side network keeps its keys and values.

    They are rows of the one cache, so that rows are selected, grown and copied together with the base's.
    own: the indices of those layers of the side network that have keys and values; None: all.
    """

    def __init__(self, whole: DynamicCache, offset: int, own: tuple[int, ...] | None = None) -> None:
        self._whole = whole
        self._offset = offset
        self._own = own

    @property
    def layers(self) -> list[Any]:  # type: ignore[override]
        """The cache's later layers; empty until the first keys come."""
        return self._whole.layers[self._offset :]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Append to one of them."""
        place = layer_idx if self._own is None else self._own.index(layer_idx)
        return self._whole.update(key_states, value_states, place + self._offset, *args, **kwargs)
