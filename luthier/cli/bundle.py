"""`luthier bundle` and `luthier replay`: a run in one file, and the same run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.options import Json, Overrides, PlainAllocator
from luthier.cli.output import emit, quoted, say
from luthier.cli.process import keep_freed_memory


def bundle(
    run: Annotated[str, typer.Argument(help="The run: its folder, its name under runs/, or latest.")],
    out: Annotated[Path | None, typer.Option("--out", help="The new file; unset: RUN.bundle.zip here.")] = None,
    with_data: Annotated[bool, typer.Option("--with-data", help="Put the rows into it too.")] = False,
    as_json: Json = False,
) -> None:
    """Write what a run was made from and what it came to into one file that `luthier replay` carries out again."""
    from luthier import api
    from luthier.store.places import expanded
    from luthier.store.runs import find_run
    from luthier.studies.bundles import write_bundle

    folder = find_run(run, api.RUNS)
    file = Path(f"{folder.absolute().name}.bundle.zip") if out is None else expanded(out)
    manifest = write_bundle(folder, file, say, with_data=with_data)
    outside = [named.name for named in manifest.data if named.member is None]
    if outside:
        say(f"Not in it, but by their hashes: {', '.join(outside)}. --with-data puts the rows in.")
    say(f"Next:  luthier replay {quoted(file)}")
    emit({"file": str(file), "manifest": manifest.model_dump(mode="json")}, str(file), as_json)


def replay(
    bundle: Annotated[Path, typer.Argument(help="The file that `luthier bundle` wrote.")],
    out: Annotated[Path | None, typer.Option("--out", help="The new run's folder; unset: runs/NAME-N.")] = None,
    overrides: Overrides = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="How far losses may lie apart, as a share, where bits differ.")
    ] = 0.01,
    plain_allocator: PlainAllocator = False,
    as_json: Json = False,
) -> None:
    """Carry out a bundle's run again and say whether its bits, or else its numbers, come out the same."""
    from luthier.cli.display import TrainingDisplay

    with TrainingDisplay() as display:
        from luthier import api
        from luthier.store.places import expanded
        from luthier.store.runs import new_run_folder
        from luthier.studies import replay as replaying
        from luthier.studies.bundles import read_bundle

        read = read_bundle(expanded(bundle))
        if not plain_allocator:
            keep_freed_memory(display.announce)
        folder = new_run_folder(api.RUNS, f"{read.manifest.run}-replay") if out is None else expanded(out)
        found = replaying.replay(
            read, folder, display.announce, display.on_step, overrides=overrides or (), tolerance=tolerance
        )
    emit(found.as_json(), f"{found.sentence}\n{folder}", as_json)
    if found.verdict == "other numbers":
        raise typer.Exit(1)
