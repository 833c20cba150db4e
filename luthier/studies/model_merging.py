"""Several models, of runs that tuned one base whole or from elsewhere, made into one.

linear           Σ wₙ Wₙ / Σ wₙ: the weighted mean of the models.
slerp            of two models, tensor by tensor, along the arc between them: see `ops.combining`.
task-arithmetic  W₀ + Σ wₙ (Wₙ − W₀), with W₀ the base: Ilharco et al. 2023, https://arxiv.org/abs/2212.04089, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from luthier.errors import RecipeError, UsageError
from luthier.models.language_model import LanguageModel
from luthier.models.writing import put_weights, weights_of, write_model
from luthier.ops.combining import slerp
from luthier.store.files import write_folder
from luthier.studies.merge_sources import Source, check_sources, load_whole
from luthier.tuned import load_base

Announce = Callable[[str], None]
ModelHow = Literal["linear", "slerp", "task-arithmetic"]


@dataclass(frozen=True)
class MergedModel:
    """The new model: an ordinary transformers folder. num_weights: the numbers in it."""

    out: Path
    how: ModelHow
    num_weights: int

    def as_json(self) -> dict[str, Any]:
        """The result as one JSON document."""
        return {**vars(self), "out": str(self.out)}


def merge_models(sources: Sequence[Source], out: Path, announce: Announce, *, how: ModelHow = "linear") -> MergedModel:
    """Write one model made of several; two are in memory at once.

    Raises: UsageError; RecipeError for models of different bases, or with other weights than the first.
    """
    check_sources(sources, out)
    weights = [source.weight for source in sources]
    if how == "slerp" and len(sources) != 2:
        raise UsageError(f"slerp goes between two models, and there are {len(sources)}.", "Use --how linear.")
    if how != "task-arithmetic" and (min(weights) < 0 or sum(weights) == 0):
        raise UsageError("The weights of a mean are shares: none below 0, and not all 0.", "Use --how task-arithmetic.")
    run = next((source.folder for source in sources if source.recipe is not None), None)
    if how == "task-arithmetic" and run is None:
        raise UsageError(
            "task-arithmetic adds to the base what each model changed of it, and no run among these says which that is.",
            "Use --how linear.",
        )
    model = load_whole(sources[0], announce)
    with torch.no_grad():
        if how == "slerp":
            _into_slerp(model, sources[1], weights[1] / sum(weights), announce)
        else:
            _into_sum(model, sources, run if how == "task-arithmetic" else None, announce)
    write_folder(out, lambda partial: write_model(model, partial, model.dtype))
    return MergedModel(out, how, sum(tensor.numel() for tensor in weights_of(model).values()))


def _into_slerp(model: LanguageModel, other: Source, t: float, announce: Announce) -> None:
    pairs = _paired(model, load_whole(other, announce), str(other.folder))
    put_weights(model, ((name, slerp(own.float(), theirs.float(), t)) for name, own, theirs in pairs))


def _into_sum(model: LanguageModel, sources: Sequence[Source], run: Path | None, announce: Announce) -> None:
    """Σ of the models by their shares, kept in fp32 until the end. run: whose base has what is left of 1; None: they are a mean."""
    total = 1.0 if run is not None else sum(source.weight for source in sources)
    sums = {name: tensor.float() * (sources[0].weight / total) for name, tensor in _numbers(model).items()}
    for source in sources[1:]:
        _add(sums, model, load_whole(source, announce), source.weight / total, str(source.folder))
    if run is not None:
        left = 1 - sum(source.weight for source in sources)
        _add(sums, model, load_base(run, announce), left, f"The base of {run}")
    put_weights(model, sums.items())


def _add(sums: dict[str, Tensor], model: LanguageModel, other: LanguageModel, share: float, called: str) -> None:
    for name, _, theirs in _paired(model, other, called):
        sums[name] += share * theirs.float()


def _numbers(model: LanguageModel) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights_of(model).items() if tensor.is_floating_point()}


def _paired(model: LanguageModel, other: LanguageModel, called: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The name of each weight, the one's and the other's. Raises RecipeError where they, or the tokens, are not the same."""
    if model.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise RecipeError(
            f"{called} has other tokens than the first model.", "Merge models of one vocabulary, tuned from one base."
        )
    own, theirs = _numbers(model), _numbers(other)
    shapes = [{name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in (own, theirs)]
    if shapes[0] != shapes[1]:
        strange = sorted(name for name in {*own, *theirs} if shapes[0].get(name) != shapes[1].get(name))
        raise RecipeError(
            f"{called} has other weights than the first model: {strange[0]} among them.", "Merge models of one shape."
        )
    return ((name, tensor, theirs[name]) for name, tensor in own.items())
