"""What the benches share: the options that choose the work, its preparation, and the rounds of contestants."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.figures import LOSS_TOLERANCE, figures_of, medians
from bench.processes import ROOT, Outcome, SideFailed, run_module, run_side
from bench.work import Work, read_work

DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "bench" / "results"
_MIXED_MAX_LENGTH = 640


@dataclass(frozen=True)
class Contestant:
    """A way to do the work: the module that does it, and its flags."""

    key: str
    title: str
    module: str
    flags: tuple[str, ...] = ()


Rounds = dict[str, list[Outcome]]


def add_work_options(parser: argparse.ArgumentParser, *, steps: int | None, rounds: int) -> None:
    """The options that say what is trained, on what, and how often."""
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--data", type=Path, help="JSONL of question/answer, messages, or trees (default: GSM8K's test rows)"
    )
    rows.add_argument("--mixed", action="store_true", help="first replies of oasst1, rows of up to 640 tokens")
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or a transformers folder")
    parser.add_argument("--rows", type=int, default=96, help="rows, 8 to a step (default: 96)")
    parser.add_argument("--steps", type=int, default=steps, help="fewer rows: 8 times so many")
    parser.add_argument("--budget", type=int, default=512, help="Luthier's tokens a micro-batch (default: 512)")
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"times that each runs, in alternation (default: {rounds})"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder for every step's figures (default: bench/results)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")


def prepare(arguments: argparse.Namespace, folder: Path) -> Work:
    """Make the work that the options choose. Raises: SideFailed, saying what is wrong with data or model."""
    data: Path = arguments.data or DATA / ("oasst1_trees/en_100_tree.jsonl" if arguments.mixed else "gsm8k/test.jsonl")
    name = data.stem if arguments.data else "oasst1 first replies" if arguments.mixed else "gsm8k"
    rows = arguments.rows if arguments.steps is None else min(arguments.rows, 8 * arguments.steps)
    flags = ["--name", name, "--data", str(data.absolute()), "--model", model_name(arguments.model)]
    flags += ["--rows", str(rows), "--budget", str(arguments.budget)]
    flags += ["--max-length", str(_MIXED_MAX_LENGTH)] if arguments.mixed else []
    say("Preparing the work: rows, order, initial adapter ...")
    run_module("bench.prepare", [str(folder), *flags], folder / "prepare.log", offline=False)
    work = read_work(folder)
    say(
        f"{work.name}: {len(work.rows)} rows in {len(work.steps)} steps, {sum(work.real_tokens):,} real tokens, "
        f"padding factor {work.padding_factor:.2f} for batches of {work.rows_per_step}."
    )
    return work


def model_name(text: str) -> str:
    """The model as a process in another folder, or a recipe there, is to name it."""
    path = Path(text)
    return str(path.absolute()) if path.is_dir() else text


def run_round(number: int, contestants: Sequence[Contestant], work: Work, folder: Path) -> dict[str, Outcome]:
    """Every contestant once, one after another. Raises: SideFailed."""
    outcomes = {}
    for contestant in contestants:
        began = time.perf_counter()
        log = folder / f"{contestant.key}-{number}.log"
        outcome = outcomes[contestant.key] = run_side(contestant.module, contestant.flags, folder, log)
        figures = figures_of(outcome, work.real_tokens)
        say(
            f"  round {number}  {contestant.title:<56} {figures.tokens_per_second:6.0f} tokens/s  "
            f"{figures.tokens_per_cpu_second:5.0f} a CPU-second  {figures.peak_bytes / 1e9:5.2f} GB  "
            f"({time.perf_counter() - began:.0f} s)"
        )
    return outcomes


def as_document(contestants: Sequence[Contestant], rounds: Rounds, work: Work) -> dict[str, Any]:
    """What every contestant measured, step by step, with its medians, for the JSON document."""
    document = {}
    for contestant in contestants:
        outcomes = rounds[contestant.key]
        document[contestant.key] = {
            "title": contestant.title,
            "versions": outcomes[0].versions,
            "threads": outcomes[0].threads,
            "median": asdict(medians(figures_of(outcome, work.real_tokens) for outcome in outcomes)),
            "rounds": [asdict(outcome) for outcome in outcomes],
        }
    return document


def work_document(work: Work) -> dict[str, Any]:
    """The work in a few numbers."""
    return {
        "name": work.name,
        "model": work.model,
        "rows": len(work.rows),
        "rows_per_step": work.rows_per_step,
        "steps": len(work.steps),
        "real_tokens": work.real_tokens,
        "learned_tokens": [sum(row.num_learned for row in step) for step in work.steps],
        "padding_factor": work.padding_factor,
        "tokens_per_micro_batch": work.budget,
    }


def machine() -> dict[str, str]:
    """Which machine and Python this is."""
    return {"platform": platform.platform(), "processor": _processor(), "python": platform.python_version()}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor()
    names = [
        line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
    ]
    return f"{len(names)} × {names[0]}" if names else platform.processor()


def keep(document: dict[str, Any], bench: str, folder: Path) -> Path:
    """Write the document into the folder as BENCH-WORK.json; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{bench}-{document['work']['name'].replace(' ', '-')}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return path


def say(line: str) -> None:
    """Write a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def carried_out(
    bench: Callable[[argparse.Namespace, Path], tuple[dict[str, Any], str]], options: argparse.Namespace, name: str
) -> int:
    """Do a bench, print what it found and keep its figures; 0, 1 if losses differ, or the exit code of what failed.

    A document may say of itself whether it `passed`; if it did not, the code is 1 too.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="luthier-bench-") as folder:
            document, text = bench(options, Path(folder))
    except SideFailed as failure:
        say(str(failure))
        return failure.exit_code if failure.exit_code > 0 else 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(document, indent=1) if options.json else text)
    say(f"All figures: {keep(document, name, options.results)}")
    compared = document.get("losses")
    agrees = compared is None or compared["largest_difference"] <= LOSS_TOLERANCE
    return 0 if agrees and document.get("passed", True) else 1
