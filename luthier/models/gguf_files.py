"""Models in llama.cpp's single-file format, GGUF, read through transformers into ordinary unpacked weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from luthier.errors import DataError, NotFound, RecipeError, ResourceError


def read_gguf_config(file: Path) -> PreTrainedConfig:
    """The model's config. Raises: RecipeError if transformers cannot read its architecture; DataError if it is broken."""
    with reading_gguf(file):
        config: PreTrainedConfig = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        return config


def read_gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, with the chat template if the file holds one. Raises: as `read_gguf_config`."""
    with reading_gguf(file):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        return tokenizer


def read_gguf_weights(
    file: Path,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model with every weight unpacked to `dtype`, and what transformers says of missing and unexpected weights.

    Raises: ResourceError without `accelerate`, which transformers wants for this; else as `read_gguf_config`.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise ResourceError(
            "Reading a GGUF file needs the package accelerate.", "Install it: pip install accelerate", file=str(file)
        )
    with reading_gguf(file):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            **_unpacked(),
        )
    model, report = loaded
    return model, report


def _unpacked() -> dict[str, Any]:
    """What asks transformers for plain weights: versions that can compute on packed ones must be told, others know no other way."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def reading_gguf(file: Path) -> Iterator[None]:
    """Within: a file that is not there, is no GGUF file, is damaged, or is of a kind that cannot be read, is told as such."""
    if not file.is_file():
        raise NotFound("There is no such file.", "Check the path.", file=str(file), field="model")
    with file.open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise DataError(
                "This is not a GGUF file: it does not begin with GGUF.", "Fetch the file again.", file=str(file)
            )
    collects = gc.isenabled()
    gc.disable()  # a header is a hundred thousand small objects that all live on: looking through them costs a quarter of the time
    try:
        yield
    except Exception as error:
        # A damaged file shows as any of a dozen errors of five libraries, some of them bare Exceptions.
        text = " ".join(str(error).split())
        if "not supported" in text:
            raise RecipeError(
                f"transformers cannot read this GGUF file: {text}",
                "Use the same model as a transformers folder or hub id.",
                file=str(file),
                field="model",
            ) from error
        raise DataError(
            f"This GGUF file cannot be read ({type(error).__name__}: {text}).",
            "It may be cut off or damaged: fetch it again.",
            file=str(file),
        ) from error
    finally:
        if collects:
            gc.enable()
