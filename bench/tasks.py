"""`python -m bench.tasks`: single tasks of seven real data sets on the real model, tuned against the base with three examples.

Each task asks in words of its own and answers in text. The base is asked with three answered examples before the question (three
turns of its chat), the tuned model with the question alone; both answer 100 rows greedily that neither was tuned on, and
what counts is the task's own metric: the share of right answers, or ROUGE-L against the nearest of a row's references. The
interval is that of a paired bootstrap over the rows. What is done is kept in the folder of results: begun again, finished
tasks are read, and a task that was stopped goes on where its training was. Exit code 0 if every metric rose within two hours.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contest import RESULTS, machine, say
from bench.figures import table
from bench.processes import ROOT

DATA = ROOT.parent / "shared" / "data"
HELD_OUT, SHOTS, SEED = 100, 3, 20261
LONGEST_SECONDS = 120 * 60


@dataclass(frozen=True)
class Asked:
    """A question in words, its answer, and all texts that would be right; key: rows of one key stay on one side.

    task: which of the set's tasks it is of, where there are several.
    """

    prompt: str
    answer: str
    references: tuple[str, ...]
    key: str
    task: str = ""


@dataclass(frozen=True)
class Task:
    """A set's rows as questions: those to tune on and those held out (None: some of the same), and how answers are judged."""

    rows: Callable[[Path], Iterator[Asked]]
    held_out: Callable[[Path], Iterator[Asked]] | None
    metric: str
    num_rows: int = 500
    epochs: int = 3
    max_length: int = 512
    max_new_tokens: int = 24
    rank: int = 16


# ── the sets ────────────────────────────────────────────────────────────────────────────────────────────────────────


def table_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV with a header."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        yield from csv.DictReader(file)


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL."""
    with path.open(encoding="utf-8") as lines:  # a line ends at a line feed alone
        yield from map(json.loads, lines)


def labelled(question: str, text: str, label: str) -> Asked:
    """A text and the label that it should be given."""
    return Asked(f"{question}\n\n{text.strip()}", label, (label,), text.strip())


def banking(name: str) -> Callable[[Path], Iterator[Asked]]:
    """Bank customers' messages and what they are about."""
    question = "What does this bank customer's message ask about? Answer with the intent alone."
    return lambda data: (
        labelled(question, row["text"], row["category"]) for row in table_rows(data / "banking77" / name)
    )


def bitext(name: str) -> Callable[[Path], Iterator[Asked]]:
    """Support requests and their intent."""
    question = "What is the intent of this support request? Answer with the intent alone."
    return lambda data: (
        labelled(question, row["utterance"], row["intent"]) for row in table_rows(data / "bitext_support" / name)
    )


def e2e(name: str) -> Callable[[Path], Iterator[Asked]]:
    """Facts on a restaurant and sentences that tell them; all sentences of the same facts are references."""

    def rows(data: Path) -> Iterator[Asked]:
        of_facts: dict[str, list[str]] = {}
        for row in table_rows(data / "e2e_nlg" / name):
            of_facts.setdefault(row["mr"], []).append(row["ref"])
        for facts, texts in of_facts.items():
            yield Asked(f"Write one sentence or two that tell these facts.\n\n{facts}", texts[0], tuple(texts), facts)

    return rows


def pubmed(data: Path) -> Iterator[Asked]:
    """Questions with the abstract that answers them."""
    for row in json.loads((data / "pubmedqa" / "pqal_400.json").read_text("utf-8")).values():
        context = "\n".join(row["CONTEXTS"])
        prompt = f"{context}\n\n{row['QUESTION']} Answer yes, no or maybe."
        yield Asked(prompt, row["final_decision"], (row["final_decision"],), row["QUESTION"])


def legal(data: Path) -> Iterator[Asked]:
    """Clauses and questions of many small tasks."""
    for row in json_rows(data / "legalbench_ccby" / "tasks.jsonl"):
        fields = "\n".join(f"{name}: {value}" for name, value in row["fields"].items())
        prompt = f"{fields}\n\n{row['question']} Answer as briefly as you can."
        yield Asked(prompt, row["answer"], (row["answer"],), fields, row["task"])


def sentiment(data: Path) -> Iterator[Asked]:
    """Sentences of reviews."""
    for name in ("amazon_cells", "imdb", "yelp"):
        text = (data / "uci_sentiment" / f"{name}_labelled.txt").read_text("utf-8")
        for line in text.split("\n"):
            sentence, tab, label = line.rpartition("\t")
            if tab:
                word = "positive" if label.strip() == "1" else "negative"
                yield labelled("Is this review positive or negative? Answer with one word.", sentence, word)


def papers(name: str) -> Callable[[Path], Iterator[Asked]]:
    """Abstracts and summaries of one sentence."""

    def rows(data: Path) -> Iterator[Asked]:
        for row in json_rows(data / "scitldr" / name):
            abstract = " ".join(row["source"])
            prompt = f"Summarise this abstract in one sentence.\n\n{abstract}"
            yield Asked(prompt, row["target"][0], tuple(row["target"]), row["paper_id"])

    return rows


TASKS = {
    "banking77": Task(banking("train.csv"), banking("test.csv"), "accuracy", max_length=256),
    "bitext_support": Task(bitext("train.csv"), bitext("test.csv"), "accuracy", epochs=2, max_length=256),
    "e2e_nlg": Task(
        e2e("devset.csv"), e2e("testset_w_refs.csv"), "ROUGE-L", epochs=1, max_length=256, max_new_tokens=64
    ),
    "pubmedqa": Task(pubmed, None, "accuracy", num_rows=300, epochs=2, max_length=1024, max_new_tokens=8),
    "legalbench_ccby": Task(legal, None, "accuracy", num_rows=450, epochs=2, max_length=1024),
    "uci_sentiment": Task(sentiment, None, "accuracy", epochs=1, max_length=256, max_new_tokens=8),
    "scitldr": Task(
        papers("train_500.jsonl"), papers("test.jsonl"), "ROUGE-L", epochs=1, max_length=640, max_new_tokens=64
    ),
}


# ── rows and scores ─────────────────────────────────────────────────────────────────────────────────────────────────


def split(task: Task, data: Path, fits: Callable[[Asked], bool]) -> tuple[list[Asked], list[Asked]]:
    """Rows to tune on and rows held out, drawn by a seed; no key is on both sides, and all fit."""
    draw = random.Random(SEED)
    rows = [row for row in task.rows(data) if fits(row)]
    draw.shuffle(rows)
    if task.held_out is None:
        held_out, rows = rows[:HELD_OUT], rows[HELD_OUT:]
    else:
        held_out = [row for row in task.held_out(data) if fits(row)]
        draw.shuffle(held_out)
        held_out = held_out[:HELD_OUT]
    keys = {row.key for row in held_out}
    return [row for row in rows if row.key not in keys][: task.num_rows], held_out


def examples_of(rows: Sequence[Asked]) -> list[Asked]:
    """Three rows whose answers differ, as far as there are such, of the shorter half: what the base is shown."""
    short = sorted(rows, key=lambda row: len(row.prompt))[: max(SHOTS, len(rows) // 2)]
    random.Random(SEED).shuffle(short)
    chosen: list[Asked] = []
    for row in (*short, *short):
        is_new = row.answer not in {other.answer for other in chosen}
        if (
            len(chosen) < SHOTS
            and row not in chosen
            and (is_new or len({each.answer for each in short}) <= len(chosen))
        ):
            chosen.append(row)
    return chosen


def score(metric: str, answer: str, row: Asked) -> float:
    """How good an answer is, between 0 and 1."""
    from luthier.evaluation.metrics import rouge_l

    if metric == "ROUGE-L":
        return max(rouge_l(answer, reference) for reference in row.references)
    words = answer.strip().casefold().rstrip(".")
    return float(any(words == reference.strip().casefold().rstrip(".") for reference in row.references))


def answers(model: Any, prompts: Sequence[Any], max_new_tokens: int) -> list[str]:
    """The answers of a model (`luthier.api.TextModel`) to lists of messages, greedily."""
    from luthier.generation.engine import Request, generate
    from luthier.generation.settings import Sampling

    renderer = model.renderer
    stops = frozenset() if renderer.end_of_turn_id is None else frozenset([renderer.end_of_turn_id])
    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    requests = [Request(tuple(renderer.prompt_tokens(prompt)), sampling, model.adapter, stops) for prompt in prompts]
    return [completed.text for completed in generate(model.language_model, requests)]


# ── one task ────────────────────────────────────────────────────────────────────────────────────────────────────────


def carry_out(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Base and tuned model on one task; read from the folder of results where it is done."""
    done = options.results / f"tasks-{name}.json"
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    from luthier.api import base_of, load_plain, load_text
    from luthier.evaluation.intervals import bootstrap_difference, bootstrap_mean
    from luthier.store.runs import read_metrics
    from luthier.types import Message

    task, began = TASKS[name], time.perf_counter()
    plain = load_plain(options.model, say)

    def fits(row: Asked) -> bool:
        messages = (Message("user", row.prompt), Message("assistant", row.answer))
        return len(plain.renderer.prompt_tokens(messages)) < task.max_length - 8

    rows, held_out = split(task, options.data, fits)
    rows, held_out = rows[: options.rows], held_out[: options.rows]
    folder = options.results / f"tasks-{name}"
    trained = time.perf_counter()
    tune(folder, rows, task, options)
    waited = time.perf_counter() - trained
    # a run that was begun before tells how long its steps took then
    seconds = max(waited, sum(line["seconds"] for line in read_metrics(folder / "run")))
    tuned = load_text(folder / "run", say)
    base = base_of(folder / "run", tuned, say)
    shown = [m for row in examples_of(rows) for m in (Message("user", row.prompt), Message("assistant", row.answer))]
    asked = [Message("user", row.prompt) for row in held_out]
    say(f"{name}: {len(rows)} rows tuned on; {len(held_out)} asked.")
    before = answers(base, [(*shown, question) for question in asked], task.max_new_tokens)
    after = answers(tuned, [(question,) for question in asked], task.max_new_tokens)
    scores = [
        [score(task.metric, text, row) for text, row in zip(texts, held_out, strict=True)] for texts in (before, after)
    ]
    estimates = [bootstrap_mean(scores[0]), bootstrap_mean(scores[1]), bootstrap_difference(*scores)]
    found = {
        "task": name,
        "metric": task.metric,
        "rows": len(rows),
        "base": vars(estimates[0]),
        "tuned": vars(estimates[1]),
        "gain": vars(estimates[2]),
        "train_seconds": seconds,
        "seconds": time.perf_counter() - began - waited + seconds,
        "by_task": by_task(held_out, scores),
        "answers": [[row.answer, *texts] for row, *texts in zip(held_out, before, after, strict=True)],
    }
    done.write_text(json.dumps(found, ensure_ascii=False))
    return found


def by_task(rows: Sequence[Asked], scores: Sequence[Sequence[float]]) -> dict[str, dict[str, float]]:
    """Of a set of several tasks, each one's rows held out, and the mean scores of base and tuned model."""
    found = {}
    for name in sorted({row.task for row in rows if row.task}):
        base, tuned = ([score for row, score in zip(rows, own, strict=True) if row.task == name] for own in scores)
        found[name] = {"rows": len(base), "base": sum(base) / len(base), "tuned": sum(tuned) / len(tuned)}
    return found


def write_rows(folder: Path, rows: Sequence[Asked]) -> list[dict[str, str]] | str:
    """Write the rows into the folder, a file for each task; what `data.train` is."""

    def write(name: str, chosen: Sequence[Asked]) -> str:
        lines = (json.dumps({"prompt": row.prompt, "completion": row.answer}, ensure_ascii=False) for row in chosen)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(folder / name)

    names = sorted({row.task for row in rows if row.task})
    if not names:
        return write("rows.jsonl", rows)
    return [
        {"path": write(f"rows-{number}.jsonl", [row for row in rows if row.task == name]), "task": name}
        for number, name in enumerate(names)
    ]


def tune(folder: Path, rows: Sequence[Asked], task: Task, options: argparse.Namespace) -> None:
    """Tune on the rows in a folder; a run that was begun there goes on."""
    from luthier.recipe import make_recipe
    from luthier.run import resume_run, train_recipe

    folder.mkdir(parents=True, exist_ok=True)
    run = folder / "run"
    if (run / "recipe.yaml").is_file():
        resume_run(run, announce=say, on_step=lambda metrics: None)
        return
    values = {
        "model": options.model,
        "data": {"train": write_rows(folder, rows), "validation": "none", "max_length": task.max_length},
        "method": {"kind": "lora", "rank": task.rank},
        "training": {
            "epochs": float(task.epochs), "rows_per_step": 8, "tokens_per_micro_batch": max(1024, task.max_length), "peak_lr": 1e-3,
        },
    }  # fmt: skip
    train_recipe(make_recipe(values), run, announce=say, on_step=lambda metrics: None)


def main(arguments: list[str] | None = None) -> int:
    """Carry out what is asked for; 0 if every metric rose, in time."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.tasks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"some of: {' '.join(TASKS)} (default: all)")
    parser.add_argument("--rows", type=int, help="use only the first so many rows, for a trial")
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or a transformers folder")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder for runs and figures (default: bench/results)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args(arguments)
    unknown = set(options.tasks) - set(TASKS)
    if unknown:
        parser.error(f"there is no task {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    options.results.mkdir(parents=True, exist_ok=True)
    found = [carry_out(name, options) for name in options.tasks or TASKS]
    rows = [
        (one["task"], one["metric"], str(one["rows"]), *(interval(one[key]) for key in ("base", "tuned", "gain")), f"{one['seconds']:.0f}")
        for one in found
    ]  # fmt: skip
    names = ("task", "metric", "rows", "base, 3 examples", "tuned", "gain", "seconds")
    document = {"machine": machine(), "tasks": [{k: v for k, v in one.items() if k != "answers"} for one in found]}
    total = sum(one["seconds"] for one in found)
    text = f"{table(names, rows)}\n\n{total / 60:.0f} minutes in all (at most {LONGEST_SECONDS / 60:.0f})."
    print(json.dumps(document) if options.json else text)
    return 0 if all(one["gain"]["value"] > 0 for one in found) and total <= LONGEST_SECONDS else 1


def interval(estimate: dict[str, float]) -> str:
    """A share with its interval, in percent."""
    return f"{100 * estimate['value']:.1f} ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"


if __name__ == "__main__":
    sys.exit(main())
