"""QLoRA against LoRA and against the peers' QLoRA on a CPU: time, memory, and what is learned.

    python -m bench.qlora          rounds of the three, each in a process of its own, in alternation
    python -m bench.qlora --learn  held-out loss of LoRA and QLoRA after as many steps (default 200) of two rows

The peer's losses must be those of our QLoRA within a small bound: its scales differ in a few codes, and nothing else does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.contest import (
    DATA,
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
from bench.figures import Figures, figures_of, gigabytes, largest_loss_difference, medians, ratio, table

_NF4 = ("--set", "quantization.kind=nf4")
LORA = Contestant("lora", "Luthier, LoRA", "bench.luthier_side")
QLORA = Contestant("qlora", "Luthier, QLoRA", "bench.luthier_side", _NF4)
PEER = Contestant("peer", "TRL + peft + bitsandbytes, QLoRA", "bench.peer_qlora")
CONTESTANTS = (LORA, QLORA, PEER)

LOSS_TOLERANCE = 5e-3
"""Nats a token between our QLoRA and the peer's: their scales' codes come from another table."""


def bench(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """All rounds; the document and the text that tells it. Raises: SideFailed."""
    work = prepare(options, folder)
    rounds: Rounds = {contestant.key: [] for contestant in CONTESTANTS}
    for number in range(1, options.rounds + 1):
        for key, outcome in run_round(number, CONTESTANTS, work, folder).items():
            rounds[key].append(outcome)
    figures = {key: [figures_of(outcome, work.real_tokens) for outcome in outcomes] for key, outcomes in rounds.items()}
    rows = []
    for contestant in CONTESTANTS:
        own: Figures = medians(figures[contestant.key])
        cells = (f"{own.tokens_per_second:.0f}", f"{own.tokens_per_cpu_second:.0f}", gigabytes(own.peak_bytes))
        rows.append((contestant.title, *cells))

    def against(key: str, name: str, other: str) -> str:
        return str(ratio([getattr(f, name) for f in figures[key]], [getattr(f, name) for f in figures[other]]))

    compared = [
        ("time of QLoRA over that of LoRA", against("lora", "tokens_per_second", "qlora")),
        ("tokens/s of QLoRA over the peer's", against("qlora", "tokens_per_second", "peer")),
        ("peak memory of QLoRA over the peer's", against("qlora", "peak_bytes", "peer")),
    ]
    widest = largest_loss_difference([outcome.losses for key in ("qlora", "peer") for outcome in rounds[key]])
    document = {
        "work": work_document(work),
        "machine": machine(),
        "contestants": as_document(CONTESTANTS, rounds, work),
        "ratios": dict(compared),
        "losses": {"largest_difference": widest, "tolerance": LOSS_TOLERANCE},
    }
    text = "\n\n".join(
        [
            table(("medians", "tokens/s", "per CPU-s", "peak GB"), rows),
            table(("", "times"), compared),
            f"Largest difference of our QLoRA's loss and the peer's at one step: {widest:.1e} nats a token.",
        ]
    )
    return document, text


def learn(options: argparse.Namespace) -> int:
    """Held-out loss of LoRA and of QLoRA after as many steps; 0 if they are within 2 % of each other."""
    from luthier.recipe import make_recipe
    from luthier.run import train_recipe

    losses = {}
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as folder:
        for name, quantization in (("LoRA", None), ("QLoRA", {"kind": "nf4"})):
            values = {
                "model": options.model,
                "data": {"train": str(DATA / "gsm8k" / "test.jsonl"), "validation_fraction": 0.05, "max_length": 640},
                "quantization": quantization,
                "training": {
                    "steps": options.steps or 200, "rows_per_step": 2, "tokens_per_micro_batch": 640, "peak_lr": 2e-4,
                    "evaluate_every": 100,
                },
            }  # fmt: skip
            began = time.perf_counter()
            result = train_recipe(make_recipe(values), Path(folder) / name, announce=say, on_step=lambda metrics: None)
            lines = (result.folder / "metrics.jsonl").read_text().splitlines()
            curve = [m["validation_loss"] for m in map(json.loads, lines) if "validation_loss" in m]
            losses[name] = curve[-1]
            say(
                f"{name}: held-out loss {', '.join(f'{loss:.4f}' for loss in curve)} ({time.perf_counter() - began:.0f} s)"
            )
    share = losses["QLoRA"] / losses["LoRA"] - 1
    print(json.dumps(losses) if options.json else f"QLoRA's held-out loss is {share:+.2%} of LoRA's.")
    return 0 if abs(share) <= 0.02 else 1


def main(arguments: list[str] | None = None) -> int:
    """Run the bench that is asked for; 0, or 1 if losses differ or a process failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.qlora", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_work_options(parser, steps=4, rounds=3)
    parser.add_argument("--learn", action="store_true", help="compare held-out losses instead")
    parser.set_defaults(budget=2048, mixed=True)
    options = parser.parse_args(arguments)
    if options.learn:
        options.steps = 200 if options.steps == 4 else options.steps
        return learn(options)
    return carried_out(bench, options, "qlora")


if __name__ == "__main__":
    sys.exit(main())
