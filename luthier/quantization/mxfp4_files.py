"""The tensors that released models keep of an expert's projection P in MXFP4: `P_blocks` and `P_scales`, of all experts in one.

Of each expert: blocks, uint8 (O, M, 16), two numbers a byte, the first in the low half; scales, uint8 (O, M), the exponents.
Shapes: O outputs, I inputs, M = I / 32 blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.quantization.faults import layer_fault
from luthier.quantization.mxfp4 import BLOCK, MXFP4Weight

MXFP4_ENDINGS = ("blocks", "scales")


def read_mxfp4(name: str, tensors: Mapping[str, Tensor]) -> MXFP4Weight:
    """One expert's weight. Raises DataError, naming it, if its tensors do not belong together."""
    lacking = [ending for ending in MXFP4_ENDINGS if ending not in tensors]
    shapes = {ending: tuple(tensor.shape) for ending, tensor in tensors.items()}
    fits = not lacking and all(tensor.dtype == torch.uint8 for tensor in tensors.values())
    if not fits or shapes["blocks"] != (*shapes["scales"], BLOCK // 2):
        what = f"lacks {lacking[0]}" if lacking else f"has blocks and scales that do not fit: {shapes}"
        raise layer_fault(name, what)
    rows, blocks = shapes["scales"]
    return MXFP4Weight((rows, blocks * BLOCK), tensors["blocks"].flatten().clone(), tensors["scales"].flatten().clone())
