"""Tiny models whose linear layers are packed, as loading packs them."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from luthier.methods import Method
from luthier.models.anatomy import replace_module, weight_of
from luthier.models.language_model import LanguageModel
from luthier.quantization.four_bit import quantize_four_bit
from luthier.quantization.packed import PackedWeight, QuantizedLinear


def in_nf4(weight_OI: Tensor) -> PackedWeight:
    """A weight as `quantization: {kind: nf4}` has it."""
    return quantize_four_bit(weight_OI, "nf4")


@torch.no_grad()
def quantized_for(method: Method, model: LanguageModel) -> LanguageModel:
    """The model over NF4, its layers prepared as the method wishes; the model itself is changed."""
    kept, prepare = method.keeps_full(model.anatomy), method.prepare_weights(model.anatomy)
    first = {}
    for name in model.anatomy.linears:
        if name in kept:
            continue
        module = model.hf.get_submodule(name)
        prepared = prepare(name, weight_of(module).clone(), in_nf4)
        bias, is_transposed = dict(module.named_parameters()).get("bias"), isinstance(module, Conv1D)
        replace_module(model.hf, name, QuantizedLinear(prepared.packed, bias, model.dtype, is_transposed))
        first |= {name: prepared.first} if prepared.first else {}
    model.prepared = first
    return model
