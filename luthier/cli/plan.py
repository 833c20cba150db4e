"""`luthier plan`: what a recipe needs, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.options import Json, Overrides
from luthier.cli.output import aligned, emit, say
from luthier.errors import UsageError
from luthier.sizes import parse_size, readable_bytes

if TYPE_CHECKING:
    from luthier.planner.arithmetic import Fact
    from luthier.planner.plan import Plan
    from luthier.planner.table import TableRow


def plan(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    device_memory: Annotated[
        str | None,
        typer.Option(
            "--device-memory", help="What the run may use, such as 24GiB; unset: the GPU's, or what is free here."
        ),
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Plan for a GPU, which need not be here.")] = False,
    shards: Annotated[
        int, typer.Option("--shards", min=1, help="Ranks that share weights, gradients and optimizer state (FSDP2).")
    ] = 1,
    price_per_hour: Annotated[
        float | None, typer.Option("--price-per-hour", min=0, help="What an hour of the machine costs.")
    ] = None,
    no_time: Annotated[bool, typer.Option("--no-time", help="Do not measure how long steps take here.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Compare methods and quantizations for this model.")] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Say how much memory, disk and time a recipe needs, without loading weights."""
    from luthier.planner.arithmetic import facts
    from luthier.planner.plan import Target, make_plan, memory_of, within_limit
    from luthier.planner.table import make_table
    from luthier.recipe import load_recipe
    from luthier.studies.planning import is_here, planned_device, read_request

    settings = load_recipe(recipe, overrides or ())
    device = planned_device(settings, gpu)
    untimed = _untimed(shards, no_time, table, is_elsewhere=gpu or not is_here(device))
    if price_per_hour is not None and untimed is not None:
        raise UsageError(
            f"--price-per-hour needs a time, and none is measured: {untimed}.",
            "Leave --price-per-hour out, or plan on the machine that is paid for, without --gpu, --shards, --no-time and --table.",
        )
    memory = memory_of(device) if device_memory is None else parse_size(device_memory)
    memory = within_limit(settings, device, memory)
    target = Target(device, memory, shards, price_per_hour)
    settings, config, rows = read_request(settings, say)
    if table:
        found, quoted = make_table(settings, config, rows, target, say), facts()
        values = {"rows": [asdict(row) for row in found], "arithmetic": [asdict(fact) for fact in quoted]}
        emit({"memory_bytes": memory, **values}, table_text(found, quoted, memory), as_json)
        return
    made = make_plan(settings, config, rows, target, untimed=untimed, announce=say)
    emit(plan_document(made), plan_text(made, priced=price_per_hour is not None), as_json)


def _untimed(shards: int, no_time: bool, table: bool, *, is_elsewhere: bool) -> str | None:
    """Why no time is measured; None: it is."""
    if no_time:
        return "--no-time asks for none"
    if table:
        return "a table compares memory alone"
    if is_elsewhere:
        return "the plan is for a GPU that need not be here"
    return "what ranks send each other is not measured" if shards > 1 else None


def plan_document(made: Plan) -> dict[str, Any]:
    """The plan as one JSON document."""
    values = asdict(made)
    return {**values, "disk_bytes": sum(made.disk_bytes.values()), "disk_parts": dict(made.disk_bytes)}


def plan_text(made: Plan, *, priced: bool = False) -> str:
    """The plan as a table, with a sentence for what it comes to. priced: whether a price was given."""
    parts = sorted(made.parts.items(), key=lambda item: -item[1])
    rows = [(part, readable_bytes(count)) for part, count in parts if count]
    rows.append(("together", readable_bytes(made.peak_bytes)))
    lines = [
        f"Most memory: during the {made.phase}, with {made.workers} worker(s) and {made.in_batch:,} tokens in a micro-batch.",
        *("  " + line for line in aligned(rows)),
        f"That {_judged(made)} {readable_bytes(made.memory_bytes)}{' on each rank' if made.shards > 1 else ''}.",
        f"Disk: {readable_bytes(sum(made.disk_bytes.values()))}. Steps: {made.num_steps:,}, {made.tokens:,} tokens."
        f" {made.num_trainable:,} of {made.num_parameters:,} numbers train.",
    ]
    if made.are_imagined:
        lines.append("The rows were not read: each was taken to be as long as the recipe allows.")
    if made.seconds is not None:
        without = ", ".join(made.beside_seconds)
        lines.append(f"Time on this machine: about {_duration(made.seconds)}{_cost(made)}, without {without}.")
    else:
        lines.append(f"Time: not measured: {made.untimed}.{' So there is no cost.' if priced else ''}")
    if made.levers:
        lines.append("What would help most:")
        lines += [f"  {lever.change}: {readable_bytes(lever.peak_bytes)}" for lever in made.levers]
    return "\n".join(lines)


def _judged(made: Plan) -> str:
    return {"fits": "fits into", "tight": "just fits into", "does not fit": "does not fit into"}[made.verdict]


def _cost(made: Plan) -> str:
    return "" if made.cost is None else f", which costs {made.cost:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def table_text(rows: Sequence[TableRow], quoted: Sequence[Fact], memory: int) -> str:
    """Methods beside each other, and the arithmetic that such numbers are often guessed by."""
    head = ("method", "quantization", "checkpointing", "trained", "peak", "")
    cells = [
        (
            row.method,
            row.quantization or "none",
            "yes" if row.gradient_checkpointing else "no",
            "" if row.num_trainable is None else f"{row.num_trainable:,}",
            "" if row.peak_bytes is None else readable_bytes(row.peak_bytes),
            row.verdict or row.refusal,
        )
        for row in rows
    ]
    known = [(fact.what, fact.amount, fact.why) for fact in quoted]
    return "\n".join(
        [f"Into {readable_bytes(memory)}:", *aligned([head, *cells]), "", "Often quoted, and why:", *aligned(known)]
    )
