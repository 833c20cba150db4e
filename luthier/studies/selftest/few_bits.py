"""Layers over packed weights compute what the plain layers over the unpacked weights compute."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.methods.bank import AdaptedLinear
from luthier.ops.products import frozen_linear
from luthier.quantization.packed import PackedWeight, QuantizedLinear
from luthier.studies.selftest.findings import Found, Lacking, Measured, apart
from luthier.studies.selftest.subject import Subject, drawn_states

_TOKENS = 16


def measure(subject: Subject) -> Found:
    """One layer of each shape: how its weight is unpacked, its output, and the gradient of what it reads."""
    packed: dict[tuple[int, int], PackedWeight] = {}
    for layer in subject.attachment.layers.values():
        if isinstance(layer, AdaptedLinear) and isinstance(layer.base, QuantizedLinear):
            packed.setdefault(layer.base.packed.shape, layer.base.packed)
    if not packed:
        return Lacking("no layer is quantized")
    kinds = " and ".join(sorted({weight.kind for weight in packed.values()}))
    worst = [0.0, 0.0, 0.0]
    for weight in packed.values():
        plain_OI = weight.reference()
        outcomes = _outcomes(weight, plain_OI.to(subject.model.dtype), subject)
        each = [apart(weight.dense(torch.float32), plain_OI), *(apart(*pair) for pair in outcomes)]
        worst = [max(pair) for pair in zip(worst, each, strict=True)]
    names = (f"{kinds} weights, unpacked", "output", "gradient")
    return [Measured(name, off, subject.tolerance) for name, off in zip(names, worst, strict=True)]


def _outcomes(weight: PackedWeight, plain_OI: Tensor, subject: Subject) -> list[tuple[Tensor, Tensor]]:
    """Output and gradient over the packed weight, each beside that over the plain one."""
    x_NI = drawn_states(_TOKENS, weight.shape[1], subject.model)
    outputs = [frozen_linear(x_NI, weight), F.linear(x_NI, plain_OI)]
    gradients = [torch.autograd.grad(output.float().square().sum(), x_NI)[0] for output in outputs]
    return [(outputs[0], outputs[1]), (gradients[0], gradients[1])]
