"""`python -m bench.planted_faults`: plant, or score."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.planted_faults.plant import CannotPlant, check_free, plant, survey, write_planted
from bench.planted_faults.score import CheckFailed, document_of, measured, report
from bench.processes import ROOT

_DATA = ROOT.parent / "shared" / "data"


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.planted_faults",
        description="Faults planted in copies of clean files, and how many of them `luthier check` finds.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    planter = commands.add_parser("plant", help="write the copies, the originals and the manifest")
    planter.add_argument("out", type=Path, help="a folder for them; it must be empty, or not exist")
    planter.add_argument("--seed", type=int, default=20261, help="where the random draws begin (default: 20261)")
    planter.add_argument("--data", type=Path, default=_DATA, help="folder of the clean sets (default: ../shared/data)")
    scorer = commands.add_parser("score", help="run the check on what was planted, and say what it found")
    scorer.add_argument("out", type=Path, help="the folder that plant wrote")
    scorer.add_argument("--check", default="luthier check", help="the command that checks (default: luthier check)")
    scorer.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Plant or score; 0, or 1 with a sentence on standard error."""
    options = read_arguments(arguments)
    try:
        if options.command == "plant":
            check_free(options.out)
            planted = plant(survey(options.data), options.seed)
            write_planted(planted, options.out)
            print(
                f"{len(planted.faults)} faults in {len({fault.file for fault in planted.faults})} files: {options.out}"
            )
        else:
            scored = measured(options.out, options.check)
            print(document_of(scored) if options.json else report(scored))
    except (CannotPlant, CheckFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
