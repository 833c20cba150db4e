"""Several adapters of one base made into one adapter, and what that costs on each run's held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods.adapter import generator_of
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.bank import AdaptedLinear, LinearBranch
from luthier.methods.lora import lora_of_factors
from luthier.ops.combining import dare, linear, prune, ties
from luthier.ops.spectrum import Factors, svd_of
from luthier.store.files import write_folder
from luthier.studies.merge_sources import Source, attach_source, check_sources, load_shared_base

Announce = Callable[[str], None]
How = Literal["linear", "svd", "ties", "dare", "prune"]
COMBINED = "combined"


@dataclass(frozen=True)
class Combined:
    """The new adapter: a LoRA in peft's format.

    ranks: by layer. relative_error: ‖what the adapter adds − what the rule says‖ / ‖what the rule says‖ over all layers.
    """

    out: Path
    how: How
    ranks: dict[str, int]
    relative_error: float

    def as_json(self) -> dict[str, Any]:
        """The result as one JSON document."""
        return {**vars(self), "out": str(self.out)}


def combine_runs(
    sources: Sequence[Source],
    out: Path,
    announce: Announce,
    *,
    how: How = "linear",
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> Combined:
    """Write one adapter that does what several do together.

    Args:
        how: `linear` is exact, its rank the sum of the ranks; the others are approximated at `rank`.
        rank: unset, the largest rank of any of the adapters.
        density: the share of entries that TIES, DARE and pruning keep. seed: of DARE's draws.

    Raises: UsageError; RecipeError for adapters of different bases, or that are no change of linear layers' weights.
    """
    check_sources(sources, out)
    model = load_shared_base(sources, announce)
    attachments = [attach_source(source, model, f"source {index}") for index, source in enumerate(sources)]
    by_layer = [_updates(attachment) for attachment in attachments]
    names = [name for name in model.anatomy.linears if any(name in updates for updates in by_layer)]
    weights = [source.weight for source in sources]
    factors: dict[str, Factors] = {}
    error = whole = 0.0
    for name in names:
        parts = [(updates[name], weight) for updates, weight in zip(by_layer, weights, strict=True) if name in updates]
        wanted = _combine(parts, how, density, generator_of(name, seed))
        factors[name] = wanted if isinstance(wanted, Factors) else svd_of(wanted).best(rank or _largest_rank(parts))
        dense = wanted.dense() if isinstance(wanted, Factors) else wanted
        error += float((factors[name].dense() - dense).double().square().sum())
        whole += float(dense.double().square().sum())
    attachment = lora_of_factors(model, COMBINED, factors)
    write_folder(out, lambda partial: attachment.write(partial, announce))
    ranks = {name: update.left_OR.shape[1] for name, update in factors.items()}
    return Combined(out, how, ranks, (error / whole) ** 0.5 if whole else 0.0)


def _updates(attachment: AdapterAttachment) -> Mapping[str, Tensor | Factors]:
    updates = {}
    if not attachment.layers:
        raise RecipeError(
            f"An adapter of {attachment.method.kind} is more than a change of linear layers, or none of them.",
            "Combine adapters of LoRA and its kin at linear layers.",
        )
    for name, layer in attachment.layers.items():
        branch = layer.branch(attachment.name)
        if not isinstance(layer, AdaptedLinear) or not isinstance(branch, LinearBranch):
            raise RecipeError(
                f"The adapter changes {name}, which is not a linear layer.",
                "Combine adapters of LoRA and its kin at linear layers.",
            )
        updates[name] = branch.update(layer)
    return updates


def _combine(
    parts: Sequence[tuple[Tensor | Factors, float]], how: How, density: float, generator: torch.Generator
) -> Tensor | Factors:
    if how == "linear" and all(isinstance(update, Factors) for update, _ in parts):
        return linear([u for u, _ in parts if isinstance(u, Factors)], [weight for _, weight in parts])
    dense_MOI = torch.stack(
        [weight * (update.dense() if isinstance(update, Factors) else update) for update, weight in parts]
    )
    if how == "ties":
        return ties(dense_MOI, density)
    if how == "prune":
        return prune(dense_MOI, density)
    return dare(dense_MOI, density, generator) if how == "dare" else dense_MOI.sum(0)


def _largest_rank(parts: Sequence[tuple[Tensor | Factors, float]]) -> int:
    ranks = [u.left_OR.shape[1] if isinstance(u, Factors) else min(u.shape) for u, _ in parts]
    return max(ranks)
