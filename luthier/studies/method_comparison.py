"""Several methods on the same rows with the same budget: what each gains on held-out rows, and what it costs.

Every method trains in a process of its own, so that its peak memory is its own and a fault of one leaves the others. What
is finished is not done again: a study that was broken off goes on where it stood.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.dataset import Dataset
from luthier.errors import LuthierError, UsageError
from luthier.evaluation.compare import Candidate, losses_by_row
from luthier.methods import ADAPTER, METHODS, Method, kind_of
from luthier.ops.workers import Workers
from luthier.prepared import check_recipe
from luthier.recipe import Recipe, dump_recipe
from luthier.store.files import read_json, write_json, write_text
from luthier.store.runs import is_run, read_metrics, read_run
from luthier.studies.published import published_for
from luthier.training.checkpoint import load_checkpoint
from luthier.tuned import load_base, load_run

Announce = Callable[[str], None]

RESULTS = "comparison.json"


@dataclass(frozen=True)
class Outcome:
    """One method with one seed.

    loss, base_loss: nats per learned token of the held-out rows, each row counted once. fall, standard_error: of the
    rows' own falls, base minus tuned. seconds: of the training steps. peak_memory_bytes: of the training process.
    """

    kind: str
    seed: int
    num_trainable: int
    steps: int
    real_tokens: int
    base_loss: float
    loss: float
    fall: float
    standard_error: float
    seconds: float
    peak_memory_bytes: int

    @property
    def standard_errors(self) -> float:
        """How many standard errors the fall is above zero."""
        return self.fall / self.standard_error if self.standard_error else math.inf


@dataclass(frozen=True)
class MethodComparison:
    """All outcomes, in the order in which the methods were named."""

    folder: Path
    num_rows: int
    outcomes: tuple[Outcome, ...]

    def as_json(self) -> dict[str, Any]:
        """The study as one JSON document."""
        outcomes = [{**vars(outcome), "standard_errors": outcome.standard_errors} for outcome in self.outcomes]
        published = [vars(table) for table in published_for([outcome.kind for outcome in self.outcomes])]
        return {"folder": str(self.folder), "num_rows": self.num_rows, "outcomes": outcomes, "published": published}

    def as_table(self) -> list[tuple[str, ...]]:
        """Head and rows, a line a method and seed."""
        head = ("method", "seed", "trained", "held-out loss", "fall", "± s.e.", "fall / s.e.", "seconds", "peak GB")
        return [head, *(_row(outcome) for outcome in self.outcomes)]


def _row(outcome: Outcome) -> tuple[str, ...]:
    return (
        outcome.kind,
        str(outcome.seed),
        f"{outcome.num_trainable:,}",
        f"{outcome.loss:.4f}",
        f"{outcome.fall:.4f}",
        f"{outcome.standard_error:.4f}",
        f"{outcome.standard_errors:.1f}",
        f"{outcome.seconds:.0f}",
        f"{outcome.peak_memory_bytes / 1e9:.2f}",
    )


def compare_methods(
    recipe: Recipe,
    kinds: Sequence[str],
    folder: Path,
    announce: Announce,
    *,
    budget_tokens: int | None = None,
    seeds: int = 1,
) -> MethodComparison:
    """Train each method on the recipe's rows, and measure each on the held-out ones.

    Args:
        kinds: methods by their kinds; the recipe's own keeps its settings, the others have their defaults.
        folder: takes a run for each method and seed; what is finished in it is kept.
        budget_tokens: about so many tokens of input for each; unset, the recipe's own epochs or steps.
        seeds: so many seeds, from the recipe's own on.

    Raises: UsageError, before anything trains, for a kind that does not exist or has settings without defaults, and
    without held-out rows.
    """
    _check_kinds(kinds, recipe)
    prepared = check_recipe(recipe, announce)
    held_out = prepared.dataset.validation
    if not held_out:
        raise UsageError("The recipe holds out no rows to compare on.", "Set data.validation to auto, or to a file.")
    if budget_tokens is not None:
        recipe = _within(recipe, prepared.dataset, budget_tokens)
    known = {(outcome.kind, outcome.seed): outcome for outcome in _read_outcomes(folder)}
    outcomes: list[Outcome] = []
    for kind in kinds:
        for seed in range(recipe.seed, recipe.seed + seeds):
            run = folder / f"{kind}-seed-{seed}"
            outcome = known.get((kind, seed)) if _is_finished(run) else None
            if outcome is None:
                _train(_for_method(recipe, kind, seed), run, announce)
                outcome = _measure(run, kind, seed, recipe, prepared.dataset, announce)
            outcomes.append(outcome)
            found = MethodComparison(folder, len(held_out), tuple(outcomes))
            write_json(folder / RESULTS, found.as_json())
    return found


def _check_kinds(kinds: Sequence[str], recipe: Recipe) -> None:
    by_kind = {kind_of(method): method for method in METHODS}
    known = list(by_kind)
    for kind in kinds:
        if kind not in known:
            raise UsageError(f"There is no method {kind!r}.", f"Choose among: {', '.join(known)}.")
        needed = () if kind == recipe.method.kind else _needed(by_kind[kind], recipe.objective.takes_labels)
        if needed:
            raise UsageError(
                f"The method {kind!r} has no default for {', '.join(needed)}.",
                "Give a recipe whose own method it is: that one keeps its settings.",
            )
    if not kinds or len(set(kinds)) < len(kinds):
        raise UsageError("Each method is to be named once.", f"Choose among: {', '.join(known)}.")


def _needed(method: type[Method], takes_labels: bool) -> tuple[str, ...]:
    """The settings of a method that have no default."""
    required = tuple(name for name, field in method.model_fields.items() if field.is_required())
    return required or method(kind=kind_of(method)).lacking(takes_labels)


def _within(recipe: Recipe, dataset: Dataset, budget_tokens: int) -> Recipe:
    """The recipe with as many steps as take about so many tokens."""
    training = recipe.training
    a_row = sum(example.num_tokens for example in dataset.train) / len(dataset.train)
    a_step = training.tokens_per_step or a_row * (training.rows_per_step or 8)
    update = {"steps": max(1, round(budget_tokens / a_step))}
    return recipe.model_copy(update={"training": training.model_copy(update=update)})


def _for_method(recipe: Recipe, kind: str, seed: int) -> Recipe:
    """The recipe with another method and seed; another method has its own default learning rate."""
    if kind == recipe.method.kind:
        return recipe.model_copy(update={"seed": seed})
    method = next(method for method in METHODS if kind_of(method) == kind)
    training = recipe.training.model_copy(update={"peak_lr": None})
    return recipe.model_copy(update={"method": method(kind=kind), "training": training, "seed": seed})


def _read_outcomes(folder: Path) -> list[Outcome]:
    """What an earlier call of the same study found."""
    if not (folder / RESULTS).is_file():
        return []
    found = read_json(folder / RESULTS)
    fields = Outcome.__dataclass_fields__
    return [Outcome(**{name: each[name] for name in fields}) for each in found["outcomes"]]


def _is_finished(run: Path) -> bool:
    return is_run(run) and read_run(run).state == "finished"


def _train(recipe: Recipe, run: Path, announce: Announce) -> None:
    """Train, or go on training, in a process of its own, whose words are seen as they come."""
    if _is_finished(run):
        return
    words = ["resume", str(run)]
    if not is_run(run) or read_metrics(run) == []:
        written = run.parent / "recipes" / f"{run.name}.yaml"
        write_text(written, dump_recipe(recipe))
        words = ["train", str(written), "--out", str(run)]
    announce(f"{run.name}: luthier {' '.join(words)}")
    done = subprocess.run([sys.executable, "-m", "luthier", *words], stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise LuthierError(
            f"The run {run} ended with exit code {done.returncode}; its own words stand above.",
            "Mend that, and give the same command again: what is finished is kept.",
        )


def _measure(run: Path, kind: str, seed: int, recipe: Recipe, dataset: Dataset, announce: Announce) -> Outcome:
    """What a finished run gained on the held-out rows."""
    model = load_run(run, announce)
    tunes_base = next(method for method in METHODS if kind_of(method) == kind).tunes_base
    base = load_base(run, announce) if tunes_base else model
    before = _row_losses(Candidate("base", base, None), dataset, recipe)
    after = _row_losses(Candidate(kind, model, None if tunes_base else ADAPTER), dataset, recipe)
    falls = [one - other for one, other in zip(before, after, strict=True)]
    fall = sum(falls) / len(falls)
    variance = sum((each - fall) ** 2 for each in falls) / max(1, len(falls) - 1)
    metrics = read_metrics(run)
    return Outcome(
        kind=kind,
        seed=seed,
        num_trainable=sum(tensor.numel() for tensor in load_checkpoint(run).trainables.values()),
        steps=len(metrics),
        real_tokens=sum(int(line["real_tokens"]) for line in metrics),
        base_loss=sum(before) / len(before),
        loss=sum(after) / len(after),
        fall=fall,
        standard_error=math.sqrt(variance / len(falls)),
        seconds=sum(float(line["seconds"]) for line in metrics),
        peak_memory_bytes=max(int(line["peak_memory_bytes"]) for line in metrics),
    )


def _row_losses(candidate: Candidate, dataset: Dataset, recipe: Recipe) -> list[float]:
    """Each held-out row's loss per learned token."""
    examples = dataset.validation
    budget = recipe.training.tokens_per_micro_batch
    asked = recipe.training.workers
    with Workers(asked if isinstance(asked, int) else 1) as workers:
        losses = losses_by_row(candidate, examples, len(examples), budget, workers, lambda task, done, total: None)
    row_R: list[float] = (losses.nats_R / losses.weight_R).tolist()
    return row_R
