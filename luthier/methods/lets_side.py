"""The network of LeTS-style tuning: an LSTM over the layers, which reads of each what was reused or computed.

It reads all tokens; beside an encoder, the one of each text that its head for classes reads: the pooled one, the first.
Shapes: B rows, T tokens, Q read tokens of a row, N = B Q, L layers, D width of the base, H of the LSTM, O outputs, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.methods.bank import AdaptedLinear, frozen_module
from luthier.methods.pooled_attention import PooledAttentions
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
_OF_QUERY = ("query", "attention_out")


@dataclass(frozen=True)
class AttentionMacs:
    """Multiply-adds of one layer's attention.

    per_token: the linear layers that every token goes through. per_text: those that only its pooled token goes through.
    per_pair: a query meeting a key that it may see.
    """

    per_token: int
    per_pair: int
    per_text: int = 0

    def of(self, num_tokens: int, num_pairs: int, num_texts: int = 0) -> int:
        """Those of so many tokens in so many texts, where queries meet so many keys in all."""
        return num_tokens * self.per_token + num_pairs * self.per_pair + num_texts * self.per_text


class LeTSSide(Side):
    """The network at work over one base.

    settled: which layers compute, for good; None while the search goes on. temperature: τ of the search's next step.
    """

    def __init__(
        self, model: LanguageModel, width: int, settled: tuple[bool, ...] | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        layers, base_width = model.anatomy.answering, int(model.hf.config.hidden_size)
        self.lstm = empty_lstm(base_width, width, 1)
        self.project = empty_linear(2 * width, base_width)
        draw_as_torch_does(self, generator)
        nn.init.zeros_(self.project.bias)
        self.gate = nn.Parameter(torch.zeros(()))
        self.choice_L = nn.Parameter(torch.zeros(len(layers))) if settled is None else None
        self._layer_of = {
            place: index
            for index, layer in enumerate(layers)
            if settled is None or settled[index]
            for place in projections(layer)
        }
        changed = {place: _changed(model, place) for place in self._layer_of}
        self._deltas = nn.ModuleList([linear.delta for linear in changed.values()])
        is_pooled = reads_pooled(model)
        self._num_read = 1 if is_pooled else None
        self._attentions: AttentionsAlone | PooledAttentions = (
            PooledAttentions(model, changed) if is_pooled else AttentionsAlone(model, changed)
        )
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
        pairs = zip(self._layer_of, self._deltas, strict=True)
        return {place: delta for place, delta in pairs if isinstance(delta, Delta)}

    @property
    def computed(self) -> tuple[str, ...]:
        """The linear layers of the attentions that are computed where nothing is drawn."""
        computes = self.computes
        return tuple(place for place, index in self._layer_of.items() if computes[index])

    @property
    def trainables(self) -> dict[str, nn.Parameter]:
        """All trained tensors by name; where the pruning left no place, there is none."""
        own = {f"{part}.{name}": tensor for part in ("lstm", "project") for name, tensor in self._of_part(part)}
        choice = {} if self.choice_L is None else {"choice": self.choice_L}
        deltas = {f"{place}.delta": delta.numbers for place, delta in self.deltas.items() if len(delta.numbers)}
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
        """h_L + γ (z − h_L) of every token that is read, h_L of any other, through the base's final norm."""
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
        last_BQD = self._read(last_BTD)
        z_ND = self.fused(states_LND, last_BQD.flatten(0, 1).float())
        z_BQD = z_ND.view(last_BQD.shape).to(last_BTD.dtype)
        unread_BTD = last_BTD[:, z_BQD.shape[1] :]
        return self._final_norm(torch.cat([z_BQD, unread_BTD], dim=1) if unread_BTD.shape[1] else z_BQD)

    def _read(self, states_BTD: Tensor) -> Tensor:
        """The states of the tokens that are read (B, Q, D): of all, or of the first of every row."""
        return states_BTD[:, : self._num_read]

    def _state(self, reused_BTD: Tensor, attended_BQD: Tensor | None, share: Tensor | None) -> Tensor:
        """g of a layer, shape (N, D)."""
        reused_BQD = self._read(reused_BTD)
        if attended_BQD is None:
            return unit(reused_BQD)
        return unit(attended_BQD) if share is None else torch.lerp(unit(reused_BQD), unit(attended_BQD), share)

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


def reads_pooled(model: LanguageModel) -> bool:
    """Whether one token of each text is read rather than all."""
    anatomy = model.anatomy
    return anatomy.family.kind == "encoder" and anatomy.purpose == "classes" and not anatomy.reads_tokens


def macs_of(model: LanguageModel, layer: LayerAnatomy) -> AttentionMacs:
    """What a layer's attention costs: where a text's pooled token alone asks, queries and outputs are made for it alone."""
    alone = [layer.roles[role] for role in _OF_QUERY] if reads_pooled(model) else []
    sizes = {place: math.prod(_frozen_linear(model, place).shape) for place in projections(layer)}
    per_text = sum(sizes[place] for place in alone)
    attended_width = _frozen_linear(model, layer.attention_out).shape[1]
    return AttentionMacs(sum(sizes.values()) - per_text, 2 * attended_width, per_text)


def _frozen_linear(model: LanguageModel, place: str) -> AdaptedLinear:
    """The frozen linear layer of that name, seen through a bank that is not in the model."""
    return AdaptedLinear(frozen_module(model, place), place)


def _changed(model: LanguageModel, place: str) -> ChangedLinear:
    layer = _frozen_linear(model, place)
    return ChangedLinear(layer, Delta(*layer.shape))
