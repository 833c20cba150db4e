"""Random models of a few thousand weights, one for each family and each of its odd corners, in memory.

Every width differs from every other (embedding, feed-forward, heads, key/value heads), windows are shorter than the
rows, and no gain is 1 and no bias 0, so that a part that is forgotten or turned round shows.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from copies import copied, pass_by_garbage
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from luthier.models.attention import implementation_of, register_attention
from luthier.models.experts import split_experts
from luthier.models.families import family_of
from luthier.models.fast_layers import use_fast_layers
from luthier.models.fitting import fit_family
from luthier.models.heads import ClassHead, Head, add_class_layer, name_classes, new_layers
from luthier.models.language_model import FastModel, Identity, LanguageModel
from luthier.models.reading import read_anatomy
from luthier.objectives.regression import SCORE

VOCABULARY = 61
MASK = VOCABULARY - 1
Purpose = Literal["words", "classes", "mask", "tags", "number", "number at mask"]
"""What a head is over: words, classes, or classes read off a mask by the layers of an encoder's head over words; or numbers."""
P = ParamSpec("P")
T = TypeVar("T")
_AT_MASK = ("mask", "number at mask")
PLAIN = FastModel(attention=False, head=False, gated_mlp=False, norm=False, linear=False)

_WIDE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA = {**_WIDE, "intermediate_size": 40, "num_key_value_heads": 2, "tie_word_embeddings": False}
_SLIDING = {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}
_QWEN_MOE = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
_GEMMA = {**_LLAMA, "head_dim": 8, "tie_word_embeddings": True}
_GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 40, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_OPT = {**_WIDE, "ffn_dim": 40, "word_embed_proj_dim": 32}
_T5 = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 6, "num_heads": 4, "d_ff": 40, "num_layers": 2,
    "num_decoder_layers": 3, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 9,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "scale_embedding": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}  # fmt: skip
_ENCODER = {**_WIDE, "intermediate_size": 40}
_BLOOM = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_DISTILBERT = {
    "vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 40, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64,
    "pad_token_id": 0,
}  # fmt: skip
_DEBERTA = {  # as of version 3, but for two kinds of tokens
    **_ENCODER, "type_vocab_size": 2, "position_biased_input": False, "relative_attention": True, "position_buckets": 4,
    "max_relative_positions": -1, "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p",
}  # fmt: skip
_MODERNBERT = {
    **_ENCODER, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 6, "norm_bias": True,
    "layer_types": ["full_attention", "sliding_attention"],
}  # fmt: skip
_FALCON = {**_WIDE, "ffn_hidden_size": 40, "alibi": False, "bias": True}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_LLAMA, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**_LLAMA, "sliding_window": 4}),
    "qwen2": ("qwen2", {**_LLAMA, **_SLIDING}),
    "qwen3": ("qwen3", {**_LLAMA, **_SLIDING, "head_dim": 8}),
    "smollm3": ("smollm3", {**_LLAMA, **_SLIDING, "no_rope_layers": [1, 0]}),
    "olmo2": ("olmo2", _LLAMA),
    "granite": (
        "granite",
        {
            **_LLAMA, "tie_word_embeddings": True, "logits_scaling": 3.0, "embedding_multiplier": 2.0,
            "residual_multiplier": 0.7, "attention_multiplier": 0.3,
        },
    ),
    "phi": ("phi", {**_LLAMA, "qk_layernorm": True, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {**_LLAMA, "sliding_window": 4}),
    "gemma": ("gemma", _GEMMA),
    "gemma2": (
        "gemma2",
        {
            **_GEMMA, "sliding_window": 4, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 5, "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {**_GEMMA, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 5},
    ),
    "gpt_oss": (
        "gpt_oss",
        {
            **_LLAMA, "head_dim": 8, "sliding_window": 4, "num_local_experts": 3, "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "mixtral": ("mixtral", {**_LLAMA, "sliding_window": 4, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **_LLAMA, **_SLIDING, **_QWEN_MOE, "shared_expert_intermediate_size": 48,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "qwen3_moe": ("qwen3_moe", {**_LLAMA, **_QWEN_MOE, "head_dim": 8, "mlp_only_layers": [0], "norm_topk_prob": True}),
    "gpt2": ("gpt2", _GPT2),
    "gpt2-layer-scaled": ("gpt2", {**_GPT2, "scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox": ("gpt_neox", {**_WIDE, "intermediate_size": 40, "rotary_pct": 0.5, "tie_word_embeddings": False}),
    "gpt_neox-serial": ("gpt_neox", {**_WIDE, "intermediate_size": 40, "use_parallel_residual": False}),
    "opt": ("opt", _OPT),
    "opt-norm-after": ("opt", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "falcon": ("falcon", {**_FALCON, "multi_query": True, "parallel_attn": True}),
    "falcon-new": ("falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("falcon", {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False}),
    "bloom": ("bloom", _BLOOM),
    "t5": ("t5", _T5),
    "t5-gated": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("bart", _BART),
    "bert": ("bert", {**_ENCODER, "type_vocab_size": 2}),
    "roberta": ("roberta", {**_ENCODER, "pad_token_id": 1, "type_vocab_size": 1, "max_position_embeddings": 66}),
    "distilbert": ("distilbert", _DISTILBERT),
    "deberta": ("deberta-v2", _DEBERTA),
    "modernbert": ("modernbert", {**_MODERNBERT, "classifier_pooling": "cls", "norm_bias": False}),
    "modernbert-mean": ("modernbert", {**_MODERNBERT, "classifier_pooling": "mean", "attention_bias": True}),
}  # fmt: skip
"""Our name → transformers' `model_type`, and the config."""

ENCODERS = ("bert", "roberta", "distilbert", "deberta", "modernbert", "modernbert-mean")
TYPED = ("bert", "deberta-v2")
"""Model types of which tiny models tell the tokens of a second text apart."""
ENCODER_DECODERS = ("t5", "t5-gated", "bart")
STARTS = {"t5": 0, "t5-gated": 0, "bart": 2}
"""The token that the decoder of each begins with."""

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
"""Decoders whose feed-forward layers are mixtures of experts, to which not every method goes."""

NAMES = tuple(name for name in CONFIGS if name not in (*ENCODERS, *ENCODER_DECODERS, *MIXTURES))
CLASSES = ("angry", "happy", "neutral")
PACKED = tuple(name for name in NAMES if not name.startswith(("falcon", "bloom")))


def tiny_config(name: str) -> PreTrainedConfig:
    """The config of a tiny model."""
    model_type, values = CONFIGS[name]
    return AutoConfig.for_model(model_type, **values)


def purpose_of(name: str) -> Purpose:
    """What a tiny model's head is for, unless a test says otherwise: classes for encoders, else words."""
    return "classes" if name in ENCODERS else "words"


def head_for(purpose: Purpose) -> ClassHead:
    """The head for classes of a tiny model with that purpose."""
    reads: Literal["text", "tokens", "mask"] = "mask" if purpose in _AT_MASK else "text"
    if purpose in ("number", "number at mask"):
        return ClassHead((SCORE,), reads=reads, is_number=True)
    return ClassHead(CLASSES, reads="tokens" if purpose == "tags" else reads)


def purpose_for(head: Head | None) -> Purpose:
    """The purpose of the tiny model that has such a head."""
    if not isinstance(head, ClassHead):
        return "words"
    if head.is_number:
        return "number at mask" if head.reads_mask else "number"
    by_read: dict[str, Purpose] = {"text": "classes", "tokens": "tags", "mask": "mask"}
    return by_read[head.reads]


def plain_model(
    name: str, attention: str = "eager", dtype: torch.dtype = torch.float32, purpose: Purpose | None = None
) -> PreTrainedModel:
    """The tiny model as transformers alone computes it; the same weights whatever the attention.

    purpose: what its head is over; unset, what the family's models are made for. For mask it is the head over words alone.
    """
    return copied(_built_plain(name, repr(CONFIGS[name]), attention, dtype, purpose or purpose_of(name)))


def _kept(build: Callable[P, T]) -> Callable[P, T]:
    """Build once for all tests of the process, and let nobody look for garbage in it.

    values: what `CONFIGS` says of the name now, since a test may put its own there.
    """

    @cache
    def building(*settings: P.args, **named: P.kwargs) -> T:
        built = build(*settings, **named)
        pass_by_garbage()
        return built

    return building


@_kept
def _built_plain(name: str, values: str, attention: str, dtype: torch.dtype, purpose: Purpose) -> PreTrainedModel:
    config = tiny_config(name)
    writer = AutoModelForSeq2SeqLM if name in ENCODER_DECODERS else AutoModelForCausalLM
    autos: dict[Purpose, Any] = {
        "words": AutoModelForMaskedLM if name in ENCODERS else writer,
        "classes": AutoModelForSequenceClassification,
        "number": AutoModelForSequenceClassification,
        "tags": AutoModelForTokenClassification,
        "mask": AutoModelForMaskedLM,
        "number at mask": AutoModelForMaskedLM,
    }
    if purpose != "words":
        name_classes(config, head_for(purpose))
    with torch.random.fork_rng():
        hf = autos[purpose].from_config(config, attn_implementation=attention)
    if name in ENCODER_DECODERS:
        hf.generation_config.decoder_start_token_id = STARTS[name]
    _settle([*hf.named_parameters(), *_biases_of_logits(hf)])
    model: PreTrainedModel = hf.requires_grad_(False).eval().to(dtype)
    return model


@torch.no_grad()
def _settle(named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Give tensors their values, each by its name."""
    for key, tensor in named:
        tensor.copy_(_start(key, tensor, torch.Generator().manual_seed(zlib.crc32(key.encode()))))


def _biases_of_logits(hf: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    return [(key, buffer) for key, buffer in hf.named_buffers() if key == "final_logits_bias"]


def _start(key: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    draw = torch.randn(parameter.shape, generator=generator)
    if parameter.dim() > 1:
        is_table = any(part in key for part in ("emb", "wte", "shared"))
        return draw * (0.25 if is_table else parameter.shape[-1] ** -0.5)
    return draw * 0.3 + (1.0 if key.endswith("weight") else 0.0)


def tiny_tokenizer(*, has_mask: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of as many words as the tiny models have tokens; has_mask: whether its last word stands for a mask."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "<eos>", "pad_token": "<pad>"} | ({"mask_token": f"w{MASK}"} if has_mask else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def tiny_model(
    name: str, fast: FastModel | None = None, dtype: torch.dtype = torch.float32, purpose: Purpose | None = None
) -> LanguageModel:
    """The tiny model as Luthier loads it: the same weights as `plain_model`. Of a head over classes the last layer is new."""
    built = _built(name, repr(CONFIGS[name]), fast or FastModel(), dtype, purpose or purpose_of(name))
    return replace(
        built,
        hf=copied(built.hf),
        tokenizer=copy.deepcopy(built.tokenizer),
        sides={},
        virtual_tokens={},
        edits={},
        prepared={},
    )


@contextmanager
def built_anew() -> Iterator[None]:
    """Within, models are built again: what they are built by is another, and is as before afterwards."""
    _built.cache_clear()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        _built.cache_clear()  # type: ignore[attr-defined]


@_kept
def _built(name: str, values: str, fast: FastModel, dtype: torch.dtype, purpose: Purpose) -> LanguageModel:
    family = family_of(CONFIGS[name][0])
    register_attention()
    hf = plain_model(name, implementation_of(family, fast.attention), dtype, purpose)
    if purpose in _AT_MASK:
        add_class_layer(hf, family, len(head_for(purpose).classes))
        last = family.mask_head[-1].name
        _settle((f"{last}.{key}", tensor) for key, tensor in hf.get_submodule(last).named_parameters())
        hf.requires_grad_(False)
    split_experts(hf)
    fit_family(hf, family)
    anatomy = read_anatomy(hf, family)
    use_fast_layers(hf, anatomy, norm=fast.norm, gated_mlp=fast.gated_mlp, linear=fast.linear)
    new_head: tuple[str, ...] = (anatomy.head,) if purpose in _AT_MASK else ()
    if purpose in ("classes", "number", "tags"):
        new_head = new_layers(family, head_for(purpose), {anatomy.head})
    identity = Identity(f"tiny-{name}", "0" * 64)
    tokenizer = tiny_tokenizer(has_mask=purpose in _AT_MASK)
    return LanguageModel(hf, tokenizer, anatomy, identity, fast, new_head=new_head)
