"""The most memory that PPO takes with its four roles, against supervised tuning with the same LoRA and the same micro-batches.

Policy, reference, reward model and critic are one base in memory: the policy and the critic train an adapter each, the reward model
is a frozen one, the reference the bare base. Both runs take micro-batches of as many tokens, each in a process of its own, in
alternation; told is the most that the process held, loading included. The cache of keys and values that answers are drawn over
is stated and left out of the ratio: of it only what is certain to be filled, the prompts' and the answers' own tokens.
Exit code 1 if the ratio of the medians is above 1.5.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from bench.arithmetic import bytes_a_token
from bench.contest import carried_out, machine, say
from bench.figures import gigabytes, table
from bench.grpo import add_prompt_options, prepare
from bench.processes import run_module, run_side
from bench.prompts import GROUP, PromptWork, write_prompts
from bench.rates import add_duel_options, read_duel_options

TARGET = 1.5
SIDE = "bench.grpo_luthier"


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ppo_memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_prompt_options(parser)
    add_duel_options(parser, steps=3, budget=1024)
    return read_duel_options(parser, arguments)


def recipes_of(work: PromptWork, folder: Path) -> dict[str, dict[str, Any]]:
    """The recipes of both runs, and of the reward model that PPO hears, by their names; their rows go into the folder."""
    usual = json.loads(Path(work.recipe).read_text("utf-8"))
    answer = " ".join(["so"] * work.max_new_tokens)
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": answer}] for text in work.texts]
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), "utf-8")
    pairs = [
        {"prompt": text, "chosen": f"{answer} Good.", "rejected": f"{answer} Bad, {number}."}
        for number, text in enumerate(work.texts[:8])
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    longest = usual["data"]["max_length"] + 32
    training = {
        **usual["training"],
        "tokens_per_micro_batch": max(usual["training"]["tokens_per_micro_batch"], longest),
    }
    group = {"kind": "ppo", "num_answers": GROUP, "max_new_tokens": work.max_new_tokens, "minibatches": 1, "reuse": 1}
    return {
        "sft": {
            **usual, "data": {"train": str(folder / "chats.jsonl"), "validation": "none", "max_length": longest},
            "objective": {"kind": "sft"}, "training": {**training, "rows_per_step": 16, "epochs": 100.0},
        },
        "reward": {
            **usual, "data": {"train": str(folder / "pairs.jsonl"), "validation": "none", "max_length": longest},
            "objective": {"kind": "reward"}, "training": {**training, "steps": 1, "rows_per_step": 8, "checkpoint_every": 1},
        },
        "ppo": {
            **usual, "objective": {**group, "rewards": [{"model": str(folder / "reward-run")}], "kl": work.kl},
            "training": training,
        },
    }  # fmt: skip


def cached_tokens(work: PromptWork, answer_tokens: float) -> float:
    """The fewest tokens whose keys and values a rollout holds at its end: each prompt once, and all answers."""
    prompts = work.rows_per_step * mean(len(ids) for ids in work.prompt_ids)
    return prompts + work.samples_per_step * answer_tokens


def ratio_without_cache(ppo: Sequence[float], sft: Sequence[float], cache: float) -> float:
    """The median peak of PPO less the cache, over that of supervised tuning."""
    return (median(ppo) - cache) / median(sft)


def run_one(name: str, folder: Path, number: int) -> dict[str, Any]:
    """The run whose work lies in a folder of that name; what it measured. Raises: SideFailed."""
    log = folder / f"{name}-{number}.log"
    outcome = run_side(SIDE, (), folder / name, log)
    say(
        f"  round {number}  {name:<4} {outcome.peak_bytes / 1e9:5.2f} GB (loaded: {outcome.loaded_peak_bytes / 1e9:.2f})"
    )
    values: dict[str, Any] = json.loads(log.with_suffix(".json").read_text("utf-8"))
    return values


def bench(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """All rounds; the document and the text that tells it. Raises: SideFailed."""
    work = prepare(options, folder)
    for name, recipe in recipes_of(work, folder).items():
        (folder / name).mkdir()
        file = folder / name / "recipe.yaml"
        file.write_text(json.dumps(recipe), "utf-8")  # JSON is YAML
        write_prompts(folder / name, replace(work, recipe=str(file)))
    say("Training the reward model for one step ...")
    train = ["train", str(folder / "reward" / "recipe.yaml"), "--out", str(folder / "reward-run")]
    run_module("luthier", train, folder / "reward.log")
    runs: dict[str, list[dict[str, Any]]] = {"sft": [], "ppo": []}
    for number in range(1, options.rounds + 1):
        for name, own in runs.items():
            own.append(run_one(name, folder, number))
    peaks = {name: [float(run["peak_bytes"]) for run in own] for name, own in runs.items()}
    tokens = cached_tokens(work, mean(length for run in runs["ppo"] for length in run["answer_tokens"]))
    cache = tokens * bytes_a_token(json.loads((Path(work.model) / "config.json").read_text("utf-8")))
    whole, without = median(peaks["ppo"]) / median(peaks["sft"]), ratio_without_cache(peaks["ppo"], peaks["sft"], cache)
    where = machine()
    document = {
        "work": {"name": "memory", "model": options.model, "tokens_per_micro_batch": options.budget},
        "machine": where,
        "peak_bytes": peaks,
        "cache_bytes": cache,
        "ratio": without,
        "ratio_with_cache": whole,
        "target": TARGET,
        "passed": without <= TARGET,
    }
    rows = [(name, gigabytes(median(each))) for name, each in peaks.items()]
    text = (
        f"{where['processor']}; {options.rounds} rounds; micro-batches of {options.budget} tokens.\n\n"
        f"{table(('medians', 'peak GB'), rows)}\n\n"
        f"The cache of keys and values holds {tokens:,.0f} tokens, {gigabytes(cache)} GB. PPO without it over supervised tuning: "
        f"{without:.2f} (target {TARGET:g}); with it {whole:.2f}."
    )
    return document, text


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; 0, 1 if PPO takes too much, or the exit code of what failed."""
    return carried_out(bench, read_arguments(arguments), "ppo")


if __name__ == "__main__":
    sys.exit(main())
