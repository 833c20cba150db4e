"""`python -m bench.verdict`: whether the verdict of an evaluation is right, on runs of which it is known.

On `stories260k_llama` (260 thousand trained weights) kinds of runs, each with many seeds, learn to write a sentence of given parts: a
gentle one that must be found better than its base, one with a rate so low that nothing changes (the same), one that is trained long
and fast on a dozen rows (forgot), and the gentle one beside itself with another seed (neither better nor worse). Every seed has rows
of its own. Exit code 0 if each kind has at most one wrong verdict in twenty.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contest import machine, say
from bench.figures import table
from bench.processes import ROOT
from luthier import api
from luthier.generation.settings import Sampling
from luthier.recipe import make_recipe
from luthier.run import train_recipe

MODEL = ROOT.parent / "shared" / "data" / "stories260k_llama"
NUM_HELD_OUT = 24
FEWEST_RIGHT = 0.95

_NAMES = ("Tom", "Lily", "Ben", "Anna", "Max", "Sue", "Tim", "Mia")
_THINGS = ("ball", "cat", "hat", "boat", "cake", "tree", "book", "car")
_PLACES = ("park", "house", "garden", "shop")


@dataclass(frozen=True)
class Kind:
    """Runs of which the verdict is known, and how they are made. against_seed: compared with a run that differs by its seed alone."""

    expected: tuple[str, ...]
    num_rows: int
    steps: int
    peak_lr: float
    against_seed: bool = False


KINDS = {
    "gentle": Kind(("better",), 400, 40, 1e-4),
    "no-op": Kind(("same",), 400, 6, 1e-7),
    "overtrained": Kind(("forgot",), 12, 60, 1e-2),
    "another seed": Kind(("same", "unclear"), 400, 40, 1e-4, against_seed=True),
}
_OTHER_SEED = 1_000


def rows(num: int, seed: int) -> list[dict[str, str]]:
    """Rows that ask for a sentence about somebody, a thing and a place."""
    draw = random.Random(seed)
    found = []
    for _ in range(num):
        name, thing, place = draw.choice(_NAMES), draw.choice(_THINGS), draw.choice(_PLACES)
        sentence = f" {name} went to the {place} and saw a {thing}. {name} was happy with the {thing}."
        found.append({"prompt": f"Who: {name}. What: {thing}. Where: {place}. Story:", "completion": sentence})
    return found


def verdict_of(kind: Kind, seed: int, model: Path, folder: Path) -> tuple[str, str]:
    """The verdict on a run of a kind that is made for it in a new folder, and its sentence."""
    folder.mkdir(parents=True)
    train, held_out = folder / "train.jsonl", folder / "held-out.jsonl"
    for path, chosen in ((train, rows(kind.num_rows, seed)), (held_out, rows(NUM_HELD_OUT, 10_000 + seed))):
        path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    recipe: dict[str, Any] = {
        "model": {"name": str(model), "device": "cpu"},
        "data": {"train": str(train), "validation": str(held_out), "max_length": 128},
        "method": {"kind": "lora", "rank": 4},
        "training": {
            "steps": kind.steps,
            "peak_lr": kind.peak_lr,
            "rows_per_step": 8,
            "workers": 1,
            "tokens_per_micro_batch": 1024,
            "checkpoint_every": kind.steps,
            "evaluate_every": kind.steps,
        },
        "seed": seed,
    }
    sampling, run, other = Sampling(max_new_tokens=24), folder / "run", folder / "other-seed"
    _train(recipe, run)
    if kind.against_seed:
        _train({**recipe, "seed": seed + _OTHER_SEED}, other)
        evaluation = api.compare([run, other], sampling=sampling, announce=_silent)
    else:
        evaluation = api.evaluate(run, sampling=sampling, probes=True, announce=_silent)
    assert evaluation.outcome is not None
    return evaluation.outcome.kind, evaluation.outcome.sentence


def _train(recipe: dict[str, Any], folder: Path) -> None:
    train_recipe(make_recipe(recipe), folder, announce=_silent, on_step=lambda numbers: None)


def _silent(text: str) -> None:
    pass


def main(arguments: list[str] | None = None) -> int:
    """Make the runs and print how many verdicts are right; 1 if too few are."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.verdict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="runs of each kind")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--model", type=Path, default=MODEL)
    asked = parser.parse_args(arguments)
    found = {name: Counter[str]() for name in asked.kinds}
    seconds = Counter[str]()
    for seed in range(asked.first, asked.first + asked.seeds):
        for name in asked.kinds:
            begun = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                verdict, sentence = verdict_of(KINDS[name], seed, asked.model, Path(folder) / name)
            found[name][verdict] += 1
            seconds[name] += time.process_time() - begun
            say(f"{name}, seed {seed}: {sentence}")
    lines, all_right = [], True
    for name in asked.kinds:
        expected = KINDS[name].expected
        right = sum(found[name][verdict] for verdict in expected)
        all_right = all_right and right >= FEWEST_RIGHT * asked.seeds
        others = ", ".join(f"{count} {verdict}" for verdict, count in found[name].items() if verdict not in expected)
        each = f"{seconds[name] / asked.seeds:.1f}"
        lines.append([name, " or ".join(expected), f"{right} of {asked.seeds}", others or "none", each])
    print(", ".join(machine().values()))
    print(table(["runs", "verdict", "right", "others", "CPU s a run"], lines))
    return 0 if all_right else 1


if __name__ == "__main__":
    sys.exit(main())
