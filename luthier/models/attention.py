"""Luthier's attention as an entry of transformers' attention interface.

Two entries, `luthier` and `luthier-reference`, registered under their own names: no existing entry is changed. In a
packed call they attend document by document (or under one dense mask); otherwise under the mask that the model made.
Sliding windows, softcap, scaling, sinks and biases by position are honoured. A family that passes them in another way
must not be packed. Learned prefixes of the call stand in for the keys and values of its placeholder tokens; where they have
gates, each token takes its share of them.

Shapes: B rows, H heads, Q queries, T keys.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from luthier.models.call import current_call
from luthier.models.families import Family
from luthier.models.gated_prefixes import mixed_attention, mixed_weights, taken_shares
from luthier.models.virtual_tokens import with_prefixes
from luthier.ops.attention import (
    AttentionTerms,
    attention_weights,
    masked_attention,
    narrowed,
    packed_attention,
    packed_attention_reference,
)
from luthier.ops.segments import dense_mask

FAST = "luthier"
REFERENCE = "luthier-reference"


def _terms(
    q: Tensor, scaling: float | None, window: int | None, softcap: float | None, sinks: Tensor | None
) -> AttentionTerms:
    return AttentionTerms(q.shape[-1] ** -0.5 if scaling is None else scaling, window, softcap, sinks)


def _window(module: nn.Module, given: int | None) -> int | None:
    """The sliding window of an attention, which not every architecture passes on: some leave it to the mask alone."""
    own: int | None = vars(module).get("sliding_window")
    return own if given is None else given


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    terms = _terms(query, scaling, _window(module, sliding_window), softcap, s_aux)
    return _with(packed_attention, module, query, key, value, _biased(attention_mask, position_bias), terms)


def _attend_reference(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    terms = _terms(query, scaling, _window(module, sliding_window), softcap, s_aux)
    mask = _biased(attention_mask, position_bias)
    return _with(packed_attention_reference, module, query, key, value, mask, terms)


def _biased(mask: Tensor | None, bias_1HQT: Tensor | None) -> Tensor | None:
    """A boolean mask and a bias on the scores (T5's, by distance) as one mask that is added to them, (B, H, Q, T)."""
    if bias_1HQT is None or mask is None:
        return mask if bias_1HQT is None else bias_1HQT
    return narrowed(bias_1HQT, mask)


def _with(
    packed: Any, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, terms: AttentionTerms
) -> tuple[Tensor, None]:
    """The attention output as transformers wants it, shape (B, T, H, E), and no weights."""
    call = current_call()
    segments = call.segments
    reads = call.source is not None or call.source_gated is not None
    crosses = reads and not vars(module)["is_causal"]
    prefixes, gated = (call.source_prefixes, call.source_gated) if crosses else (call.prefixes, call.gated)
    if prefixes:
        k, v = with_prefixes(prefixes, int(vars(module)["layer_idx"]), k, v, k.shape[2] if crosses else q.shape[2])
    if call.states is not None:
        call.states[crosses, int(vars(module)["layer_idx"])] = (k, v)
    if call.held is not None:
        return call.held.attend(int(vars(module)["layer_idx"]), q, k, v, terms).transpose(1, 2), None
    share_N = None if gated is None else taken_shares(gated, module)
    if call.watched is not None and segments is not None:
        seen_TT = dense_mask(segments, q.shape[2], terms.window, q.device)
        weights_of = partial(attention_weights, q, k, terms=terms)
        if gated is None or share_N is None:
            call.watched.append(weights_of(seen_TT))
        else:
            call.watched.append(mixed_weights(gated, share_N, seen_TT, weights_of))
    out_BHTE = masked_attention(q, k, v, mask, terms) if segments is None else packed(q, k, v, segments, terms)
    if gated is not None and share_N is not None:
        out_BHTE = mixed_attention(gated, packed, share_N, out_BHTE, q, k, v, mask, terms)
    return out_BHTE.transpose(1, 2), None


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask for a packed call, whose documents or held keys say what is seen; else a boolean mask, never left to `is_causal`.

    Nor is it left out where nothing is padded: to find that out is to look at numbers, which a plan has none of.
    """
    if current_call().segments is not None or current_call().held is not None:
        return None
    kwargs["allow_is_causal_skip"] = kwargs["allow_is_bidirectional_skip"] = False
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def implementation_of(family: Family, is_fast: bool) -> str:
    """What transformers is to compute a family's attention by: one of our entries, or what the family's own code knows."""
    if family.own_attention is not None:
        return family.own_attention
    return FAST if is_fast else REFERENCE


def register_attention() -> None:
    """Make both entries known to transformers; calling it again changes nothing."""
    for name, function in ((FAST, _attend), (REFERENCE, _attend_reference)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, _mask)
