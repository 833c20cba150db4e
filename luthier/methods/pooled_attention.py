"""The attentions of a frozen encoder alone, each for the one token of a text that a head for classes reads.

Only that token asks, so that queries and outputs are made for it alone, and keys and values for all tokens of the text:

    softmax(q kᵀ / √E) v  by heads, through the output layer;   q of the pooled token, k and v of every real one

An encoder's positions are in what enters its first layer, and its norms follow the residual sums: an attention has neither.
Shapes: B rows, T tokens, H heads, E width of a head, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from luthier.models.language_model import LanguageModel
from luthier.ops.attention import AttentionTerms, masked_attention


class PooledAttentions:
    """The attentions of one encoder."""

    def __init__(self, model: LanguageModel, linears: Mapping[str, nn.Module]) -> None:
        """linears: what takes the place of the linear layers within the attentions that are asked for, by their names."""
        anatomy = model.anatomy
        assert anatomy.family.kind == "encoder"
        assert anatomy.family.pooled == "first"
        assert not anatomy.norms_first
        roles = ("query", "key", "value", "attention_out")
        self._linears = {
            layer.index: [linears[layer.roles[role]] for role in roles]
            for layer in anatomy.layers
            if layer.roles["query"] in linears
        }
        self._num_heads = int(model.hf.config.num_attention_heads)

    def __call__(self, entering: Mapping[int, Tensor], inputs: Mapping[str, Any]) -> dict[int, Tensor]:
        """What these layers' attentions give for the first token of every row, by the layers' indices, each (B, 1, D).

        entering: what enters each of the layers. inputs: what the base's trunk was called with; its mask says which
        tokens are real.
        """
        return {index: self._attended(index, x_BTD, inputs["attention_mask"]) for index, x_BTD in entering.items()}

    def _attended(self, index: int, x_BTD: Tensor, is_real_BT: Tensor) -> Tensor:
        query, key, value, out = self._linears[index]
        q_BH1E = self._by_head(query(x_BTD[:, :1]))
        k_BHTE, v_BHTE = self._by_head(key(x_BTD)), self._by_head(value(x_BTD))
        terms = AttentionTerms(q_BH1E.shape[-1] ** -0.5)
        attended_BH1E = masked_attention(q_BH1E, k_BHTE, v_BHTE, is_real_BT[:, None, None], terms)
        attended_B1D: Tensor = out(attended_BH1E.transpose(1, 2).flatten(2))
        return attended_B1D

    def _by_head(self, x_BQD: Tensor) -> Tensor:
        """The same numbers as (B, H, Q, E)."""
        return x_BQD.view(*x_BQD.shape[:-1], self._num_heads, -1).transpose(1, 2)
