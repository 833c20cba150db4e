"""QLoRA against LoRA and against the peers' QLoRA on a CPU: time, memory, and what is learned.

    python -m bench.qlora          rounds of the three, each in a process of its own, in alternation
    python -m bench.qlora --learn  held-out loss of LoRA and QLoRA after as many steps (default 200) of eight rows; with --loftq
                                   also of an adapter that begins with what the four bits lost, and with --gguf of QLoRA over the
                                   blocks that a file has its weights in

The peer's losses must be those of our QLoRA within a small bound: its scales differ in a few codes, and nothing else does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Learned:
    """A model, the form of its base, and the method that learns over it."""

    model: str
    quantization: dict[str, str] | None
    method: str = "lora"


def learn(options: argparse.Namespace) -> int:
    """Held-out loss of LoRA and of QLoRA after as many steps; 0 if that over NF4 is within 2 % of LoRA's."""
    nf4 = {"kind": "nf4"}
    cases: dict[str, Learned] = {"LoRA": Learned(options.model, None), "QLoRA": Learned(options.model, nf4)}
    if options.loftq:
        cases["LoftQ"] = Learned(options.model, nf4, "loftq")
    if options.gguf is not None:
        cases["QLoRA over the file's blocks"] = Learned(str(options.gguf), {"kind": "gguf"})
    losses = {}
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as folder:
        for name, case in cases.items():
            began = time.perf_counter()
            curve = held_out_curve(case, options, Path(folder) / name)
            losses[name] = curve[-1]
            curve_text = ", ".join(f"{loss:.4f}" for loss in curve)
            say(f"{name}: held-out loss {curve_text} ({time.perf_counter() - began:.0f} s)")
    shares = {name: loss / losses["LoRA"] - 1 for name, loss in losses.items() if name != "LoRA"}
    lines = [f"{name}: {share:+.2%} of LoRA's held-out loss." for name, share in shares.items()]
    print(json.dumps(losses) if options.json else "\n".join(lines))
    return 0 if abs(shares["QLoRA"]) <= 0.02 else 1


def held_out_curve(case: Learned, options: argparse.Namespace, out: Path) -> list[float]:
    """The held-out losses of one run, every 50 steps."""
    from luthier.recipe import make_recipe
    from luthier.run import train_recipe

    values = {
        "model": case.model,
        "data": {"train": str(DATA / "gsm8k" / "test.jsonl"), "validation_fraction": 0.05, "max_length": 640},
        "method": {"kind": case.method},
        "quantization": case.quantization,
        "training": {
            "steps": options.steps, "rows_per_step": options.rows_per_step, "tokens_per_micro_batch": 1280,
            "peak_lr": options.peak_lr, "evaluate_every": 50,
        },
    }  # fmt: skip
    result = train_recipe(make_recipe(values), out, announce=say, on_step=lambda metrics: None)
    lines = map(json.loads, (result.folder / "metrics.jsonl").read_text().splitlines())
    return [line["validation_loss"] for line in lines if "validation_loss" in line]


def main(arguments: list[str] | None = None) -> int:
    """Run the bench that is asked for; 0, or 1 if losses differ or a process failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.qlora", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_work_options(parser, steps=4, rounds=3)
    parser.add_argument("--learn", action="store_true", help="compare held-out losses instead")
    parser.add_argument("--rows-per-step", type=int, default=8, help="with --learn (default 8)")
    parser.add_argument("--peak-lr", type=float, default=1e-3, help="with --learn (default 1e-3)")
    parser.add_argument("--loftq", action="store_true", help="with --learn: LoftQ too")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="with --learn: the same model as a .gguf file")
    parser.set_defaults(budget=2048, mixed=True)
    options = parser.parse_args(arguments)
    if options.learn:
        options.steps = 200 if options.steps == 4 else options.steps
        return learn(options)
    return carried_out(bench, options, "qlora")


if __name__ == "__main__":
    sys.exit(main())
