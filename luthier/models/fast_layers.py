"""Plain layers of a family exchanged for those of `ops`: same parameters under the same names, the same function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.models.anatomy import Anatomy, replace_module
from luthier.models.call import current_call
from luthier.models.families import RMSNormForm
from luthier.ops.gated import Activation, gated_product, without_keeping
from luthier.ops.norm import rms_norm
from luthier.ops.products import frozen_linear, prefers_onednn

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


class FastRMSNorm(nn.Module):
    """RMSNorm by `ops.norm`; `gain_offset` is 1 where the family stores its gain as 1 + w."""

    def __init__(self, weight_D: nn.Parameter, eps: float, gain_offset: float) -> None:
        super().__init__()
        self.weight = weight_D
        self.eps = eps
        self.gain_offset = gain_offset

    def forward(self, x: Tensor) -> Tensor:
        y = self._normal(x)
        recomputable = current_call().recomputable
        if recomputable is not None and y.requires_grad:  # else nobody keeps it, and its input must not be held either
            detached = x.detach()
            recomputable.add(y, lambda: self._again(detached))
        return y

    def _normal(self, x: Tensor) -> Tensor:
        gain_D = self.weight if self.gain_offset == 0 else self.weight + self.gain_offset
        return rms_norm(x, gain_D, self.eps)

    @torch.no_grad()
    def _again(self, x: Tensor) -> Tensor:
        return self._normal(x)


class FastLinear(nn.Linear):
    """A linear layer whose product is `ops.products`' choice; as `nn.Linear` where its own weight trains."""

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would draw a weight only to have it exchanged
        self.in_features, self.out_features = plain.in_features, plain.out_features
        parameters = dict(plain.named_parameters(recurse=False))
        self.register_parameter("weight", parameters["weight"])
        self.register_parameter("bias", parameters.get("bias"))  # also where it is None: one may be given to it later

    def forward(self, x: Tensor) -> Tensor:
        trains = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if trains or torch.is_autocast_enabled(x.device.type):
            return F.linear(x, self.weight, self.bias)
        return frozen_linear(x, self.weight, self.bias)


class FastGatedMLP(nn.Module):
    """A gated feed-forward layer by `ops.gated`."""

    def __init__(
        self, names: tuple[str, str, str], linears: tuple[nn.Module, nn.Module, nn.Module], activation: Activation
    ) -> None:
        super().__init__()
        self.names = names
        for name, linear in zip(names, linears, strict=True):
            self.register_module(name, linear)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (self.get_submodule(name) for name in self.names)
        gate_TF, up_TF = gate(x), up(x)
        product_TF = gated_product(gate_TF, up_TF, self.activation)
        # nothing is kept; or hooks of our own would hide from checkpointing what `down` keeps, which then stayed
        if not torch.is_grad_enabled() or current_call().is_checkpointed:
            plain: Tensor = down(product_TF)
            return plain
        with without_keeping(product_TF, gate_TF, up_TF, self.activation):
            hidden: Tensor = down(product_TF)
        return hidden


def use_fast_layers(model: PreTrainedModel, anatomy: Anatomy, *, norm: bool, gated_mlp: bool, linear: bool) -> None:
    """Exchange the kinds of layers that are asked for."""
    if norm:
        use_fast_norms(model, anatomy)
    if linear:
        use_fast_linears(model, anatomy)
    if gated_mlp:
        use_fast_gated_mlps(model, anatomy)


def use_fast_linears(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Exchange every `nn.Linear` of the layers and the head, on processors where another product is the faster."""
    for name in (*anatomy.linears, *anatomy.head_linears):
        linear = model.get_submodule(name)
        # not a subclass, which computes something else
        if type(linear) is nn.Linear and prefers_onednn(linear.out_features):
            replace_module(model, name, FastLinear(linear))


def use_fast_norms(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Exchange every RMSNorm of the model, where the family has them."""
    form = anatomy.family.rms_norm
    if form is None:
        return
    for name in anatomy.norms:
        replace_module(model, name, _fast_norm(model.get_submodule(name), form))


def _fast_norm(norm: nn.Module, form: RMSNormForm) -> FastRMSNorm:
    weight = norm.get_parameter("weight")
    return FastRMSNorm(weight, float(vars(norm)[form.eps]), form.gain_offset)


def use_fast_gated_mlps(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Exchange every gated feed-forward layer, where the family has them and the activation is one of ours.

    In a mixture of experts it is that of the expert that every token is sent to.
    """
    names = anatomy.family.gated
    config = model.config.to_dict()
    activation = ACTIVATIONS.get(str(config.get(anatomy.family.activation_key) or config.get("hidden_act")))
    if names is None or activation is None:
        return
    shared = anatomy.family.shared_expert
    for layer in anatomy.layers:
        if layer.mixture and shared is None:
            continue
        place = f"{layer.feedforward}.{shared}" if layer.mixture else layer.feedforward
        mlp = model.get_submodule(place)
        gate, up, down = (mlp.get_submodule(name) for name in names)
        replace_module(model, place, FastGatedMLP(names, (gate, up, down), activation))
