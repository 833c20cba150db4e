"""A Llama of one layer with random weights, written as llama.cpp writes its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

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
) -> Path:
    """The file, with a byte-level BPE tokenizer of `words`; its head is tied to its embedding.

    format_: what its matrices are in; None: fp32.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
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
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(words), WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.{part}": (WIDTH,) for part in ("attn_norm", "ffn_norm")}
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{part}": (WIDTH, WIDTH) for part in parts}
    for name, shape in shapes.items():
        numbers = draw.standard_normal(shape, dtype=np.float32)
        if format_ is None or len(shape) == 1:
            writer.add_tensor(f"{name}.weight", numbers)
        else:
            writer.add_tensor(f"{name}.weight", gguf.quantize(numbers, format_), raw_dtype=format_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
