"""Two contestants that do the same work, in alternation: how much of it each does a second, and ratios of the two."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.contest import RESULTS, Contestant, Rounds, machine, say
from bench.figures import Ratio, gigabytes, ratio, table
from bench.processes import Outcome, run_side


@dataclass(frozen=True)
class Rates:
    """One run without its first step: work a second and a CPU-second, and the process's peak memory."""

    per_second: float
    per_cpu_second: float
    peak_bytes: float


@dataclass(frozen=True)
class Duel:
    """Ours and another; of what the work is counted in (`unit`) a step has `per_step`; what ours should reach (`target`), if there is such a number."""

    contestants: tuple[Contestant, Contestant]
    unit: str
    per_step: int
    target: float | None = None


def add_duel_options(parser: argparse.ArgumentParser, *, steps: int, budget: int) -> None:
    """The options that all duels share."""
    parser.add_argument("--data", type=Path, help="other rows")
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or a transformers folder")
    parser.add_argument(
        "--steps",
        type=int,
        default=steps,
        help=f"optimizer steps, at least 2, the first counted apart (default: {steps})",
    )
    parser.add_argument(
        "--budget", type=int, default=budget, help=f"Luthier's tokens a micro-batch (default: {budget})"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that each runs, in alternation (default: 3)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for all figures (default: bench/results)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")


def read_duel_options(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The command line, its numbers checked."""
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.steps < 2:
        parser.error("--rounds must be at least 1, and --steps at least 2")
    return options


def rates_of(outcome: Outcome, per_step: int) -> Rates:
    """The rates of a run."""
    later = outcome.laps[1:]
    count = per_step * len(later)
    wall, cpu = sum(lap.wall_seconds for lap in later), sum(lap.cpu_seconds for lap in later)
    return Rates(count / wall, count / cpu, float(outcome.peak_bytes))


def run_rounds(duel: Duel, number: int, folder: Path, finished: Callable[[Path], None] = lambda result: None) -> Rounds:
    """All rounds. finished: is given the file that a contestant has written. Raises: SideFailed."""
    rounds: Rounds = {contestant.key: [] for contestant in duel.contestants}
    for at in range(1, number + 1):
        for contestant in duel.contestants:
            log = folder / f"{contestant.key}-{at}.log"
            outcome = run_side(contestant.module, contestant.flags, folder, log)
            finished(log.with_suffix(".json"))
            rounds[contestant.key].append(outcome)
            run = rates_of(outcome, duel.per_step)
            say(
                f"  round {at}  {contestant.title:<32} {run.per_second:6.2f} {duel.unit}/s  "
                f"{run.per_cpu_second:6.2f} a CPU-second  {run.peak_bytes / 1e9:5.2f} GB"
            )
    return rounds


def told(duel: Duel, rounds: Rounds) -> tuple[dict[str, Any], str]:
    """What the rounds came to, as a document and as a table with a sentence."""
    runs = {key: [rates_of(outcome, duel.per_step) for outcome in outcomes] for key, outcomes in rounds.items()}
    ours, other = (runs[contestant.key] for contestant in duel.contestants)
    ratios = {name: _over(ours, other, name) for name in ("per_second", "per_cpu_second", "peak_bytes")}
    rows = [
        (
            contestant.title,
            f"{median(run.per_second for run in runs[contestant.key]):.2f}",
            f"{median(run.per_cpu_second for run in runs[contestant.key]):.2f}",
            gigabytes(median(run.peak_bytes for run in runs[contestant.key])),
        )
        for contestant in duel.contestants
    ]
    aim = "" if duel.target is None else f" (target {duel.target:g})"
    text = (
        f"{table(('medians', f'{duel.unit}/s', 'per CPU-s', 'peak GB'), rows)}\n\n"
        f"Over {duel.contestants[1].title}: {ratios['per_second']} times a second{aim}, "
        f"{ratios['per_cpu_second']} times a CPU-second, {ratios['peak_bytes']} times the memory."
    )
    document = {
        "machine": machine(),
        "ratios": {name: asdict(found) for name, found in ratios.items()},
        "contestants": {key: [asdict(outcome) for outcome in outcomes] for key, outcomes in rounds.items()},
    }
    return document, text


def _over(ours: Sequence[Rates], other: Sequence[Rates], name: str) -> Ratio:
    return ratio([asdict(run)[name] for run in ours], [asdict(run)[name] for run in other])
