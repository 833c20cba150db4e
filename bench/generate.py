"""How fast answers come: Luthier's engine against transformers' `generate` and its continuous batching.

Three tasks, each contestant in its own fresh process, in alternation, several rounds: greedy answers to prompts of mixed length
with natural stops; eight drawn answers to each of several prompts; and eight answers to prompts of 256 tokens, together
and each as a prompt of its own. Only new tokens are counted. Greedy answers must agree up to the first place whose two
best scores are nearer than 1e-3, as transformers computes them, and our cache hold no more than was stated: else the exit code is 1.
Rates are told per second and per CPU-second, with the share that the products alone take.
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
NEAR_TIE = 1e-3
TARGETS = {"mixed": 1.8, "samples": 3.0, "shared": 1.5}
TASKS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], str]] = {
    "mixed": (
        "{prompts} prompts of mixed length, greedy, up to {new} new tokens",
        {"num_prompts": 64, "prompt_tokens": None, "samples": 1, "temperature": 0.0, "max_new_tokens": 128},
        ("luthier-64", *(f"generate-{batch}" for batch in GENERATE_BATCHES), "continuous-64"),
        "best peer",
    ),
    "samples": (
        "8 answers to each of {prompts} prompts, drawn, up to {new} new tokens",
        {"num_prompts": 16, "prompt_tokens": None, "samples": 8, "temperature": 1.0, "max_new_tokens": 64},
        ("luthier-128", "generate-64", "generate-128"),
        "best peer",
    ),
    "shared": (
        "8 answers to each of {prompts} prompts of 256 tokens, drawn, up to {new} new tokens",
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
    parser.add_argument("--cache-tokens", type=int, default=20_480, help="of our cache (default: 20480)")
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
    asked = [json.loads(line)["question"] for line in questions.read_bytes().splitlines()[: count // 2]]
    opened = [json.loads(line)["prompt"]["text"] for line in trees.read_bytes().splitlines()]
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
    title = title.format(prompts=work["num_prompts"], new=work["max_new_tokens"])
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
    parted = parted_ways(keys, every, work, path, folder) if settings["temperature"] == 0 else {}
    document, text = told(title, f"{opponent} (target {TARGETS[task]:g})", keys, every, parted)
    return {**document, "target": TARGETS[task]}, text


def parted_ways(
    keys: tuple[str, ...], every: dict[str, list[dict[str, Any]]], work: dict[str, Any], path: Path, folder: Path
) -> dict[str, list[float]]:
    """How near the two best scores were where another contestant's greedy answers first differ from ours. Raises: SideFailed."""
    own, *others = keys
    ours = every[own][0]["answers"]
    found: dict[str, list[float]] = {}
    for key in others:
        places = [
            {"prompt": number // work["samples"], "said": ours[number][:place]}
            for number, place in differing(ours, every[key][0]["answers"])
        ]
        asked, gaps = folder / f"parted-{key}.json", folder / f"gaps-{key}.json"
        asked.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "places": places}), "utf-8")
        run_module("bench.generate_side", ["gaps", str(asked), str(gaps)], folder / f"gaps-{key}.log")
        found[key] = json.loads(gaps.read_text("utf-8"))
    return found


def told(
    title: str,
    opponent: str,
    keys: tuple[str, ...],
    every: dict[str, list[dict[str, Any]]],
    parted: dict[str, list[float]],
) -> tuple[dict[str, Any], str]:
    """A task's document and its table. parted: as `parted_ways` gives it."""
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
    first = every[keys[0]][0]
    if parted:
        document["gaps"] = parted
        counts = ", ".join(f"{key} {len(gaps)}" for key, gaps in parted.items())
        text += f"\nAnswers that differ somewhere from ours, of {len(first['answers'])}: {counts}"
        widest = max((gap for gaps in parted.values() for gap in gaps), default=0.0)
        document["passed"] = widest < NEAR_TIE
        text += f"; the two best scores there are at most {widest:.1e} apart (a tie below {NEAR_TIE:g})."
    if "cache_bytes" in first:
        held, stated = float(first["cache_bytes"]), float(first["stated_bytes"])
        text += f"\nOur cache holds {gigabytes(held)} GB, of {gigabytes(stated)} stated."
        document["passed"] = document.get("passed", True) and held <= stated
    return document, text


def bench(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """All tasks; the document and the text that tells it. Raises: SideFailed."""
    documents, texts = {}, []
    for task in options.tasks:
        documents[task], text = run_task(options, task, folder)
        texts.append(text)
    where = machine()
    passed = all(each.get("passed", True) for each in documents.values())
    work = {"name": "answers", "model": options.model}
    document = {"work": work, "machine": where, "tasks": documents, "passed": passed}
    setting = f"{where['processor']}; {options.rounds} rounds; threads: {options.threads or 'torch decides'}."
    return document, "\n\n".join([setting, *texts])


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; 0, 1 if answers part or the cache grows, or the exit code of what failed."""
    return carried_out(bench, read_arguments(arguments), "generate")


if __name__ == "__main__":
    sys.exit(main())
