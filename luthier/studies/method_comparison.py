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
from luthier.evaluation.loss import losses_of_rows
from luthier.methods import ADAPTER
from luthier.models.language_model import LanguageModel
from luthier.objectives import SFT
from luthier.ops.workers import Workers
from luthier.prediction.passes import Passes
from luthier.prepared import check_recipe
from luthier.recipe import Recipe, dump_recipe
from luthier.store.files import read_json, write_json, write_text
from luthier.store.runs import is_run, read_metrics, read_run
from luthier.studies.contenders import Contender
from luthier.studies.published import published_for
from luthier.training.checkpoint import load_checkpoint
from luthier.tuned import load_base, load_run

Announce = Callable[[str], None]

RESULTS = "comparison.json"


@dataclass(frozen=True)
class Outcome:
    """One method with one seed.

    name, kind: of the contender, and of its method. loss, base_loss: nats per learned token of the held-out rows, each row counted once. fall, standard_error: of the
    rows' own falls, base minus tuned. seconds: of the training steps. peak_memory_bytes: of the training process.
    """

    name: str
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
    """All outcomes, in the order in which the methods were named. loss_unit: what their losses are."""

    folder: Path
    num_rows: int
    outcomes: tuple[Outcome, ...]
    loss_unit: str = SFT.loss_unit

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
        outcome.name,
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
    contenders: Sequence[Contender],
    folder: Path,
    announce: Announce,
    *,
    budget_tokens: int | None = None,
) -> MethodComparison:
    """Train each contender on the recipe's rows, and measure each on the held-out ones.

    Args:
        recipe: what all share.
        folder: takes a run for each contender and seed; what is finished in it is kept.
        budget_tokens: about so many tokens of input for each; unset, the recipe's own epochs or steps.

    Raises: UsageError, before anything trains, without held-out rows, and for runs in the folder that were made with
    other settings.
    """
    prepared = check_recipe(recipe, announce)
    held_out = prepared.dataset.validation
    if not held_out:
        raise UsageError("The recipe holds out no rows to compare on.", "Set data.validation to auto, or to a file.")
    trials = [
        Trial(each.name, recipe_of, folder / f"{each.name}-seed-{recipe_of.seed}")
        for each in contenders
        for recipe_of in _recipes(each, prepared.dataset, budget_tokens)
    ]
    for trial in trials:
        trial.check()
    known = {(outcome.name, outcome.seed): outcome for outcome in _read_outcomes(folder)}
    outcomes: list[Outcome] = []
    for trial in trials:
        outcome = known.get((trial.name, trial.recipe.seed)) if _is_finished(trial.run) else None
        if outcome is None:
            _train(trial, announce)
            outcome = _measure(trial, prepared.dataset, announce)
        outcomes.append(outcome)
        found = MethodComparison(folder, len(held_out), tuple(outcomes), recipe.objective.loss_unit)
        write_json(folder / RESULTS, found.as_json())
    return found


@dataclass(frozen=True)
class Trial:
    """One contender with one seed, and the folder of its run."""

    name: str
    recipe: Recipe
    run: Path

    @property
    def written(self) -> Path:
        """Where the recipe that it trains by is kept."""
        return self.run.parent / "recipes" / f"{self.run.name}.yaml"

    def check(self) -> None:
        """Raise UsageError if the folder has a run of this name with other settings."""
        if is_run(self.run) and self.written.is_file() and self.written.read_text("utf-8") != dump_recipe(self.recipe):
            raise UsageError(
                f"{self.run} was made with other settings or another budget than asked for now; {self.written} holds them.",
                "Give another --out, or remove that run.",
            )


def _recipes(contender: Contender, dataset: Dataset, budget_tokens: int | None) -> list[Recipe]:
    """The contender's recipe with each of its seeds, within the budget."""
    recipe = contender.recipe if budget_tokens is None else _within(contender.recipe, dataset, budget_tokens)
    seeds = range(recipe.seed, recipe.seed + contender.seeds)
    return [recipe.model_copy(update={"seed": seed}) for seed in seeds]


def _within(recipe: Recipe, dataset: Dataset, budget_tokens: int) -> Recipe:
    """The recipe with as many steps as take about so many tokens."""
    training = recipe.training
    a_row = sum(example.num_tokens for example in dataset.train) / len(dataset.train)
    a_step = training.tokens_per_step or a_row * (training.rows_per_step or 8)
    update = {"steps": max(1, round(budget_tokens / a_step))}
    return recipe.model_copy(update={"training": training.model_copy(update=update)})


def _read_outcomes(folder: Path) -> list[Outcome]:
    """What an earlier call of the same study found."""
    if not (folder / RESULTS).is_file():
        return []
    found = read_json(folder / RESULTS)
    fields = Outcome.__dataclass_fields__
    return [Outcome(**{name: each[name] for name in fields}) for each in found["outcomes"]]


def _is_finished(run: Path) -> bool:
    return is_run(run) and read_run(run).state == "finished"


def _train(trial: Trial, announce: Announce) -> None:
    """Train, or go on training, in a process of its own, whose words are seen as they come."""
    run = trial.run
    if _is_finished(run):
        return
    words = ["resume", str(run)]
    if not is_run(run) or read_metrics(run) == []:
        write_text(trial.written, dump_recipe(trial.recipe))
        words = ["train", str(trial.written), "--out", str(run)]
    announce(f"{run.name}: luthier {' '.join(words)}")
    done = subprocess.run([sys.executable, "-m", "luthier", *words], stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise LuthierError(
            f"The run {run} ended with exit code {done.returncode}; its own words stand above.",
            "Mend that, and give the same command again: what is finished is kept.",
        )


def _measure(trial: Trial, dataset: Dataset, announce: Announce) -> Outcome:
    """What a finished run gained on the held-out rows."""
    run, recipe = trial.run, trial.recipe
    model = load_run(run, announce)
    tunes_base = recipe.method.tunes_base
    base = load_base(run, announce) if tunes_base else model
    before = _row_losses(base, None, dataset, recipe)
    after = _row_losses(model, None if tunes_base else ADAPTER, dataset, recipe)
    falls = [one - other for one, other in zip(before, after, strict=True)]
    fall = sum(falls) / len(falls)
    variance = sum((each - fall) ** 2 for each in falls) / max(1, len(falls) - 1)
    metrics = read_metrics(run)
    return Outcome(
        name=trial.name,
        kind=recipe.method.kind,
        seed=recipe.seed,
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


def _row_losses(model: LanguageModel, adapter: str | None, dataset: Dataset, recipe: Recipe) -> list[float]:
    """Each held-out row's loss by its learned weight."""
    asked, budget = recipe.training.workers, recipe.training.tokens_per_micro_batch
    teaching = [example for example in dataset.validation if example.num_learned]
    with Workers(asked if isinstance(asked, int) else 1) as workers:
        return losses_of_rows(model, recipe.objective, teaching, adapter, Passes(workers, budget))
