"""What answers are worth: a weighted sum of graders, of reward models, and of functions that the user wrote.

    rewards:
      - {grader: {type: number, reference: "{{ item.answer }}"}, weight: 1.0}
      - {function: reward.py, weight: 0.5}
      - {grader: {type: label_model, …}, judge: {url: http://localhost:8000/v1, model: NAME}}
      - {model: runs/helpful}
      - {models: [runs/kind-1, runs/kind-2, runs/kind-3], caution: 1.0, name: kind}

A function is `reward(prompts, answers, rows) -> list[float]` in a file of its own: texts, and the rows' columns; None in place of
a number says that there is none to give. It runs in a process of its own, which is stopped when it takes too long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self

from pydantic import Field, field_validator, model_validator

from luthier.errors import NoReward
from luthier.evaluation.grading import Aids, AnyGrader, Grade, Grader, Sample
from luthier.rlhf.functions import FunctionProcess
from luthier.rlhf.judge import Judge
from luthier.rlhf.worth import Answer, Worth
from luthier.types import Settings, fault_at


class Reward(Settings):
    """One part of what an answer is worth."""

    grader: AnyGrader | None = Field(None, description="A grader, as docs/grading.md has them.")
    judge: Judge | None = Field(None, description="Of a grader that asks a model: where that model is asked.")
    function: str | None = Field(
        None, description="A Python file that defines reward(prompts, answers, rows) -> list of numbers."
    )
    model: str | None = Field(None, description="A run with objective.kind reward, whose scores are the numbers.")
    models: tuple[str, ...] | None = Field(
        None, min_length=2, description="Several such runs, an ensemble: the number is the mean of their scores."
    )
    caution: float = Field(
        0.0,
        ge=0,
        description="Of an ensemble: how many standard deviations of its members' scores are taken from their mean, so that answers of which they think differently are worth less.",
    )
    weight: float = Field(1.0, description="What its number is multiplied by; negative to punish.")
    name: str | None = Field(None, min_length=1, description="What it is called; unset: after the grader or the file.")
    timeout_seconds: float = Field(
        60.0, gt=0, description="Of a function: most seconds for the answers of one rollout; then the run stops."
    )

    @field_validator("weight")
    @classmethod
    def _counts(cls, value: float) -> float:
        if value == 0:
            raise ValueError("weight is 0, so that it counts nothing; leave the reward out.")
        return value

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if sum(each is not None for each in (self.grader, self.function, self.model, self.models)) != 1:
            raise fault_at("grader", "give one of grader, function, model and models.")
        if self.models is not None and len(set(self.models)) < len(self.models):
            raise fault_at(
                "models", "names a run twice: members of an ensemble are runs of other seeds, rows or bases."
            )
        if self.caution and self.models is None:
            raise fault_at("caution", "is about how far several models differ; give models.")
        return self

    @model_validator(mode="after")
    def _asks_whom_it_names(self) -> Self:
        asked = () if self.grader is None else self.grader.asked_models
        if asked and self.judge is None:
            raise fault_at(
                "grader",
                "asks a model that judges, and there is none beside the policy; say where one is asked (judge: {url: https://HOST/v1}), "
                "or train a reward model (docs/reward.md).",
            )
        if self.judge is not None and not asked:
            raise fault_at("judge", "is for a grader that asks a model; leave it out.")
        if self.judge is not None and self.judge.model is None and None in asked:
            raise fault_at("judge", "names no model, and neither does the grader; set judge.model to its name there.")
        return self

    def with_paths(self, found: Callable[[str], str]) -> Self:
        """The same with its files and runs where they are."""
        named = {"function": self.function, "model": self.model}
        update: dict[str, Any] = {name: found(path) for name, path in named.items() if path is not None}
        if self.models is not None:
            update["models"] = tuple(map(found, self.models))
        if self.judge is not None:
            update["judge"] = self.judge.with_paths(found)
        return self.model_copy(update=update)

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs of the reward models that it asks."""
        return (self.model,) if self.model is not None else self.models or ()

    @property
    def called(self) -> str:
        """Its name."""
        if self.name is not None:
            return self.name
        path = self.function or self.model
        if path is not None:
            return Path(path).stem
        if self.models is not None:
            return "ensemble"
        assert self.grader is not None
        return self.grader.name if self.grader.name != "score" else self.grader.kind


class Scorer(Protocol):
    """Gives the numbers of one part."""

    def __call__(self, answers: Sequence[Answer]) -> list[Grade]:
        """A grade for each answer, in their order."""


@dataclass(frozen=True)
class Graded:
    """The numbers of a grader."""

    grader: Grader
    aids: Aids

    def __call__(self, answers: Sequence[Answer]) -> list[Grade]:
        """See `Scorer`."""
        samples = [Sample(answer.text, answer.prompt) for answer in answers]
        return self.grader.grade_all(samples, [answer.row for answer in answers], self.aids)


SPREAD = "spread"
"""What a grade of an ensemble has among its parts: the standard deviation of its members' scores."""


@dataclass(frozen=True)
class Ensemble:
    """The mean of several reward models' scores, less `caution` times their standard deviation σ: r = mean(r_i) - k · σ(r_i).

    Where members disagree, the answers are unlike those that they learned from, and what an ensemble says there is worth little
    (Coste et al. 2023, https://arxiv.org/abs/2310.02743, section 3, which takes the variance in place of σ).
    """

    members: Sequence[Scorer]
    caution: float

    def __call__(self, answers: Sequence[Answer]) -> list[Grade]:
        """See `Scorer`; an answer that a member gives no number has none."""
        return [self._joined(grades) for grades in zip(*(member(answers) for member in self.members), strict=True)]

    def _joined(self, grades: Sequence[Grade]) -> Grade:
        scores = [grade.score for grade in grades if grade.score is not None]
        if len(scores) < len(grades):
            return next(grade for grade in grades if grade.score is None)
        spread = pstdev(scores)
        return Grade(fmean(scores) - self.caution * spread, parts={SPREAD: spread})


NO_MODELS: Mapping[str, Scorer] = MappingProxyType({})


def _silent(_: str) -> None:
    """Nobody is told."""


class Rewards:
    """All parts together, for the length of a run: as a context it ends the processes of functions."""

    def __init__(
        self,
        parts: Sequence[Reward],
        aids: Aids,
        watched: Sequence[Reward] = (),
        models: Mapping[str, Scorer] = NO_MODELS,
        announce: Callable[[str], None] = _silent,
    ) -> None:
        """watched: parts that are measured and told, and count nothing. All have names of their own. announce: told what to know of judges.

        models: what gives the numbers of parts that name a model, by the part's name.
        """
        self._exits = ExitStack()
        self._models = models
        self._announce = announce
        self._parts = {part.called: (self._scorer(part, aids), part.weight) for part in parts}
        self._watched = {part.called: self._scorer(part, aids) for part in watched}

    def _scorer(self, part: Reward, aids: Aids) -> Scorer:
        if part.runs:
            return self._models[part.called]
        if part.grader is not None:
            judged = aids if part.judge is None else replace(aids, ask=part.judge.asked(self._announce))
            return Graded(part.grader, judged)
        assert part.function is not None
        return self._exits.enter_context(FunctionProcess(Path(part.function), part.timeout_seconds))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def __call__(self, answers: Sequence[Answer]) -> list[Worth]:
        """What each answer is worth.

        Raises: RewardFault, if a function fails, takes too long or gives something else than a number for each answer; NoReward, if
        no answer has a reward.
        """
        grades = {name: (scorer(answers), weight) for name, (scorer, weight) in self._parts.items()}
        seen = {name: scorer(answers) for name, scorer in self._watched.items()}
        worths = [
            _summed(
                {name: (of_all[index], weight) for name, (of_all, weight) in grades.items()},
                {name: of_all[index] for name, of_all in seen.items()},
            )
            for index in range(len(answers))
        ]
        if worths and all(worth.reward is None for worth in worths):
            raise NoReward(
                f"No answer of {len(worths)} has a reward: {worths[0].fault}.",
                "docs/rlhf.md says what rewards may read.",
                field="objective.rewards",
            )
        return worths


def _summed(parts: Mapping[str, tuple[Grade, float]], watched: Mapping[str, Grade]) -> Worth:
    grades = {**{name: grade for name, (grade, _) in parts.items()}, **watched}
    numbers = {name: grade.score for name, grade in grades.items()}
    spreads = {name: spread for name, grade in grades.items() if (spread := grade.parts.get(SPREAD)) is not None}
    missing = next((name for name, (grade, _) in parts.items() if grade.score is None), None)
    if missing is not None:
        return Worth(None, numbers, f"{missing}: {grades[missing].fault}", spreads)
    reward = math.fsum(weight * grade.score for grade, weight in parts.values() if grade.score is not None)
    return Worth(reward, numbers, spreads=spreads)


OfAnswers = Callable[[Sequence[Answer]], list[Worth]]
"""What answers are worth, however that is found."""
