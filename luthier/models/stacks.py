"""A model's stacks at work in a call: its one stack, or the encoder and the decoder of an encoder-decoder.

The decoder's call holds the encoder's, for the layers that make keys and values of what the encoder gave: theirs are the
encoder's tokens, each with its own adapter.
Shapes: B rows, T tokens of a row, S tokens of a source, D width, K chosen rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache, PreTrainedModel

from luthier.models.anatomy import Anatomy
from luthier.models.call import Call, calling
from luthier.models.untaken_positions import untaken_positions
from luthier.models.virtual_tokens import VirtualTokens, attention_places, keep_prefixes, placed_prefixes
from luthier.ops.recompute import Recomputable
from luthier.types import Sources


@dataclass(frozen=True)
class Encoded:
    """What an encoder gave for sources: its final states, and its call."""

    sources: Sources
    states_BSD: Tensor
    call: Call

    @property
    def inputs(self) -> dict[str, Any]:
        """What a decoder that reads it is called with besides."""
        return {"encoder_hidden_states": self.states_BSD, "encoder_attention_mask": self.sources.mask_BS}

    def of_rows(self, rows_K: Tensor) -> Encoded:
        """Of these rows only, for steps whose keys and values of the sources a cache holds already."""
        tokens_KS, positions_KS, mask_KS = (
            x[rows_K] for x in (self.sources.tokens_BS, self.sources.positions_BS, self.sources.mask_BS)
        )
        return Encoded(Sources(tokens_KS, positions_KS, mask_KS, ()), self.states_BSD[rows_K], self.call)


def encoded(
    hf: PreTrainedModel,
    anatomy: Anatomy,
    virtual_tokens: Mapping[str, VirtualTokens],
    sources: Sources,
    call: Call,
    recomputes_norms: bool,
) -> Encoded:
    """What the encoder gives for the sources of its call; the call comes to say what the decoder must know of it."""
    assert anatomy.encoder is not None
    positions_N = sources.positions_BS.reshape(-1)
    computed: dict[str, Tensor] = {}
    within, _, across = attention_places(anatomy)
    own, read = (
        placed_prefixes(virtual_tokens, call.runs, positions_N, computed, places) for places in (within, across)
    )
    untaken = untaken_positions(virtual_tokens, call.runs, sources.tokens_BS)
    call = replace(call, positions_N=positions_N, prefixes=own, source_prefixes=read, untaken=untaken)
    inputs = {"input_ids": sources.tokens_BS, "attention_mask": sources.mask_BS}
    return Encoded(sources, _run(hf, anatomy.encoder, call, inputs, recomputes_norms), call)


def last_states(
    hf: PreTrainedModel,
    anatomy: Anatomy,
    virtual_tokens: Mapping[str, VirtualTokens],
    call: Call,
    inputs: Mapping[str, Any],
    positions_N: Tensor,
    recomputes_norms: bool,
) -> Tensor:
    """What the last stack gives, after its final norm, shape (B, T, D); positions_N: each token's in its document."""
    is_pair = anatomy.encoder is not None
    places = attention_places(anatomy)[1] if is_pair else slice(None)
    untaken = untaken_positions(virtual_tokens, call.runs, inputs["input_ids"]) if is_pair else ()
    prefixes = placed_prefixes(virtual_tokens, call.runs, positions_N, {}, places, call.segments)
    read = () if call.source is None else call.source.source_prefixes
    call = replace(call, positions_N=positions_N, prefixes=prefixes, source_prefixes=read, untaken=untaken)
    states_BTD = _run(hf, anatomy.trunk, call, inputs, recomputes_norms)
    cache = inputs.get("past_key_values")
    if isinstance(cache, EncoderDecoderCache):
        if read:
            keep_prefixes(read, cache.cross_attention_cache, inputs["encoder_hidden_states"].shape[1])
        cache = cache.self_attention_cache
    if prefixes and cache is not None:
        keep_prefixes(prefixes, cache, states_BTD.shape[1])
    return states_BTD


def _run(hf: PreTrainedModel, stack: str, call: Call, inputs: Mapping[str, Any], recomputes_norms: bool) -> Tensor:
    recomputable = Recomputable() if recomputes_norms and torch.is_grad_enabled() else None
    with (
        calling(replace(call, recomputable=recomputable)),
        nullcontext() if recomputable is None else recomputable.hooks(),
    ):
        output = hf.get_submodule(stack)(**inputs)
    states_BTD: Tensor = output.last_hidden_state
    return states_BTD
