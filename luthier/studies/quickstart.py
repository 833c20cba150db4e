"""The quickstart: a real model learns to triage support tickets, and shows what it answered before and after.

Both models get the same prompts on tickets that training never saw. Answers are greedy and scored strictly: text around
the JSON, a missing field or a value of another type is not a valid answer.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.data.rendering import build_renderer
from luthier.data.settings import DataSettings
from luthier.data.tickets import LABELS, Score, Ticket, answer_for, generate_tickets, prompt_for, score
from luthier.evaluation.intervals import Estimate, bootstrap_mean, wilson
from luthier.evaluation.metrics import rouge_l
from luthier.generation.engine import Request, generate
from luthier.generation.settings import Sampling
from luthier.methods import ADAPTER, LoRA
from luthier.models.language_model import LanguageModel
from luthier.models.settings import ModelSettings
from luthier.models.sources import locate, read_config
from luthier.recipe import Recipe
from luthier.run import train_recipe
from luthier.store.files import write_text
from luthier.training.optimizers import AdamW
from luthier.training.settings import Schedule, TrainingSettings
from luthier.tuned import load_run

Announce = Callable[[str], None]
OnStep = Callable[[dict[str, Any]], None]

NUM_TRAIN = 210
NUM_HELD_OUT = 40
NUM_SHOWN = 5
MAX_NEW_TOKENS = 72  # the longest right answer has about 45; more is for models that indent their JSON
_SHOWN_LETTERS = 300


@dataclass(frozen=True)
class Marks:
    """How one model did on the held-out tickets; every estimate is a share with its 95 % interval.

    field_accuracy: over all four labels. A ticket's labels stand or fall together, so its interval counts tickets.
    summary_rouge_l: how near the summaries come to the right ones, 0 to 1.
    """

    valid_json: Estimate
    field_accuracy: Estimate
    by_field: dict[str, Estimate]
    summary_rouge_l: Estimate


@dataclass(frozen=True)
class Shown:
    """One held-out ticket with the right answer and both models' answers."""

    ticket: str
    expected: str
    base: str
    tuned: str


@dataclass(frozen=True)
class QuickstartResult:
    """What the quickstart made and found; `seconds` holds wall seconds by stage."""

    run: Path
    train_file: Path
    held_out_file: Path
    num_train: int
    num_held_out: int
    base: Marks
    tuned: Marks
    shown: tuple[Shown, ...]
    seconds: dict[str, float]
    next_commands: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The result as one JSON document."""
        paths = {"run": str(self.run), "train_file": str(self.train_file), "held_out_file": str(self.held_out_file)}
        return {**asdict(self), **paths}

    def lines(self) -> list[str]:
        """The result as plain lines for a terminal: examples, the table, seconds, and what to do next."""
        lines = []
        for number, shown in enumerate(self.shown, start=1):
            lines += [f"Ticket {number}: {_one_line(shown.ticket)}"]
            lines += [f"  right answer: {shown.expected}"]
            lines += [f"  before:       {_one_line(shown.base)}", f"  after:        {_one_line(shown.tuned)}", ""]
        lines += [f"{self.num_held_out} held-out tickets, the same prompts for both (95 % intervals):", ""]
        lines += _table(self.base, self.tuned)
        total = sum(self.seconds.values())
        stages = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in self.seconds.items())
        lines += ["", f"Tuned on {self.num_train} tickets. {total:.0f} seconds in all: {stages}.", "", "Next:"]
        return lines + [f"  {command}" for command in self.next_commands]


def run_quickstart(
    folder: Path,
    *,
    announce: Announce,
    on_step: OnStep,
    seed: int = 0,
    run_folder: Path | None = None,
    model: str = "smollm2-135m",
    num_train: int = NUM_TRAIN,
    num_held_out: int = NUM_HELD_OUT,
) -> QuickstartResult:
    """Tune the built-in model on the built-in task, and compare its answers before and after.

    Args:
        folder: takes `train.jsonl` and `held_out.jsonl`; files of these names are replaced.
        run_folder: the run; it must be new or empty. Unset: `run` in `folder`.
        seed: decides the tickets, their order and the adapter's first numbers.

    Raises: what `train_recipe` raises, UsageError for a run folder that is not empty among it.
    """
    run_folder = run_folder or folder / "run"
    watch = _Stopwatch()
    train_file, held_out_file = folder / "train.jsonl", folder / "held_out.jsonl"
    write_text(train_file, _rows_of(generate_tickets(num_train, seed, "train")))
    held_out = generate_tickets(num_held_out, seed, "held_out")
    write_text(held_out_file, _rows_of(held_out))
    watch.ends("tickets")

    training_seconds: list[float] = []

    def on_step_timed(metrics: dict[str, Any]) -> None:
        training_seconds.append(metrics["seconds"])
        on_step(metrics)

    recipe = quickstart_recipe(train_file, model, seed, num_layers_of(model, announce))
    train_recipe(recipe, run_folder, announce=announce, on_step=on_step_timed)
    watch.ends("loading and saving", but_for="training", seconds=sum(training_seconds))
    tuned_model = load_run(run_folder, announce)
    watch.ends("loading and saving")
    announce(f"Asking the base model about {num_held_out} tickets it has not seen.")
    base = answers_of(tuned_model, None, held_out)
    watch.ends("answers before")
    announce("Asking the tuned model about the same tickets.")
    tuned = answers_of(tuned_model, ADAPTER, held_out)
    watch.ends("answers after")
    return QuickstartResult(
        run=run_folder,
        train_file=train_file,
        held_out_file=held_out_file,
        num_train=num_train,
        num_held_out=num_held_out,
        base=mark(base, held_out),
        tuned=mark(tuned, held_out),
        shown=tuple(
            Shown(ticket.text, answer_for(ticket), before, after)
            for ticket, before, after in zip(held_out[:NUM_SHOWN], base, tuned, strict=False)
        ),
        seconds=watch.seconds,
        next_commands=_next_commands(run_folder, held_out_file),
    )


def num_layers_of(model: str, announce: Announce) -> int:
    """How many layers a model has."""
    return int(read_config(locate(ModelSettings(name=model), announce)).num_hidden_layers)


def quickstart_recipe(train_file: Path, model: str, seed: int, num_layers: int) -> Recipe:
    """The recipe that the quickstart carries out; few steps, so the learning rate is high.

    Only the upper two thirds of the layers train: the backward pass ends there, and the time goes into more tickets.
    """
    return Recipe(
        model=ModelSettings(name=model),
        data=DataSettings(train=str(train_file.absolute()), validation="none", max_length=1024),
        method=LoRA(rank=16, layers=tuple(range(num_layers // 3, num_layers))),
        training=TrainingSettings(
            epochs=1,
            rows_per_step=4,
            peak_lr=4e-3,
            schedule=Schedule(kind="linear", warmup_fraction=0.1),
            optimizer=AdamW(beta2=0.99),
            checkpoint_every=25,
        ),
        seed=seed,
    )


def answers_of(model: LanguageModel, adapter: str | None, tickets: Sequence[Ticket]) -> list[str]:
    """The model's greedy answer about each ticket; without an adapter, the base model's."""
    renderer = build_renderer(DataSettings(train=""), model.tokenizer)
    stop_ids = renderer.stop_ids
    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS)
    prompts = [renderer.prompt_tokens(prompt_for(ticket)) for ticket in tickets]
    requests = [Request(tuple(prompt), sampling, adapter, stop_ids) for prompt in prompts]
    return [completed.text for completed in generate(model, requests, max_rows=len(requests))]


def mark(answers: Sequence[str], tickets: Sequence[Ticket]) -> Marks:
    """How the answers to these tickets, in their order, compare with the right ones."""
    scores = [score(answer, ticket) for answer, ticket in zip(answers, tickets, strict=True)]
    num = len(scores)
    rouge = [rouge_l(each.summary, ticket.summary) for each, ticket in zip(scores, tickets, strict=True)]
    return Marks(
        valid_json=wilson(sum(each.valid_json for each in scores), num),
        field_accuracy=_share_of_fields(scores),
        by_field={label: wilson(sum(each.fields_right[label] for each in scores), num) for label in LABELS},
        summary_rouge_l=bootstrap_mean(rouge),
    )


def _share_of_fields(scores: Sequence[Score]) -> Estimate:
    """The share of right labels; the interval is Wilson's with tickets as the rows, so it is rather too wide."""
    right_tickets = sum(sum(each.fields_right.values()) for each in scores) / len(LABELS)
    num = len(scores)
    low, high = wilson(math.floor(right_tickets), num).low, wilson(math.ceil(right_tickets), num).high
    return Estimate(right_tickets / num, low, high)


def _rows_of(tickets: Sequence[Ticket]) -> str:
    """The tickets as chat rows, one JSON object a line."""
    rows = [
        {
            "messages": [
                *(message.as_dict() for message in prompt_for(ticket)),
                {"role": "assistant", "content": answer_for(ticket)},
            ]
        }
        for ticket in tickets
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _next_commands(run: Path, held_out_file: Path) -> tuple[str, ...]:
    quoted = shlex.quote(str(run))
    return (
        f"luthier chat {quoted} --compare",
        f"luthier evaluate {quoted} --data {shlex.quote(str(held_out_file))}",
        "luthier new YOUR_ROWS.jsonl",
    )


# ── text ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _table(base: Marks, tuned: Marks) -> list[str]:
    """Before and after, a line a measure."""
    rows = [
        ("valid JSON", base.valid_json, tuned.valid_json),
        ("fields right", base.field_accuracy, tuned.field_accuracy),
    ]
    rows += [(f"  {label}", base.by_field[label], tuned.by_field[label]) for label in LABELS]
    rows += [("summary (ROUGE-L)", base.summary_rouge_l, tuned.summary_rouge_l)]
    lines = [f"{name:<20}{_percent(before):<20}{_percent(after)}".rstrip() for name, before, after in rows]
    return [f"{'':<20}{'before':<20}after", *lines]


def _percent(share: Estimate) -> str:
    return f"{share.value:>4.0%} ({share.low:.0%} to {share.high:.0%})"


def _one_line(text: str) -> str:
    """The text on one line without control characters, shortened if it is very long."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= _SHOWN_LETTERS else line[:_SHOWN_LETTERS] + "…"


class _Stopwatch:
    """Wall seconds by stage, in the order in which the stages first ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def ends(self, stage: str, *, but_for: str | None = None, seconds: float = 0.0) -> None:
        """A stage has ended; `seconds` of it belong to the stage `but_for`."""
        now = time.perf_counter()
        spent = now - self._began - seconds
        self._began = now
        self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        if but_for is not None:
            self.seconds[but_for] = self.seconds.get(but_for, 0.0) + seconds
