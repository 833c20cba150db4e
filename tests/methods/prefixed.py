"""Plain transformers models whose attentions see learned keys and values, by the formulas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from luthier.models.anatomy import Anatomy


def attentions(anatomy: Anatomy) -> dict[str, str]:
    """An encoder-decoder's attentions in the order of their prefixes, each by its layer's name; a cross-attention by its own."""
    across = [str(layer.cross_attention) for layer in anatomy.layers if layer.stack == "decoder"]
    return {**{layer.name: layer.attention for layer in anatomy.layers}, **dict(zip(across, across, strict=True))}


def exchange_keys(
    plain: PreTrainedModel,
    of_module: Mapping[nn.Module, Tensor],
    gates: Mapping[nn.Module, tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Let a model attend to learned keys and values (2, V, K, E) in the place of the first of its own.

    gates: w and c of each attention; with them it takes (1 − g) of its weights without the learned keys, and g of those with.
    """
    entering: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering[module] = args[0] if args else kwargs["hidden_states"]

    def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **terms: Any) -> Any:
        keys, values = of_module[module].transpose(1, 2)
        rows, count = len(q), keys.shape[1]
        k = torch.cat([keys.expand(rows, -1, -1, -1), k[:, :, count:]], 2)
        v = torch.cat([values.expand(rows, -1, -1, -1), v[:, :, count:]], 2)
        score = q @ k.transpose(-1, -2) * terms["scaling"]
        if terms.get("position_bias") is not None:
            score = score + terms["position_bias"]
        nothing = torch.finfo(score.dtype).min  # not −∞: a placeholder that sees nothing must not become NaN
        if mask is not None:
            score = score.masked_fill(~mask, nothing)
        weight = score.softmax(-1)
        if gates is not None:
            w_D, c_1 = gates[module]
            g = torch.sigmoid(entering[module] @ w_D + c_1)[:, None, :, None]
            is_learned = torch.arange(k.shape[2]) < count
            weight = (1 - g) * score.masked_fill(is_learned, nothing).softmax(-1) + g * weight
        return (weight @ v).transpose(1, 2), None

    for module in of_module:
        module.register_forward_pre_hook(keep, with_kwargs=True)
    AttentionInterface.register("test-prefix", attend)
    AttentionMaskInterface.register(
        "test-prefix", lambda *a, **k: sdpa_mask(*a, **{**k, "allow_is_causal_skip": False})
    )
    plain.set_attn_implementation("test-prefix")
