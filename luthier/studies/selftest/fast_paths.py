"""The operations of `ops` compute what their plain references do: each by itself, and the model as a whole.

Shapes: N tokens, D width, O outputs, I inputs, K key/value heads, T tokens of the batch, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.methods.bank import AdaptedLinear
from luthier.models.anatomy import shape_of
from luthier.models.fast_layers import FastGatedMLP, FastRMSNorm
from luthier.models.language_model import LanguageModel
from luthier.ops.attention import AttentionTerms, packed_attention, packed_attention_reference
from luthier.ops.gated import gated_product, gated_product_reference
from luthier.ops.norm import rms_norm, rms_norm_reference
from luthier.ops.products import frozen_linear
from luthier.studies.selftest.findings import DEEP, Found, Measured, apart
from luthier.studies.selftest.subject import Subject, attached, drawn_states, said
from luthier.types import Batch

_TOKENS = 16

Compute = Callable[..., Tensor]


def measure(subject: Subject) -> Found:
    """What the model has of each operation, with the gradients; last, all of them at once."""
    model, whole, plain = subject.model, said(subject.model, subject.attachment, subject.batch), subject.as_plain
    of_operations = {
        "attention": _attention(model, subject.batch),
        "normalisation": _norms(model),
        "gated feed-forward": _gated(model),
        "frozen linear layers": _linears(subject),
        "LoRA": _lora(subject),
        "head": _head(model, subject.batch),
    }
    found = [Measured(name, max(off), subject.tolerance) for name, off in of_operations.items() if off]
    return [
        *found,
        Measured("whole model: log-probabilities", apart(whole.logprob_N, plain.logprob_N), subject.tolerance),
        Measured("whole model: gradient", apart(whole.gradient, plain.gradient), max(DEEP, subject.tolerance)),
    ]


def _differences(fast: Compute, plain: Compute, inputs: Sequence[Tensor], *others: Any) -> list[float]:
    """How far apart two functions of the same inputs (and others, which have no gradient) are, and their gradients."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = [compute(*inputs, *others) for compute in (fast, plain)]
    pull = torch.randn(outputs[1].shape, generator=torch.Generator().manual_seed(5)).to(outputs[1])
    gradients = [torch.autograd.grad(output, inputs, pull) for output in outputs]
    return [apart(outputs[0], outputs[1]), *(apart(one, other) for one, other in zip(*gradients, strict=True))]


def _attention(model: LanguageModel, batch: Batch) -> list[float]:
    """Over the model's own keys and values, with two query heads for each of their heads."""
    if model.layout != "packed":
        return []
    found = []
    for key_1KTE, value_1KTE in model.attention_states(batch)[:2]:
        inputs = [key_1KTE.repeat_interleave(2, dim=1), key_1KTE, value_1KTE]
        terms = AttentionTerms(key_1KTE.shape[-1] ** -0.5)
        found += _differences(packed_attention, packed_attention_reference, inputs, batch.segments, terms)
    return found


def _norms(model: LanguageModel) -> list[float]:
    found = []
    for norm in model.hf.modules():
        if isinstance(norm, FastRMSNorm):
            gain_D = norm.weight.detach() + norm.gain_offset
            inputs = [drawn_states(_TOKENS, len(gain_D), model), gain_D]
            found += _differences(rms_norm, rms_norm_reference, inputs, norm.eps)
    return found


def _gated(model: LanguageModel) -> list[float]:
    """At the width of the first such layer."""
    mlp = next((module for module in model.hf.modules() if isinstance(module, FastGatedMLP)), None)
    if mlp is None:
        return []
    down = mlp.get_submodule(mlp.names[2])
    width = down.shape[1] if isinstance(down, AdaptedLinear) else shape_of(down)[1]
    inputs = [drawn_states(_TOKENS, width, model, seed) for seed in (0, 1)]
    return _differences(gated_product, gated_product_reference, inputs, mlp.activation)


def _linears(subject: Subject) -> list[float]:
    """One layer of each shape."""
    layers = [layer for layer in subject.attachment.layers.values() if isinstance(layer, AdaptedLinear)]
    found = []
    for layer in {layer.shape: layer for layer in layers}.values():
        weight_OI, bias_O = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        inputs = [drawn_states(_TOKENS, weight_OI.shape[1], subject.model)]
        found += _differences(frozen_linear, F.linear, inputs, weight_OI, bias_O)
    return found


def _lora(subject: Subject) -> list[float]:
    """The adapter's own operation in the whole model, against plain autograd with the same numbers."""
    plain = attached(subject.model, "plain", fast=False)
    for target, branch in plain.branches.items():
        branch.load_tensors(subject.attachment.branches[target].file_tensors())
    one, other = (said(subject.model, each, subject.batch) for each in (subject.attachment, plain))
    return [apart(one.logprob_N, other.logprob_N), apart(one.gradient, other.gradient)]


def _head(model: LanguageModel, batch: Batch) -> list[float]:
    """The head over all targets in chunks, against all logits at once."""
    outputs = model.forward(batch)
    fast, plain = (replace(outputs.head, is_fast=is_fast).logprobs for is_fast in (True, False))
    return _differences(fast, plain, [outputs.hidden_ND], outputs.targets.token_N)
