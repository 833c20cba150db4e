"""`python -m bench.methods`: every method on the real model and one real task, and the table of docs/methods.md.

The rows are banking77's: a customer's message, and the name of its intent as the answer. All methods learn the same rows
of half the intents with the same budget. The other half is dealt into two tasks of their own, whose short runs give what
two methods begin with: adapter-fusion its adapters, ipt the prompts that its subspace spans. Every run is a process of its
own; given again with the same --work, the command goes on where it stood.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.banking import add_banking_options, read_banking
from bench.contest import machine, model_name, say
from bench.processes import ROOT, SideFailed, run_module
from luthier.methods import METHODS, kind_of
from luthier.recipe.method_table import methods_in_order
from luthier.store.runs import is_run, read_run
from luthier.studies.comparison_report import PLOT, markdown_table
from luthier.studies.method_comparison import RESULTS as OUTCOMES

KEPT = ROOT / "docs" / "methods.json"
PICTURE = ROOT / "docs" / "methods.png"
SYSTEM = "Name the intent of the customer's message."
TASKS = ("all", "first", "second")  # the one that is compared, and the two that others begin with
HELD_OUT = 96
SEVERAL_SEEDS = ("lora", "pfeiffer", "prefix-tuning", "ln-tuning", "ladder")
ROWS_PER_STEP = 8
_TOKENS_A_ROW = 50

# What differs from a method's defaults: settings that have none, the base that one needs, and rates for so short a run.
SETTINGS: dict[str, dict[str, Any]] = {
    "bitfit": {"method": {"missing": "add-zero"}},
    "rows": {"method": {"linear_rows": 0.1}},
    "warp": {"method": {"classes": ["card", "cash", "top", "pending", "transfer", "exchange", "lost", "wrong"]}},
    "stack": {"method": {"parts": [{"kind": "lora"}, {"kind": "prompt-tuning", "num_virtual_tokens": 10}]}},
    "adapter-fusion": {"method": {"adapters": ["before/pfeiffer-first", "before/pfeiffer-second"]}},
    "loftq": {"quantization": {"kind": "nf4"}},
    "ipt": {"method": {"decoder": "before/ipt-subspace"}, "training": {"peak_lr": 0.1}},
}

# Runs that methods begin with, in their order: the method that does, the task, and what trains.
BEFORE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "pfeiffer-first": ("adapter-fusion", "first", {"kind": "pfeiffer"}),
    "pfeiffer-second": ("adapter-fusion", "second", {"kind": "pfeiffer"}),
    "prompt-first": ("ipt", "first", {"kind": "prompt-tuning"}),
    "prompt-second": ("ipt", "second", {"kind": "prompt-tuning"}),
    "ipt-subspace": (
        "ipt",
        "first",
        {"kind": "ipt", "stage": "subspace", "tasks": ["before/prompt-first", "before/prompt-second"]},
    ),
}


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.methods", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_banking_options(parser)
    parser.add_argument("--only", nargs="+", choices=[*map(kind_of, METHODS)], metavar="KIND", help="some methods")
    parser.add_argument("--budget-tokens", type=int, default=10_000, help="tokens for each method (default: 10000)")
    parser.add_argument("--seeds", type=int, default=3, help=f"of {', '.join(SEVERAL_SEEDS)} (default: 3)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "all-methods", help="folder of the runs")
    parser.add_argument("--results", type=Path, default=KEPT, help="JSON file that keeps all figures")
    parser.add_argument("--page", action="store_true", help="measure nothing: print the kept figures as Markdown")
    return parser.parse_args(arguments)


def deal(rows: Sequence[dict[str, str]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each task, shuffled, as chats: of four intents two go to the first task and one to each other."""
    intents = sorted({row["category"] for row in rows})
    task_of = {intent: TASKS[max(0, index % 4 - 1)] for index, intent in enumerate(intents)}
    dealt: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    for row in rows:
        turns = (("system", SYSTEM), ("user", row["text"]), ("assistant", row["category"].replace("_", " ").lower()))
        messages = [{"role": role, "content": content} for role, content in turns]
        dealt[task_of[row["category"]]].append({"messages": messages})
    for chats in dealt.values():
        random.Random(0).shuffle(chats)
    return dealt


def write_work(options: argparse.Namespace) -> None:
    """The rows of all tasks, their recipes, and the file of methods. Raises: SideFailed for data that is no good."""
    dealt = deal(read_banking(options.data))
    work: Path = options.work
    (work / "before").mkdir(parents=True, exist_ok=True)
    _write_rows(work / "held-out.jsonl", dealt["all"][:HELD_OUT])
    dealt["all"] = dealt["all"][HELD_OUT:]
    for task, chats in dealt.items():
        _write_rows(work / f"{task}.jsonl", chats[: 2 * options.budget_tokens // _TOKENS_A_ROW])
    (work / "recipe.yaml").write_text(json.dumps(_recipe(options, "all")), "utf-8")  # JSON is YAML
    before_steps = max(2, options.budget_tokens // 3 // (_TOKENS_A_ROW * ROWS_PER_STEP))  # three runs are one budget
    for name, (_, task, method) in BEFORE.items():
        (work / f"{name}.yaml").write_text(
            json.dumps({**_recipe(options, task, before_steps), "method": method}), "utf-8"
        )
    kinds = [kind_of(method) for method in methods_in_order()]
    entries = {kind: dict(SETTINGS.get(kind, {})) for kind in kinds if options.only is None or kind in options.only}
    for kind in SEVERAL_SEEDS:
        if kind in entries:
            entries[kind]["seeds"] = options.seeds
    (work / "methods.yaml").write_text(json.dumps(entries, indent=1), "utf-8")


def _write_rows(path: Path, chats: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats), "utf-8")


def _recipe(options: argparse.Namespace, task: str, steps: int | None = None) -> dict[str, Any]:
    training = {"rows_per_step": ROWS_PER_STEP, "tokens_per_micro_batch": 512, "evaluate_every": 10**6}
    return {
        "model": {"name": model_name(options.model), "dtype": "fp32", "device": "cpu"},
        "data": {
            "train": f"{task}.jsonl",
            "validation": "held-out.jsonl" if task == "all" else "none",
            "max_length": 512,
        },
        "training": training if steps is None else {**training, "steps": steps},
    }


def train_before(options: argparse.Namespace) -> None:
    """The runs that the chosen methods begin with, but those that are there. Raises: SideFailed."""
    for name, (beginner, _, _) in BEFORE.items():
        run = options.work / "before" / name
        is_wanted = options.only is None or beginner in options.only
        if not is_wanted or (is_run(run) and read_run(run).state == "finished"):
            continue
        say(f"{name}, which {beginner} begins with ...")
        recipe = options.work / f"{name}.yaml"
        run_module("luthier", ["train", str(recipe), "--out", str(run)], run.with_suffix(".log"), offline=False)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All methods; what was found. Raises: SideFailed."""
    work, study = options.work, options.work / "study"
    words = ["compare-methods", str(work / "recipe.yaml"), "--methods", str(work / "methods.yaml")]
    words += ["--budget-tokens", str(options.budget_tokens), "--out", str(study)]
    code = subprocess.run([sys.executable, "-m", "luthier", *words], check=False).returncode
    if code != 0:
        raise SideFailed("The comparison was not finished; give the same command again to go on.", code)
    found: dict[str, Any] = json.loads((study / OUTCOMES).read_text("utf-8"))
    work_done = {"name": "banking77", "model": Path(options.model).name, "budget_tokens": options.budget_tokens}
    return {
        "work": {**work_done, "held_out_rows": found["num_rows"]},
        "machine": machine(),
        "outcomes": found["outcomes"],
    }


def page(document: dict[str, Any]) -> str:
    """The part of docs/methods.md that was measured."""
    work, outcomes = document["work"], document["outcomes"]
    first_seed = min(outcome["seed"] for outcome in outcomes)
    once = [outcome for outcome in outcomes if outcome["seed"] == first_seed]
    several = [outcome for outcome in outcomes if seeds_of(outcomes, outcome["name"]) > 1]
    paragraphs = [
        "## Measured",
        f"All methods on {work['model']}, on {work['name']} as text (a customer's message, and the name of its intent as the "
        f"answer), with about {work['budget_tokens']:,} tokens each and their defaults, but for settings that have none and the "
        "rate of `ipt` (0.1). "
        f"Made by `python -m bench.methods` on {document['machine']['processor']}.",
        f"The base model's loss on {work['held_out_rows']} held-out rows is {once[0]['base_loss']:.3f} nats per learned "
        "token (mean of the rows). *fall*: how much lower the tuned model's is, row by row, ± one standard error. "
        "*seconds*: of training. *memory*: the most that the training process held, the model included.",
        markdown_table(
            [
                ("method", "trained", "held-out loss", "fall", "fall / s.e.", "seconds", "memory, GB"),
                *(_row(outcome, (f"`{outcome['name']}`",)) for outcome in once),
            ]
        ),
        "`loftq` is over a base in NF4, and its fall is from what that base loses. "
        "`adapter-fusion` and `ipt` begin with short runs on two tasks of other intents, which are not counted here; for so "
        "short a run, the order of the methods is more that of their default rates than of what they can reach.",
        f"![Fall of the held-out loss against cost]({PICTURE.name})",
    ]
    if several:
        paragraphs += [
            "Some of them with several seeds:",
            markdown_table(
                [
                    ("method", "seed", "trained", "held-out loss", "fall", "fall / s.e.", "seconds", "memory, GB"),
                    *(_row(outcome, (f"`{outcome['name']}`", str(outcome["seed"]))) for outcome in several),
                ]
            ),
        ]
    return "\n\n".join(paragraphs)


def kept_page(kept: Path) -> str:
    """What `make docs` puts at the end of docs/methods.md: the page of the kept figures, nothing where there are none."""
    return f"\n{page(json.loads(kept.read_text('utf-8')))}\n" if kept.is_file() else ""


def seeds_of(outcomes: Sequence[dict[str, Any]], name: str) -> int:
    """How many seeds a method was trained with."""
    return sum(outcome["name"] == name for outcome in outcomes)


def _row(outcome: dict[str, Any], first: tuple[str, ...]) -> tuple[str, ...]:
    return (
        *first,
        f"{outcome['num_trainable']:,}",
        f"{outcome['loss']:.3f}",
        f"{outcome['fall']:.3f} ± {outcome['standard_error']:.3f}",
        f"{outcome['standard_errors']:.1f}",
        f"{outcome['seconds']:.0f}",
        f"{outcome['peak_memory_bytes'] / 1e9:.2f}",
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the bench, or print its page; 0, or the exit code of what failed."""
    options = read_arguments(arguments)
    if options.page:
        sys.stdout.write(kept_page(options.results))
        return 0
    options.work = options.work.absolute()
    try:
        write_work(options)
        train_before(options)
        document = compare(options)
    except SideFailed as failure:
        say(str(failure))
        return failure.exit_code if failure.exit_code > 0 else 1
    options.results.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if options.results == KEPT:
        shutil.copyfile(options.work / "study" / PLOT, PICTURE)
    print(page(document))
    say(f"All figures: {options.results}. 'make docs' puts them into docs/methods.md.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
