"""Prefixes of which each token takes a share of its own.

A query's attention A sees the learned prefix as it sees all keys; a gate g in [0, 1], computed of what enters the layer's
attention at the query's token, mixes it with the attention A₀ that does not see the prefix:  (1 − g) A₀ + g A. Since A is
itself a mixture of A₀ and of attention to the prefix alone, g scales the prefix's part in it. At g = 1 the prefix is as any;
at g = 0 it is not there. Nothing of a later token is looked at.
In an encoder-decoder this holds within each stack, and across, where the query is the decoder's and the prefix stands before
what the encoder gave.

Shapes: N tokens of the flattened batch, K of them that are kept, B rows, L columns of keys, H heads, Q queries, E head width,
D width of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.models.anatomy import Anatomy
from luthier.models.call import GatedPrefixes, Run, current_call
from luthier.models.virtual_tokens import VirtualTokens, attention_modules
from luthier.ops.attention import AttentionTerms, masked_attention, narrowed
from luthier.ops.segments import segment_positions
from luthier.types import Segment


def gated_prefixes(
    known: Mapping[str, VirtualTokens],
    runs: Sequence[Run],
    segments: tuple[Segment, ...] | None,
    positions_N: Tensor,
    mask_BL: Tensor | None,
) -> GatedPrefixes | None:
    """What the attention of a call has to know of the gates of its adapters; None if they have none.

    runs, segments, positions_N: of the queries' tokens. mask_BL: which keys are no padding, where a mask says what is seen.
    """
    found = {run.adapter: known[run.adapter] for run in runs if run.adapter is not None and run.adapter in known}
    gates = {name: virtual.gate for name, virtual in found.items() if virtual.gate is not None}
    if not gates:
        return None
    counts = {name: found[name].count for name in gates}
    is_free_N = torch.zeros_like(positions_N, dtype=torch.bool)
    for run in runs:
        if run.adapter in counts:
            is_free_N[run.start : run.stop] = positions_N[run.start : run.stop] >= counts[run.adapter]
    if segments is not None:
        kept, left = _without_placeholders(segments, runs, counts)
        kept_K = torch.cat([torch.arange(start, stop, device=positions_N.device) for start, stop in kept])
        return GatedPrefixes(gates, is_free_N, kept_K, left)
    assert mask_BL is not None, "what is not packed has a mask"
    is_kept_BL, per_row = mask_BL.clone(), len(positions_N) // len(mask_BL)
    for run in runs:
        if run.adapter in counts:
            rows = slice(run.start // per_row, run.stop // per_row)
            is_kept_BL[rows] &= mask_BL[rows].cumsum(-1) > counts[run.adapter]
    return GatedPrefixes(gates, is_free_N, is_kept_BL=is_kept_BL)


def _without_placeholders(
    segments: Sequence[Segment], runs: Sequence[Run], counts: Mapping[str, int]
) -> tuple[list[tuple[int, int]], tuple[Segment, ...]]:
    """Which stretches of a row are kept, and the segments that they then are."""
    kept: list[tuple[int, int]] = []
    left: list[Segment] = []
    number_of: dict[int, int | None] = {}
    at = 0
    for index, (segment, position) in enumerate(zip(segments, segment_positions(segments), strict=True)):
        run = next(run for run in runs if run.start <= segment.start < run.stop)
        count = counts.get(run.adapter or "", 0)
        start = min(segment.end, segment.start + max(0, count - position))
        parent = None if segment.parent is None else number_of[segment.parent]
        if start == segment.end:  # nothing but placeholders
            number_of[index] = parent
            continue
        number_of[index] = len(left)
        left.append(Segment(at, at + segment.end - start, parent, segment.causal))
        kept.append((start, segment.end))
        at += segment.end - start
    return kept, tuple(left)


def note_shares(hf: PreTrainedModel, anatomy: Anatomy) -> None:
    """From now on, note each token's share before every attention, in the calls that have gates."""
    for place, name in enumerate(attention_modules(anatomy)):
        hf.get_submodule(name).register_forward_pre_hook(_noting(place), with_kwargs=True)


def _noting(place: int) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = current_call()
        if call.gated is None:
            return
        entering: Tensor = args[0] if args else kwargs["hidden_states"]
        flat_ND = entering.flatten(0, 1)
        shares = []
        for run in call.runs:
            gate = call.gated.gates.get(run.adapter or "")
            own_ND = flat_ND[run.start : run.stop]
            shares.append(own_ND.new_ones(len(own_ND)) if gate is None else gate(place, own_ND))
        call.notes[_SHARES, id(module)] = torch.cat(shares)

    return note


_SHARES = "shares of prefixes"


def taken_shares(gated: GatedPrefixes, attention: nn.Module) -> Tensor:
    """Each token's share in an attention, shape (N,), taken out of the call's notes; 1 where there is no gate."""
    share_N = current_call().notes.pop((_SHARES, id(attention)))
    return torch.where(gated.is_free_N, share_N, 1.0)


def mixed_attention(
    gated: GatedPrefixes,
    packed: Callable[..., Tensor],
    share_N: Tensor,
    seeing_BHQE: Tensor,
    q_BHQE: Tensor,
    k_BKLE: Tensor,
    v_BKLE: Tensor,
    mask: Tensor | None,
    terms: AttentionTerms,
) -> Tensor:
    """(1 − g) A₀ + g A, given A, shape (B, H, Q, E)."""
    kept_K, is_kept_BL = gated.kept_K, gated.is_kept_BL
    if kept_K is not None:
        q, k, v = (states.index_select(2, kept_K) for states in (q_BHQE, k_BKLE, v_BKLE))
        blind_BHQE = seeing_BHQE.index_copy(2, kept_K, packed(q, k, v, gated.segments, terms))
    else:
        assert is_kept_BL is not None
        # a placeholder may see placeholders only: without them it would see nothing, and its share is 1 anyway
        is_seen_B1QL = is_kept_BL[:, None, None, :] | ~gated.is_free_N.view(len(q_BHQE), 1, -1, 1)
        blind_BHQE = masked_attention(q_BHQE, k_BKLE, v_BKLE, narrowed(mask, is_seen_B1QL), terms)
    share_B1Q1 = share_N.view(len(q_BHQE), 1, -1, 1).to(seeing_BHQE.dtype)
    return torch.lerp(blind_BHQE, seeing_BHQE, share_B1Q1)


def mixed_weights(
    gated: GatedPrefixes, share_N: Tensor, seen_TT: Tensor, weights_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """How much each token of a packed row takes of each before it, by the same mixture, shape (1, H, T, T)."""
    assert gated.kept_K is not None, "looked into are packed rows only"
    is_kept_T = torch.zeros(len(seen_TT), dtype=torch.bool, device=seen_TT.device).index_fill(0, gated.kept_K, True)
    seeing, blind = weights_of(seen_TT), weights_of(seen_TT & is_kept_T)
    is_free = gated.is_free_N.view(1, 1, -1, 1)
    return torch.where(is_free, torch.lerp(blind, seeing, share_N.view(1, 1, -1, 1).to(seeing.dtype)), seeing)
