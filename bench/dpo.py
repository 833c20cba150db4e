"""Direct preference optimization: pairs a second of Luthier and of TRL's `DPOTrainer` + `peft`, on the same pairs.

    python -m bench.dpo           the two, each in a process of its own, in alternation, several rounds
    python -m bench.dpo --shared  pairs whose prompt is three times as long as their answers and more: Luthier with each prompt
                                  computed once for both answers, against Luthier with it computed for each (training.fast.prefix)

Same base, same LoRA from the same numbers, same pairs in each step as token ids, the bare base as the reference. Exit code 1 if the
losses of any two differ by more than 1e-3 nats a pair at one step: then the times compare different things.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.contest import DATA, Contestant, carried_out, model_name, say
from bench.figures import LOSS_TOLERANCE, largest_loss_difference
from bench.pairs import PairWork, read_pairs
from bench.processes import run_module
from bench.rates import Duel, add_duel_options, read_duel_options, run_rounds, told

OURS = Contestant("luthier", "Luthier", "bench.dpo_luthier")
APART = Contestant(
    "luthier-apart", "Luthier, each answer's prompt", "bench.dpo_luthier", ("--set", "training.fast.prefix=false")
)
PEER = Contestant("trl", "TRL DPOTrainer + peft", "bench.dpo_trl")
TARGET, SHARED_TARGET = 3.0, 1.4
# single questions with long answers; whole chats with short last replies
QUESTIONS = DATA / "dpo_kto_demo" / "dpo_en_demo.json"
CHATS = DATA / "hh_rlhf_harmless" / "harmless_base_test.jsonl.gz"


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.dpo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", action="store_true", help="long prompts: Luthier against itself")
    parser.add_argument("--max-length", type=int, help="most tokens of prompt and answer (default: 384; --shared: 512)")
    add_duel_options(parser, steps=6, budget=1024)
    options = read_duel_options(parser, arguments)
    options.max_length = options.max_length or (512 if options.shared else 384)
    options.data = options.data or (CHATS if options.shared else QUESTIONS)
    return options


def prepare(options: argparse.Namespace, folder: Path) -> PairWork:
    """Make the work that the options choose. Raises: SideFailed, saying what is wrong with data or model."""
    data: Path = options.data
    name = f"{data.name.partition('.')[0]}{' long prompts' if options.shared else ''}"
    flags = ["--name", name, "--data", str(data.absolute()), "--model", model_name(options.model)]
    flags += ["--steps", str(options.steps), "--max-length", str(options.max_length), "--budget", str(options.budget)]
    flags += ["--long-prompts"] if options.shared else []
    say("Preparing the work: pairs, order, initial adapter ...")
    run_module("bench.prepare_pairs", [str(folder), *flags], folder / "prepare.log", offline=False)
    work = read_pairs(folder)
    say(
        f"{work.name}: {len(work.pairs)} pairs in {work.num_steps} steps; a prompt has {work.prompt_over_answer:.1f} times an answer's tokens."
    )
    return work


def bench(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """All rounds; the document and the text that tells it. Raises: SideFailed."""
    work = prepare(options, folder)
    other, target = (APART, SHARED_TARGET) if options.shared else (PEER, TARGET)
    duel = Duel((OURS, other), "pairs", work.rows_per_step, target)
    rounds = run_rounds(duel, options.rounds, folder)
    found, text = told(duel, rounds)
    widest = largest_loss_difference(outcome.losses for outcomes in rounds.values() for outcome in outcomes)
    verdict = "" if widest <= LOSS_TOLERANCE else f": more than {LOSS_TOLERANCE}, so the times compare different things"
    setting = {
        "name": work.name,
        "model": options.model,
        "pairs": len(work.pairs),
        "rows_per_step": work.rows_per_step,
        "steps": work.num_steps,
        "prompt_over_answer": work.prompt_over_answer,
    }
    losses = {"largest_difference": widest, "tolerance": LOSS_TOLERANCE}
    first = f"{found['machine']['processor']}; {work.name}: {len(work.pairs)} pairs, {work.rows_per_step} a step; {options.rounds} rounds."
    last = f"Largest difference of two losses at one step: {widest:.1e} nats a pair{verdict}."
    return {"work": setting, **found, "losses": losses}, f"{first}\n\n{text}\n\n{last}"


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; 0, 1 if losses differ, or the exit code of what failed."""
    return carried_out(bench, read_arguments(arguments), "dpo")


if __name__ == "__main__":
    sys.exit(main())
