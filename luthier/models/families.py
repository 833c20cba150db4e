"""The model families that Luthier knows: where each keeps its parts, and which batch layout its attention allows.

A new architecture is one entry. Dotted names are relative to the place that the field's comment gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from luthier.errors import RecipeError
from luthier.types import Layout


@dataclass(frozen=True)
class RMSNormForm:
    """How a family writes RMSNorm: the attribute that holds ε, and whether the gain is stored as w or as 1 + w."""

    eps: str
    gain_offset: float = 0.0


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its parts.

    `layout` is packed where attention goes through transformers' attention interface and positions can be given for each
    token; bucketed where either is missing.
    """

    model_types: tuple[str, ...]
    kind: Literal["decoder", "encoder", "encoder-decoder"]
    layout: Layout
    trunk: str  # from the model with its head
    embedding: str  # from the trunk
    layers: str  # from the trunk
    final_norm: str  # from the trunk
    attention: str  # from a layer
    feedforward: str  # from a layer
    rms_norm: RMSNormForm | None = None
    gated: tuple[str, str, str] | None = None  # gate, up, down: from the feed-forward
    activation_key: str = "hidden_act"  # in the config
    softcap_key: str | None = None  # in the config: cap on the final logits
    logit_divisor_key: str | None = None  # in the config: the final logits are divided by it
    norms_heads_first: bool = False  # whether norms of queries and keys see (B, heads, T, D), not (B, T, heads, D)
    layer_gives_tuple: bool = False  # whether a layer gives attention weights beside its state


_LLAMA_GATED = ("gate_proj", "up_proj", "down_proj")


def _llama_like(
    *model_types: str,
    rms_norm: RMSNormForm | None = RMSNormForm("variance_epsilon"),
    gated: tuple[str, str, str] | None = _LLAMA_GATED,
    final_norm: str = "norm",
    activation_key: str = "hidden_act",
    softcap_key: str | None = None,
    logit_divisor_key: str | None = None,
    norms_heads_first: bool = False,
) -> Family:
    return Family(
        model_types=model_types,
        kind="decoder",
        layout="packed",
        trunk="model",
        embedding="embed_tokens",
        layers="layers",
        final_norm=final_norm,
        attention="self_attn",
        feedforward="mlp",
        rms_norm=rms_norm,
        gated=gated,
        activation_key=activation_key,
        softcap_key=softcap_key,
        logit_divisor_key=logit_divisor_key,
        norms_heads_first=norms_heads_first,
    )


_GEMMA_NORM = RMSNormForm("eps", gain_offset=1.0)

FAMILIES: tuple[Family, ...] = (
    _llama_like("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2"),
    _llama_like("granite", logit_divisor_key="logits_scaling"),
    _llama_like("phi3", gated=None),
    _llama_like("phi", rms_norm=None, gated=None, final_norm="final_layernorm", norms_heads_first=True),
    _llama_like("gemma", rms_norm=_GEMMA_NORM, activation_key="hidden_act"),
    _llama_like(
        "gemma2", "gemma3_text",
        rms_norm=_GEMMA_NORM, activation_key="hidden_activation", softcap_key="final_logit_softcapping",
        norms_heads_first=True,
    ),
    Family(
        model_types=("gpt2",),
        kind="decoder", layout="packed", trunk="transformer", embedding="wte", layers="h", final_norm="ln_f",
        attention="attn", feedforward="mlp",
    ),
    Family(
        model_types=("gpt_neox",),
        kind="decoder", layout="packed", trunk="gpt_neox", embedding="embed_in", layers="layers",
        final_norm="final_layer_norm", attention="attention", feedforward="mlp",
    ),
    Family(
        model_types=("opt",),
        kind="decoder", layout="packed", trunk="model.decoder", embedding="embed_tokens", layers="layers",
        final_norm="final_layer_norm", attention="self_attn", feedforward="",
    ),
    Family(
        model_types=("falcon",),
        kind="decoder", layout="bucketed", trunk="transformer", embedding="word_embeddings", layers="h",
        final_norm="ln_f", attention="self_attention", feedforward="mlp", layer_gives_tuple=True,
    ),
)  # fmt: skip


def family_of(model_type: str) -> Family:
    """The entry for a config's `model_type`. Raises RecipeError if there is none."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise RecipeError(
        f"The model is of type {model_type!r}, which Luthier does not know; it knows {known}.",
        "Choose a model of one of these types.",
        field="model",
    )
