"""The bias by distance that T5 adds to the scores of its attentions: a stack's first layer makes it, later ones take it over.

Shapes: B rows, T new tokens, L positions with those that a cache holds, H heads, D width.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import Cache
from transformers.models.t5.modeling_t5 import T5Attention


def position_bias(attention: nn.Module, states_BTD: Tensor, cache: Cache | None) -> Tensor | None:
    """What the attention would make for later layers, shape (1, H, T, L); None where it makes none."""
    if not isinstance(attention, T5Attention) or not attention.has_relative_attention_bias:
        return None
    num_held = 0 if cache is None else int(cache.get_seq_length())
    num_new = states_BTD.shape[1]
    bias_1HTL: Tensor = attention.compute_bias(num_new, num_held + num_new, states_BTD.device, num_held)  # type: ignore[no-untyped-call]
    return bias_1HTL
