"""A mixture of experts whose weights are apart: one linear layer for each expert and projection, to be adapted or packed as any other.

transformers keeps the weights of a layer's experts stacked, in one parameter for each projection. A `SplitExperts` computes the same
from linear layers of the same values; the router is not part of it, and stays as it is.
Shazeer et al. 2017, https://arxiv.org/abs/1701.06538, equation 1: y = Σ_e g_e(x) E_e(x), over the experts that the router chose.

Shapes: N tokens, K experts of each token, S = N K choices, M of them of one expert, E experts, D width, F width within an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.models.anatomy import MIXTURE_END, replace_module, weight_of
from luthier.models.call import calling, current_call

PROJECTIONS = ("gate_up_proj", "down_proj")
"""What transformers calls the stacked parameters, up and down; the biases end in `_bias`."""

_ACTIVATION = "act_fn"

Gate = Callable[[Tensor], Tensor]
"""From what an expert's first projection gives, (M, 2F), to what its second takes, (M, F)."""


class Expert(nn.Module):
    """One expert: its linear layers under the names of the stacked parameters."""

    def __init__(self, linears: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, linear in linears.items():
            self.register_module(name, linear)


class SplitExperts(nn.Module):
    """The experts of a layer, one by one, and what lies between their two projections.

    is_transposed: whether a stacked parameter holds an expert's weight as (I, O).
    """

    def __init__(self, experts: list[Expert], gate: Gate, is_transposed: bool) -> None:
        super().__init__()
        for index, expert in enumerate(experts):
            self.register_module(str(index), expert)
        self.count = len(experts)
        self.gate = gate
        self.is_transposed = is_transposed

    def forward(self, x_ND: Tensor, chosen_NK: Tensor, share: Tensor) -> Tensor:
        """Σ_k share · E_chosen(x), each expert over its own tokens, shape (N, D).

        share: of each choice (N, K), or of each expert (N, E), as some versions of transformers have it.
        """
        share_S = (share if share.shape == chosen_NK.shape else share.gather(1, chosen_NK)).flatten()
        outputs, places = [], []
        for index, place_M in self.routes(chosen_NK):
            token_M = torch.div(place_M, chosen_NK.shape[1], rounding_mode="floor")
            outputs.append(self._output(index, x_ND, token_M))
            places.append(place_M)
        place_S = torch.cat(places)
        y_SD = torch.cat(outputs) * share_S[place_S].unsqueeze(-1)
        token_S = torch.div(place_S, chosen_NK.shape[1], rounding_mode="floor")
        return torch.zeros_like(x_ND).index_add(0, token_S, y_SD.to(x_ND.dtype))

    def _output(self, index: int, x_ND: Tensor, token_M: Tensor) -> Tensor:
        """What one expert gives for these tokens, which are those of its call."""
        expert, call = self.get_submodule(str(index)), current_call()
        first, last = (expert.get_submodule(name) for name in PROJECTIONS)
        has_adapter = any(run.adapter is not None for run in call.runs)
        with calling(call.at(token_M) if has_adapter else call):
            y_MD: Tensor = last(self.gate(first(x_ND[token_M])))
        return y_MD

    def routes(self, chosen_NK: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each expert that was chosen, and where among the choices, shape (M,), in the order of the tokens."""
        chosen_S = chosen_NK.flatten()
        counts = torch.bincount(chosen_S, minlength=self.count).tolist()
        for index, place_M in enumerate(chosen_S.argsort(stable=True).split(counts)):
            if len(place_M):
                yield index, place_M

    def stacked(self) -> dict[str, Tensor]:
        """The weights and biases as transformers' own module has them, by name, unpacked."""
        tensors: dict[str, Tensor] = {}
        for name in PROJECTIONS:
            linears = [self.get_submodule(f"{index}.{name}") for index in range(self.count)]
            weights = [weight_of(linear).detach() for linear in linears]
            tensors[name] = torch.stack([weight.t() if self.is_transposed else weight for weight in weights])
            biases = [dict(linear.named_parameters(recurse=False)).get("bias") for linear in linears]
            own = [bias.detach() for bias in biases if bias is not None]
            if own:
                tensors[f"{name}_bias"] = torch.stack(own)
        return tensors

    @torch.no_grad()
    def put(self, name: str, stacked: Tensor) -> None:
        """Give every expert its part of one of the tensors that `stacked` gives, by its name there."""
        is_bias = name.endswith("_bias")
        for index, own in enumerate(stacked):
            linear = self.get_submodule(f"{index}.{name.removesuffix('_bias')}")
            target = linear.get_parameter("bias") if is_bias else weight_of(linear)
            target.copy_(own.t() if self.is_transposed and not is_bias else own)


class GatedActivation(nn.Module):
    """activation(g) ⊙ u, of g and u side by side."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, gate_up_MF: Tensor) -> Tensor:
        gate_MF, up_MF = gate_up_MF.chunk(2, dim=-1)
        product_MF: Tensor = self.activation(gate_MF) * up_MF
        return product_MF


class MixtureEnd(nn.Module):
    """The output of a mixture as it leaves it, with what every token gets beside its experts: a place for adapters after it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    """transformers' modules of stacked experts by name; empty where the model has none, or has them apart."""
    return {
        name: module
        for name, module in model.named_modules()
        if set(PROJECTIONS) <= {own for own, _ in module.named_parameters(recurse=False)}
    }


def layers_held(model: nn.Module, parameter: str) -> tuple[str, ...]:
    """The linear layers whose weights a parameter of a model holds: one, or those of all experts once they are apart."""
    module, _, own = parameter.rpartition(".")
    if not is_stack(parameter):
        return (module,)
    return tuple(f"{module}.{index}.{own}" for index in range(len(model.get_parameter(parameter))))


def is_stack(parameter: str) -> bool:
    """Whether a parameter holds the weights of all experts of a layer."""
    return parameter.rpartition(".")[2] in PROJECTIONS


def stacks_transposed(model: nn.Module, parameter: str) -> bool:
    """Whether a stacked parameter holds an expert's weight as (I, O)."""
    return _is_transposed(dict(model.get_submodule(parameter.rpartition(".")[0]).named_parameters(recurse=False)))


def _is_transposed(own: Mapping[str, Tensor]) -> bool:
    """Whether the stacked parameters are (E, D, 2F) and (E, F, D), not (E, 2F, D) and (E, D, F): 2F is never F."""
    first, last = (own[name] for name in PROJECTIONS)
    return first.shape[1] == last.shape[2]


def parameters_of(model: nn.Module, chosen: frozenset[str]) -> frozenset[str]:
    """The parameters that hold the weights of these layers. Raises RecipeError if one holds those of others too."""
    stacks = {f"{mixture}.{own}" for mixture in experts_of(model) for own in PROJECTIONS}
    found, of_experts = set(), set()
    for name in stacks:
        layers = set(layers_held(model, name))
        if layers & chosen and not layers <= chosen:
            raise RecipeError(
                f"Some of the experts of {name} are to be quantized and some are not.",
                "Name all of them or none, as gate_up_proj and down_proj.",
                field="quantization",
            )
        if layers <= chosen:
            found.add(name)
            of_experts |= layers
    return frozenset(found | {f"{name}.weight" for name in chosen - of_experts})


def split_experts(model: nn.Module, kind: type[SplitExperts] = SplitExperts) -> None:
    """Put a `SplitExperts` in the place of each module of stacked experts, and an end to each mixture.

    The weights are views of the stacked ones.
    """
    for name, module in experts_of(model).items():
        experts = _split(module, kind)
        replace_module(model, name, experts)
        mixture = model.get_submodule(name.rpartition(".")[0])
        mixture.register_module(
            MIXTURE_END, MixtureEnd(len(experts.get_submodule(f"0.{PROJECTIONS[1]}").get_parameter("weight")))
        )
        mixture.register_forward_hook(_through_end)


def _through_end(mixture: nn.Module, args: Any, output: Tensor | tuple[Tensor, ...]) -> Any:
    """What a mixture gives, its first part (of some the only one) as its end gives it."""
    end = mixture.get_submodule(MIXTURE_END)
    return end(output) if isinstance(output, Tensor) else (end(output[0]), *output[1:])


def _split(module: nn.Module, kind: type[SplitExperts]) -> SplitExperts:
    own = dict(module.named_parameters(recurse=False))
    is_transposed = _is_transposed(own)
    experts = []
    for index in range(len(own[PROJECTIONS[0]])):
        linears: dict[str, nn.Module] = {}
        for name in PROJECTIONS:
            weight, bias = own[name][index].detach(), own.get(f"{name}_bias")
            linears[name] = _linear(
                weight.t() if is_transposed else weight, None if bias is None else bias[index].detach()
            )
        experts.append(Expert(linears))
    for name in own:
        delattr(module, name)  # what is left of it is how it gates
    return kind(experts, _gate(module), is_transposed)


def _gate(module: nn.Module) -> Gate:
    """What lies between the projections: an activation of the gate, or what the module alone can say."""
    activation = dict(module.named_children()).get(_ACTIVATION)
    if activation is not None:
        return GatedActivation(activation)
    own: Gate = module._apply_gate  # type: ignore[assignment]
    return own


def _linear(weight_OI: Tensor, bias_O: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False)
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    linear.register_parameter("bias", None if bias_O is None else nn.Parameter(bias_O, requires_grad=False))
    return linear
