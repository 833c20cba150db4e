"""What a run did to the weights: the spectrum of every layer's update, and the same update at a smaller rank.

Works on adapters whose effect on a linear layer is a change of its weight, and on fully tuned models, whose difference
to their base can so be taken out as a LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import RecipeError, UsageError
from luthier.methods import ADAPTER, AdapterMethod
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, LinearBranch
from luthier.methods.lora import lora_of_factors
from luthier.models.anatomy import weight_of
from luthier.models.heads import ClassHead
from luthier.models.language_model import LanguageModel
from luthier.ops.spectrum import SVD, Factors, effective_rank, energy_by_rank, rank_for, svd_of
from luthier.recipe import Recipe
from luthier.recipe.base import head_of
from luthier.store.files import write_folder
from luthier.studies.held_out import held_out_losses
from luthier.tuned import load_base, load_run

Announce = Callable[[str], None]

_MEND = "Look at a run of LoRA or its kin at linear layers, or of full tuning."

KEPT = 0.99
SMALLER = "smaller"
"""The name that the adapter of smaller rank bears beside the run's own."""


@dataclass(frozen=True)
class LayerUpdate:
    """What a run added to one linear layer's weight.

    layer: its transformer layer's index. role: the last part of its name. sigma_K: the singular values of the update,
    from the largest down. norm, base_norm: Frobenius norms of the update and of the weight it was added to.
    """

    name: str
    layer: int | None
    role: str
    sigma_K: Tensor
    base_norm: float

    @property
    def norm(self) -> float:
        """The update's Frobenius norm."""
        return float(self.sigma_K.double().square().sum().sqrt())

    @property
    def relative_norm(self) -> float:
        """The update's norm over the weight's."""
        return self.norm / self.base_norm if self.base_norm else 0.0

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the singular values' shares."""
        return effective_rank(self.sigma_K)

    def rank_for(self, energy: float) -> int:
        """The smallest rank that keeps this share of the energy."""
        return rank_for(self.sigma_K, energy)

    def as_json(self) -> dict[str, Any]:
        """The layer's figures as plain JSON."""
        return {
            "name": self.name,
            "layer": self.layer,
            "singular_values": [float(value) for value in self.sigma_K],
            "norm": self.norm,
            "relative_norm": self.relative_norm,
            "effective_rank": self.effective_rank,
            "rank_for_99_percent": self.rank_for(KEPT),
            "energy_by_rank": [float(value) for value in energy_by_rank(self.sigma_K)],
        }


@dataclass(frozen=True)
class Inspection:
    """Every layer that a run changed, in the model's order."""

    run: Path
    layers: tuple[LayerUpdate, ...]

    @property
    def rank_to_keep(self) -> int:
        """The smallest rank for all layers alike that keeps 99 % of the energy of all updates together."""
        longest = max(len(update.sigma_K) for update in self.layers)
        energy_K = torch.zeros(longest, dtype=torch.float64)
        for update in self.layers:
            energy_K[: len(update.sigma_K)] += update.sigma_K.double().square()
        return rank_for(energy_K.sqrt(), KEPT)

    def as_json(self) -> dict[str, Any]:
        """All figures as one JSON document."""
        layers = [update.as_json() for update in self.layers]
        return {"run": str(self.run), "rank_for_99_percent": self.rank_to_keep, "layers": layers}


def inspect_run(folder: Path, recipe: Recipe, announce: Announce) -> Inspection:
    """The spectrum of every linear layer's update. Raises RecipeError if the method does not change weights."""
    updates = _updates_of(_Tuned.load(folder, recipe, announce))
    layers = []
    for name, (update, base_OI, layer) in updates:
        svd = svd_of(update)
        layers.append(LayerUpdate(name, layer, name.rsplit(".", 1)[-1], svd.sigma_K.cpu(), float(base_OI.norm())))
    return Inspection(folder, tuple(layers))


@dataclass(frozen=True)
class Shrunk:
    """An update at a smaller rank, as a LoRA in peft's format.

    ranks: by layer. kept_energy: the share of all updates' energy. losses: nats per held-out token of base, run and
    smaller adapter; None where the run held out no rows. left_out: tensors of a tuned base that changed and are no linear
    layer's weight, so that no LoRA can hold their change.
    """

    out: Path
    ranks: dict[str, int]
    kept_energy: float
    num_before: int
    num_after: int
    losses: dict[str, float] | None
    left_out: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The result as one JSON document."""
        return {**vars(self), "out": str(self.out)}


def shrink_run(
    folder: Path,
    recipe: Recipe,
    out: Path,
    announce: Announce,
    *,
    rank: int | None = None,
    energy: float | None = None,
) -> Shrunk:
    """Write the closest LoRA of a rank, or of the smallest rank in each layer that keeps a share of the energy.

    Args:
        out: takes peft's two files; it must not exist.
        rank, energy: one of them.

    Raises: UsageError; RecipeError if the method does not change weights.
    """
    if (rank is None) == (energy is None):
        raise UsageError("Give either a rank or a share of the energy.", "Use --rank 4, or --energy 0.99.")
    if out.exists():
        raise UsageError(f"{out} is there already.", "Choose another folder with --out.")
    if isinstance(head_of(recipe), ClassHead):
        raise RecipeError(
            "The run trained a head for classes, which a smaller LoRA has no place for.",
            "Train anew with a smaller method.rank.",
            field="objective.kind",
        )
    tuned = _Tuned.load(folder, recipe, announce)
    ranks: dict[str, int] = {}
    smaller: dict[str, Factors] = {}
    kept = whole = 0.0
    for name, (update, _, _) in _updates_of(tuned):
        svd = svd_of(update)
        ranks[name] = _rank_of(svd, rank, energy)
        smaller[name] = svd.best(ranks[name])
        energy_K = svd.sigma_K.double().square()
        kept, whole = kept + float(energy_K[: ranks[name]].sum()), whole + float(energy_K.sum())
    attachment = lora_of_factors(tuned.base, SMALLER, smaller)
    losses = _losses(tuned, recipe, announce)
    write_folder(out, lambda partial: attachment.write(partial, announce))
    share = kept / whole if whole else 1.0
    left_out = _left_out(tuned)
    return Shrunk(out, ranks, share, tuned.num_trained, attachment.num_trainable, losses, left_out)


def _rank_of(svd: SVD, rank: int | None, energy: float | None) -> int:
    if rank is not None:
        return min(rank, len(svd.sigma_K))
    assert energy is not None
    return rank_for(svd.sigma_K, energy)


# ── the run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Tuned:
    """A finished run: its model, and the base that a smaller adapter goes onto.

    An adapter's run has one model, whose adapter is `adapter`; a tuned base has two.
    """

    model: LanguageModel
    base: LanguageModel
    adapter: str | None
    num_trained: int

    @staticmethod
    def load(folder: Path, recipe: Recipe, announce: Announce) -> _Tuned:
        model = load_run(folder, announce)
        if isinstance(recipe.method, AdapterMethod):
            return _Tuned(model, model, ADAPTER, _size_of_adapter(model))
        base = load_base(folder, announce)
        return _Tuned(model, base, None, sum(parameter.numel() for parameter in model.hf.parameters()))


def _size_of_adapter(model: LanguageModel) -> int:
    return sum(tensor.numel() for _, layer in _adapted(model) for tensor in layer.branch(ADAPTER).tensors.values())


def _adapted(model: LanguageModel) -> Iterator[tuple[str, AdaptedLayer]]:
    for name, module in model.hf.named_modules():
        if isinstance(module, AdaptedLayer) and ADAPTER in module.branches and module.name not in model.new_head:
            yield name, module


Update = tuple[Tensor | Factors, Tensor, int | None]
"""What was added to a weight, the weight it was added to (O, I), and the index of its transformer layer."""


def _updates_of(tuned: _Tuned) -> Iterator[tuple[str, Update]]:
    """Every linear layer's update by the layer's name. Raises RecipeError if there is none."""
    if tuned.adapter is None:
        yield from _differences(tuned.model, tuned.base)
        return
    found = list(_adapted(tuned.model))
    if not found:
        raise RecipeError("The run's adapter has no place in a linear layer.", _MEND)
    model = tuned.model
    if any(tuned.adapter in beside for beside in (model.virtual_tokens, model.edits, model.sides)):
        raise RecipeError("The run's adapter changes more than the linear layers.", _MEND)
    for name, layer in found:
        branch = layer.branch(ADAPTER)
        if not isinstance(layer, AdaptedLinear) or not isinstance(branch, LinearBranch):
            raise RecipeError(f"The run's adapter changes {name}, which is not a linear layer.", _MEND)
        yield name, (branch.update(layer), layer.weight.float(), tuned.model.anatomy.layer_of(name))


def _differences(model: LanguageModel, base: LanguageModel) -> Iterator[tuple[str, Update]]:
    for name in base.anatomy.linears:
        tuned_OI, base_OI = _weight(model.hf.get_submodule(name)), _weight(base.hf.get_submodule(name))
        if not torch.equal(tuned_OI, base_OI):
            yield name, (tuned_OI - base_OI, base_OI, base.anatomy.layer_of(name))


def _left_out(tuned: _Tuned) -> tuple[str, ...]:
    """What a tuned base changed beside its linear layers' weights."""
    if tuned.adapter is not None:
        return ()
    weights = {f"{name}.weight" for name in tuned.base.anatomy.linears}
    base = {name.replace(".base.", "."): tensor for name, tensor in tuned.base.hf.named_parameters()}
    changed = (name for name, tensor in tuned.model.hf.named_parameters() if not torch.equal(tensor, base[name]))
    return tuple(name for name in changed if name not in weights)


def _weight(module: nn.Module) -> Tensor:
    """A linear layer's weight as (O, I), fp32."""
    return weight_of(module).detach().float()


def _losses(tuned: _Tuned, recipe: Recipe, announce: Announce) -> dict[str, float] | None:
    """Held-out loss of the base, the run and the smaller adapter, on the rows that the run held out."""
    asked = {"base": (tuned.base, None), "run": (tuned.model, tuned.adapter), "smaller": (tuned.base, SMALLER)}
    return held_out_losses(recipe, asked, announce)
