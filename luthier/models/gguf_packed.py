"""A GGUF file's linear layers used in the blocks that the file has them in; all else of it is unpacked.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. In files of the architecture `llama` the rows of a
head's queries and keys lie in the order of rotated pairs (0, d/2, 1, d/2 + 1, …), those of transformers in halves; blocks lie
along the inputs, so rows can be put back in order without being unpacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from luthier.errors import DataError, RecipeError
from luthier.models.gguf_files import reading_gguf
from luthier.models.streaming import Prepared, Streaming
from luthier.quantization.gguf_blocks import GGUFWeight, gguf_weight

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Those whose files hold the layers of the models that transformers has, one for one."""

_UNPACKED = (Type.F32, Type.F16, Type.BF16)
_BESIDE = ("rope_freqs.weight",)
"""What files hold that the config says too."""


class GGUFBlocks:
    """The tensors of a file, by the names that transformers has for them.

    compute: the number format of products with packed weights; None: that of what they are multiplied with.
    """

    def __init__(self, file: Path, compute: torch.dtype | None) -> None:
        """Read the header. Raises RecipeError for an architecture whose layers are not those of transformers' model."""
        with reading_gguf(file):
            self._reader = gguf.GGUFReader(
                file, "c"
            )  # pages of the file that are copied if written to: torch asks that
        field = self._reader.get_field("general.architecture")
        self.architecture = "" if field is None else str(field.contents())
        if self.architecture not in ARCHITECTURES:
            raise RecipeError(
                f"{file.name} is of the architecture {self.architecture!r}; only those of {', '.join(ARCHITECTURES)} are used packed.",
                "Leave quantization out, so that it is unpacked.",
                field="quantization.kind",
            )
        self.file = file
        self._compute = compute
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._formats: dict[str, Type] = {}

    def pack(self, name: str, tensors: Mapping[str, Tensor]) -> Prepared:
        """A layer's weight from its blocks."""
        format_ = self._formats[name]
        raw = (
            tensors["weight"].to(torch.uint8).numpy()
        )  # transformers has made numbers of the bytes, which hold them exactly
        columns = raw.shape[1] * gguf.GGML_QUANT_SIZES[format_][0] // gguf.GGML_QUANT_SIZES[format_][1]
        return Prepared(gguf_weight(name, (raw.shape[0], columns), raw, format_, self._compute))

    def model(
        self, config: PreTrainedConfig, dtype: torch.dtype, attn_implementation: str | None, streaming: Streaming
    ) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The model, with packed layers where the streaming chooses them, and the report of what was missing or too much."""
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        with torch.device("meta"):
            bare = kind(config)
        packable = {name for name in streaming.choose(bare) if self._is_packed(name, config)}
        if not packable:
            raise RecipeError(
                f"{self.file.name} has none of the layers that quantization names in few bits, so there is nothing to use packed.",
                "Leave quantization out, or name a file in fewer bits, such as one in Q4_K_M or Q8_0.",
                field="quantization.kind",
            )
        streaming.choose = lambda model: tuple(packable)  # what the file has in numbers stays so
        state = {name: self._tensor(name, config, packable) for name in bare.state_dict() if self._holds(name, config)}
        loaded: Any = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, attn_implementation=attn_implementation,
            quantization_config=streaming, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
        model, report = loaded
        streaming.check(report)
        known = {self._place(name, config) for name in bare.state_dict()}
        report["unexpected_keys"] = [
            *report.get("unexpected_keys", ()), *sorted(set(self._tensors) - known - set(_BESIDE))
        ]  # fmt: skip
        return model, report

    def blank(
        self, module: str, shape: tuple[int, int], config: PreTrainedConfig, device: torch.device
    ) -> GGUFWeight | None:
        """A layer's weight in the format that the file has it in, of any numbers; None where the file has it unpacked."""
        if not self._is_packed(module, config):
            return None
        format_ = self._tensors[self._place(f"{module}.weight", config)].tensor_type
        numbers, size = gguf.GGML_QUANT_SIZES[format_]
        bytes_OB = torch.empty(shape[0], shape[1] // numbers * size, dtype=torch.uint8, device=device)
        return GGUFWeight(shape, bytes_OB, format_, self._compute)

    def _place(self, name: str, config: PreTrainedConfig) -> str:
        """The file's name of a tensor; nothing for one that no file has."""
        names = gguf.get_tensor_name_map(_ARCHITECTURE_OF[self.architecture], int(config.num_hidden_layers))
        module, _, ending = name.rpartition(".")
        found = names.get_name(module)
        return "" if found is None else f"{found}.{ending}"

    def _holds(self, name: str, config: PreTrainedConfig) -> bool:
        return self._place(name, config) in self._tensors

    def _is_packed(self, module: str, config: PreTrainedConfig) -> bool:
        tensor = self._tensors.get(self._place(f"{module}.weight", config))
        return tensor is not None and tensor.tensor_type not in _UNPACKED

    def _tensor(self, name: str, config: PreTrainedConfig, packable: set[str]) -> Tensor:
        """A tensor's blocks, or its numbers."""
        tensor, module = self._tensors[self._place(name, config)], name.rpartition(".")[0]
        rows = self._in_order(name, tensor.data, config)
        if module in packable and name.endswith(".weight"):
            self._formats[module] = tensor.tensor_type
            return torch.from_numpy(rows)
        try:
            numbers = gguf.dequantize(rows, tensor.tensor_type)
        except NotImplementedError as error:
            raise DataError(
                f"The tensor {tensor.name} is in {tensor.tensor_type.name}, which the installed gguf package cannot unpack.",
                "Use a file in another format, such as Q4_K_M or Q8_0.",
                file=str(self.file),
            ) from error
        shape = tuple(int(size) for size in reversed(tensor.shape))
        return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32)).view(shape)

    def _in_order(self, name: str, rows: NDArray[Any], config: PreTrainedConfig) -> NDArray[Any]:
        """The rows of queries and keys in the order in which transformers has them; all others as they are."""
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        count = heads.get(name.split(".")[-2])
        if self.architecture != "llama" or count is None:
            return rows
        order = np.arange(len(rows)).reshape(int(count), -1, 2).swapaxes(1, 2).reshape(-1)
        return rows[order]


_ARCHITECTURE_OF = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
