"""Measures of answers that are asked for beside those that are always there, and whom graders by a model ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from luthier.errors import UsageError
from luthier.evaluation.grading import Ask, Grader, JudgeSampling
from luthier.evaluation.grading.libraries import needed
from luthier.evaluation.judged.asking import said_in_order
from luthier.evaluation.judged.endpoint import Endpoint, EndpointModel
from luthier.evaluation.named_metrics import NAMES
from luthier.generation.settings import Sampling
from luthier.objectives import CLM, FIM
from luthier.prediction.readers import reader_for
from luthier.prediction.text_model import TextModel
from luthier.recipe import Recipe
from luthier.studies.judging import asking_model
from luthier.types import Message

MAX_TOKENS = 512
"""Most tokens of what a judge says to a grader that sets no bound of its own."""


@dataclass(frozen=True)
class FurtherMeasures:
    """Graders, metrics by name, and whom graders by a model ask: a model here by its name, an endpoint, or nobody (None).

    judge_max_tokens: most tokens of what a model here says to a grader that sets no bound of its own.
    """

    graders: Sequence[Grader]
    metrics: Sequence[str]
    judge: str | Endpoint | None
    judge_max_tokens: int

    def check_run(self, run: str, recipe: Recipe) -> None:
        """Raise UsageError, if they measure answers and a run is not evaluated by any."""
        if not self.graders and not self.metrics:
            return
        objective, leave = recipe.objective, "Leave --grader and --metric out"
        reader = reader_for(objective)
        if reader is not None:
            raise UsageError(
                f"The model of the run {run} {reader.does}: it writes no answers, which graders and metrics measure.",
                f"{leave}: 'luthier evaluate {run}' measures what it does.",
            )
        if objective.takes in ("preferences", "verdicts"):
            raise UsageError(
                f"The run {run} is measured by what it thinks of answers that are given (objective {objective.kind}): it writes none there, "
                "which graders and metrics measure.",
                f"{leave}, or have it answer rows beside its base: 'luthier evaluate {recipe.model.name} --data FILE --also {run}' takes them.",
            )
        if isinstance(objective, CLM | FIM):
            raise UsageError(
                f"The run {run} is measured by how likely texts are (objective {objective.kind}): it writes no answers there, which graders and "
                "metrics measure.",
                f"{leave}.",
            )

    def checked(self, announce: Callable[[str], None]) -> FurtherMeasures:
        """The same, with a judge only where one is asked; one behind an endpoint is there, and takes the key.

        Raises: UsageError for measures that there are not, or that nobody gives; NetworkError, NotAllowed as `EndpointModel.check`.
        """
        if unknown := [name for name in self.metrics if name not in NAMES]:
            raise UsageError(f"There is no metric {unknown[0]!r}.", f"There are {', '.join(NAMES)}.")
        if "bleu" in self.metrics:
            needed("sacrebleu")  # before anything is answered
        if not _asks(self.graders, self.judge, announce):
            return replace(self, judge=None)
        if isinstance(self.judge, Endpoint):
            EndpointModel(self.judge).check()
        return self


def _asks(graders: Sequence[Grader], judge: str | Endpoint | None, announce: Callable[[str], None]) -> bool:
    """Whether graders ask the judge. A name that they have for another model is told."""
    asking = [grader for grader in graders if grader.asks_model]
    if not asking:
        if judge is not None:
            announce("No grader asks a model: the judge that is named is not asked.")
        return False
    if judge is None:
        raise UsageError(
            f"The grader {asking[0].name!r} asks a model, and none is named.",
            "Name one with --judge MODEL, or an endpoint with --judge-url URL.",
        )
    asked = judge.model if isinstance(judge, Endpoint) else judge
    for grader in asking:
        if not asked and None in grader.asked_models:
            raise UsageError(
                f"The grader {grader.name!r} names no model to ask at the judge's address.",
                "Name one with --judge-model NAME, or in the grader (model).",
            )
        others = dict.fromkeys(name for name in grader.asked_models if asked and name not in (None, asked))
        for name in others:
            announce(f"The grader {grader.name!r} names the model {name}: {asked} is asked instead.")
    return True


def ask_model(judge: TextModel, max_tokens: int) -> Ask:
    """A model here as graders ask it, whatever name they have for it; max_tokens: of an answer, unless a grader says otherwise."""

    def ask(chats: Sequence[tuple[Message, ...]], model: str | None, sampling: JudgeSampling) -> list[str | None]:
        given = sampling.model_dump(exclude={"max_new_tokens"})
        drawn = Sampling(max_new_tokens=sampling.max_new_tokens or max_tokens, **given)
        return said_in_order(asking_model(judge, drawn), chats)

    return ask
