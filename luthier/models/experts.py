"""A mixture of experts whose weights are apart: one linear layer for each expert and projection, so that each may be packed.

transformers keeps the weights of a layer's experts stacked, in one parameter for each projection. A `SplitExperts` computes the same
from linear layers of the same values; the router is not part of it, and stays as it is.
Shazeer et al. 2017, https://arxiv.org/abs/1701.06538, equation 1: y = Σ_e g_e(x) E_e(x), over the experts that the router chose.

Shapes: N tokens, K experts of each token, E experts, D width, F width within an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.models.anatomy import replace_module, weight_of

PROJECTIONS = ("gate_up_proj", "down_proj")
"""What transformers calls the stacked parameters; the biases end in `_bias`."""


class Expert(nn.Module):
    """One expert: its linear layers under the names of the stacked parameters."""

    def __init__(self, linears: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, linear in linears.items():
            self.register_module(name, linear)


class SplitExperts(nn.Module):
    """The experts of a layer, one by one, and what lies between their two projections.

    gate: from what the first gives, (N, 2F), to what the second takes, (N, F). is_transposed: whether a stacked parameter holds
    an expert's weight as (I, O).
    """

    def __init__(self, experts: list[Expert], gate: Callable[[Tensor], Tensor], is_transposed: bool) -> None:
        super().__init__()
        for index, expert in enumerate(experts):
            self.register_module(str(index), expert)
        self.gate = gate
        self.is_transposed = is_transposed

    def forward(self, x_ND: Tensor, chosen_NK: Tensor, share_NK: Tensor) -> Tensor:
        """Σ_k share · E_chosen(x), each expert over its own tokens, shape (N, D)."""
        out_ND = torch.zeros_like(x_ND)
        for index, token_M, place_M in self.routes(chosen_NK):
            expert = self.get_submodule(str(index))
            first, last = (expert.get_submodule(name) for name in PROJECTIONS)
            y_MD = last(self.gate(first(x_ND[token_M]))) * share_NK[token_M, place_M].unsqueeze(-1)
            out_ND = out_ND.index_add(0, token_M, y_MD.to(out_ND.dtype))
        return out_ND

    def routes(self, chosen_NK: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each expert that was chosen, its M tokens, and as which of their choices, both (M,)."""
        for index in chosen_NK.unique().tolist():
            token_M, place_M = torch.where(chosen_NK == index)
            yield index, token_M, place_M

    def stacked(self) -> dict[str, Tensor]:
        """The weights and biases as transformers' own module has them, by name, unpacked."""
        tensors: dict[str, Tensor] = {}
        for name in PROJECTIONS:
            linears = [expert.get_submodule(name) for expert in self.children()]
            weights = [weight_of(linear).detach() for linear in linears]
            tensors[name] = torch.stack([weight.t() if self.is_transposed else weight for weight in weights])
            biases = [dict(linear.named_parameters(recurse=False)).get("bias") for linear in linears]
            own = [bias.detach() for bias in biases if bias is not None]
            if own:
                tensors[f"{name}_bias"] = torch.stack(own)
        return tensors


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    """transformers' modules of stacked experts by name; empty where the model has none, or has them apart."""
    return {
        name: module
        for name, module in model.named_modules()
        if set(PROJECTIONS) <= {own for own, _ in module.named_parameters(recurse=False)}
    }


def layers_of_experts(parameter: str, count: int) -> tuple[str, ...]:
    """What the layers of a stacked parameter are called once they are apart."""
    mixture, _, projection = parameter.rpartition(".")
    return tuple(f"{mixture}.{index}.{projection}" for index in range(count))


def stacks_transposed(model: nn.Module, parameter: str) -> bool:
    """Whether a stacked parameter holds an expert's weight as (I, O)."""
    return bool(vars(model.get_submodule(parameter.rpartition(".")[0]))["is_transposed"])


def chosen_stacks(model: nn.Module, chosen: frozenset[str]) -> frozenset[str]:
    """The stacked parameters whose layers, once apart, are among these. Raises RecipeError if only some of its experts' are."""
    found = set()
    for mixture, module in experts_of(model).items():
        for name in (f"{mixture}.{projection}" for projection in PROJECTIONS):
            layers = set(layers_of_experts(name, len(module.get_parameter(name.rpartition(".")[2]))))
            if layers & chosen and not layers <= chosen:
                raise RecipeError(
                    f"Some of the experts of {name} are to be quantized and some are not.",
                    "Name all of them or none, as gate_up_proj and down_proj.",
                    field="quantization",
                )
            if layers <= chosen:
                found.add(name)
    return frozenset(found)


def split_experts(model: nn.Module, kind: type[SplitExperts] = SplitExperts) -> None:
    """Put a `SplitExperts` in the place of each module of stacked experts. The weights are views of the stacked ones."""
    for name, module in experts_of(model).items():
        replace_module(model, name, _split(module, kind))


def _split(module: nn.Module, kind: type[SplitExperts]) -> SplitExperts:
    own = dict(module.named_parameters(recurse=False))
    is_transposed = bool(vars(module)["is_transposed"])
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
    gate: Callable[[Tensor], Tensor] = module._apply_gate  # type: ignore[assignment]
    return kind(experts, gate, is_transposed)


def _linear(weight_OI: Tensor, bias_O: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False)
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    linear.register_parameter("bias", None if bias_O is None else nn.Parameter(bias_O, requires_grad=False))
    return linear
