"""How fast answers come: Luthier's engine against transformers' `generate` and its continuous batching.

Three tasks, each contestant in its own fresh process, in alternation, several rounds: greedy answers to prompts of mixed length
with natural stops; eight drawn answers to each of several prompts; and eight answers to prompts of 256 tokens, together
and each as a prompt of its own. Only new tokens are counted. Greedy answers must agree up to the first place whose two
best scores are nearer than 1e-3. Rates are told per second and per CPU-second, with the share that the products alone take.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.contest import DATA, RESULTS, carried_out, machine, model_name, say
from bench.figures import Ratio, gigabytes, ratio, table
from bench.processes import SideFailed, run_module

GENERATE_BATCHES = (16, 32, 64)
TASKS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], str]] = {
    "mixed": (
        "64 prompts of mixed length, greedy, up to 128 new tokens",
        {"num_prompts": 64, "prompt_tokens": None, "samples": 1, "temperature": 0.0, "max_new_tokens": 128},
        ("luthier-64", *(f"generate-{batch}" for batch in GENERATE_BATCHES), "continuous-64"),
        "best peer",
    ),
    "samples": (
        "8 answers to each of 16 prompts, drawn, up to 64 new tokens",
        {"num_prompts": 16, "prompt_tokens": None, "samples": 8, "temperature": 1.0, "max_new_tokens": 64},
        ("luthier-128", "generate-64", "generate-128"),
        "best peer",
    ),
    "shared": (
        "8 answers to each of 8 prompts of 256 tokens, drawn, up to 64 new tokens",
        {"num_prompts": 8, "prompt_tokens": 256, "samples": 8, "temperature": 1.0, "max_new_tokens": 64},
        ("luthier-64", "luthier-apart-64"),
        "our own separate prompts",
    ),
}


@dataclass(frozen=True)
class Measured:
    """One contestant's round: new tokens a second and a CPU-second, peak memory above the loaded model's, and the
    share of its time (of CPU time) that the products alone would take, where it is known."""

    tokens_per_second: float
    tokens_per_cpu_second: float
    added_bytes: float
    product_share: float | None


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.generate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="some of the tasks")
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or a transformers folder")
    parser.add_argument("--rounds", type=int, default=3, help="times that each runs, in alternation (default: 3)")
    parser.add_argument("--threads", type=int, help="torch's threads for everyone (default: torch's own)")
    parser.add_argument("--prompts", type=int, help="fewer prompts than the task has")
    parser.add_argument("--new-tokens", type=int, help="fewer new tokens than the task has")
    parser.add_argument("--cache-tokens", type=int, default=16_384, help="of our cache (default: 16384)")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="some contestants, such as luthier-64 generate-32")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for all figures (default: bench/results)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    return parser.parse_args(arguments)


def read_texts(count: int) -> list[str]:
    """Questions of GSM8K and first prompts of oasst1's trees, half of each. Raises: SideFailed, if they are not there."""
    questions = DATA / "gsm8k" / "test.jsonl"
    trees = DATA / "oasst1_trees" / "en_100_tree.jsonl"
    for path in (questions, trees):
        if not path.is_file():
            raise SideFailed(f"{path} is not there.", 4)
    asked = [json.loads(line)["question"] for line in questions.read_text("utf-8").splitlines()[: count // 2]]
    opened = [json.loads(line)["prompt"]["text"] for line in trees.read_text("utf-8").splitlines()]
    return [*asked, *[text for text in opened if len(text) < 500][: count - len(asked)]]


def run_one(task: str, key: str, folder: Path, number: int) -> dict[str, Any]:
    """A contestant's round; what it measured and said. Raises: SideFailed."""
    contestant, _, batch = key.rpartition("-")
    log = folder / f"{task}-{key}-{number}.log"
    result = log.with_suffix(".json")
    run_module("bench.generate_side", [contestant, str(folder / f"{task}.json"), str(result), "--batch", batch], log)
    values: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return values


def measured(values: dict[str, Any]) -> Measured:
    """The figures of a round."""
    products = values.get("product_seconds")
    return Measured(
        values["new_tokens"] / values["wall_seconds"],
        values["new_tokens"] / values["cpu_seconds"],
        float(values["peak_bytes"] - values["loaded_peak_bytes"]),
        None if products is None else products["cpu"] / values["cpu_seconds"],
    )


def differing(ours: list[list[int]], theirs: list[list[int]]) -> list[tuple[int, int]]:
    """For each answer that differs, its number and the first place where it does."""
    found = []
    for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        places = [place for place, pair in enumerate(zip(own, other, strict=False)) if pair[0] != pair[1]]
        if own != other:
            found.append((number, places[0] if places else min(len(own), len(other))))
    return found


def against(keys: tuple[str, ...], rounds: dict[str, list[Measured]]) -> dict[str, Ratio]:
    """Our rates over the best other contestant's."""
    own, *others = keys
    found = {}
    for name in ("tokens_per_second", "tokens_per_cpu_second"):
        rates = {key: [asdict(run)[name] for run in rounds[key]] for key in keys}
        if others:
            best = max(others, key=lambda key: median(rates[key]))
            found[name] = ratio(rates[own], rates[best])
    return found


def run_task(options: argparse.Namespace, task: str, folder: Path) -> tuple[dict[str, Any], str]:
    """All rounds of a task; its document and the text that tells it. Raises: SideFailed."""
    title, settings, all_keys, opponent = TASKS[task]
    keys = tuple(key for key in all_keys if options.only is None or key in options.only)
    work = {**settings, "model": model_name(options.model), "threads": options.threads}
    work["cache_tokens"] = options.cache_tokens
    work["num_prompts"] = min(options.prompts or work["num_prompts"], work["num_prompts"])
    work["max_new_tokens"] = min(options.new_tokens or work["max_new_tokens"], work["max_new_tokens"])
    work["texts"] = read_texts(work["num_prompts"] if work["prompt_tokens"] is None else 64)
    path = folder / f"{task}.json"
    path.write_text(json.dumps(work), "utf-8")
    run_module("bench.generate_side", ["prepare", str(path), str(path)], folder / "prepare.log", offline=False)
    every: dict[str, list[dict[str, Any]]] = {key: [] for key in keys}
    for number in range(1, options.rounds + 1):
        for key in keys:
            values = run_one(task, key, folder, number)
            every[key].append(values)
            run = measured(values)
            say(
                f"  {task} round {number}  {key:<18} {run.tokens_per_second:6.0f} tokens/s  "
                f"{run.tokens_per_cpu_second:5.0f} a CPU-second  +{run.added_bytes / 1e9:.2f} GB"
            )
    return told(title, opponent, keys, every, settings["temperature"] == 0)


def told(
    title: str, opponent: str, keys: tuple[str, ...], every: dict[str, list[dict[str, Any]]], is_greedy: bool
) -> tuple[dict[str, Any], str]:
    """A task's document and its table."""
    rounds = {key: [measured(values) for values in runs] for key, runs in every.items()}
    ratios = against(keys, rounds)
    rows = []
    for key, runs in rounds.items():
        shares = [run.product_share for run in runs if run.product_share is not None]
        rows.append(
            (
                key,
                f"{median(run.tokens_per_second for run in runs):.0f}",
                f"{median(run.tokens_per_cpu_second for run in runs):.0f}",
                f"{every[key][0]['new_tokens']:,}",
                gigabytes(median(run.added_bytes for run in runs)),
                f"{median(shares):.0%}" if shares else "",
            )
        )
    head = (title, "tokens/s", "per CPU-s", "new tokens", "added GB", "products alone")
    text = table(head, rows)
    if ratios:
        text += f"\n\nOver {opponent}: {ratios['tokens_per_second']} times a second, "
        text += f"{ratios['tokens_per_cpu_second']} times a CPU-second."
    document: dict[str, Any] = {
        "title": title,
        "contestants": {
            key: [{name: value for name, value in values.items() if name != "answers"} for values in runs]
            for key, runs in every.items()
        },
        "ratios": {name: asdict(found) for name, found in ratios.items()},
    }
    own, *others = keys
    if is_greedy and others:
        differences = {key: differing(every[own][0]["answers"], every[key][0]["answers"]) for key in others}
        document["differences"] = differences
        counts = ", ".join(f"{key} {len(found)}" for key, found in differences.items())
        text += f"\nAnswers that differ somewhere from ours, of {len(every[own][0]['answers'])}: {counts}."
    if "cache_bytes" in every[own][0]:
        text += f"\nOur cache holds {gigabytes(float(every[own][0]['cache_bytes']))} GB."
    return document, text


def bench(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """All tasks; the document and the text that tells it. Raises: SideFailed."""
    documents, texts = {}, []
    for task in options.tasks:
        documents[task], text = run_task(options, task, folder)
        texts.append(text)
    where = machine()
    document = {"work": {"name": "answers", "model": options.model}, "machine": where, "tasks": documents}
    setting = f"{where['processor']}; {options.rounds} rounds; threads: {options.threads or 'torch decides'}."
    return document, "\n\n".join([setting, *texts])


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; 0, or the exit code of what failed."""
    return carried_out(bench, read_arguments(arguments), "generate")


if __name__ == "__main__":
    sys.exit(main())
