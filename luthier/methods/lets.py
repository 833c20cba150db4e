"""LeTS-style: a small network beside the base reads each layer's output, or in its stead an attention, sparsely changed.

After Fu et al. 2021, "Learn-to-Share", ICML, PMLR 139:3469-3479, of which only the abstract could be read. The paper's: one
frozen model whose activations the components of all tasks read, so that it runs once for all; a differentiable search
that decides, task by task, what is shared; weights W + Δ with a mask found by pruning early in training. Ours, for want
of the rest, is everything that makes these concrete. Of each token, with x_ℓ = h_{ℓ−1} what enters layer ℓ:

    a_ℓ = Attention_ℓ(x_ℓ) with W + M ⊙ Δ for its queries, keys, values and output;   g_ℓ = RMS(h_ℓ) or RMS(a_ℓ)
    z = rms(h_L) (U BiLSTM(g_1 … g_L) + c);   h_L + γ (z − h_L), through the base's final norm

RMS divides by the root mean square rms, U reads the last state of either direction, and γ = 0 at the start, so that
training begins at the base. h_ℓ is reused as it is; a_ℓ is computed anew: that is what the choice of a layer is about.

Beside an encoder with a head for classes (the paper's trials were with BERT on GLUE) that is so for one token of each text
alone, the one that the head reads: a_ℓ is made of its query and of the keys and values of all tokens of the text
(`pooled_attention.py`). Beside an encoder-decoder it is the decoder's layers that are read, and their self-attentions that
are computed anew.

Search: for the first steps g_ℓ mixes both, RMS(a_ℓ) by σ((α_ℓ + noise) / τ) with logistic noise (Gumbel-softmax of two),
τ falling from 5 to 0.5, and the loss gains the expected share of the attentions' multiply-adds, times a weight that rises
from 0 to λ in the search's second half (while γ is all but closed, that would be all that α hears of). Weights and α train
together, α from 0. Then α_ℓ ≥ 0 computes for good. Pruning: for some steps |∂L/∂Δ| is summed, and the places with the
highest sums become M. From then on Δ is the numbers at these places alone, which begin at zero with a fresh optimizer's
state (`sparse_deltas.py`); until then Δ, its gradient, its optimizer's state and the sums are five times the attentions'
weights in fp32.

A pass without draws (evaluation, generation) goes by the sign of α from the first step on. In generation the computed
attentions have keys and values of their own.

Merges: no. Deep backward: no. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: Σ O I over the attentions' linear layers, of which the pruning leaves a share of `density` in the layers
that compute; + 8 H (D + H + 2) + 2 H D + D + L + 1 for width H. The file holds a place and a value for each kept number.
Shapes: N tokens, L layers, D width of the base, H of the LSTM, O outputs, I inputs, K kept places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import AdapterFile, OwnForm
from luthier.methods.contract import Group, Kin, StepDone, Traits
from luthier.methods.lets_side import LeTSSide
from luthier.methods.side import SideAttachment, SideMethod
from luthier.methods.sparse_deltas import Delta, strongest_places
from luthier.models.language_model import LanguageModel

_HOTTEST, _COLDEST = 5.0, 0.5
_DELTA = ".delta"
_INDICES, _VALUES = ".indices", ".values"
_KEPT = "kept."

Choice = Literal["reuse", "compute"]


@dataclass(frozen=True)
class Schedule:
    """The last step of the search, and the step after which the deltas are pruned; counted from 1."""

    search: int
    prune: int

    def temperature(self, step: int) -> float:
        """τ in a step of the search: it falls by the same factor each time."""
        done = (step - 1) / max(1, self.search - 1)
        return float(_HOTTEST * (_COLDEST / _HOTTEST) ** done)


class LeTS(SideMethod):
    """Reuse a layer's output or compute its attention anew, sparsely changed."""

    family: ClassVar[Kin] = "additive"
    paper: ClassVar[str] = "Fu et al. 2021, ICML, PMLR 139:3469-3479"
    count: ClassVar[str] = (
        "Σ O I over the attentions' linear layers (once pruned: density times those that compute) + 8 H (D + H + 2) + 2 H D + D + L + 1, with H = width"
    )
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=False, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 3e-3
    form: ClassVar[OwnForm] = OwnForm("lets")
    free_fields: ClassVar[frozenset[str]] = frozenset({"density", "search_share", "macs_weight", "prune_steps"})

    kind: Literal["lets"] = "lets"
    width: int | None = Field(
        None, ge=1, description="Width of the LSTM in either direction. Unset: an eighth of the base's."
    )
    density: float = Field(
        0.01, gt=0, le=1, description="Share of each matrix's numbers that still train after the pruning."
    )
    choices: tuple[Choice, ...] | None = Field(
        None,
        description="For each layer (of an encoder-decoder: of its decoder), the first first: reuse its output, or compute its attention. Unset: the run searches.",
    )
    search_share: float = Field(0.1, gt=0, lt=1, description="Share of the steps that search for the choices.")
    macs_weight: float = Field(
        0.01,
        ge=0,
        allow_inf_nan=False,
        description="Weight λ of the computed share of multiply-adds in the loss at the search's end; higher: more is reused.",
    )
    prune_steps: int | None = Field(
        None,
        ge=2,
        description="Steps after the search over which gradients are summed before the pruning. Unset: a twentieth of the run.",
    )

    def schedule(self, num_steps: int) -> Schedule:
        """The course of a run of that many steps. Raises RecipeError if no step is left after the pruning."""
        search = max(1, round(num_steps * self.search_share)) if self.choices is None else 0
        prune = search + (max(2, num_steps // 20) if self.prune_steps is None else self.prune_steps)
        if prune >= num_steps:
            raise RecipeError(
                f"The search takes {search} steps and the sums before the pruning {prune - search}, "
                f"but the run has only {num_steps} steps.",
                "Lower method.search_share or method.prune_steps, or train for more steps.",
                field="method.prune_steps",
            )
        return Schedule(search, prune)

    def side(self, model: LanguageModel, generator: torch.Generator) -> LeTSSide:
        """The side network. Raises RecipeError for choices that are not one a layer, and beside some encoders."""
        anatomy = model.anatomy
        if anatomy.family.kind == "encoder" and (anatomy.norms_first or not anatomy.family.attends_by_interface):
            raise RecipeError(
                f"The attention of models of type {anatomy.model_type!r} cannot be run for one token of a text alone, as this "
                "method does beside an encoder: it has positions of its own.",
                "Set method.kind to ladder or attention-fusion, or choose a bert, roberta or distilbert.",
                field="method.kind",
            )
        num_layers = len(model.anatomy.answering)
        if self.choices is not None and len(self.choices) != num_layers:
            raise RecipeError(
                f"method.choices has {len(self.choices)} entries, and the model {num_layers} layers to choose for.",
                "Give one for each layer, or leave it out.",
                field="method.choices",
            )
        computes = None if self.choices is None else tuple(choice == "compute" for choice in self.choices)
        width = max(1, int(model.hf.config.hidden_size) // 8) if self.width is None else self.width
        return LeTSSide(model, width, computes, generator)

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """The side network under the adapter's name, and what leads it through search and pruning."""
        super().place(model, name, seed, fast)
        side = model.sides[name]
        assert isinstance(side, LeTSSide)
        return LeTSAttachment(self, model, name, side)

    def understood(self, file: AdapterFile, model: LanguageModel) -> AdapterFile:
        """The file without what it says for the reader alone."""
        settings = {name: value for name, value in file.settings.items() if name != "macs_share"}
        return replace(file, settings=settings)

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """The LSTM's and the projection's matrices, which decay; vectors and gate; α, ten times as fast; Δ, a tenth."""
        deltas = {name: tensor for name, tensor in tensors.items() if name.endswith(_DELTA)}
        choices = {name: tensor for name, tensor in tensors.items() if name == "choice"}
        others = {name: tensor for name, tensor in tensors.items() if name not in {**deltas, **choices}}
        groups = (
            Group({name: tensor for name, tensor in others.items() if tensor.dim() > 1}),
            Group({name: tensor for name, tensor in others.items() if tensor.dim() <= 1}, decays=False),
            Group(choices, lr_factor=10.0, decays=False),
            Group(deltas, lr_factor=0.1, decays=False),
        )
        return tuple(group for group in groups if group.tensors)


class LeTSAttachment(SideAttachment):
    """The side network at work; it goes from the search to the pruning and on to what is left of the deltas."""

    def __init__(self, lets: LeTS, model: LanguageModel, name: str, side: LeTSSide) -> None:
        super().__init__(lets, model, name, {}, shared=side.trainables)
        self.lets = lets
        self.side = side
        self.scores: dict[str, Tensor] = {}

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What each layer does: as settled, or as it would be if the search ended now."""
        return tuple("compute" if computes else "reuse" for computes in self.side.computes)

    def extra_loss(self) -> Tensor | None:
        """The expected share of multiply-adds during the search, times λ's part that it has come to."""
        cooled = math.log(_HOTTEST / self.side.temperature) / math.log(_HOTTEST / _COLDEST)
        weight = self.lets.macs_weight * max(0.0, 2 * cooled - 1)
        return None if self.side.settled is not None or weight == 0 else weight * self.side.expected_share

    def after_step(self, done: StepDone) -> bool:
        """Cool the search down, settle its choices, weigh the deltas, and at last keep of them what weighs most."""
        if self._is_pruned:
            return False
        schedule = self.lets.schedule(done.num_steps)
        if self.side.settled is None:
            self.side.temperature = schedule.temperature(done.number + 1)
            if done.number >= schedule.search:
                self.side.settled = self.side.computes
            return False
        for place in self.side.computed:
            gradient = done.gradients.get(place + _DELTA)
            if gradient is not None:
                summed = self.scores.setdefault(place, torch.zeros_like(gradient))
                summed.add_(gradient.abs())
        if done.number < schedule.prune:
            return False
        self._prune()
        return True

    def _prune(self) -> None:
        """Keep the places with the highest sums, and none where the attention is not computed."""
        none = torch.zeros(0, dtype=torch.int64)
        for place, delta in self.side.deltas.items():
            scores_OI = self.scores.get(place)
            delta.begin_anew(none if scores_OI is None else strongest_places(scores_OI, self.lets.density))
        self.scores = {}
        self.shared = self.side.trainables

    @property
    def _is_pruned(self) -> bool:
        return all(delta.kept_K is not None for delta in self.side.deltas.values()) and self.side.settled is not None

    def state(self) -> dict[str, Tensor]:
        """How far search and pruning are."""
        settled = self.side.settled
        state = {f"scores.{place}": summed for place, summed in self.scores.items()}
        kept = {_KEPT + place: delta.kept_K for place, delta in self.side.deltas.items()}
        state |= {name: kept_K for name, kept_K in kept.items() if kept_K is not None}
        state["temperature"] = torch.tensor(self.side.temperature, dtype=torch.float64)
        if settled is not None:
            state["settled"] = torch.tensor(settled)
        return {name: tensor.detach().clone().cpu() for name, tensor in state.items()}

    def trained_shapes(self, state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Of each delta as many numbers as were kept, or all of it before the pruning."""
        shapes = {name: shape for name, shape in super().trained_shapes(state).items() if not name.endswith(_DELTA)}
        for place, delta in self.side.deltas.items():
            kept_K = state.get(_KEPT + place)
            if kept_K is None or len(kept_K):
                shapes[place + _DELTA] = delta.shape if kept_K is None else tuple(kept_K.shape)
        return shapes

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.side.temperature = float(state["temperature"])
        self.side.settled = tuple(state["settled"].tolist()) if "settled" in state else None
        device = self.model.device
        self.scores = {
            place: state[f"scores.{place}"].to(device) for place in self.side.deltas if f"scores.{place}" in state
        }
        for place, delta in self.side.deltas.items():
            delta.begin_anew(state.get(_KEPT + place))
        self.shared = self.side.trainables

    def file_settings(self) -> dict[str, Any]:
        """The settings with the choices and, for the reader, the share of multiply-adds that they leave."""
        settings = {**super().file_settings(), "choices": self.choices, "macs_share": round(self.side.macs_share, 4)}
        return {**settings, "width": self.side.lstm.hidden_size}

    def file_tensors(self) -> dict[str, Tensor]:
        """LSTM, projection and gate, and of the computed attentions the places and values that are kept."""
        tensors = {name: tensor.detach() for name, tensor in self._plain.items()}
        for place in self.side.computed:
            places_K, values_K = self.side.deltas[place].packed()
            tensors |= {place + _DELTA + _INDICES: places_K, place + _DELTA + _VALUES: values_K}
        return tensors

    @torch.no_grad()
    def load(self, file: AdapterFile) -> None:
        """Take the tensors of a file. Raises RecipeError for missing, unexpected or misshapen ones."""
        self.extra, self.trained_on = file.extra, file.base
        packed = {
            place: tuple(place + _DELTA + ending for ending in (_INDICES, _VALUES)) for place in self.side.computed
        }
        file.check_names({*self._plain, *(name for names in packed.values() for name in names)})
        for name, tensor in self._plain.items():
            file.check_shape(name, tuple(tensor.shape))
            tensor.copy_(file.tensors[name])
        for place, (indices, values) in packed.items():
            delta = self.side.deltas[place]
            _check_places(file, indices, delta)
            file.check_shape(values, tuple(file.tensors[indices].shape))
            delta.unpack(file.tensors[indices], file.tensors[values])
        self.shared = self.side.trainables
        if file.head:
            self.head.load(file)

    @property
    def _plain(self) -> dict[str, nn.Parameter]:
        """What the file holds whole."""
        return {name: tensor for name, tensor in self.shared.items() if name != "choice" and not name.endswith(_DELTA)}

    def write(self, folder: Path, announce: Callable[[str], None]) -> None:
        """Write the adapter, and say what was chosen."""
        super().write(folder, announce)
        computing = [str(index) for index, computes in enumerate(self.side.computes) if computes]
        count = sum(len(self.side.deltas[place].packed()[1]) for place in self.side.computed)
        announce(
            f"LeTS-style: the attention of {len(computing)} of {len(self.choices)} layers is computed anew "
            f"({', '.join(computing) or 'none'}), {self.side.macs_share:.0%} of all attentions' multiply-adds; "
            f"{count:,} of their weights are changed."
        )


def _check_places(file: AdapterFile, name: str, delta: Delta) -> None:
    """Raise RecipeError unless a tensor holds places of a matrix, each once and in order."""
    places_K, size = file.tensors[name], math.prod(delta.shape)
    is_sound = places_K.dim() == 1 and not places_K.is_floating_point()
    if is_sound and len(places_K):
        steps = places_K.long().diff()
        is_sound = bool((steps > 0).all()) and int(places_K[0]) >= 0 and int(places_K[-1]) < size
    if not is_sound:
        raise RecipeError(
            f"{name} does not name places of a matrix of {size} numbers, in order.",
            "Choose the base model that the adapter was trained on, or write it again.",
            file=file.path,
        )
