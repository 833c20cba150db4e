"""What it saves that frozen layers are computed once: later epochs of methods beside and above them against LoRA's.

The same rows of banking77 (a message, and the name of its label as the completion) for every method, each in its own fresh
process, in alternation, several rounds; printed are medians and ratios. A later epoch is one after the first: the first
still computes the frozen layers, and keeps what they give. Memory is the most that training held above the loaded model. The
loss is that of rows that were held out, after the last step.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from bench.banking import add_banking_options, read_banking
from bench.contest import RESULTS, carried_out, machine, model_name, say
from bench.figures import Ratio, gigabytes, ratio, table
from bench.processes import SideFailed, run_module

BASELINE = "lora"
HELD_OUT = 64
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    BASELINE: ("LoRA, rank 16 on all linear layers", {"kind": "lora", "rank": 16}),
    "attention-fusion": ("attention-fusion", {"kind": "attention-fusion"}),
    "top-2": ("top-layers, the last two", {"kind": "top-layers", "num_layers": 2}),
    "top-8": ("top-layers, the last eight", {"kind": "top-layers", "num_layers": 8}),
    "ladder": ("ladder", {"kind": "ladder"}),
    "lets": ("lets", {"kind": "lets"}),
}


@dataclass(frozen=True)
class Measured:
    """One run of a method: wall seconds of its first epoch and of a later one, the bytes that training added, the loss."""

    first_epoch_seconds: float
    later_epoch_seconds: float
    added_bytes: float
    held_out_loss: float


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.trunk", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_banking_options(parser)
    parser.add_argument("--rows", type=int, default=480, help="rows, evenly from the whole file (default: 480)")
    parser.add_argument(
        "--epochs", type=int, default=3, help="passes over the rows, the first counted apart (default: 3)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that each runs, in alternation (default: 3)")
    parser.add_argument("--rows-per-step", type=int, default=32, help="rows of one step (default: 32)")
    parser.add_argument("--budget", type=int, default=1024, help="tokens a micro-batch (default: 1024)")
    parser.add_argument(
        "--only", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="KEY",
        help=f"some of: {' '.join(METHODS)}; lora is always among them",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for all figures (default: bench/results)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args(arguments)
    if options.rows_per_step < 1 or options.rows < 1 or options.rows % options.rows_per_step or options.epochs < 2:
        parser.error("--rows must be a multiple of --rows-per-step, and --epochs at least 2")
    return options


def read_rows(path: Path, count: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """So many rows of a CSV file of `text` and `category`, as prompt and completion, and others to hold out; evenly spaced.

    Raises: SideFailed, with the exit code for what is not found, if the file is missing or has too few rows.
    """
    rows = [{"prompt": row["text"], "completion": row["category"]} for row in read_banking(path)]
    if len(rows) < count:
        raise SideFailed(f"{path} holds {len(rows)} rows, fewer than {count}; lower --rows.", 3)
    at = [index * len(rows) // count for index in range(count)]
    between = {(2 * index + 1) * len(rows) // (2 * HELD_OUT) for index in range(HELD_OUT)}
    return [rows[index] for index in at], [rows[index] for index in sorted(between - set(at))]


def recipe_of(options: argparse.Namespace, folder: Path, method: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a method on the rows in a folder; what is not named here keeps its default."""
    steps = options.epochs * options.rows // options.rows_per_step
    return {
        "model": {"name": model_name(options.model), "dtype": "fp32", "device": "cpu"},
        "data": {
            "train": str(folder / "rows.jsonl"),
            "validation": str(folder / "held-out.jsonl"),
            "max_length": options.budget,
        },
        "method": method,
        "objective": {"kind": "sft"},
        "training": {
            "epochs": options.epochs,
            "rows_per_step": options.rows_per_step,
            "tokens_per_micro_batch": options.budget,
            "checkpoint_every": steps,
            "evaluate_every": steps,
        },
        "seed": 0,
    }


def run_one(recipe: Path, log: Path, *flags: str) -> dict[str, Any]:
    """Let a process of its own carry out a recipe; what it measured. Raises: SideFailed."""
    result = log.with_suffix(".json")
    run_module("bench.trunk_side", [str(recipe), str(result), *flags], log, offline=False)
    values: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return values


def measured(values: dict[str, Any], loaded_bytes: int) -> Measured:
    """The figures of a run."""
    first, *later = values["seconds"]
    return Measured(first, mean(later), float(values["peak_bytes"] - loaded_bytes), values["held_out_loss"])


def compare(rounds: dict[str, list[Measured]]) -> dict[str, dict[str, Ratio]]:
    """Each method's later epoch and added memory against LoRA's."""
    found = {}
    for key, runs in rounds.items():
        pairs = {
            "later_epoch": ([run.later_epoch_seconds for run in each] for each in (runs, rounds[BASELINE])),
            "memory": ([run.added_bytes for run in each] for each in (runs, rounds[BASELINE])),
        }
        found[key] = {name: ratio(*values) for name, values in pairs.items()}
    return found


def report(document: dict[str, Any], rounds: dict[str, list[Measured]], ratios: dict[str, dict[str, Ratio]]) -> str:
    """The document as a table with its setting."""
    rows = []
    for key, runs in rounds.items():

        def of(name: str, runs: list[Measured] = runs) -> float:
            return median(asdict(run)[name] for run in runs)

        own = ratios[key]
        rows.append(
            (
                METHODS[key][0],
                f"{of('first_epoch_seconds'):.1f}",
                f"{of('later_epoch_seconds'):.2f}",
                "" if key == BASELINE else str(own["later_epoch"]),
                gigabytes(of("added_bytes")),
                "" if key == BASELINE else str(own["memory"]),
                f"{of('held_out_loss'):.3f}",
            )
        )
    head = ("medians", "first epoch s", "later epoch s", "of LoRA's", "memory GB", "of LoRA's", "held-out loss")
    work = document["work"]
    setting = (
        f"{work['name']}: {work['rows']} rows, {work['rows_per_step']} a step; {work['epochs']} epochs of {work['tokens_an_epoch']:,} tokens; "
        f"the loaded model holds {gigabytes(work['loaded_bytes'])} GB.\n"
        f"{document['machine']['processor']}, {document['threads']} threads; "
        f"{', '.join(f'{name} {version}' for name, version in document['versions'].items())}."
    )
    return f"{setting}\n\n{table(head, rows)}"


def bench(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """All rounds; the document and the text that tells it. Raises: SideFailed."""
    for name, rows in zip(("rows", "held-out"), read_rows(options.data, options.rows), strict=True):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    keys = [key for key in METHODS if key in {BASELINE, *options.only}]
    recipes = {key: folder / f"{key}.yaml" for key in keys}
    for key, path in recipes.items():
        path.write_text(json.dumps(recipe_of(options, folder, METHODS[key][1])), "utf-8")  # JSON is YAML
    loaded = run_one(recipes[BASELINE], folder / "loaded.log", "--load-alone")
    every: dict[str, list[dict[str, Any]]] = {key: [] for key in keys}
    rounds: dict[str, list[Measured]] = {key: [] for key in keys}
    for number in range(1, options.rounds + 1):
        for key in keys:
            values = run_one(recipes[key], folder / f"{key}-{number}.log")
            every[key].append(values)
            run = measured(values, loaded["loaded_bytes"])
            rounds[key].append(run)
            say(
                f"  round {number}  {METHODS[key][0]:<36} first epoch {run.first_epoch_seconds:6.1f} s  "
                f"later {run.later_epoch_seconds:6.2f} s  {run.added_bytes / 1e9:5.2f} GB"
            )
    ratios = compare(rounds)
    lora = every[BASELINE][0]
    document: dict[str, Any] = {
        "work": {
            "name": options.data.parent.name if options.data.name == "train.csv" else options.data.stem,
            "model": options.model,
            "rows": options.rows,
            "rows_per_step": options.rows_per_step,
            "epochs": options.epochs,
            "tokens_an_epoch": sum(lora["tokens"]) // options.epochs,
            "loaded_bytes": loaded["loaded_bytes"],
        },
        "machine": machine(),
        "versions": lora["versions"],
        "threads": lora["threads"],
        "methods": {key: {"title": METHODS[key][0], "method": METHODS[key][1], "rounds": every[key]} for key in keys},
        "ratios": {key: {name: asdict(found) for name, found in own.items()} for key, own in ratios.items()},
    }
    return document, report(document, rounds, ratios)


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; 0, or the exit code of what failed."""
    options = read_arguments(arguments)
    return carried_out(bench, options, "trunk")


if __name__ == "__main__":
    sys.exit(main())
