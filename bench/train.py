"""Training speed, memory and losses of Luthier, `transformers.Trainer` + `peft` and TRL + `peft` on the same work.

Every contestant runs in its own fresh process, in alternation, several rounds; printed are medians and ratios. Exit code
1 if the step losses of any two differ by more than 1e-3: then the times compare different things.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from bench.arithmetic import Arithmetic, arithmetic_of
from bench.contest import (
    Contestant,
    Rounds,
    add_work_options,
    as_document,
    carried_out,
    machine,
    prepare,
    run_round,
    say,
    work_document,
)
from bench.figures import (
    LOSS_TOLERANCE,
    Figures,
    Ratio,
    figures_of,
    gigabytes,
    largest_loss_difference,
    medians,
    ratio,
    table,
)
from bench.processes import run_module
from bench.work import Work

OURS = "luthier"
KEPT = ("--keep-freed-memory",)
# a peer as installed, and the same peer under Luthier's allocator settings
PEERS = {"trainer": "trainer-allocator", "trl": "trl-allocator"}
CONTESTANTS = (
    Contestant(OURS, "Luthier", "bench.luthier_side"),
    Contestant("trainer", "Trainer + peft", "bench.peer_trainer"),
    Contestant("trl", "TRL SFTTrainer + peft", "bench.peer_trl"),
    Contestant("trainer-allocator", "Trainer + peft, our allocator settings", "bench.peer_trainer", KEPT),
    Contestant("trl-allocator", "TRL SFTTrainer + peft, our allocator settings", "bench.peer_trl", KEPT),
)

Ceilings = list[dict[str, float]]


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_work_options(parser, steps=None, rounds=3)
    keys = [contestant.key for contestant in CONTESTANTS]
    parser.add_argument(
        "--only", nargs="+", choices=keys, default=keys, metavar="KEY", help=f"some of: {' '.join(keys)}"
    )
    return parser.parse_args(arguments)


def measure_ceiling(number: int, folder: Path) -> Ceilings:
    """What matrix products reach with one thread and with all."""
    log = folder / f"ceiling-{number}.log"
    result = log.with_suffix(".json")
    run_module("bench.ceiling", [str(folder), str(result)], log)
    found: Ceilings = json.loads(result.read_text("utf-8"))["ceilings"]
    shown = ", ".join(f"{c['wall_flops'] / 1e9:.0f} GFLOP/s with {c['threads']:.0f} thread(s)" for c in found)
    say(f"  round {number}  matrix products: {shown}")
    return found


def compare(rounds: Rounds, work: Work) -> dict[str, Ratio]:
    """Luthier against the faster peer as installed, the same peer under our allocator, and the smaller peer."""
    figures = {key: [figures_of(outcome, work.real_tokens) for outcome in outcomes] for key, outcomes in rounds.items()}
    peers = [key for key in PEERS if key in figures]
    if OURS not in figures or not peers:
        return {}

    def against(key: str, name: str) -> Ratio:
        return ratio([getattr(f, name) for f in figures[OURS]], [getattr(f, name) for f in figures[key]])

    def of_medians(key: str) -> Figures:
        return medians(figures[key])

    faster = max(peers, key=lambda key: of_medians(key).tokens_per_second)
    smaller = min(peers, key=lambda key: of_medians(key).peak_bytes)
    found = {
        f"tokens/s over {faster}": against(faster, "tokens_per_second"),
        f"tokens/s over {faster}, first step included": against(faster, "tokens_per_second_all"),
        f"tokens a CPU-second over {faster}": against(faster, "tokens_per_cpu_second"),
    }
    kept = PEERS[faster]
    if kept in figures:
        found[f"tokens/s over {kept}"] = against(kept, "tokens_per_second")
        found[f"tokens a CPU-second over {kept}"] = against(kept, "tokens_per_cpu_second")
    found[f"peak memory over {smaller}"] = against(smaller, "peak_bytes")
    return found


def share_of_ceiling(work: Work, ours: Figures, ceilings: list[Ceilings]) -> dict[str, float]:
    """Luthier's arithmetic a second, and its share of what matrix products alone reach (medians)."""
    per_token = arithmetic_of(work.shape, [row for step in work.steps[1:] for row in step]).total / sum(
        work.real_tokens[1:]
    )
    all_threads = median(found[-1]["wall_flops"] for found in ceilings)
    one_thread = median(found[0]["cpu_flops"] for found in ceilings)
    return {
        "flops_per_token": per_token,
        "wall_flops": per_token * ours.tokens_per_second,
        "cpu_flops": per_token * ours.tokens_per_cpu_second,
        "ceiling_wall_flops": all_threads,
        "ceiling_cpu_flops": one_thread,
        "wall_share": per_token * ours.tokens_per_second / all_threads,
        "cpu_share": per_token * ours.tokens_per_cpu_second / one_thread,
    }


def report(document: dict[str, Any], ratios: dict[str, Ratio], arithmetic: Arithmetic) -> str:
    """The document as tables and sentences."""
    rows = []
    for entry in document["contestants"].values():
        figures = Figures(**entry["median"])
        rows.append(
            (
                entry["title"],
                f"{figures.tokens_per_second:.0f}",
                f"{figures.tokens_per_second_all:.0f}",
                f"{figures.tokens_per_cpu_second:.0f}",
                f"{figures.system_share:.0%}",
                gigabytes(figures.peak_bytes),
            )
        )
    head = ("medians", "tokens/s", "with step 1", "per CPU-s", "CPU in kernel", "peak GB")
    parts = [_setting(document), table(head, rows)]
    if ratios:
        parts.append(
            table(
                ("Luthier's ratio (lowest–highest of a round)", "times"), [(name, str(r)) for name, r in ratios.items()]
            )
        )
    if "ceiling" in document:
        parts.append(_ceiling_lines(document["ceiling"], arithmetic))
    widest = document["losses"]["largest_difference"]
    verdict = "" if widest <= LOSS_TOLERANCE else f": more than {LOSS_TOLERANCE}, so the times compare different things"
    parts.append(f"Largest difference of two contestants' losses at one step: {widest:.1e} nats a token{verdict}.")
    return "\n\n".join(parts)


def _setting(document: dict[str, Any]) -> str:
    """What was done, with which versions, where."""
    work, entries = document["work"], document["contestants"].values()
    versions = {name: version for entry in entries for name, version in entry["versions"].items()}
    threads = ", ".join(sorted({str(entry["threads"]) for entry in entries}))
    return (
        f"{work['name']}: {work['rows']} rows, {sum(work['real_tokens']):,} real tokens in {work['steps']} steps; batches padded to their "
        f"longest row hold {work['padding_factor']:.2f} times as many.\n"
        f"{document['machine']['processor']}, {threads} threads; {', '.join(f'{name} {version}' for name, version in versions.items())}."
    )


def _ceiling_lines(share: dict[str, float], arithmetic: Arithmetic) -> str:
    total = arithmetic.total
    parts = ", ".join(f"{name} {value / total:.0%}" for name, value in asdict(arithmetic).items())
    return (
        f"One real token needs {share['flops_per_token'] / 1e9:.2f} GFLOP ({parts}).\n"
        f"Luthier computes {share['wall_flops'] / 1e9:.0f} GFLOP/s, {share['wall_share']:.0%} of the {share['ceiling_wall_flops'] / 1e9:.0f} "
        f"that matrix products alone reach with all threads; {share['cpu_flops'] / 1e9:.0f} a CPU-second, {share['cpu_share']:.0%} of the "
        f"{share['ceiling_cpu_flops'] / 1e9:.0f} of one thread."
    )


def bench(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """All rounds; the document and the text that tells it. Raises: SideFailed."""
    work = prepare(options, folder)
    contestants = [contestant for contestant in CONTESTANTS if contestant.key in options.only]
    rounds: Rounds = {contestant.key: [] for contestant in contestants}
    ceilings: list[Ceilings] = []
    for number in range(1, options.rounds + 1):
        ceilings.append(measure_ceiling(number, folder))
        for key, outcome in run_round(number, contestants, work, folder).items():
            rounds[key].append(outcome)
    ratios = compare(rounds, work)
    every_loss = [outcome.losses for outcomes in rounds.values() for outcome in outcomes]
    document: dict[str, Any] = {
        "work": work_document(work),
        "machine": machine(),
        "contestants": as_document(contestants, rounds, work),
        "ratios": {name: asdict(found) for name, found in ratios.items()},
        "losses": {
            "largest_difference": largest_loss_difference(every_loss),
            "tolerance": LOSS_TOLERANCE,
            "first_round": {key: outcomes[0].losses for key, outcomes in rounds.items()},
        },
        "ceilings": ceilings,
    }
    if OURS in rounds:
        ours = medians(figures_of(outcome, work.real_tokens) for outcome in rounds[OURS])
        document["ceiling"] = share_of_ceiling(work, ours, ceilings)
    return document, report(document, ratios, arithmetic_of(work.shape, work.rows))


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; 0, or 1 if losses differ or a process failed (its own exit code where it has one)."""
    options = read_arguments(arguments)
    return carried_out(bench, options, "train")


if __name__ == "__main__":
    sys.exit(main())
