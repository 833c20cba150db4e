"""`python -m bench.verdict`: whether the verdict of an evaluation is right, on runs of which it is known.

Kinds of runs, each with many seeds, learn to write a sentence of given parts: a gentle one that must be found better than its base,
one with a rate so low that nothing changes (the same), one that is trained long and fast on a dozen rows (forgot), and two that differ
by their seed alone (the same). Every seed has rows of its own. On `stories260k_llama` (260 thousand trained weights) a kind takes
seconds; on any other model (`--model smollm2-135m --seeds 1`) its rates, steps and rows are those for a hundred million weights.
Exit code 0 if each kind has at most one wrong verdict in twenty.

What the seed decides must not matter for two runs to be the same. A LoRA of a low rank learns in a subspace that its seed draws: on the
small model 40 steps of rank 4 end up to 0.04 nats a token apart on rows that all agree, four times the margin, and `better` or `worse` is
the right verdict of them. So there all weights learn, every row once, and the seed decides the order of the rows alone; on the larger
model both runs learn until so little loss is left that none can be the better one by the margin. The rule of three asks for more than
3 / 0.02 = 150 held-out rows before answers that differ on some rows can be said to be the same.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
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
FEWEST_RIGHT = 0.95

_NAMES = ("Tom", "Lily", "Ben", "Anna", "Max", "Sue", "Tim", "Mia")
_THINGS = ("ball", "cat", "hat", "boat", "cake", "tree", "book", "car")
_PLACES = ("park", "house", "garden", "shop")


LORA: Mapping[str, Any] = {"kind": "lora", "rank": 4}


@dataclass(frozen=True)
class Kind:
    """Runs of which the verdict is known, and how they are made. against_seed: compared with a run that differs by its seed alone."""

    expected: str
    num_rows: int
    steps: int
    peak_lr: float
    method: Mapping[str, Any] = field(default_factory=lambda: LORA)
    num_held_out: int = 24
    against_seed: bool = False


KINDS = {
    "gentle": Kind("better", 400, 40, 1e-4),
    "no-op": Kind("same", 400, 6, 1e-7),
    "overtrained": Kind("forgot", 12, 60, 1e-2),
    "another seed": Kind("same", 400, 50, 3e-4, {"kind": "full"}, num_held_out=200, against_seed=True),
}
"""For 260 thousand weights."""

LARGER_KINDS = {
    "gentle": Kind("better", 240, 30, 2e-4),
    "no-op": Kind("same", 240, 4, 1e-7),
    "overtrained": Kind("forgot", 12, 40, 5e-3),
    "another seed": Kind("same", 400, 50, 1e-3, {"kind": "lora", "rank": 8}, num_held_out=200, against_seed=True),
}
"""For a hundred million weights: all four take about a quarter of an hour on two cores."""

_OTHER_SEED = 1_000


def kinds_for(model: str) -> Mapping[str, Kind]:
    """The kinds of runs that suit a model: its name as in a recipe, or its folder."""
    return KINDS if Path(model).resolve() == MODEL.resolve() else LARGER_KINDS


def rows(num: int, seed: int) -> list[dict[str, str]]:
    """Rows that ask for a sentence about somebody, a thing and a place."""
    draw = random.Random(seed)
    found = []
    for _ in range(num):
        name, thing, place = draw.choice(_NAMES), draw.choice(_THINGS), draw.choice(_PLACES)
        sentence = f" {name} went to the {place} and saw a {thing}. {name} was happy with the {thing}."
        found.append({"prompt": f"Who: {name}. What: {thing}. Where: {place}. Story:", "completion": sentence})
    return found


def verdict_of(kind: Kind, seed: int, model: str, folder: Path) -> tuple[str, str]:
    """The verdict on a run of a kind that is made for it in a new folder, and its sentence."""
    folder.mkdir(parents=True)
    train, held_out = folder / "train.jsonl", folder / "held-out.jsonl"
    for path, chosen in ((train, rows(kind.num_rows, seed)), (held_out, rows(kind.num_held_out, 10_000 + seed))):
        path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    recipe: dict[str, Any] = {
        "model": {"name": model, "device": "cpu"},
        "data": {"train": str(train), "validation": "none", "max_length": 128},
        "method": dict(kind.method),
        "training": {
            "steps": kind.steps,
            "peak_lr": kind.peak_lr,
            "rows_per_step": 8,
            "workers": 1 if kinds_for(model) is KINDS else "auto",
            "tokens_per_micro_batch": 1024,
            "checkpoint_every": kind.steps,
        },
        "seed": seed,
    }
    sampling, run, other = Sampling(max_new_tokens=24), folder / "run", folder / "other-seed"
    _train(recipe, run)
    if kind.against_seed:
        _train({**recipe, "seed": seed + _OTHER_SEED}, other)
        evaluation = api.compare([run, other], str(held_out), sampling=sampling, announce=_silent)
    else:
        evaluation = api.evaluate(run, str(held_out), sampling=sampling, probes=True, announce=_silent)
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
    parser.add_argument("--model", default=str(MODEL), help="as in a recipe: a built-in name or a folder")
    asked = parser.parse_args(arguments)
    kinds = {name: kinds_for(asked.model)[name] for name in asked.kinds}
    found = {name: Counter[str]() for name in kinds}
    seconds = Counter[str]()
    for seed in range(asked.first, asked.first + asked.seeds):
        for name, kind in kinds.items():
            begun = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                verdict, sentence = verdict_of(kind, seed, asked.model, Path(folder) / name)
            found[name][verdict] += 1
            seconds[name] += time.process_time() - begun
            say(f"{name}, seed {seed}: {sentence}")
    lines, all_right = [], True
    for name, kind in kinds.items():
        right = found[name][kind.expected]
        all_right = all_right and right >= FEWEST_RIGHT * asked.seeds
        others = ", ".join(f"{count} {verdict}" for verdict, count in found[name].items() if verdict != kind.expected)
        each = f"{seconds[name] / asked.seeds:.1f}"
        lines.append([name, kind.expected, f"{right} of {asked.seeds}", others or "none", each])
    print(", ".join(machine().values()))
    print(table(["runs", "verdict", "right", "others", "CPU s a run"], lines))
    return 0 if all_right else 1


if __name__ == "__main__":
    sys.exit(main())
