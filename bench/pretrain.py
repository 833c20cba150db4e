"""`python -m bench.pretrain`: small models of each kind from random weights, against what knows the words' frequencies alone.

On WikiText-2 (`test.txt` to train on, `valid_first_half.txt` held out) a byte-level BPE of 1,024 entries is trained, and then, by
`luthier train`, a decoder (causal language modelling), an encoder (masked language modelling) and an encoder-decoder (T5's span
corruption) of 1 to 3 million weights, each within five minutes on two cores. What is compared is the held-out loss with the
entropy of the tokens that are predicted there, had each been drawn by itself: the least that a model which knows no context can
have. Exit code 0 if all are as far below as they should be.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contest import machine, say
from bench.figures import table
from bench.processes import ROOT, run_module

DATA = ROOT.parent / "shared" / "data" / "wikitext2"
TRAIN, HELD_OUT = "test.txt", "valid_first_half.txt"
ENTRIES = 1024
LONGEST_SECONDS = 300


@dataclass(frozen=True)
class Case:
    """A kind of model, what it learns by, and how far below the entropy its loss must come."""

    config: str
    objective: dict[str, Any]
    steps: int
    tokens_per_step: int
    peak_lr: float
    max_length: int
    target: float


CASES = {
    "decoder": Case("llama-2m", {"kind": "clm"}, 250, 4096, 3e-3, 256, 0.25),
    # Positions by rotation: with learned ones (bert-2m) context is not read before five minutes are over.
    "encoder": Case("modernbert-2m", {"kind": "mlm"}, 800, 1024, 2e-3, 128, 0.10),
    "encoder-decoder": Case("t5-2m", {"kind": "span-corruption"}, 800, 1024, 3e-3, 160, 0.10),
}


def recipe_of(case: Case, tokenizer: Path, data: Path, steps: int) -> dict[str, Any]:
    """The recipe of one model."""
    return {
        "model": {"config": case.config, "tokenizer": str(tokenizer)},
        "data": {"train": str(data / TRAIN), "validation": str(data / HELD_OUT), "max_length": case.max_length},
        "objective": case.objective,
        "method": {"kind": "full"},
        "training": {
            "steps": steps, "tokens_per_step": case.tokens_per_step, "tokens_per_micro_batch": max(case.max_length, case.tokens_per_step // 2), "peak_lr": case.peak_lr,
            "schedule": {"kind": "cosine", "warmup_fraction": 0.05}, "evaluate_every": math.ceil(steps / 2),
            "optimizer": {"kind": "adamw", "weight_decay": 0.01},
        },
    }  # fmt: skip


def held_out_entropy(values: dict[str, Any]) -> tuple[float, int]:
    """The entropy (nats) of the held-out targets by their own frequencies, and how many there are."""
    from luthier.prepared import check_recipe
    from luthier.recipe import make_recipe

    prepared = check_recipe(make_recipe(values), lambda text: None)
    counts = Counter(int(token) for example in prepared.dataset.validation for token in example.token_N)
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values()), total


def train(kind: str, case: Case, folder: Path, data: Path, steps: int) -> dict[str, Any]:
    """Train one model by the program; its figures."""
    tokenizer = folder / f"tokenizer-{kind}"
    options = ["--out", str(tokenizer), "--vocab-size", str(ENTRIES), "--for", kind]
    run_module("luthier", ["tokenizer", str(data / TRAIN), *options], folder / f"tokenizer-{kind}.log")
    values = recipe_of(case, tokenizer, data, steps)
    entropy, targets = held_out_entropy(values)
    recipe, run = folder / f"{kind}.yaml", folder / kind
    recipe.write_text(json.dumps(values))
    began = time.perf_counter()
    run_module("luthier", ["train", str(recipe), "--out", str(run)], folder / f"{kind}.log")
    seconds = time.perf_counter() - began
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [line["validation_loss"] for line in lines if "validation_loss" in line]
    say(
        f"{kind}: held out {', '.join(f'{loss:.3f}' for loss in curve)}; the words alone {entropy:.3f} ({seconds:.0f} s)."
    )
    return {
        "kind": kind,
        "seconds": seconds,
        "entropy": entropy,
        "targets": targets,
        "loss": curve[-1],
        "below": 1 - curve[-1] / entropy,
        "target": case.target,
        "tokens": sum(line["real_tokens"] for line in lines),
    }


def main(arguments: list[str] | None = None) -> int:
    """Train what is asked for; 0 if each came far enough below the entropy within its time."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"some of: {' '.join(CASES)} (default: all)")
    parser.add_argument(
        "--steps", type=int, help="steps of each (default: as many as fit into five minutes on two cores)"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder with test.txt and valid_first_half.txt")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args(arguments)
    unknown = set(options.kinds) - set(CASES)
    if unknown:
        parser.error(f"there is no kind {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as folder:
        found = [
            train(kind, CASES[kind], Path(folder), options.data, options.steps or CASES[kind].steps)
            for kind in options.kinds or CASES
        ]
    rows = [
        (
            one["kind"],
            f"{one['loss']:.3f}",
            f"{one['entropy']:.3f}",
            f"{one['below']:.1%}",
            f"{one['target']:.0%}",
            f"{one['seconds']:.0f}",
            f"{one['tokens'] / one['seconds']:,.0f}",
        )
        for one in found
    ]
    names = ("", "held-out loss", "entropy", "below", "asked", "seconds", "tokens/s")
    print(json.dumps({"machine": machine(), "models": found}) if options.json else table(names, rows))
    return 0 if all(one["below"] >= one["target"] and one["seconds"] <= LONGEST_SECONDS for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
