"""Virtual tokens that an adapter puts before every document, and learned keys and values in their place.

A document with V virtual tokens begins with V placeholders at positions 0 to V − 1, so packing, shared beginnings, padding
and caches treat them as any token. A soft prompt exchanges the placeholders' embeddings. A prefix lets them flow through
the model as they are, and in each layer's attention exchanges the keys and values that they came to, after the layer's
rotation of keys: what they compute themselves is seen by nobody. The model may be shown other positions than those by
which the placeholders are known: with `takes_positions` false a document's own tokens are at 0 and on.

In an encoder-decoder the placeholders stand before the source. A soft prompt is at work there alone. A prefix needs them
before the answer too, and has learned keys and values for the attention within either stack, and for the cross-attention
at the places of the source's placeholders.

Shapes: L places of attention (one a layer; in an encoder-decoder one for each layer of the encoder, then one for each of
the decoder, then one for each cross-attention), V virtual tokens, M placeholders of a call, B rows, T new tokens of a row, C columns of keys (cached ones
first), K key/value heads, E head width, S = 2 for keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from luthier.models.anatomy import Anatomy
from luthier.models.call import Gate, PlacedPrefix, Run
from luthier.ops.segments import early_tokens
from luthier.types import Segment


@dataclass(frozen=True)
class VirtualTokens:
    """What an adapter puts before every document.

    prefix: computes the learned keys and values of every place, shape (L, 2, V, K, E); None if the virtual tokens have
    embeddings instead. gate: which share of the prefix each token takes; None if it takes all of it.
    takes_positions: whether the model counts them among a document's positions.
    reads_last: whether an encoder's head for classes reads the last of them rather than the first token of the document.
    """

    count: int
    prefix: Callable[[], Tensor] | None = None
    gate: Gate | None = None
    takes_positions: bool = True
    reads_last: bool = False


def shown_positions(known: Mapping[str, VirtualTokens], runs: Sequence[Run], positions_BT: Tensor) -> Tensor:
    """The positions as the model is to see them: less by V where the V virtual tokens take none."""
    shown_N = positions_BT.reshape(-1)
    for run in runs:
        virtual = None if run.adapter is None else known.get(run.adapter)
        if virtual is not None and not virtual.takes_positions:
            shown_N = shown_N.clone()
            shown_N[run.start : run.stop] = (shown_N[run.start : run.stop] - virtual.count).clamp(min=0)
    return shown_N.view(positions_BT.shape)


def read_tokens(known: Mapping[str, VirtualTokens], runs: Sequence[Run], source_N: Tensor) -> Tensor:
    """Which tokens a head for classes reads: of documents whose adapter `reads_last`, that before their first."""
    for run in runs:
        virtual = None if run.adapter is None else known.get(run.adapter)
        if virtual is not None and virtual.reads_last:
            source_N = source_N - ((source_N >= run.start) & (source_N < run.stop)).long()
    return source_N


def attention_places(anatomy: Anatomy) -> tuple[slice, slice, slice]:
    """Which places of attention are those of an encoder, of a decoder, and of its cross-attention."""
    read, written = len(anatomy.encoding), len(anatomy.answering)
    return slice(0, read), slice(read, read + written), slice(read + written, read + 2 * written)


def attention_modules(anatomy: Anatomy) -> tuple[str, ...]:
    """The modules that are the places of attention, in their order, by their dotted names."""
    across = (layer.cross_attention for layer in anatomy.answering)
    return (*(layer.attention for layer in anatomy.layers), *(name for name in across if name is not None))


def placed_prefixes(
    known: Mapping[str, VirtualTokens],
    runs: Sequence[Run],
    positions_N: Tensor,
    computed: dict[str, Tensor],
    places: slice = slice(None),
    segments: Sequence[Segment] | None = None,
) -> tuple[PlacedPrefix, ...]:
    """The prefixes of the adapters of a call, where the call holds placeholders; of each, what is learned for `places`.

    computed: takes each prefix by its adapter's name, so that it is computed once. segments: those of a packed row.
    """
    placed: list[PlacedPrefix] = []
    for run in runs:
        virtual = None if run.adapter is None else known.get(run.adapter)
        if run.adapter is None or virtual is None or virtual.prefix is None:
            continue
        token_M, position_M = early_in(positions_N[run.start : run.stop], virtual.count, run, segments)
        if len(token_M) == 0:  # each step of generation but the first: the cache holds the prefix
            continue
        if run.adapter not in computed:
            computed[run.adapter] = virtual.prefix()
        placed.append(PlacedPrefix(token_M + run.start, position_M, computed[run.adapter][places]))
    return tuple(placed)


def early_in(own_N: Tensor, before: int, run: Run, segments: Sequence[Segment] | None) -> tuple[Tensor, Tensor]:
    """Which of a run's tokens, at these positions, stand before that position, and theirs; of a packed row its segments tell."""
    if segments is not None:
        return early_tokens(tuple(segments), before, (run.start, run.stop), own_N.device)
    (token_M,) = torch.nonzero(own_N < before, as_tuple=True)
    return token_M, own_N[token_M]


def with_prefixes(
    prefixes: Sequence[PlacedPrefix], layer: int, k_BKCE: Tensor, v_BKCE: Tensor, num_new: int
) -> tuple[Tensor, Tensor]:
    """Keys and values with the learned ones at the placeholders."""
    k_BCKE, v_BCKE = k_BKCE.transpose(1, 2), v_BKCE.transpose(1, 2)
    for prefix in prefixes:
        place = prefix.place(num_new, k_BCKE.shape[1])
        keys_MKE, values_MKE = prefix.of_layer(layer)
        k_BCKE = k_BCKE.index_put(place, keys_MKE.to(k_BCKE.dtype))
        v_BCKE = v_BCKE.index_put(place, values_MKE.to(v_BCKE.dtype))
    return k_BCKE.transpose(1, 2), v_BCKE.transpose(1, 2)


def cached(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """The keys and values that a cache holds for each layer, each (B, K, C, E)."""
    states: list[tuple[Tensor, Tensor]] = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        states.append((layer.keys, layer.values))
    return states


def keep_prefixes(prefixes: Sequence[PlacedPrefix], cache: DynamicCache, num_new: int) -> None:
    """Overwrite the placeholders' own keys and values, which the layers have just put into the cache.

    num_new: how many columns they put there.
    """
    for index, (k_BKCE, v_BKCE) in enumerate(cached(cache)):
        k_BCKE, v_BCKE = k_BKCE.transpose(1, 2), v_BKCE.transpose(1, 2)
        for prefix in prefixes:
            place = prefix.place(num_new, k_BCKE.shape[1])
            keys_MKE, values_MKE = prefix.of_layer(index)
            k_BCKE[place] = keys_MKE.to(k_BCKE.dtype)
            v_BCKE[place] = values_MKE.to(v_BCKE.dtype)
