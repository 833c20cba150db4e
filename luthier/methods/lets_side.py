"""The network of LeTS-style tuning: an LSTM over the layers, which reads of each what was reused or computed.

Shapes: B rows, T tokens, N = B T, L layers, D width of the base, H of the LSTM, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.methods.bank import AdaptedLinear, frozen_module
from luthier.methods.prompt_networks import draw_as_torch_does, empty_linear, empty_lstm
from luthier.methods.side_attention import AttentionsAlone
from luthier.methods.sparse_deltas import ChangedLinear, Delta
from luthier.models.anatomy import LayerAnatomy
from luthier.models.call import current_call
from luthier.models.language_model import LanguageModel
from luthier.models.sides import Side
from luthier.models.taps import Taps
from luthier.ops.draws import salt_of, uniforms

_EPS = 1e-6
_PROJECTIONS = ("query", "key", "value", "attention_out")


@dataclass(frozen=True)
class AttentionMacs:
    """Multiply-adds of one layer's attention: of a token's projections, and of a query meeting a key it may see."""

    per_token: int
    per_pair: int

    def of(self, num_tokens: int, num_pairs: int) -> int:
        """Those of so many tokens, whose queries meet so many keys in all."""
        return num_tokens * self.per_token + num_pairs * self.per_pair


class LeTSSide(Side):
    """The network at work over one base.

    settled: which layers compute, for good; None while the search goes on. temperature: τ of the search's next step.
    """

    def __init__(
        self, model: LanguageModel, width: int, settled: tuple[bool, ...] | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        layers, base_width = model.anatomy.layers, int(model.hf.config.hidden_size)
        self.lstm = empty_lstm(base_width, width, 1)
        self.project = empty_linear(2 * width, base_width)
        draw_as_torch_does(self, generator)
        nn.init.zeros_(self.project.bias)
        self.gate = nn.Parameter(torch.zeros(()))
        self.choice_L = nn.Parameter(torch.zeros(len(layers))) if settled is None else None
        changed = {
            place: _changed(model, place)
            for layer in layers
            if settled is None or settled[layer.index]
            for place in projections(layer)
        }
        self._deltas = nn.ModuleList([linear.delta for linear in changed.values()])
        self._places = tuple(changed)
        self._attentions = AttentionsAlone(model, changed)
        self._final_norm: Callable[[Tensor], Tensor] = model.final_norm
        self.macs = tuple(macs_of(model, layer) for layer in layers)
        self.settled = settled
        self.temperature = 5.0
        self._salt = salt_of("lets.choice")

    @property
    def taps(self) -> Taps:
        """All of them."""
        return Taps(tuple(range(len(self.macs) + 1)))

    @property
    def deltas(self) -> dict[str, Delta]:
        """The changes of linear layers by the layers' names."""
        pairs = zip(self._places, self._deltas, strict=True)
        return {place: delta for place, delta in pairs if isinstance(delta, Delta)}

    @property
    def trainables(self) -> dict[str, nn.Parameter]:
        """All trained tensors by name."""
        own = {f"{part}.{name}": tensor for part in ("lstm", "project") for name, tensor in self._of_part(part)}
        choice = {} if self.choice_L is None else {"choice": self.choice_L}
        deltas = {f"{place}.delta": delta.delta_OI for place, delta in self.deltas.items()}
        return {**own, "gate": self.gate, **choice, **deltas}

    def _of_part(self, part: str) -> list[tuple[str, nn.Parameter]]:
        return list(self.get_submodule(part).named_parameters())

    @property
    def computes(self) -> tuple[bool, ...]:
        """Which layers compute where nothing is drawn: as settled, or where α is not below 0."""
        if self.settled is not None:
            return self.settled
        assert self.choice_L is not None
        return tuple((self.choice_L >= 0).tolist())

    @property
    def expected_share(self) -> Tensor:
        """What the search expects to be computed of all attentions' multiply-adds by token: Σ σ(α) c / Σ c."""
        assert self.choice_L is not None
        cost_L = torch.tensor([float(macs.per_token) for macs in self.macs], device=self.choice_L.device)
        return (torch.sigmoid(self.choice_L) * cost_L).sum() / cost_L.sum()

    @property
    def macs_share(self) -> float:
        """What is computed of all attentions' multiply-adds by token."""
        pairs = list(zip(self.macs, self.computes, strict=True))
        return sum(macs.per_token for macs, computes in pairs if computes) / sum(macs.per_token for macs, _ in pairs)

    def forward(self, tapped: Mapping[int, Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """h_L + γ (z − h_L) of every token, through the base's final norm."""
        last_BTD = tapped[len(self.macs)]
        share_L = self._drawn_shares()
        computing = [index for index, computes in enumerate(self.computes) if computes or share_L is not None]
        attended = self._attentions({index: tapped[index] for index in computing}, inputs)
        states_LND = torch.stack(
            [
                self._state(tapped[index + 1], attended.get(index), None if share_L is None else share_L[index])
                for index in range(len(self.macs))
            ]
        )
        z_ND = self.fused(states_LND, last_BTD.flatten(0, 1).float())
        return self._final_norm(z_ND.view(last_BTD.shape).to(last_BTD.dtype))

    def _state(self, reused_BTD: Tensor, attended_BTD: Tensor | None, share: Tensor | None) -> Tensor:
        """g of a layer, shape (N, D)."""
        if attended_BTD is None:
            return unit(reused_BTD)
        return unit(attended_BTD) if share is None else torch.lerp(unit(reused_BTD), unit(attended_BTD), share)

    def _drawn_shares(self) -> Tensor | None:
        """How much each layer's attention counts in this pass of the search (L,); None where nothing is drawn."""
        draws = current_call().draws
        if self.settled is not None or draws is None:
            return None
        assert self.choice_L is not None
        uniform_L = uniforms(len(self.macs), draws.seed, draws.address, self._salt)
        noise_L = torch.logit(uniform_L).to(self.choice_L)
        return torch.sigmoid((self.choice_L + noise_L) / self.temperature)

    def fused(self, states_LND: Tensor, last_ND: Tensor) -> Tensor:
        """h_L + γ (z − h_L) for each row, given what is read of its layers; rows may be tokens or whatever is pooled."""
        _, (ends_2NH, _) = self.lstm(states_LND)
        projected_ND: Tensor = self.project(ends_2NH.transpose(0, 1).flatten(1))
        return last_ND + self.gate * (_rms(last_ND) * projected_ND - last_ND)


def unit(state_BTD: Tensor) -> Tensor:
    """RMS(h): each token's state over its root mean square, fp32, shape (N, D)."""
    state_ND = state_BTD.flatten(0, 1).float()
    return state_ND / _rms(state_ND)


def _rms(state_ND: Tensor) -> Tensor:
    return state_ND.square().mean(-1, keepdim=True).add(_EPS).sqrt()


def projections(layer: LayerAnatomy) -> tuple[str, ...]:
    """The linear layers of a layer's attention; one that gives queries, keys and values at once comes once."""
    return tuple(dict.fromkeys(layer.roles[role] for role in _PROJECTIONS))


def macs_of(model: LanguageModel, layer: LayerAnatomy) -> AttentionMacs:
    """What a layer's attention costs."""
    shapes = [_frozen_linear(model, place).weight.shape for place in projections(layer)]
    attended_width = _frozen_linear(model, layer.attention_out).weight.shape[1]
    return AttentionMacs(sum(outputs * inputs for outputs, inputs in shapes), 2 * attended_width)


def _frozen_linear(model: LanguageModel, place: str) -> AdaptedLinear:
    """The frozen linear layer of that name, seen through a bank that is not in the model."""
    return AdaptedLinear(frozen_module(model, place), place)


def _changed(model: LanguageModel, place: str) -> ChangedLinear:
    layer = _frozen_linear(model, place)
    return ChangedLinear(layer, Delta(*layer.weight.shape))
