"""A model as one GGUF file, written through the gguf package: no compiler, one tensor in memory at a time.

Vectors (norms, biases) and tables of positions are fp32 whatever the format. In Q4_0 the embedding and the head, which bear
four bits worst, are Q8_0; a matrix whose rows are not of whole blocks is F16.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType
from numpy.typing import NDArray
from torch import Tensor

from luthier.export.gguf_architectures import architecture_of, file_tensors, write_header
from luthier.export.gguf_vocabulary import vocabulary_of, write_vocabulary
from luthier.models.language_model import LanguageModel
from luthier.models.writing import weights_of
from luthier.store import disk

GGUFDtype = Literal["fp32", "fp16", "bf16", "q8_0", "q4_0"]

_TYPES: Mapping[GGUFDtype, tuple[Type, LlamaFileType]] = {
    "fp32": (Type.F32, LlamaFileType.ALL_F32),
    "fp16": (Type.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Type.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
_ENDS = ("token_embd.weight", "output.weight")
_WHOLE = ("position_embd.weight",)


def write_gguf(model: LanguageModel, path: Path, dtype: GGUFDtype, name: str) -> None:
    """Write a model without adapters. name: what the file calls it.

    Raises RecipeError for an architecture or a tokenizer that GGUF has no place for, before anything is written.
    """
    config = model.hf.config
    architecture = architecture_of(config)
    weights = weights_of(model)
    vocabulary = vocabulary_of(model.tokenizer, model.vocab_size, sorted(model.stop_ids))
    wanted, file_type = _TYPES[dtype]

    def tensors() -> Iterator[tuple[str, Tensor, Type]]:
        for own, tensor in file_tensors(weights, architecture, config):
            yield own, tensor, type_of(own, tuple(tensor.shape), wanted)

    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(name)
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_header(writer, architecture, config)
        write_vocabulary(writer, vocabulary)
        write_tensors(writer, path, tensors)
    finally:
        writer.close()


def type_of(name: str, shape: tuple[int, ...], wanted: Type) -> Type:
    """The format of one tensor in a file whose matrices are in `wanted`."""
    if len(shape) == 1 or name in _WHOLE:
        return Type.F32
    if wanted is Type.Q4_0 and name in _ENDS:
        wanted = Type.Q8_0
    return wanted if shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0 else Type.F16


def write_tensors(
    writer: gguf.GGUFWriter, path: Path, tensors: Callable[[], Iterable[tuple[str, Tensor, Type]]]
) -> None:
    """Write the file: its header, and the tensors one after another, each in its format.

    tensors: gives them twice, for their sizes come first.
    """
    for name, tensor, type_ in tensors():
        block, num_bytes = gguf.GGML_QUANT_SIZES[type_]
        size = tensor.numel() // block * num_bytes
        writer.add_tensor_info(name, tuple(tensor.shape), np.dtype(np.float32), size, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor, type_ in tensors():
        try:
            writer.write_tensor_data(_in_format(tensor, type_))
            _check_written(writer)
        except OSError as error:
            raise _with_reason(error, path) from error


def _check_written(writer: gguf.GGUFWriter) -> None:
    """Raise OSError if a file is shorter than what went into it: numpy does not tell of what it could not write at the end."""
    for file in writer.fout or ():
        file.flush()
        if os.fstat(file.fileno()).st_size < file.tell():
            raise OSError("fewer bytes were written than asked for")


def _with_reason(error: OSError, path: Path) -> OSError:
    """A failed write with the system's reason, which numpy leaves out: asked for by one more write."""
    if error.errno is not None:
        return error
    try:
        with path.open("ab", buffering=0) as file:
            disk.write(file, b"\0" * 4096)
    except OSError as reason:
        return reason
    return OSError(errno.EIO, os.strerror(errno.EIO))


def _in_format(tensor: Tensor, type_: Type) -> NDArray[Any]:
    numbers = tensor.contiguous().to(torch.float32).numpy()
    if type_ is Type.F32:
        return numbers
    if type_ is Type.F16:
        return numbers.astype(np.float16)
    packed: NDArray[Any] = gguf.quantize(numbers, type_)
    return packed
