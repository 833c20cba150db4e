"""The work of `bench.dpo`: pairs as token ids and the initial adapter, fixed in files before anyone starts.

Only the standard library is imported here, for the reason given in `work`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

FILE = "pairs.json"
BETA = 0.1


@dataclass(frozen=True)
class Pair:
    """One row: the prompt's tokens, and those of both answers."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def longer(self) -> int:
        """Tokens of the longer answer."""
        return max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def has_long_prompt(self) -> bool:
        """Whether the prompt is at least three times as long as the longer answer."""
        return len(self.prompt_ids) >= 3 * self.longer


@dataclass(frozen=True)
class PairWork:
    """A whole run: `pairs` in the order of training, `rows_per_step` of them to a step."""

    name: str
    model: str
    adapter: str
    recipe: str
    rows_per_step: int
    peak_lr: float
    clip_norm: float
    pad_id: int
    pairs: tuple[Pair, ...]

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return len(self.pairs) // self.rows_per_step

    @property
    def prompt_over_answer(self) -> float:
        """Tokens of prompts over those of a mean answer."""
        answers = [len(each) for pair in self.pairs for each in (pair.chosen_ids, pair.rejected_ids)]
        return mean(len(pair.prompt_ids) for pair in self.pairs) / mean(answers)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON, JSONL, or JSONL in gzip. Raises: OSError; ValueError for another form."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = data.decode("utf-8")
    rows = (
        json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.encode().splitlines()]
    )
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("there are no rows, or some are no objects")
    return rows


def first_fitting(pairs: Sequence[Pair], count: int, longest: int, *, long_prompts: bool) -> list[int]:
    """The numbers of the first pairs whose prompt and longer answer have at most so many tokens; of long prompts if wanted."""
    fitting = [
        number
        for number, pair in enumerate(pairs)
        if len(pair.prompt_ids) + pair.longer <= longest and (pair.has_long_prompt or not long_prompts)
    ]
    return fitting[:count]


def write_pairs(folder: Path, work: PairWork) -> None:
    """Write the work as JSON into the folder."""
    (folder / FILE).write_text(json.dumps(asdict(work)), "utf-8")


def read_pairs(folder: Path) -> PairWork:
    """The work that lies in a folder."""
    values: dict[str, Any] = json.loads((folder / FILE).read_text("utf-8"))
    return PairWork(**{**values, "pairs": tuple(Pair(**pair) for pair in values["pairs"])})
