"""Tiny models as plain transformers computes them, with functions added to the residual stream by hooks.

Written from the formulas and from the layers' own code, without Luthier's table of sublayers: what the stream gets more
is added to whole layers where that can be, so that a wrong place shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from models.rows import batch_of, plain_logprobs, random_rows
from models.tiny import plain_model, tiny_config, tiny_model
from models.tuned import LENGTHS, plain_attention, randomize
from torch import Tensor, nn

from luthier.methods.contract import Attachment
from luthier.models.call import Draws
from luthier.models.language_model import LanguageModel

Added = Callable[[Tensor, Tensor], Tensor]
"""What is added to r + u, from r and u."""

POST_NORMS = dict.fromkeys(
    ("gemma2", "gemma3_text", "olmo2"), ("post_attention_layernorm", "post_feedforward_layernorm")
)
SIDE_BY_SIDE = ("phi", "gpt_neox", "falcon", "falcon-new")
NORM_AFTER = "opt-norm-after"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass
class Seen:
    """What hooks saw of one layer in the current forward pass."""

    tensors: dict[str, Tensor] = field(default_factory=dict)


def reference_logprobs(name: str, attention: dict[int, Added], feedforward: dict[int, Added]) -> Tensor:
    """The usual rows' log-probabilities with functions added after the sublayers of some layers, by index.

    An attention's function may not look at r, which is given as u.
    """
    model, anatomy = plain_model(name, plain_attention(name)), tiny_model(name).anatomy
    factor = float(getattr(tiny_config(name), "residual_multiplier", 1.0))
    for layer in anatomy.layers:
        module = model.get_submodule(layer.name)
        post = POST_NORMS.get(name)
        if layer.index in attention:
            end = module.get_submodule(post[0]) if post else _attention(module, name, layer.attention, model)
            end.register_forward_hook(_adding(attention[layer.index], factor))
        if layer.index in feedforward:
            inner = module.get_submodule(post[1]) if post else _feedforward(module, name, layer.feedforward, model)
            _add_to_layer(module, inner, feedforward[layer.index], factor, name)
    return plain_logprobs(model, random_rows(LENGTHS)).detach()


def _attention(module: nn.Module, name: str, attention: str, model: nn.Module) -> nn.Module:
    """What gives u: in BLOOM not the attention as a whole, which adds r."""
    return module.get_submodule("self_attention.dense") if name == "bloom" else model.get_submodule(attention)


def _feedforward(module: nn.Module, name: str, feedforward: str, model: nn.Module) -> nn.Module:
    """What gives u: in BLOOM not the feed-forward as a whole, which adds r."""
    inner = "mlp.dense_4h_to_h" if name == "bloom" else "fc2" if name.startswith("opt") else None
    return model.get_submodule(feedforward) if inner is None else module.get_submodule(inner)


def _adding(added: Added, factor: float) -> Callable[..., Any]:
    """A hook for a module whose output is u."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        u = (output[0] if isinstance(output, tuple) else output) * factor
        changed = (u + added(u, u)) / factor
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


def _add_to_layer(layer: nn.Module, inner: nn.Module, added: Added, factor: float, name: str) -> None:
    """Hooks that add to a layer's output, or with norms after the sums, to what its last norm reads."""
    seen = Seen()

    def keep_u(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.tensors["u"] = output.clone() * factor

    def keep_input(module: nn.Module, inputs: Any, kwargs: Any) -> None:
        seen.tensors["input"] = inputs[0] if inputs else kwargs["hidden_states"]

    def add(module: nn.Module, inputs: Any, output: Any) -> Any:
        plain = output[0] if isinstance(output, tuple) else output
        u = seen.tensors["u"].view_as(plain)
        r = seen.tensors["input"] if name in SIDE_BY_SIDE else plain - u
        changed = plain + added(r, u)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def add_before(module: nn.Module, inputs: Any) -> Any:
        u = seen.tensors["u"].view_as(inputs[0])
        return (inputs[0] + added(inputs[0] - u, u),)

    inner.register_forward_hook(keep_u)
    layer.register_forward_pre_hook(keep_input, with_kwargs=True)
    if name == NORM_AFTER:
        layer.get_submodule("final_layer_norm").register_forward_pre_hook(add_before)
    else:
        layer.register_forward_hook(add)


def sum_norm(name: str, index: int) -> Callable[[Tensor], Tensor]:
    """What a layer of a model does to the sum after its feed-forward: its norm, or nothing."""
    if name != NORM_AFTER:
        return lambda x: x
    layer = tiny_model(name).anatomy.layers[index].name
    norm = plain_model(name).get_submodule(f"{layer}.final_layer_norm")
    return lambda x: norm(x)


def places(attachment: Attachment) -> dict[int, list[str]]:
    """The names of the places that have tensors, by layer, in the order of the layer."""
    found: dict[int, list[str]] = {}
    for key in attachment.trainables:
        if ".adapter_" in key:
            place = key.split(".adapter_")[0]
            index = next(int(part) for part in place.split(".") if part.isdigit())
            if place not in found.setdefault(index, []):
                found[index].append(place)
    return found


def dense(attachment: Attachment, place: str, activation: str, scale: float) -> Callable[[Tensor], Tensor]:
    """f(z) = s (σ(z Wdᵀ + cd) Wuᵀ + cu) from an attachment's tensors, in double precision."""
    tensors = {
        key.removeprefix(place + "."): t.detach().double()
        for key, t in attachment.trainables.items()
        if key.startswith(place + ".")
    }

    def f(z: Tensor) -> Tensor:
        narrow = ACTIVATIONS[activation](z.double() @ tensors["adapter_down.weight"].T + tensors["adapter_down.bias"])
        return (scale * (narrow @ tensors["adapter_up.weight"].T + tensors["adapter_up.bias"])).to(z.dtype)

    return f


def gradients(
    name: str, attach: Callable[[LanguageModel], Attachment], checkpointed: bool, draws: Draws | None = None
) -> list[Tensor]:
    """The gradient of the usual rows' log-probabilities for every trained tensor of a random adapter."""
    model = tiny_model(name)
    attachment = attach(model)
    randomize(attachment)
    if checkpointed:
        model.checkpoint_layers()
    logprob_N = model.forward(batch_of(LENGTHS, model.layout), attachment.adapter, draws).logprob_N
    return list(torch.autograd.grad(logprob_N.sum(), list(attachment.trainables.values())))
