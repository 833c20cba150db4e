"""The architectures that have a place in GGUF files: what the header says of each, and how its weights lie there.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Names of tensors come from the gguf package's own table.
What differs in the weights is what llama.cpp computes otherwise: in files of `llama` the rows of a head's queries and keys
lie in the order of rotated pairs (0, d/2, 1, d/2 + 1, …), Gemma's norms hold 1 + w, GPT-2's matrices are turned round, and
Falcon's fused rows are all queries, all keys, all values.
Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from luthier.errors import RecipeError

_GELU_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_UNWRITTEN = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")
"""Ends of names in a model's state that are no weights."""


@dataclass(frozen=True)
class Architecture:
    """One architecture of GGUF files, and the models of transformers that it computes.

    rms: whether its norms are RMSNorm. norm_offset: what is added to their gains. pairs_rows: whether queries' and keys' rows
    lie in rotated pairs. turned: ends of the modules whose weights transformers has as (I, O). fixed: what a config must say
    for it to be the function that llama.cpp computes, where a value is missing any will do.
    """

    name: str
    model_types: tuple[str, ...]
    rms: bool = True
    norm_offset: float = 0.0
    pairs_rows: bool = False
    turned: tuple[str, ...] = ()
    fixed: tuple[tuple[str, tuple[object, ...]], ...] = ()
    rotates: bool = True


ARCHITECTURES = (
    Architecture(
        "llama",
        ("llama", "mistral"),
        pairs_rows=True,
        fixed=(("hidden_act", ("silu",)), ("attention_bias", (False,)), ("mlp_bias", (False,))),
    ),
    Architecture("qwen2", ("qwen2",), fixed=(("hidden_act", ("silu",)), ("use_sliding_window", (False,)))),
    Architecture(
        "qwen3",
        ("qwen3",),
        fixed=(("hidden_act", ("silu",)), ("use_sliding_window", (False,)), ("attention_bias", (False,))),
    ),
    Architecture(
        "gemma",
        ("gemma",),
        norm_offset=1.0,
        fixed=(
            ("hidden_act", _GELU_TANH),
            ("attention_bias", (False,)),
            ("use_bidirectional_attention", (False, None)),
        ),
    ),
    Architecture(
        "gemma2",
        ("gemma2",),
        norm_offset=1.0,
        fixed=(("hidden_activation", _GELU_TANH), ("attention_bias", (False,))),
    ),
    Architecture(
        "gemma3",
        ("gemma3_text",),
        norm_offset=1.0,
        fixed=(
            ("hidden_activation", _GELU_TANH),
            ("attention_bias", (False,)),
            ("attn_logit_softcapping", (None,)),
            ("final_logit_softcapping", (None,)),
            ("use_bidirectional_attention", (False, None)),
        ),
    ),
    Architecture(
        "phi2",
        ("phi",),
        rms=False,
        fixed=(("hidden_act", _GELU_TANH), ("qk_layernorm", (False,)), ("tie_word_embeddings", (False,))),
    ),
    Architecture("phi3", ("phi3",), fixed=(("hidden_act", ("silu",)),)),
    Architecture(
        "falcon",
        ("falcon",),
        rms=False,
        fixed=(("alibi", (False,)), ("bias", (False,)), ("parallel_attn", (True,)), ("activation", ("gelu",))),
    ),
    Architecture(
        "gpt2",
        ("gpt2",),
        rms=False,
        turned=("c_attn", "c_proj", "c_fc"),
        fixed=(
            ("activation_function", _GELU_TANH),
            ("scale_attn_weights", (True,)),
            ("scale_attn_by_inverse_layer_idx", (False,)),
        ),
        rotates=False,
    ),
)


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The architecture of a model. Raises RecipeError if none of GGUF's computes it, saying what of the config is in the way."""
    found = next((each for each in ARCHITECTURES if config.model_type in each.model_types), None)
    if found is None:
        known = ", ".join(model_type for each in ARCHITECTURES for model_type in each.model_types)
        raise RecipeError(
            f"Models of type {config.model_type!r} are not written as GGUF; those of type {known} are.",
            "Use --to merged, and llama.cpp's own converter on the folder.",
            field="model",
        )
    values = config.to_dict()
    for key, allowed in found.fixed:
        if key in values and values[key] not in allowed:
            raise _unfit(found, key, values[key], allowed)
    _check_rotation(found, config)
    _check_attention(found, config, values)
    return found


def _unfit(architecture: Architecture, key: str, found: object, allowed: tuple[object, ...]) -> RecipeError:
    return RecipeError(
        f"The model's config has {key} {found!r}, and in GGUF files of {architecture.name!r} it is "
        f"{' or '.join(map(repr, allowed))}.",
        "Use --to merged.",
        field="model",
    )


def _check_rotation(architecture: Architecture, config: PreTrainedConfig) -> None:
    """Refuse ways of stretching the context that the file would not say, or not as the model has them."""
    if not architecture.rotates:
        return
    kind = rope_of(config).get("rope_type", "default")
    known = ("default", "linear", "llama3") if architecture.name == "llama" else ("default", "linear")
    if kind not in known:
        raise _unfit(architecture, "rope_parameters.rope_type", kind, known)


def _check_attention(architecture: Architecture, config: PreTrainedConfig, values: Mapping[str, Any]) -> None:
    """Refuse what llama.cpp has as constants of Gemma's architectures: scale of scores, pattern of windows, rotation in them, caps."""
    if architecture.name not in ("gemma2", "gemma3"):
        return
    expected = head_size(config)
    if values["query_pre_attn_scalar"] != expected:
        raise _unfit(architecture, "query_pre_attn_scalar", values["query_pre_attn_scalar"], (expected,))
    every = 2 if architecture.name == "gemma2" else 6
    count = int(config.num_hidden_layers)
    pattern = ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(count)]
    if list(values["layer_types"]) != pattern:
        raise _unfit(architecture, "layer_types", values["layer_types"], (pattern,))
    for key in ("attn_logit_softcapping", "final_logit_softcapping") if architecture.name == "gemma2" else ():
        if values[key] is None:
            raise RecipeError(
                f"The model's config has no {key}, and llama.cpp always caps logits of {architecture.name!r}.",
                "Use --to merged.",
                field="model",
            )
    local = (values.get("rope_parameters") or {}).get("sliding_attention")
    if local is not None:
        for key, fixed in (("rope_theta", 10000.0), ("rope_type", "default")):
            if local.get(key, fixed) != fixed:
                raise _unfit(architecture, f"rope_parameters.sliding_attention.{key}", local[key], (fixed,))


def rope_of(config: PreTrainedConfig) -> dict[str, Any]:
    """How positions rotate; where windowed layers have a way of their own, that of the others."""
    rope = dict(config.to_dict().get("rope_parameters") or {})
    return dict(rope["full_attention"]) if "full_attention" in rope else rope


def head_size(config: PreTrainedConfig) -> int:
    """Numbers of one head's query."""
    own = config.to_dict().get("head_dim")
    return int(config.hidden_size) // int(config.num_attention_heads) if own is None else int(own)


def key_value_heads(config: PreTrainedConfig) -> int:
    """How many heads have keys and values of their own."""
    values = config.to_dict()
    if config.model_type == "falcon":
        if values["new_decoder_architecture"]:
            return int(values["num_kv_heads"])
        return 1 if values["multi_query"] else int(config.num_attention_heads)
    return int(values.get("num_key_value_heads") or config.num_attention_heads)


def layer_norm_epsilon(config: PreTrainedConfig) -> float:
    """What a LayerNorm adds to the variance; transformers has two names for it."""
    values = config.to_dict()
    return float(values["layer_norm_eps" if config.model_type == "phi" else "layer_norm_epsilon"])


def _feedforward_width(config: PreTrainedConfig) -> int:
    values = config.to_dict()
    width = values.get("intermediate_size") or values.get("ffn_hidden_size") or values.get("n_inner")
    return int(width) if width else 4 * int(config.hidden_size)


def write_header(writer: gguf.GGUFWriter, architecture: Architecture, config: PreTrainedConfig) -> None:
    """Everything the file says of the model's shape and function, but for its vocabulary."""
    values = config.to_dict()
    head = head_size(config)
    window = values.get("sliding_window")
    writer.add_context_length(_context(config, window))
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_feed_forward_length(_feedforward_width(config))
    writer.add_head_count(int(config.num_attention_heads))
    writer.add_head_count_kv(key_value_heads(config))
    if architecture.rms:
        writer.add_layer_norm_rms_eps(float(values["rms_norm_eps"]))
    else:
        writer.add_layer_norm_eps(layer_norm_epsilon(config))
    writer.add_vocab_size(int(config.vocab_size))
    if not architecture.rotates:
        return
    writer.add_key_length(head)
    writer.add_value_length(head)
    _write_rotation(writer, config, head)
    if architecture.name == "phi3" or (architecture.name in ("gemma2", "gemma3") and window):
        writer.add_sliding_window(int(window or 0))  # llama.cpp wants it of a Phi-3 that has none, too
    if architecture.name == "phi3":
        writer.add_rope_scaling_orig_ctx_len(int(values["original_max_position_embeddings"]))
    if architecture.name == "gemma2":
        writer.add_attn_logit_softcapping(float(values["attn_logit_softcapping"]))
        writer.add_final_logit_softcapping(float(values["final_logit_softcapping"]))


def _context(config: PreTrainedConfig, window: Any) -> int:
    """How many tokens the file promises to hold.

    llama.cpp has no windows for Mistral and has switched Phi-3's off, so of these it is those of the window, within which
    attention is whole.
    """
    longest = int(config.to_dict().get("max_position_embeddings") or config.max_position_embeddings)
    return min(longest, int(window)) if config.model_type in ("mistral", "phi3") and window else longest


def _write_rotation(writer: gguf.GGUFWriter, config: PreTrainedConfig, head: int) -> None:
    rope = rope_of(config)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_rope_dimension_count(int(head * float(rope.get("partial_rotary_factor") or 1.0)))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def tensor_names(architecture: Architecture, config: PreTrainedConfig) -> Callable[[str], str]:
    """Gives the file's name of a weight or bias. It raises RecipeError for one that the architecture has no place for."""
    names = gguf.get_tensor_name_map(_NUMBER_OF[architecture.name], int(config.num_hidden_layers))

    def name_of(own: str) -> str:
        name: str | None = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise RecipeError(
                f"GGUF files of {architecture.name!r} have no place for {own}.", "Use --to merged.", field="model"
            )
        return name

    return name_of


def file_tensors(
    weights: Mapping[str, Tensor], architecture: Architecture, config: PreTrainedConfig
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model by the names and in the order of numbers that the file has, fp32, one after another.

    Raises RecipeError for a weight that the architecture has no place for.
    """
    name_of = tensor_names(architecture, config)
    for own, tensor in weights.items():
        if own.endswith(_UNWRITTEN):
            continue
        yield name_of(own), in_file_order(own, tensor.detach().to("cpu", torch.float32), architecture, config)
    rope = rope_of(config)
    if architecture.rotates and rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_divisors(rope, head_size(config))


def in_file_order(own: str, tensor: Tensor, architecture: Architecture, config: PreTrainedConfig) -> Tensor:
    """A weight or bias, called `own` in transformers, as the file has its numbers."""
    module = _last(own)
    if module in architecture.turned and tensor.ndim == 2:
        tensor = tensor.t()
    if architecture.norm_offset and "norm" in module:
        return tensor + architecture.norm_offset
    return rows_in_file_order(own, tensor, architecture, config)


def rows_in_file_order(own: str, tensor_OX: Tensor, architecture: Architecture, config: PreTrainedConfig) -> Tensor:
    """What has a row for each output of the layer of `own`, with the rows as the file has them; any axes may follow."""
    module = _last(own)
    if architecture.pairs_rows and module in ("q_proj", "k_proj"):
        heads = int(config.num_attention_heads) if module == "q_proj" else key_value_heads(config)
        return paired_rows(tensor_OX, heads)
    if architecture.name == "falcon" and module == "query_key_value":
        return _apart(tensor_OX, key_value_heads(config), head_size(config))
    return tensor_OX


def _last(own: str) -> str:
    """`a.b.q_proj.weight` → `q_proj`."""
    return own.rpartition(".")[0].rpartition(".")[2]


def paired_rows(tensor_OX: Tensor, num_heads: int) -> Tensor:
    """Rows of heads from halves (all first, then all second members of rotated pairs) to pairs; any axes may follow."""
    rest = tensor_OX.shape[1:]
    return tensor_OX.reshape(num_heads, 2, -1, *rest).transpose(1, 2).reshape(-1, *rest)


def _apart(tensor_OI: Tensor, groups: int, head: int) -> Tensor:
    """Fused rows from groups (queries, a key, a value) to all queries, all keys, all values."""
    width = tensor_OI.shape[1]
    grouped = tensor_OI.reshape(groups, -1, head, width)
    parts = (grouped[:, :-2], grouped[:, -2], grouped[:, -1])
    return torch.cat([part.reshape(-1, width) for part in parts])


def _llama3_divisors(rope: Mapping[str, Any], head: int) -> Tensor:
    """What Llama 3.1 divides the frequency of each rotated pair by, shape (head / 2,).

    Dubey et al. 2024, https://arxiv.org/abs/2407.21783: long waves by `factor`, short ones by 1, and between them in steps.
    """
    frequency = float(rope["rope_theta"]) ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    turns = float(rope["original_max_position_embeddings"]) * frequency / (2 * math.pi)
    low, high, factor = (float(rope[key]) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()


_NUMBER_OF = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
