"""Makes the work of `bench.dpo` in a process of its own: rows, token ids in the order of training, and the adapter.

All of it is Luthier's own reading, rendering, order of rows and LoRA; the peer gets the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.pairs import BETA, Pair, PairWork, first_fitting, read_rows, write_pairs
from bench.prepare import ALPHA, CLIP_NORM, PEAK_LR, RANK, ROWS_PER_STEP, SEED, plain_folder, prepared, work_parser
from bench.side import say
from luthier.data.apart import laid_apart
from luthier.data.dataset import load_dataset
from luthier.data.formats.hh_rlhf import to_record
from luthier.data.mixture import epoch_order
from luthier.data.reading import Row
from luthier.data.settings import DataSettings
from luthier.errors import DataError, NotFound
from luthier.methods import ADAPTER, LoRA
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.objectives import DPO
from luthier.objectives.preference import CHOSEN, REJECTED
from luthier.prepared import asked_of
from luthier.types import Conversation, Example, Origin


def pair_of(example: Example) -> Pair:
    """An example's tokens as a peer takes them: what stands before the first learned token is the prompt."""
    apart = laid_apart(example)
    starts = [0, len(apart.parts[0].tokens_T)]
    answers = []
    prompts = []
    for sample, start in zip((CHOSEN, REJECTED), starts, strict=True):
        own_N = apart.sample_N == sample
        tokens = apart.parts[sample].tokens_T.tolist()
        first, answer = int(apart.source_N[own_N][0]) + 1 - start, apart.token_N[own_N].tolist()
        assert tokens[first : first + len(answer)] == answer, "an answer is learned whole, in one run"
        prompts.append(tokens[:first])
        answers.append(answer)
    assert prompts[0] == prompts[1], "both answers follow the same prompt"
    return Pair(prompts[0], *answers)


def recipe_of(model: str, data: Path, longest: int, budget: int, steps: int) -> dict[str, Any]:
    """Luthier's recipe for the work; what is not named here keeps its default."""
    return {
        "model": {"name": model, "dtype": "fp32", "device": "cpu"},
        "data": {"train": str(data), "validation": "none", "max_length": longest},
        "method": {"kind": "lora", "rank": RANK, "alpha": ALPHA},
        "objective": {"kind": "dpo", "beta": BETA},
        "training": {
            "steps": steps,
            "rows_per_step": ROWS_PER_STEP,
            "tokens_per_micro_batch": budget,
            "peak_lr": PEAK_LR,
            "schedule": {"kind": "linear", "warmup_steps": 0},
            "clip_norm": CLIP_NORM,
            "checkpoint_every": steps,
        },
        "seed": SEED,
    }


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSONL; the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def raw_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of the data file. Raises: NotFound, DataError."""
    try:
        return read_rows(path)
    except OSError as error:
        raise NotFound("There is no such data file.", "Give a file of pairs with --data.", file=str(path)) from error
    except ValueError as error:
        raise DataError(
            f"The file cannot be read: {error}.", "Give JSON or JSONL with --data.", file=str(path)
        ) from error


def is_one_pair(row: dict[str, Any]) -> bool:
    """Whether two different answers follow one prompt; of transcripts, whether they part at the last answer and both have one."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not isinstance(chosen, str) or not chosen.lstrip().startswith("Human:"):
        return chosen != rejected
    try:
        pair = to_record(Row(row, Origin("pairs", 1)))
    except DataError:  # the same twice, or one ends where the other goes on
        return False
    assert isinstance(pair.chosen, Conversation), "a transcript is a chat"
    assert isinstance(pair.rejected, Conversation), "a transcript is a chat"
    both = pair.chosen.messages, pair.rejected.messages
    return both[0][:-1] == both[1][:-1] and all(messages[-1].content.strip() for messages in both)


def prepare(arguments: argparse.Namespace) -> None:
    """Write the work into the folder. Raises: the errors of reading data and models."""
    folder: Path = arguments.work.absolute()
    raw = [row for row in raw_rows(arguments.data) if is_one_pair(row)]
    settings = ModelSettings(name=arguments.model, dtype="fp32", device="cpu")
    model_folder = plain_folder(settings)
    model = load_model(settings, say)
    whole = write_lines(folder / "whole.jsonl", raw)
    reading = DataSettings(train=str(whole), validation="none", max_length=1 << 20)
    read = load_dataset(reading, model.tokenizer, DPO().example, say, asked=asked_of(DPO())).train
    found = [(raw[example.origin.line - 1], example) for example in read]
    pairs = [pair_of(example) for _, example in found]
    count = arguments.steps * ROWS_PER_STEP
    numbers = first_fitting(pairs, count, arguments.max_length, long_prompts=arguments.long_prompts)
    if len(numbers) < count:
        raise DataError(
            f"There are {len(numbers)} usable pairs, which is less than {arguments.steps} steps of {ROWS_PER_STEP}.",
            "Lower --steps, raise --max-length, or give a file that holds more with --data.",
        )
    data = write_lines(folder / "rows.jsonl", [found[number][0] for number in numbers])
    adapter = folder / "adapter"
    adapter.mkdir()
    LoRA(rank=RANK, alpha=ALPHA).attach(model, ADAPTER, SEED).write(adapter, say)
    chosen = [pairs[number] for number in numbers]
    longest = max(len(pair.prompt_ids) + pair.longer for pair in chosen)
    budget = max(arguments.budget, 2 * longest)  # two answers, each behind a copy of its prompt
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_of(model_folder, data, longest + 2, budget, arguments.steps), indent=1))
    order = epoch_order(len(chosen), SEED, 0)
    work = PairWork(
        name=arguments.name,
        model=model_folder,
        adapter=str(adapter),
        recipe=str(recipe),
        rows_per_step=ROWS_PER_STEP,
        peak_lr=PEAK_LR,
        clip_norm=CLIP_NORM,
        pad_id=model.pad_id,
        pairs=tuple(chosen[index] for index in order),
    )
    write_pairs(folder, work)


def main() -> int:
    """Prepare the work; 0, or the exit code of the error that is printed."""
    parser = work_parser("the pairs that every contestant learns from")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--long-prompts", action="store_true")
    return prepared(prepare, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
