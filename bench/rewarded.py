"""`python -m bench.rewarded`: reinforcement learning with a reward that can be checked, on the real model.

Sums such as "What is 17 + 5? Answer with the number only.", of which the model is right now and then; a quarter of all sums is held
out. GRPO and PPO learn from whether the answer comes to the right number. Told are the shares of held-out sums that are right, by the
likeliest answer, before and after, with the interval of their difference (paired bootstrap), and the time. Exit code 0 if both
rise by at least 20 points within 30 minutes each.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.contest import machine, say
from bench.figures import table

SEED, HELD_OUT_SHARE = 20261, 0.25
LEAST_GAIN, LONGEST_SECONDS = 0.20, 1800
REWARD = {"grader": {"type": "number", "reference": "{{ item.answer }}"}}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"num_answers": 8, "kl": 0.01},
    "ppo": {"num_answers": 8, "minibatches": 1, "reuse": 2, "kl": 0.01, "value_weight": 0.5},
}


def sums() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The sums to learn from, and those held out."""
    rows = [
        {"prompt": f"What is {a} + {b}? Answer with the number only.", "answer": str(a + b)}
        for a in range(1, 20)
        for b in range(1, 10)
    ]
    random.Random(SEED).shuffle(rows)
    held_out = round(len(rows) * HELD_OUT_SHARE)
    return rows[held_out:], rows[:held_out]


def right(model: Any, rows: list[dict[str, str]], max_new_tokens: int) -> list[float]:
    """1 for each sum that the model's likeliest answer comes to, else 0."""
    from luthier.evaluation.grading import Sample, grader_of
    from luthier.generation.settings import Sampling

    grader = grader_of(REWARD["grader"])
    answers = model.complete([row["prompt"] for row in rows], Sampling(max_new_tokens=max_new_tokens))
    pairs = zip(answers, rows, strict=True)
    return [grader.grade(Sample(answer.text, row["prompt"]), row).score or 0.0 for answer, row in pairs]


def recipe_of(kind: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The run of an algorithm."""
    return {
        "model": options.model,
        "data": {"train": str(folder / "train.jsonl"), "validation": str(folder / "held-out.jsonl"), "max_length": 96},
        "method": {"kind": "lora", "rank": 16},
        "objective": {
            "kind": kind, "rewards": [REWARD], "max_new_tokens": options.tokens, "held_out_prompts": 16, **ALGORITHMS[kind],
        },
        "training": {
            "steps": options.steps * ALGORITHMS[kind].get("reuse", 1), "rows_per_step": 8, "tokens_per_micro_batch": 1024,
            "peak_lr": options.lr, "evaluate_every": 20, "checkpoint_every": 50,
        },
        "seed": SEED,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Carry out what is asked for; 0 if both gained enough in time."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.rewarded", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=ALGORITHMS, default=list(ALGORITHMS), help="some algorithms")
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or a transformers folder")
    parser.add_argument("--steps", type=int, default=80, help="rollouts (default 80)")
    parser.add_argument("--lr", type=float, default=2e-4, help="peak learning rate (default 2e-4)")
    parser.add_argument("--tokens", type=int, default=12, help="most tokens of an answer (default 12)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args(arguments)
    from luthier.api import load, load_plain
    from luthier.evaluation.intervals import bootstrap_difference
    from luthier.recipe import make_recipe
    from luthier.run import train_recipe

    train, held_out = sums()
    found = []
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as name:
        folder = Path(name)
        for file, rows in (("train.jsonl", train), ("held-out.jsonl", held_out)):
            (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        before = right(load_plain(options.model, say), held_out, options.tokens)
        say(f"before: {sum(before) / len(before):.0%} of {len(before)} held-out sums are right.")
        for kind in options.only:
            began = time.perf_counter()
            train_recipe(make_recipe(recipe_of(kind, options, folder)), folder / kind, announce=say, on_step=_told)
            seconds = time.perf_counter() - began
            after = right(load(folder / kind, say), held_out, options.tokens)
            gain = bootstrap_difference(before, after)
            share = sum(after) / len(after)
            found.append(
                {
                    "algorithm": kind,
                    "after": share,
                    "gain": gain.value,
                    "low": gain.low,
                    "high": gain.high,
                    "seconds": seconds,
                }
            )
    rows = [
        (one["algorithm"], f"{sum(before) / len(before):.1%}", f"{one['after']:.1%}",
         f"{100 * one['gain']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})", f"{one['seconds']:.0f}")
        for one in found
    ]  # fmt: skip
    names = ("algorithm", "before", "after", "gain in points", "seconds")
    print(json.dumps({"machine": machine(), "found": found}) if options.json else table(names, rows))
    return 0 if all(one["gain"] >= LEAST_GAIN and one["seconds"] <= LONGEST_SECONDS for one in found) else 1


def _told(metrics: dict[str, Any]) -> None:
    numbers = {
        name: metrics[name] for name in ("reward", "answer_tokens", "kl", "validation_reward") if name in metrics
    }
    say(f"step {metrics['step']}: " + ", ".join(f"{name} {value:.3f}" for name, value in numbers.items()))


if __name__ == "__main__":
    sys.exit(main())
