"""An adapter as a GGUF file, which llama.cpp adds to a GGUF file of its base: `llama-cli -m BASE.gguf --lora ADAPTER.gguf`.

Each adapted matrix has `NAME.lora_a` (R, I) and `NAME.lora_b` (O, R), and llama.cpp computes W + (alpha / R) B A. Layers may
have ranks and scales of their own, so all of a layer's scale is in its B, times R / alpha.
Shapes: R rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from luthier.errors import RecipeError
from luthier.export.gguf_architectures import architecture_of, rows_in_file_order, tensor_names
from luthier.export.gguf_model import write_tensors
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.bank import AdaptedLinear, LinearBranch
from luthier.models.language_model import LanguageModel
from luthier.ops.spectrum import Factors


def write_gguf_adapter(model: LanguageModel, attachment: AdapterAttachment, path: Path, name: str) -> None:
    """Write what an adapter adds to its base as a product of two matrices a layer, fp32.

    Raises RecipeError for an adapter that is more than that, or that changes what GGUF has no place for.
    """
    config = model.hf.config
    architecture = architecture_of(config)
    names = tensor_names(architecture, config)
    factors = factors_of(attachment)
    alpha = max(len(each.right_RI) for each in factors.values())

    def tensors() -> Iterator[tuple[str, Tensor, Type]]:
        for layer, each in factors.items():
            base = names(f"{layer}.weight")
            left_OR = each.left_OR * (each.left_OR.shape[1] / alpha)
            yield f"{base}.lora_a", each.right_RI.float().cpu(), Type.F32
            in_order_OR = rows_in_file_order(f"{layer}.weight", left_OR.float().cpu(), architecture, config)
            yield f"{base}.lora_b", in_order_OR, Type.F32

    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
        writer.add_name(name)
        write_tensors(writer, path, tensors)
    finally:
        writer.close()


def factors_of(attachment: AdapterAttachment) -> Mapping[str, Factors]:
    """By layer, what an adapter adds to its weight. Raises RecipeError where that is not all of it, or no such product."""
    if attachment.new_rows.tokens or attachment.head.tensors:
        raise _no_product(attachment, "beside it, rows of new tokens or a head were trained")
    found = {}
    for name, layer in attachment.layers.items():
        branch = layer.branch(attachment.name)
        update = branch.update(layer) if isinstance(layer, AdaptedLinear) and isinstance(branch, LinearBranch) else None
        if not isinstance(update, Factors):
            raise _no_product(attachment, f"what it changes at {name} is no product of two small matrices")
        found[name] = update
    if not found:
        raise _no_product(attachment, "it is none of linear layers")
    return found


def _no_product(attachment: AdapterAttachment, reason: str) -> RecipeError:
    return RecipeError(
        f"An adapter of {attachment.method.kind} has no place in a GGUF adapter: {reason}.",
        "Use --to gguf, if the method merges.",
        field="method.kind",
    )
