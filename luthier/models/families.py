"""The model families that Luthier knows: where each keeps its parts, and which batch layout its attention allows.

A new architecture is one entry. Dotted names are relative to the place that the field's comment gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from luthier.errors import RecipeError
from luthier.types import Layout, ModelKind, Pooled


@dataclass(frozen=True)
class RMSNormForm:
    """How a family writes RMSNorm: the attribute that holds ε, and whether the gain is stored as w or as 1 + w."""

    eps: str
    gain_offset: float = 0.0


@dataclass(frozen=True)
class Roles:
    """What the linear layers of a transformer layer do: their names, from the layer.

    One layer may give queries, keys and values at once; `fused` then says how its outputs lie: in blocks (all queries,
    all keys, all values), or in groups (some heads' queries, the key and the value that they share, and so on).
    Of several names the first that a layer has is meant. A feed-forward that is a mixture of experts has neither `up` nor `down`.
    """

    query: str
    key: str
    value: str
    attention_out: str
    up: str | tuple[str, ...]
    down: str
    fused: Literal["blocks", "groups"] | None = None


@dataclass(frozen=True)
class Norms:
    """The norms around a layer's attention and feed-forward; names from the layer.

    attention, feedforward: those that read the residual stream before them (where norms follow the sums: after them).
    attention_post, feedforward_post: those between what they give and the residual sum. Of several names the first that a
    layer has is meant; without one there is no such norm.
    """

    attention: tuple[str, ...] = ()
    feedforward: tuple[str, ...] = ()
    attention_post: tuple[str, ...] = ()
    feedforward_post: tuple[str, ...] = ()


@dataclass(frozen=True)
class CrossAttention:
    """Where a decoder's layer reads what the encoder gives: the module, its linear layers and its norm, from the layer."""

    attention: str
    query: str
    key: str
    value: str
    out: str
    norm: str


@dataclass(frozen=True)
class Encoder:
    """The encoder of an encoder-decoder.

    trunk: from the model with its head; within it, embedding, layers, attention and norms of the stack are called as in
    the decoder. feedforward, roles, norms: those of its layers. shared: the embedding of both stacks, from the model.
    """

    trunk: str
    shared: str
    feedforward: str
    roles: Roles
    norms: Norms


@dataclass(frozen=True)
class HeadPart:
    """One layer of a head, and what is applied to its output."""

    name: str
    activation: Literal["tanh", "gelu", "relu"] | None = None
    is_linear: bool = True


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its parts; in an encoder-decoder, those of the decoder, and apart from them `encoder`.

    `layout` is packed where attention goes through transformers' attention interface and positions can be given for each
    token; bucketed where either is missing, and for encoders.

    `class_head`: the layers between the state of the pooled token and the logits of classes, in order; empty where
    transformers has no such head for the architecture.
    `tag_head`: those between the state of any token and the logits of tags.
    `mask_head`: the layers between the state of a masked token and the logits of classes, in order: those of the head over
    words, but for its last, in whose place there is one for classes; empty where the architecture fills no masks.
    `fixed`: what a config must say, if it says anything of it, for the model to be the one that is described here;
    `mask_fixed`: for its head over words to be.
    """

    model_types: tuple[str, ...]
    kind: ModelKind
    layout: Layout
    trunk: str  # from the model with its head
    embedding: str  # from the trunk
    layers: str  # from the trunk
    final_norm: str | None  # from the trunk
    attention: str  # from a layer
    feedforward: str  # from a layer
    roles: Roles
    norms: Norms
    rms_norm: RMSNormForm | None = None
    gated: tuple[str, str, str] | None = None  # gate, up, down: from the feed-forward
    activation_key: str = "hidden_act"  # in the config
    softcap_key: str | None = None  # in the config: cap on the final logits
    logit_divisor_key: str | None = None  # in the config: the final logits are divided by it
    residual_factor_key: str | None = None  # in the config: what a sublayer gives is multiplied by it before the sum
    norms_first: bool = True  # false where the norms follow the residual sums
    norm_first_key: str | None = None  # in the config: the same, where it is for the config to say
    norms_heads_first: bool = False  # whether norms of queries and keys see (B, heads, T, D), not (B, T, heads, D)
    layer_gives_tuple: bool = False  # whether a layer gives attention weights beside its state
    attention_mask_name: str = "attention_mask"  # what an attention calls the mask that its layer is given
    own_attention: Literal["sdpa", "eager"] | None = None  # how it attends, if not through the attention interface
    residual_name: str | None = None  # what an attention calls the residual stream, if it adds that itself
    class_head: tuple[HeadPart, ...] = ()  # from the model with a head for classes
    tag_head: tuple[HeadPart, ...] = ()  # from the model with a head for tags
    mask_head: tuple[HeadPart, ...] = ()  # from the model with a head over words
    pooled: Pooled = "last"  # which of a text's tokens a head for classes reads
    pooler: str | None = None  # from the trunk: a part that holds layers of the head for classes
    pooling_key: str | None = None  # in the config: mean where that head reads the mean of a text's tokens instead
    embedding_norm: str | None = None  # from the trunk: the norm of what enters the first layer
    distance_norm: str | None = None  # from the trunk: the norm of a table of distances that every attention projects
    token_types_key: str | None = None  # in the config: how many texts of a row are told apart
    positions_follow_padding: bool = False  # whether positions begin after the id of the padding token
    encoder: Encoder | None = None
    cross: CrossAttention | None = None
    scaled_head_key: str | None = None  # in the config: true where the final states are divided by √D before the head
    logit_bias: str | None = None  # from the model with its head: a buffer that is added to the logits
    positions_end: bool = True  # whether `max_position_embeddings` or `n_positions` of the config is a limit
    position_table: str | None = None  # from a stack of an encoder-decoder: positions' embeddings, if it counts itself
    bias_by_distance: bool = False  # whether a stack's first layer makes a bias of scores that each hands on
    shared_expert: str | None = None  # from a mixture of experts: the one that every token is sent to
    routers: tuple[str, ...] = ()  # from such a mixture: linear layers that say how much of an expert a token gets
    fixed: tuple[tuple[str, object], ...] = ()
    mask_fixed: tuple[tuple[str, object], ...] = ()

    @property
    def attends_by_interface(self) -> bool:
        """Whether attention goes through transformers' attention interface."""
        return self.own_attention is None


_SCORE = (HeadPart("score"),)
_CLASSIFIER = (HeadPart("classifier"),)
_LLAMA_GATED = ("gate_proj", "up_proj", "down_proj")
_LLAMA_NORMS = Norms(("input_layernorm",), ("post_attention_layernorm",))


def _roles_apart(attention_out: str, up: str, down: str) -> Roles:
    """Queries, keys and values each from a layer of their own, called as in Llama."""
    query, key, value = (f"self_attn.{part}_proj" for part in "qkv")
    return Roles(query, key, value, f"self_attn.{attention_out}", up, down)


def _roles_fused(fused: Literal["blocks", "groups"], qkv: str, attention_out: str, up: str, down: str) -> Roles:
    """Queries, keys and values from one layer."""
    return Roles(qkv, qkv, qkv, attention_out, up, down, fused)


_BERT_NORMS = Norms(("attention.output.LayerNorm",), ("output.LayerNorm",))
_BERT_MASK_HEAD = (
    HeadPart("cls.predictions.transform.dense"),
    HeadPart("cls.predictions.transform.transform_act_fn", is_linear=False),
    HeadPart("cls.predictions.transform.LayerNorm", is_linear=False),
    HeadPart("classifier"),
)
_LLAMA_ROLES = _roles_apart("o_proj", "mlp.up_proj", "mlp.down_proj")


def _llama_like(
    *model_types: str,
    rms_norm: RMSNormForm | None = RMSNormForm("variance_epsilon"),
    gated: tuple[str, str, str] | None = _LLAMA_GATED,
    roles: Roles = _LLAMA_ROLES,
    norms: Norms = _LLAMA_NORMS,
    final_norm: str = "norm",
    activation_key: str = "hidden_act",
    softcap_key: str | None = None,
    logit_divisor_key: str | None = None,
    residual_factor_key: str | None = None,
    norms_heads_first: bool = False,
    class_head: tuple[HeadPart, ...] = _SCORE,
    tag_head: tuple[HeadPart, ...] = _SCORE,
    shared_expert: str | None = None,
    routers: tuple[str, ...] = (),
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
        roles=roles,
        norms=norms,
        rms_norm=rms_norm,
        gated=gated,
        activation_key=activation_key,
        softcap_key=softcap_key,
        logit_divisor_key=logit_divisor_key,
        residual_factor_key=residual_factor_key,
        norms_heads_first=norms_heads_first,
        class_head=class_head,
        tag_head=tag_head,
        shared_expert=shared_expert,
        routers=routers,
    )


def _bert_roles(suffix: str = "") -> Roles:
    """A layer's linear layers, called as in BERT; `suffix` ends the names of those of queries, keys and values."""
    query, key, value = (f"attention.self.{part}{suffix}" for part in ("query", "key", "value"))
    return Roles(query, key, value, "attention.output.dense", "intermediate.dense", "output.dense")


def _bert_like(
    model_type: str,
    class_head: tuple[HeadPart, ...],
    mask_head: tuple[HeadPart, ...],
    pooler: str | None = None,
    token_types_key: str | None = None,
    positions_follow_padding: bool = False,
) -> Family:
    return Family(
        model_types=(model_type,),
        kind="encoder",
        layout="bucketed",
        trunk=model_type,
        embedding="embeddings.word_embeddings",
        layers="encoder.layer",
        final_norm=None,
        attention="attention.self",
        feedforward="",
        roles=_bert_roles(),
        norms=_BERT_NORMS,
        norms_first=False,
        class_head=class_head,
        tag_head=_CLASSIFIER,
        mask_head=mask_head,
        pooled="first",
        pooler=pooler,
        embedding_norm="embeddings.LayerNorm",
        token_types_key=token_types_key,
        positions_follow_padding=positions_follow_padding,
    )


def _t5_roles(feedforward: str) -> Roles:
    """T5's self-attention and feed-forward; the latter has two projections up in its gated form, one in the first."""
    query, key, value, out = (f"layer.0.SelfAttention.{part}" for part in "qkvo")
    gated_up, up, down = (f"{feedforward}.DenseReluDense.{part}" for part in ("wi_1", "wi", "wo"))
    return Roles(query, key, value, out, (gated_up, up), down)


def _cross(attention: str, parts: tuple[str, str, str, str], norm: str) -> CrossAttention:
    """A cross-attention whose linear layers (query, key, value, out) are called so within it."""
    query, key, value, out = (f"{attention}.{part}" for part in parts)
    return CrossAttention(attention, query, key, value, out, norm)


_BART_ROLES = _roles_apart("out_proj", "fc1", "fc2")
_BART_NORMS = Norms(("self_attn_layer_norm",), ("final_layer_norm",))
_MODERNBERT_HEAD = (
    HeadPart("head.dense"), HeadPart("head.act", is_linear=False), HeadPart("head.norm", is_linear=False)
)  # fmt: skip
_GEMMA_NORM = RMSNormForm("eps", gain_offset=1.0)

_GEMMA2 = _llama_like(
    "gemma2",
    rms_norm=_GEMMA_NORM,
    activation_key="hidden_activation",
    softcap_key="final_logit_softcapping",
    norms=Norms(
        ("input_layernorm",),
        ("pre_feedforward_layernorm",),
        ("post_attention_layernorm",),
        ("post_feedforward_layernorm",),
    ),
    norms_heads_first=True,
)

FAMILIES: tuple[Family, ...] = (
    _llama_like("llama", "mistral", "qwen2", "qwen3", "smollm3"),
    _llama_like(
        "olmo2",
        tag_head=(),
        norms=Norms(
            attention_post=("post_attention_layernorm",), feedforward_post=("post_feedforward_layernorm",)
        ),
    ),
    _llama_like("granite", logit_divisor_key="logits_scaling", residual_factor_key="residual_multiplier", class_head=(), tag_head=()),
    _llama_like(
        "phi3",
        gated=None,
        roles=_roles_fused("blocks", "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    ),
    _llama_like(
        "phi",
        rms_norm=None, gated=None, roles=_roles_apart("dense", "mlp.fc1", "mlp.fc2"), final_norm="final_layernorm",
        norms=Norms(("input_layernorm",), ("input_layernorm",)), norms_heads_first=True,
    ),
    _llama_like("gemma", rms_norm=_GEMMA_NORM, activation_key="hidden_act"),
    _GEMMA2,
    replace(_GEMMA2, model_types=("gemma3_text",), tag_head=()),
    _llama_like("mixtral", "qwen3_moe"),
    _llama_like("qwen2_moe", shared_expert="shared_expert", routers=("shared_expert_gate",)),
    _llama_like("gpt_oss", gated=None),
    Family(
        model_types=("gpt2",),
        kind="decoder", layout="packed", trunk="transformer", embedding="wte", layers="h", final_norm="ln_f",
        attention="attn", feedforward="mlp",
        roles=_roles_fused("blocks", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        norms=Norms(("ln_1",), ("ln_2",)),
        class_head=_SCORE, tag_head=_CLASSIFIER,
    ),
    Family(
        model_types=("gpt_neox",),
        kind="decoder", layout="packed", trunk="gpt_neox", embedding="embed_in", layers="layers",
        final_norm="final_layer_norm", attention="attention", feedforward="mlp",
        roles=_roles_fused(
            "groups", "attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
        ),
        norms=Norms(("input_layernorm",), ("post_attention_layernorm",)),
        class_head=_SCORE, tag_head=_CLASSIFIER,
    ),
    Family(
        model_types=("opt",),
        kind="decoder", layout="packed", trunk="model.decoder", embedding="embed_tokens", layers="layers",
        final_norm="final_layer_norm", attention="self_attn", feedforward="",
        roles=_roles_apart("out_proj", "fc1", "fc2"),
        norms=Norms(("self_attn_layer_norm",), ("final_layer_norm",)),
        norm_first_key="do_layer_norm_before",
        class_head=_SCORE,
    ),
    Family(
        model_types=("falcon",),
        kind="decoder", layout="bucketed", trunk="transformer", embedding="word_embeddings", layers="h",
        final_norm="ln_f", attention="self_attention", feedforward="mlp", layer_gives_tuple=True,
        roles=_roles_fused(
            "groups", "self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
        ),
        norms=Norms(
            ("ln_attn", "input_layernorm"), ("ln_mlp", "post_attention_layernorm", "input_layernorm")
        ),
        own_attention="sdpa", class_head=_SCORE, tag_head=_CLASSIFIER,
    ),
    Family(
        model_types=("bloom",),
        kind="decoder", layout="bucketed", trunk="transformer", embedding="word_embeddings", layers="h",
        final_norm="ln_f", attention="self_attention", feedforward="mlp", layer_gives_tuple=True,
        roles=_roles_fused(
            "groups", "self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
        ),
        norms=Norms(("input_layernorm",), ("post_attention_layernorm",)), embedding_norm="word_embeddings_layernorm",
        own_attention="eager", residual_name="residual", class_head=_SCORE, tag_head=_CLASSIFIER,
        fixed=(("apply_residual_connection_post_layernorm", False),),
    ),
    _bert_like(
        "bert",
        (HeadPart("bert.pooler.dense", "tanh"), HeadPart("classifier")),
        _BERT_MASK_HEAD, pooler="pooler", token_types_key="type_vocab_size",
    ),
    _bert_like(
        "roberta",
        (HeadPart("classifier.dense", "tanh"), HeadPart("classifier.out_proj")),
        (HeadPart("lm_head.dense", "gelu"), HeadPart("lm_head.layer_norm", is_linear=False), HeadPart("classifier")),
        positions_follow_padding=True,
    ),
    Family(
        model_types=("distilbert",),
        kind="encoder", layout="bucketed", trunk="distilbert", embedding="embeddings.word_embeddings",
        layers="transformer.layer", final_norm=None, attention="attention", feedforward="ffn",
        roles=Roles(
            "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"
        ),
        norms=Norms(("sa_layer_norm",), ("output_layer_norm",)), norms_first=False,
        embedding_norm="embeddings.LayerNorm", pooled="first",
        class_head=(HeadPart("pre_classifier", "relu"), HeadPart("classifier")), tag_head=_CLASSIFIER,
        mask_head=(
            HeadPart("vocab_transform"), HeadPart("activation", is_linear=False),
            HeadPart("vocab_layer_norm", is_linear=False), HeadPart("classifier"),
        ),
    ),
    Family(
        model_types=("deberta-v2",),  # DeBERTa-v3 too
        kind="encoder", layout="bucketed", trunk="deberta", embedding="embeddings.word_embeddings",
        layers="encoder.layer", final_norm=None, attention="attention.self", feedforward="",
        roles=_bert_roles("_proj"), norms=_BERT_NORMS, norms_first=False,
        embedding_norm="embeddings.LayerNorm", distance_norm="encoder.LayerNorm", pooled="first",
        layer_gives_tuple=True, own_attention="eager", token_types_key="type_vocab_size",
        class_head=(HeadPart("pooler.dense", "gelu"), HeadPart("classifier")), tag_head=_CLASSIFIER,
        mask_head=_BERT_MASK_HEAD,
        fixed=(("conv_kernel_size", 0), ("pooler_hidden_act", "gelu")), mask_fixed=(("legacy", True),),
    ),
    Family(
        model_types=("modernbert",),
        kind="encoder", layout="bucketed", trunk="model", embedding="embeddings.tok_embeddings", layers="layers",
        final_norm="final_norm", attention="attn", feedforward="mlp",
        roles=_roles_fused("blocks", "attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"),
        norms=Norms(("attn_norm",), ("mlp_norm",)), embedding_norm="embeddings.norm",
        class_head=(*_MODERNBERT_HEAD, HeadPart("classifier")), mask_head=(*_MODERNBERT_HEAD, HeadPart("classifier")),
        tag_head=(*_MODERNBERT_HEAD, HeadPart("classifier")), pooled="first", pooling_key="classifier_pooling",
    ),
    Family(
        model_types=("t5",),
        kind="encoder-decoder", layout="bucketed", trunk="decoder", embedding="embed_tokens", layers="block",
        final_norm="final_layer_norm", attention="layer.0.SelfAttention", feedforward="layer.2.DenseReluDense",
        roles=_t5_roles("layer.2"), norms=Norms(("layer.0.layer_norm",), ("layer.2.layer_norm",)),
        encoder=Encoder(
            "encoder", "shared", "layer.1.DenseReluDense", _t5_roles("layer.1"),
            Norms(("layer.0.layer_norm",), ("layer.1.layer_norm",)),
        ),
        cross=_cross("layer.1.EncDecAttention", ("q", "k", "v", "o"), "layer.1.layer_norm"),
        rms_norm=RMSNormForm("variance_epsilon"), layer_gives_tuple=True, scaled_head_key="scale_decoder_outputs",
        positions_end=False, bias_by_distance=True, attention_mask_name="mask",
    ),
    Family(
        model_types=("bart",),
        kind="encoder-decoder", layout="bucketed", trunk="model.decoder", embedding="embed_tokens", layers="layers",
        final_norm=None, attention="self_attn", feedforward="", embedding_norm="layernorm_embedding",
        roles=_BART_ROLES, norms=_BART_NORMS,
        encoder=Encoder("model.encoder", "model.shared", "", _BART_ROLES, _BART_NORMS),
        cross=_cross("encoder_attn", ("q_proj", "k_proj", "v_proj", "out_proj"), "encoder_attn_layer_norm"),
        norms_first=False, logit_bias="final_logits_bias", position_table="embed_positions",
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


def check_fixed(values: Mapping[str, object], fixed: tuple[tuple[str, object], ...]) -> None:
    """Raise RecipeError if a config says of a model that it is another than its family's entry describes."""
    for key, wanted in fixed:
        found = values.get(key)
        if found is not None and found != wanted:
            raise RecipeError(
                f"The model's config has {key} {found!r}, and of models of type {values.get('model_type')!r} Luthier knows "
                f"only those with {wanted!r}.",
                "Choose another model of this type, or one of another.",
                field="model",
            )
