"""A Llama of one layer with random weights, written as llama.cpp writes its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

WIDTH = 32


def write_tiny_gguf(
    path: Path,
    words: Sequence[str],
    merges: Sequence[str],
    *,
    bos: int,
    eos: int,
    chat_template: str | None = None,
    format_: gguf.GGMLQuantizationType | None = None,
    width: int = WIDTH,
    context: int = 64,
) -> Path:
    """The file, with a byte-level BPE tokenizer of `words`; its head is tied to its embedding.

    format_: what its matrices are in; None: fp32. width: a multiple of the format's block.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.add_pad_token_id(eos)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    draw = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(words), width), "output_norm": (width,)}
    shapes |= {f"blk.0.{part}": (width,) for part in ("attn_norm", "ffn_norm")}
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{part}": (width, width) for part in parts}
    for name, shape in shapes.items():
        numbers = draw.standard_normal(shape, dtype=np.float32)
        if format_ is None or len(shape) == 1:
            writer.add_tensor(f"{name}.weight", numbers)
        else:
            writer.add_tensor(f"{name}.weight", _in_blocks(numbers, format_, draw), raw_dtype=format_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


K_SCALES = {
    gguf.GGMLQuantizationType.Q4_K: {0: 4e-4, 2: 3e-3},
    gguf.GGMLQuantizationType.Q5_K: {0: 2e-4, 2: 3e-3},
    gguf.GGMLQuantizationType.Q6_K: {208: 5e-5},
}
"""Where blocks of 256 numbers have their scales in fp16, and scales with which random codes are as large as weights."""


def _in_blocks(
    numbers: NDArray[np.float32], format_: gguf.GGMLQuantizationType, draw: np.random.Generator
) -> NDArray[np.uint8]:
    """The numbers in a format; of K-quants, which the package reads alone, random codes instead."""
    scales = K_SCALES.get(format_)
    if scales is None:
        return gguf.quantize(numbers, format_)
    count, size = gguf.GGML_QUANT_SIZES[format_]
    blocks = draw.integers(0, 256, (len(numbers), numbers.shape[1] // count, size), dtype=np.uint8)
    for place, scale in scales.items():
        blocks[:, :, place : place + 2] = np.array([scale], dtype=np.float16).view(np.uint8)
    return blocks.reshape(len(numbers), -1)
