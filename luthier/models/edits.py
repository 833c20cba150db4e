"""What adapters change in the residual stream between layers, at some tokens of each document's prompt.

A document's prompt is what stands before the first token that it learns: in a batch the targets say where it is over. In
generation it is all that was given, and what is generated is no part of it. In an encoder-decoder it is the source, and only
the encoder's layers are at work on it. Virtual tokens before a document are none of its own.
Shapes: N tokens of the flattened batch, M of them that change, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.models.anatomy import Anatomy
from luthier.models.call import Call, PlacedEdit, current_call


class StreamEdit(nn.Module, ABC):
    """What an adapter changes at the first `first` and the last `last` tokens of each prompt."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last

    @property
    def shares_tokens(self) -> bool:
        """Whether documents may have tokens in common: not where the end of a prompt decides what becomes of them."""
        return self.last == 0

    @property
    @abstractmethod
    def layers(self) -> frozenset[int]:
        """The layers whose output changes, by index."""

    @abstractmethod
    def forward(self, layer: int, h_MD: Tensor) -> Tensor:
        """What is added to the states that one of these layers gave."""


def placed_edits(
    known: Mapping[str, StreamEdit], call: Call, positions_N: Tensor, num_virtual: Callable[[str | None], int]
) -> tuple[PlacedEdit, ...]:
    """The edits of the adapters of a call, where the call holds prompts."""
    placed: list[PlacedEdit] = []
    if call.prompt_N is None:  # no adapter asks for it, or each step of generation but the first
        return ()
    for run in call.runs:
        edit = None if run.adapter is None else known.get(run.adapter)
        if edit is None:
            continue
        own_N, end_N = positions_N[run.start : run.stop], call.prompt_N[run.start : run.stop]
        begin = num_virtual(run.adapter)
        is_chosen_N = (own_N < begin + edit.first) | (own_N >= end_N - edit.last)
        (token_M,) = torch.nonzero(is_chosen_N & (own_N >= begin) & (own_N < end_N), as_tuple=True)
        if len(token_M):
            placed.append(PlacedEdit(token_M + run.start, edit.layers, edit))
    return tuple(placed)


def edit_layers(hf: PreTrainedModel, anatomy: Anatomy) -> None:
    """From now on, the calls that say so change what layers give."""
    for layer in anatomy.layers:
        hf.get_submodule(layer.name).register_forward_hook(_editing(layer.index))


def _editing(index: int) -> Any:
    def edit(module: nn.Module, args: Any, output: Tensor | tuple[Tensor, ...]) -> Any:
        edits = [edit for edit in current_call().edits if index in edit.layers]
        if not edits:
            return output
        states_BTD = output if isinstance(output, Tensor) else output[0]
        flat_ND = states_BTD.flatten(0, 1)
        for edit in edits:
            added_MD = edit.added(index, flat_ND.index_select(0, edit.token_M))
            flat_ND = flat_ND.index_add(0, edit.token_M, added_MD.to(flat_ND.dtype))
        changed_BTD = flat_ND.view(states_BTD.shape)
        return changed_BTD if isinstance(output, Tensor) else (changed_BTD, *output[1:])

    return edit
