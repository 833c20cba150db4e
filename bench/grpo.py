"""Group relative policy optimization: samples a second of Luthier and of TRL's `GRPOTrainer` + `peft` on a CPU.

Both answer the same prompts (questions of GSM8K, as the same token ids) eight times each, at temperature 1 up to as many tokens as
`--new-tokens` says, reward the answers by the same function, and learn from them with the same LoRA from the same numbers; TRL writes
them by transformers' own `generate`, all of a step at once. A sample is an answer that was drawn and learned from.

The answers are drawn, so the two say different things, and losses cannot be compared step by step: that both give the same loss for the
same answers is a test (`tests/rlhf/test_trl_parity.py`). What must agree here is the work: exit code 1 if the mean lengths
of all answers differ by more than 5 %, because then the times compare different things.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench.contest import DATA, Contestant, carried_out, model_name, say
from bench.processes import run_module
from bench.prompts import PromptWork, read_prompts
from bench.rates import Duel, add_duel_options, read_duel_options, run_rounds, told

OURS = Contestant("luthier", "Luthier", "bench.grpo_luthier")
BESIDE = Contestant(
    "luthier-beside",
    "Luthier, adapter beside the base",
    "bench.grpo_luthier",
    ("--set", "objective.generation.folds_adapter=false"),
)
PEER = Contestant("trl", "TRL GRPOTrainer + peft", "bench.grpo_trl")
TARGET = 2.5
LENGTH_TOLERANCE = 0.05
"""How far the mean lengths of two contestants' answers may be apart, as a share of the longer."""


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.grpo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folding",
        action="store_true",
        help="not against TRL: Luthier against itself with the adapter beside the base",
    )
    add_prompt_options(parser)
    add_duel_options(parser, steps=3, budget=1024)
    return read_duel_options(parser, arguments)


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is answered."""
    parser.add_argument(
        "--prompts-per-step", type=int, default=8, help="prompts of a step, 8 answers each (default: 8)"
    )
    parser.add_argument("--max-length", type=int, default=128, help="most tokens of a prompt (default: 128)")
    parser.add_argument("--new-tokens", type=int, default=64, help="most tokens of an answer (default: 64)")
    parser.add_argument("--kl", type=float, default=0.04, help="what a nat of divergence costs (default: 0.04)")


def prepare(options: argparse.Namespace, folder: Path) -> PromptWork:
    """Make the work that the options choose. Raises: SideFailed, saying what is wrong with data or model."""
    data: Path = options.data or DATA / "gsm8k" / "test.jsonl"
    name = data.stem if options.data else "gsm8k questions"
    flags = ["--name", name, "--data", str(data.absolute()), "--model", model_name(options.model)]
    flags += ["--steps", str(options.steps), "--prompts-per-step", str(options.prompts_per_step)]
    flags += ["--max-length", str(options.max_length), "--max-new-tokens", str(options.new_tokens)]
    flags += ["--kl", str(options.kl), "--budget", str(options.budget)]
    say("Preparing the work: prompts, order, initial adapter ...")
    run_module("bench.prepare_prompts", [str(folder), *flags], folder / "prepare.log", offline=False)
    work = read_prompts(folder)
    say(f"{work.name}: {len(work.texts)} prompts in {work.num_steps} steps, {work.samples_per_step} answers each.")
    return work


def length_difference(lengths: Mapping[str, Sequence[float]]) -> float:
    """How far the mean lengths are apart, as a share of the longest."""
    means = [mean(each) for each in lengths.values()]
    return (max(means) - min(means)) / max(means)


def bench(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """All rounds; the document and the text that tells it. Raises: SideFailed."""
    work = prepare(options, folder)
    other, target = (BESIDE, None) if options.folding else (PEER, TARGET)
    duel = Duel((OURS, other), "samples", work.samples_per_step, target)
    lengths: dict[str, list[float]] = {contestant.key: [] for contestant in duel.contestants}
    rollouts: list[float] = []

    def finished(result: Path) -> None:
        values = json.loads(result.read_text("utf-8"))
        key = result.stem.rpartition("-")[0]
        lengths[key] += values["answer_tokens"]
        rollouts.extend(values.get("rollout_seconds", [])[1:] if key == OURS.key else [])

    rounds = run_rounds(duel, options.rounds, folder, finished)
    found, text = told(duel, rounds)
    apart = length_difference(lengths)
    verdict = (
        "" if apart <= LENGTH_TOLERANCE else f": more than {LENGTH_TOLERANCE:.0%}, so the times compare other work"
    )
    said = ", ".join(f"{contestant.title} {mean(lengths[contestant.key]):.1f}" for contestant in duel.contestants)
    first = f"{found['machine']['processor']}; {work.name}: {len(work.texts)} prompts, {work.rows_per_step} a step; {options.rounds} rounds."
    last = f"Mean tokens of an answer: {said} ({apart:.1%} apart{verdict}). Our rollouts take {mean(rollouts):.1f} s."
    setting = {
        "name": f"{work.name} folding" if options.folding else work.name,
        "model": options.model,
        "prompts": len(work.texts),
        "samples_per_step": work.samples_per_step,
        "steps": work.num_steps,
        "max_new_tokens": work.max_new_tokens,
        "kl": work.kl,
    }
    answers = {"mean_tokens": {key: mean(each) for key, each in lengths.items()}, "difference": apart}
    document = {
        "work": setting,
        **found,
        "answers": answers,
        "rollout_seconds": rollouts,
        "passed": apart <= LENGTH_TOLERANCE,
    }
    return document, f"{first}\n\n{text}\n\n{last}"


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; 0, 1 if lengths differ, or the exit code of what failed."""
    return carried_out(bench, read_arguments(arguments), "grpo")


if __name__ == "__main__":
    sys.exit(main())
