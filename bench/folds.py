"""`python -m bench.folds`: DPO on the real model in five folds, so that every pair is held out once.

Of LLaMA-Factory's English DPO pairs (`dpo_en_demo.json`) those that are short enough are split by their prompts; each fold is
held out of one run. Shown are how often tuning moved the pair's difference of log-probabilities the right way (the accuracy of
DPO's implicit rewards, Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, section 4), with its interval over all pairs,
and the divergence of each policy from the reference on answers that it draws itself to held-out prompts. Exit code 0 if the
whole interval is above a half.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from bench.contest import DATA, RESULTS, carried_out, machine, say
from bench.figures import table
from bench.processes import SideFailed, run_module

PAIRS = DATA / "dpo_kto_demo" / "dpo_en_demo.json"
FOLDS, DRAWN, NEW_TOKENS = 5, 12, 48


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.folds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or a transformers folder")
    parser.add_argument("--data", type=Path, default=PAIRS, help="pairs as LLaMA-Factory writes them")
    parser.add_argument("--max-length", type=int, default=512, help="longer pairs are left out (default 512 tokens)")
    parser.add_argument("--epochs", type=float, default=2.0, help="epochs of each fold (default 2)")
    parser.add_argument("--peak-lr", type=float, default=2e-4, help="the peak learning rate (default 2e-4)")
    parser.add_argument("--beta", type=float, default=0.1, help="as in objective.beta (default 0.1)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for all figures (default: bench/results)")
    return parser.parse_args(arguments)


def folds_of(rows: list[dict[str, Any]], count: int) -> list[list[dict[str, Any]]]:
    """The rows in so many parts, those of one prompt in one part, in the order of their prompts' hashes."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = hashlib.sha256(json.dumps(row["conversations"], sort_keys=True).encode()).hexdigest()
        by_prompt.setdefault(key, []).append(row)
    groups = [by_prompt[key] for key in sorted(by_prompt)]
    return [[row for group in groups[number::count] for row in group] for number in range(count)]


def recipe_of(options: argparse.Namespace, train: Path, held_out: Path, seed: int) -> dict[str, Any]:
    """The run of one fold."""
    return {
        "model": options.model,
        "data": {
            "train": str(train), "validation": str(held_out), "max_length": options.max_length, "too_long": "drop",
        },
        "objective": {"kind": "dpo", "beta": options.beta},
        "method": {"kind": "lora", "rank": 16},
        "training": {
            "epochs": options.epochs, "rows_per_step": 8, "tokens_per_micro_batch": max(1024, 2 * options.max_length),
            "peak_lr": options.peak_lr, "evaluate_every": 10_000, "checkpoint_every": 10_000,
        },
        "seed": seed,
    }  # fmt: skip


def divergence(run: Path, rows: list[dict[str, Any]]) -> float:
    """KL(policy ‖ reference) of an answer, nats: the mean of log π / π_ref over answers that the policy draws to the rows' prompts."""
    import numpy as np

    from luthier import api
    from luthier.generation.engine import generate
    from luthier.generation.requests import Request
    from luthier.generation.settings import Sampling
    from luthier.objectives.sft import written
    from luthier.ops.workers import Workers
    from luthier.prediction.passes import Passes, logprobs, said_of_each
    from luthier.types import Message, Origin, Rendered

    policy = api.load_text(run)
    model, sampling = policy.language_model, Sampling(temperature=1.0, max_new_tokens=NEW_TOKENS)
    prompts = [
        tuple(policy.renderer.prompt_tokens([Message("user", turn["value"]) for turn in row["conversations"][-1:]]))
        for row in rows
    ]
    requests = [Request(prompt, sampling, policy.adapter, policy.renderer.stop_ids) for prompt in prompts]
    examples = []
    for number, (prompt, answer) in enumerate(zip(prompts, generate(model, requests), strict=True)):
        weight_T = np.repeat([0.0, 1.0], [len(prompt), len(answer.tokens)]).astype(np.float32)
        tokens_T = np.array([*prompt, *answer.tokens], dtype=np.int64)
        examples.append(written(Rendered(tokens_T, weight_T), number, Origin("drawn", number + 1)))
    with Workers(1) as workers:
        passes = Passes(workers, 1024)
        own, reference = (
            said_of_each(model, adapter, examples, logprobs, passes, "answers drawn")
            for adapter in (policy.adapter, None)
        )
    return mean(float((mine - other).double().sum()) for mine, other in zip(own, reference, strict=True))


def one_fold(
    options: argparse.Namespace, folds: list[list[dict[str, Any]]], number: int, folder: Path
) -> dict[str, Any]:
    """The run that holds one fold out, and how it ranks that fold's pairs. Raises: SideFailed."""
    from luthier import api

    folder.mkdir()
    train, held_out = folder / "train.json", folder / "held-out.json"
    train.write_text(json.dumps([row for other, fold in enumerate(folds) if other != number for row in fold]))
    held_out.write_text(json.dumps(folds[number]))
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_of(options, train, held_out, number)))
    run_module("luthier", ["train", str(recipe), "--out", str(folder / "run")], folder / "train.log")
    evaluation = api.evaluate(folder / "run", announce=lambda line: None)
    found = {measure.name: measure.estimates[-1].value for measure in evaluation.measures}
    result = {
        "rows": evaluation.num_rows,
        "implicit_accuracy": found["implicit accuracy"],
        "accuracy": found["accuracy"],
        "kl": divergence(folder / "run", folds[number][:DRAWN]),
    }
    say(f"  fold {number + 1}: {result}")
    return result


def bench(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """All folds; the document and the text that tells it. Raises: SideFailed."""
    from luthier.evaluation.intervals import wilson

    if not options.data.is_file():
        raise SideFailed(f"There is no such data file: {options.data}. Give pairs with --data.", 4)
    folds = folds_of(json.loads(options.data.read_text("utf-8")), FOLDS)
    found = [one_fold(options, folds, number, folder / str(number)) for number in range(FOLDS)]
    num_rows = sum(one["rows"] for one in found)
    whole = wilson(sum(one["rows"] * one["implicit_accuracy"] for one in found), num_rows)
    kl = mean(one["kl"] for one in found)
    head = ("fold", "pairs held out", "implicit accuracy", "accuracy", "nats from the reference")
    rows = [
        (str(number), str(one["rows"]), f"{one['implicit_accuracy']:.1%}", f"{one['accuracy']:.1%}", f"{one['kl']:.2f}")
        for number, one in enumerate(found, start=1)
    ]
    text = (
        f"{table(head, rows)}\n\nAll {num_rows} pairs: implicit accuracy {whole.value:.1%} [{whole.low:.1%}, {whole.high:.1%}], "
        f"{kl:.2f} nats an answer of at most {NEW_TOKENS} tokens from the reference."
    )
    work = {"name": "folds", "model": options.model}
    document = {"work": work, "machine": machine(), "folds": found, "implicit_accuracy": vars(whole), "kl": kl}
    return {**document, "passed": whole.low > 0.5}, text


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; 0 if the interval lies above a half, 1 if not, or the exit code of what failed."""
    return carried_out(bench, read_arguments(arguments), "dpo")


if __name__ == "__main__":
    sys.exit(main())
