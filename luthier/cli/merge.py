"""`luthier merge`: several adapters of one base, or several models tuned from one, made into one."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from luthier.cli.options import Json
from luthier.cli.output import emit, say
from luthier.errors import UsageError

if TYPE_CHECKING:
    from luthier.studies.combining import How as AdapterHow
    from luthier.studies.model_merging import ModelHow


class How(StrEnum):
    """The rules that --how takes."""

    LINEAR = "linear"
    SVD = "svd"
    TIES = "ties"
    DARE = "dare"
    PRUNE = "prune"
    SLERP = "slerp"
    TASK_ARITHMETIC = "task-arithmetic"


_OF_MODELS = (How.LINEAR, How.SLERP, How.TASK_ARITHMETIC)
_OF_ADAPTERS = (How.LINEAR, How.SVD, How.TIES, How.DARE, How.PRUNE)


def merge(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Two or more of one base model: runs; or folders, of adapters in peft's form or of models."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder of the new adapter or model.")],
    how: Annotated[
        How,
        typer.Option(
            "--how",
            help="Adapters: linear, the exact sum; svd, the sum at --rank; ties, dare, prune, at --rank. "
            "Models that runs tuned whole: linear, the mean; slerp, of two; task-arithmetic, the base and the sum of the changes.",
        ),
    ] = How.LINEAR,
    weight: Annotated[
        list[float] | None, typer.Option("--weight", help="One for each run, in their order; unset: all 1.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Rank of the new adapter; unset: the largest of the runs'.")
    ] = None,
    density: Annotated[
        float, typer.Option("--density", min=0.01, max=1.0, help="Share of entries that ties, dare and prune keep.")
    ] = 0.5,
    seed: Annotated[int, typer.Option("--seed", help="Of dare's draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Make one LoRA from the adapters of several runs, or one model from several that were tuned whole."""
    from luthier import api
    from luthier.store.places import expanded
    from luthier.studies.combining import combine_runs
    from luthier.studies.merge_sources import read_source
    from luthier.studies.model_merging import merge_models

    weights = weight or [1.0] * len(runs)
    if len(weights) != len(runs):
        raise UsageError(f"There are {len(runs)} runs and {len(weights)} weights.", "Give one --weight for each run.")
    if how is How.LINEAR and rank is not None:
        raise UsageError("The exact sum has the sum of the ranks.", "Use --how svd with --rank.")
    sources = [read_source(run, api.RUNS, share) for run, share in zip(runs, weights, strict=True)]
    are_models = all(source.is_model for source in sources)
    if how not in (_OF_MODELS if are_models else _OF_ADAPTERS):
        known = ", ".join(_OF_MODELS if are_models else _OF_ADAPTERS)
        raise UsageError(
            f"{'Models that were tuned whole' if are_models else 'Adapters'} are not merged by {how.value}.",
            f"Choose --how {known}.",
        )
    if are_models:
        merged = merge_models(sources, expanded(out), say, how=cast("ModelHow", how.value))
        emit(merged.as_json(), str(out), as_json)
        return
    result = combine_runs(
        sources, expanded(out), say, how=cast("AdapterHow", how.value), rank=rank, density=density, seed=seed
    )
    ranks = sorted(set(result.ranks.values()))
    say(
        f"{len(result.ranks)} layers of rank {', '.join(map(str, ranks))}; "
        f"off what {how.value} asks for by {result.relative_error:.2%}."
    )
    emit(result.as_json(), str(out), as_json)
