"""`luthier inspect` and `luthier shrink`: what a run did to the weights, and the same with fewer numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.options import Json
from luthier.cli.output import aligned, emit, quoted, say

if TYPE_CHECKING:
    from luthier.studies.inspection import Inspection, Shrunk

_Run = Annotated[str, typer.Argument(help="The run: its folder, its name under runs/, or latest.")]
_PLOT, _ATTENTION = "inspection.png", "attention.png"
_SHOWN = 12


def inspect(
    run: _Run,
    text: Annotated[
        str | None, typer.Option("--text", help="Show instead where each head looks in this text, base against tuned.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the spectrum of each layer's update, and the rank that would keep 99 % of it; writes a picture."""
    if text is not None:
        _attention(run, text, as_json)
        return
    from luthier import api
    from luthier.recipe.loading import recipe_of_run
    from luthier.store.runs import find_run
    from luthier.studies.inspection import inspect_run
    from luthier.studies.inspection_plot import write_inspection_plot

    folder = find_run(run, api.RUNS)
    inspection = inspect_run(folder, recipe_of_run(folder), say)
    write_inspection_plot(inspection, folder / _PLOT)
    document = {**inspection.as_json(), "plot": str(folder / _PLOT)}
    emit(document, _text(inspection, folder / _PLOT), as_json)


def _attention(run: str, text: str, as_json: bool) -> None:
    from luthier import api
    from luthier.store.runs import find_run
    from luthier.studies.attention_maps import attention_maps, write_attention_plot

    tuned = api.load_text(run, say)
    base = api.base_of(run, tuned, say)
    maps = attention_maps(text, base.language_model, tuned.language_model, tuned.adapter)
    picture = find_run(run, api.RUNS) / _ATTENTION
    write_attention_plot(maps, picture)
    change_LH = maps.change_LH
    most = change_LH.flatten().topk(min(5, change_LH.numel()))
    heads = [divmod(int(index), change_LH.shape[1]) for index in most.indices]
    lines = [
        f"layer {layer}, head {head}: {share:.1%} of its look moved"
        for (layer, head), share in zip(heads, most.values.tolist(), strict=True)
    ]
    shown = ["Tokens: " + " | ".join(maps.tokens), "", *lines, "", f"Picture: {picture}"]
    emit({**maps.as_json(), "plot": str(picture)}, "\n".join(shown), as_json)


def shrink(
    run: _Run,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="The rank of every layer's update.")] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", min=0.01, max=1.0, help="Or: keep this share of each update's energy, such as 0.99."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The new adapter's folder; unset: in the run.")] = None,
    as_json: Json = False,
) -> None:
    """Write a run's update as a LoRA of smaller rank (the closest one), and measure what that costs."""
    from luthier import api
    from luthier.recipe.loading import recipe_of_run
    from luthier.store.places import expanded
    from luthier.store.runs import find_run
    from luthier.studies.inspection import shrink_run

    folder = find_run(run, api.RUNS)
    name = f"adapter-rank-{rank}" if rank is not None else f"adapter-energy-{energy}"
    result = shrink_run(folder, recipe_of_run(folder), expanded(out or folder / name), say, rank=rank, energy=energy)
    emit(result.as_json(), _text_of_shrunk(result), as_json)


def _text(inspection: Inspection, plot: Path) -> str:
    strongest = sorted(inspection.layers, key=lambda update: -update.relative_norm)
    rows = [("layer", "size/weight", "effective rank", "rank for 99 %")]
    for update in strongest[:_SHOWN]:
        rows.append(
            (update.name, f"{update.relative_norm:.4f}", f"{update.effective_rank:.1f}", str(update.rank_for(0.99)))
        )
    more = len(inspection.layers) - len(rows) + 1
    lines = [*aligned(rows), *([f"… and {more} layers that changed less (--json has all)"] if more > 0 else [])]
    kept = f"Rank {inspection.rank_to_keep} in every layer would keep 99 % of all updates' energy."
    return "\n".join(
        [*lines, "", kept, f"Smaller: luthier shrink {quoted(inspection.run)} --energy 0.99", f"Picture: {plot}"]
    )


def _text_of_shrunk(result: Shrunk) -> str:
    lines = [
        f"{result.num_after:,} numbers instead of {result.num_before:,}; "
        f"they keep {result.kept_energy:.2%} of the update's energy."
    ]
    if result.losses is None:
        lines.append("The run held out no rows, so the loss was not measured.")
    else:
        lines += [f"Held-out loss: {', '.join(f'{name} {loss:.4f}' for name, loss in result.losses.items())}"]
    if result.left_out:
        lines.append(
            f"Not in it, as no linear layer's weight: changes of {len(result.left_out)} tensors, "
            f"such as {result.left_out[0]}."
        )
    return "\n".join([*lines, str(result.out)])
