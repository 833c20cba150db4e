"""What each fast path of Luthier contributes: its time without one of them, and from none of them to all.

The switches are those of the recipe's `training.fast`, the worker threads (`training.workers`) and the allocator's
settings. Packing has no switch, so it is part of every rung. Losses of all rungs must agree within 1e-3.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.contest import (
    Contestant,
    Rounds,
    add_work_options,
    as_document,
    carried_out,
    machine,
    prepare,
    run_round,
    work_document,
)
from bench.figures import LOSS_TOLERANCE, Figures, figures_of, gigabytes, largest_loss_difference, medians, ratio, table
from bench.work import Work


@dataclass(frozen=True)
class FastPath:
    """One thing that makes training faster, and the flags that take it away."""

    key: str
    title: str
    off: tuple[str, ...]


# in the order in which the ladder adds them
PATHS = (
    FastPath("attention", "attention document by document", ("--set", "training.fast.attention=false")),
    FastPath("head", "head and loss at learned positions, in chunks", ("--set", "training.fast.head=false")),
    FastPath("lora", "LoRA as one operation", ("--set", "training.fast.lora=false")),
    FastPath("gated-mlp", "SwiGLU that keeps its inputs only", ("--set", "training.fast.gated_mlp=false")),
    FastPath("norm", "RMSNorm that keeps its input only", ("--set", "training.fast.norm=false")),
    FastPath("linear", "frozen linears by the faster product", ("--set", "training.fast.linear=false")),
    FastPath("prefix", "a beginning in common computed once", ("--set", "training.fast.prefix=false")),
    FastPath("allocator", "allocator keeps freed memory", ("--plain-allocator",)),
    FastPath("workers", "one worker thread a core", ("--set", "training.workers=1")),
)
ALL, NONE = "all", "none"


def rung(key: str, title: str, missing: tuple[FastPath, ...]) -> Contestant:
    """Luthier without some of its fast paths."""
    return Contestant(key, title, "bench.luthier_side", tuple(flag for path in missing for flag in path.off))


def rungs() -> tuple[list[Contestant], list[Contestant]]:
    """Luthier without one path each; and the ladder from none of them up to all but the last."""
    without = [rung(f"without-{path.key}", f"without: {path.title}", (path,)) for path in PATHS]
    ladder = [rung(NONE, "packing alone", PATHS)]
    # all but the last: with that one too it is "all"
    ladder += [
        rung(f"to-{path.key}", f"+ {path.title}", PATHS[index:]) for index, path in enumerate(PATHS[:-1], start=1)
    ]
    return without, ladder


def report(
    rounds: Rounds, work: Work, without: list[Contestant], ladder: list[Contestant], everything: Contestant
) -> str:
    """Both tables, in the form of docs/benchmarks.md; without rungs that leave one out, the first alone."""
    figures = {key: [figures_of(outcome, work.real_tokens) for outcome in outcomes] for key, outcomes in rounds.items()}

    def cells(contestant: Contestant, title: str, below: str) -> tuple[str, ...]:
        own: Figures = medians(figures[contestant.key])
        gain = ratio(
            [f.tokens_per_second for f in figures[contestant.key]], [f.tokens_per_second for f in figures[below]]
        )
        shown = "" if below == contestant.key else str(gain)
        return (
            title,
            f"{own.tokens_per_second:.0f}",
            shown,
            f"{own.tokens_per_cpu_second:.0f}",
            gigabytes(own.peak_bytes),
        )

    top = rung(ALL, f"+ {PATHS[-1].title}: everything", ())
    climb = [*ladder, top]
    befores = [climb[0].key, *(contestant.key for contestant in climb[:-1])]
    head = ("tokens/s", "gain", "per CPU-s", "peak GB")
    up = table(
        ("each on top of those above", *head), [cells(c, c.title, b) for c, b in zip(climb, befores, strict=True)]
    )
    if not without:
        return up
    head = ("tokens/s", "of everything", "per CPU-s", "peak GB")
    one = [cells(everything, everything.title, ALL), *(cells(c, c.title, ALL) for c in without)]
    return f"{up}\n\n{table(('one left out', *head), one)}"


def bench(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """All rounds of all rungs; the document and the text that tells it. Raises: SideFailed."""
    work = prepare(options, folder)
    without, ladder = rungs()
    without = [] if options.climb else without
    everything = rung(ALL, "everything", ())
    contestants = [everything, *ladder, *without]
    rounds: Rounds = {contestant.key: [] for contestant in contestants}
    for number in range(1, options.rounds + 1):
        for key, outcome in run_round(number, contestants, work, folder).items():
            rounds[key].append(outcome)
    widest = largest_loss_difference([outcome.losses for outcomes in rounds.values() for outcome in outcomes])
    document: dict[str, Any] = {
        "work": work_document(work),
        "machine": machine(),
        "rungs": as_document(contestants, rounds, work),
        "losses": {"largest_difference": widest, "tolerance": LOSS_TOLERANCE},
        "paths": [asdict(path) for path in PATHS],
    }
    text = report(rounds, work, without, ladder, everything)
    return document, f"{text}\n\nLargest difference of two rungs' losses at one step: {widest:.1e} nats a token."


def main(arguments: list[str] | None = None) -> int:
    """Run the ladder; 0, or 1 if losses differ or a process failed (its own exit code where it has one)."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ladder", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_work_options(parser, steps=6, rounds=3)
    parser.add_argument("--climb", action="store_true", help="only the rungs upwards: half the time")
    options = parser.parse_args(arguments)
    return carried_out(bench, options, "ladder")


if __name__ == "__main__":
    sys.exit(main())
