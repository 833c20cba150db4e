"""The rows of banking77 that two benches share: customers' messages and the intents that they were sorted into."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from bench.contest import DATA
from bench.processes import SideFailed


def add_banking_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which rows and which model."""
    parser.add_argument(
        "--data", type=Path, default=DATA / "banking77" / "train.csv", help="CSV of text and category (banking77's)"
    )
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or a transformers folder")


def read_banking(path: Path) -> list[dict[str, str]]:
    """All rows, each with `text` and `category`. Raises: SideFailed, with the exit code for what is not found."""
    if not path.is_file():
        raise SideFailed(f"There is no such data file: {path}. Give banking77's train.csv with --data.", 4)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
