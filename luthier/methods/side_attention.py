"""The self-attentions of a frozen model alone, each over a given input and with other linear layers in the place of its own.

What computes them is a copy of the trunk's structure over the same weights, in which a layer is its norm and its attention
and nothing else: so the family's own code makes masks, positions and rotations, and the model itself is not touched. In an
encoder-decoder these are the decoder's.
Shapes: B rows, T tokens, D width.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache

from luthier.methods.bank import AdaptedLayer, frozen_module
from luthier.models.anatomy import LayerAnatomy
from luthier.models.call import calling, current_call
from luthier.models.language_model import LanguageModel
from luthier.models.position_bias import position_bias
from luthier.models.sides import LaterLayers


class AttentionsAlone:
    """The attentions of one model."""

    def __init__(self, model: LanguageModel, linears: Mapping[str, nn.Module]) -> None:
        """linears: what takes the place of linear layers within the attentions, by their names."""
        anatomy = model.anatomy
        self._names = tuple(layer.name for layer in anatomy.answering)
        copied = _not_to_copy(model)
        copied |= {id(model.hf.get_submodule(name)): linear for name, linear in linears.items()}
        layers = enumerate(anatomy.answering)
        alone = {layer.name: _AttentionAlone(model, layer, index, copied, linears) for index, layer in layers}
        copied |= {id(model.hf.get_submodule(name)): module for name, module in alone.items()}
        self._trunk: nn.Module = copy.deepcopy(model.hf.get_submodule(anatomy.trunk), copied)

    def __call__(self, entering: Mapping[int, Tensor], inputs: Mapping[str, Any]) -> dict[int, Tensor]:
        """What these layers' attentions give, by the layers' numbers in their stack, each (B, T, D).

        entering: what enters each of the layers, in front of its norm. inputs: what the base's trunk was called with; the
        attentions' keys and values come to stand behind the base's in its cache.
        """
        if not entering:
            return {}
        call = replace(current_call(), tapped=dict(entering), notes={}, watched=None)
        cache = inputs.get("past_key_values")
        if isinstance(cache, EncoderDecoderCache):
            cache = cache.self_attention_cache
        later = None if cache is None else LaterLayers(cache, len(self._names), tuple(sorted(entering)))
        own = {name: value for name, value in inputs.items() if name not in ("input_ids", "past_key_values")}
        with calling(call):
            # of what the trunk is given only the shape is used
            self._trunk(inputs_embeds=next(iter(entering.values())), past_key_values=later, **own)
        return {index: call.notes[self._names[index], 0] for index in entering}


class _AttentionAlone(nn.Module):
    """In a layer's place: notes what its attention gives for what enters the layer, and gives nothing on."""

    def __init__(
        self,
        model: LanguageModel,
        layer: LayerAnatomy,
        index: int,
        copied: dict[int, Any],
        linears: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        family = model.anatomy.family
        self.attention: nn.Module = copy.deepcopy(model.hf.get_submodule(layer.attention), copied)
        out = layer.attention_out
        is_inside = out.startswith(f"{layer.attention}.")
        self.out = nn.Identity() if is_inside else linears.get(out, frozen_module(model, out))  # beside it in BERT
        reads_norm = model.anatomy.norms_first and layer.attention_norm is not None
        self.norm = frozen_module(model, layer.attention_norm or "") if reads_norm else nn.Identity()
        self._signature = inspect.signature(type(model.hf.get_submodule(layer.name)).forward)
        self._name, self._index = layer.name, index
        self._mask_name, self._gives_tuple = family.attention_mask_name, family.layer_gives_tuple
        self._residual_name = family.residual_name

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        call = current_call()
        assert call.tapped is not None
        given = self._signature.bind(self, hidden_states, *args, **kwargs).arguments
        entering_BTD = call.tapped.get(self._index)
        bias = given.get("position_bias")  # in T5, which hands it on from layer to layer
        if entering_BTD is None:
            bias = position_bias(self.attention, hidden_states, given.get("past_key_values")) if bias is None else bias
        else:
            attended_BTD, *rest = self.attention(self.norm(entering_BTD), **self._handed_on(given, entering_BTD))
            call.notes[self._name, 0] = self.out(attended_BTD)
            bias = rest[0] if rest else None
        return (hidden_states, bias, None) if self._gives_tuple else hidden_states

    def _handed_on(self, given: Mapping[str, Any], entering_BTD: Tensor) -> dict[str, Any]:
        """What a layer hands on to its attention: its own arguments under the same names, but for the mask in some families.

        An attention that adds the residual stream itself is given none.
        """
        own = {name: value for name, value in given.items() if name not in ("self", "hidden_states", "kwargs")}
        mask = {self._mask_name: own.pop("attention_mask")} if "attention_mask" in own else {}
        nothing = {} if self._residual_name is None else {self._residual_name: torch.zeros_like(entering_BTD)}
        return {**own, **mask, **nothing, **given.get("kwargs", {})}


def _not_to_copy(model: LanguageModel) -> dict[int, Any]:
    """For a copy of modules: the weights and the config stay the same objects, and banks give way to what they hold."""
    same = [model.hf.config, *model.hf.parameters(), *model.hf.buffers()]
    banks = [module for module in model.hf.modules() if isinstance(module, AdaptedLayer)]
    return {**{id(each): each for each in same}, **{id(bank): bank.base for bank in banks}}
