"""`python -m bench.reward`: a reward model of the real model from pairs of harmless and harmful answers, and what it goes by.

Of hh-rlhf's harmless pairs (Bai et al. 2022, https://arxiv.org/abs/2204.05862) some are learned from in one epoch and others held
out, rows of one prompt on one side. Shown are the held-out accuracy with its interval against a rule that knows lengths alone,
calibration, margins, and the probes of length and position. Exit code 0 if the whole interval of the accuracy is above a half, over
500 rows or more.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.contest import DATA, RESULTS, machine, say
from bench.processes import SideFailed, run_module

PAIRS = DATA / "hh_rlhf_harmless" / "harmless_base_test.jsonl.gz"
MAX_LENGTH = 320
FEWEST_ROWS = 500


def readable_pairs(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Every row that is a pair, with the hash of its prompt. Raises: SideFailed, with the exit code for what is not found."""
    from luthier.data.formats.hh_rlhf import to_record
    from luthier.data.reading import Row
    from luthier.data.split import prompt_key
    from luthier.errors import DataError
    from luthier.types import Origin

    if not path.is_file():
        raise SideFailed(f"There is no such data file: {path}. Give hh-rlhf's harmless pairs with --data.", 4)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            values = json.loads(line)
            try:
                yield prompt_key(to_record(Row(values, Origin(path.name, number)))), values
            except DataError:  # transcripts that are the same, or part before an answer
                continue


def split(path: Path, num_train: int, num_held_out: int, folder: Path) -> tuple[Path, Path]:
    """Files of rows to train on and of rows held out: in the order of the prompts' hashes, the first so many and the last."""
    rows = sorted(readable_pairs(path), key=lambda each: each[0])
    held_out = rows[max(0, len(rows) - num_held_out) :]
    asked = {prompt for prompt, _ in held_out}
    train = [each for each in rows if each[0] not in asked][:num_train]
    files = folder / "train.jsonl", folder / "held-out.jsonl"
    for file, chosen in zip(files, (train, held_out), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for _, row in chosen), encoding="utf-8")
    return files


def recipe_of(options: argparse.Namespace, train: Path, held_out: Path) -> dict[str, Any]:
    """The recipe of the run."""
    return {
        "model": options.model,
        "data": {"train": str(train), "validation": str(held_out), "max_length": MAX_LENGTH, "too_long": "drop"},
        "objective": {"kind": "reward", "centre": 0.01},
        "method": {"kind": "lora", "rank": 16},
        "training": {
            "epochs": 1, "rows_per_step": 8, "tokens_per_micro_batch": 1024, "peak_lr": options.peak_lr,
            "evaluate_every": 10_000, "checkpoint_every": 50,
        },
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Train and evaluate; 0 if the accuracy's interval lies above a half."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.reward", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=1640,
        help="rows to train on, of which the longest are dropped (default 1640: about 20 minutes)",
    )
    parser.add_argument(
        "--held-out", type=int, default=670, help="rows held out, likewise (default 670: more than 500 stay)"
    )
    parser.add_argument("--peak-lr", type=float, default=3e-4, help="the peak learning rate")
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or a transformers folder")
    parser.add_argument("--data", type=Path, default=PAIRS, help="hh-rlhf's harmless pairs, as .jsonl.gz")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the run and its figures")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    options = parser.parse_args(arguments)
    folder = options.results.resolve() / time.strftime("reward-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    try:
        return carried_out(options, folder)
    except SideFailed as error:
        say(str(error))
        return error.exit_code


def carried_out(options: argparse.Namespace, folder: Path) -> int:
    """See `main`. Raises: SideFailed."""
    from luthier import api
    from luthier.cli.evaluate import evaluation_text

    files = split(options.data, options.rows, options.held_out, folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_of(options, *files)), encoding="utf-8")
    began = time.perf_counter()
    run_module("luthier", ["train", str(recipe), "--out", str(folder / "run")], folder / "train.log")
    trained = time.perf_counter()
    say(f"Trained in {trained - began:.0f} s.")
    evaluation = api.evaluate(folder / "run", announce=lambda line: None)
    evaluated = time.perf_counter() - trained
    say(f"Evaluated {evaluation.num_rows} rows in {evaluated:.0f} s.")
    if evaluation.details is not None:
        evaluation.details.write_picture(folder / "reward.png")
    seconds = {"train_seconds": trained - began, "evaluate_seconds": evaluated}
    document = {"machine": machine(), **seconds, **evaluation.as_json()}
    (folder / "figures.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document) if options.json else evaluation_text(evaluation))
    accuracy = next(measure for measure in evaluation.measures if measure.name == "accuracy")
    return 0 if accuracy.estimates[-1].low > 0.5 and evaluation.num_rows >= FEWEST_ROWS else 1


if __name__ == "__main__":
    sys.exit(main())
