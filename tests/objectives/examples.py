"""A small task for every objective: its settings, the families of tiny models that learn it, and a few rows.

A new objective adds its entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from models.tiny import CLASSES, CONFIGS, STARTS, tiny_model
from objectives.rendered import side_by_side, text
from objectives.words import MARKS, vocabulary

from luthier.data.drawn import Drawing
from luthier.models.families import Family, family_of
from luthier.models.settings import ModelSettings
from luthier.objectives import (
    CLM,
    CPO,
    DPO,
    FIM,
    KTO,
    MLM,
    ORPO,
    SFT,
    UL2,
    Classification,
    Denoising,
    Distillation,
    Embedding,
    MultipleChoice,
    Objective,
    PrefixLM,
    Regression,
    Reward,
    SimPO,
    SpanCorruption,
    TokenClassification,
)
from luthier.prepared import laid_out
from luthier.training.companions import AtHand, Companions, Speaker, by_document
from luthier.types import Example, Origin, Rendered

LENGTHS = (9, 6, 12)
TEACHER = ModelSettings(name="t")


@dataclass(frozen=True)
class Task:
    """An objective, a tiny model's family, and how the rows of that objective come about, each from its number and length.

    beside: by the role of each other model that the objective hears, the family of the tiny one.
    """

    objective: Objective
    family: str
    rendered: Callable[[int, int, Family], Rendered]
    beside: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.objective.kind}-{self.family}"

    @cache  # noqa: B019 - a task lives as long as the tests
    def rows(self) -> tuple[Example, ...]:
        """A few rows; texts that are drawn are those of the first epoch."""
        family = family_of(CONFIGS[self.family][0])
        rendered = {number: self.rendered(number, length, family) for number, length in enumerate(LENGTHS)}
        examples = tuple(
            self.objective.example(row, number, Origin("rows", number + 1)) for number, row in rendered.items()
        )
        made = laid_out(examples, self.objective, family, max(LENGTHS))
        corrupt = self.objective.corruption(vocabulary(STARTS.get(self.family)))
        drawing = None if corrupt is None else Drawing(corrupt, seed=5)
        return tuple(made) if drawing is None else tuple(drawing(text, 0) for text in made)

    @cache  # noqa: B019 - likewise
    def companions(self) -> Companions:
        """The other models that the objective hears of these rows."""
        rows = by_document(self.rows())
        return Companions({role: AtHand(Speaker(tiny_model(name), None), rows) for role, name in self.beside})


def written(number: int, length: int, family: Family) -> Rendered:
    """A text of which the second half is learned; of an encoder-decoder, an answer to a source."""
    source_S = text(4 + number, number).tokens_T if family.encoder is not None else None
    weight_T = (np.arange(length) >= length // 2).astype(np.float32)
    return replace(text(length, number), weight_T=weight_T, source_S=source_S)


def plain(number: int, length: int, family: Family) -> Rendered:
    """A text that is learned whole; the tiny models' last words are left for marks."""
    tokens_T = np.random.default_rng(length).integers(3, MARKS[0], length, dtype=np.int64)
    return Rendered(tokens_T, np.ones(length, dtype=np.float32))


def whole(number: int, length: int, family: Family) -> Rendered:
    """A text with whatever can be said of it as a whole and of its tokens; every other one is a pair."""
    row = text(length, number, family.pooled, second=2 * (number % 2))
    at_K = np.arange(1, length - 1, 2, dtype=np.int64)
    classes = [CLASSES[index % len(CLASSES)] for index in range(number, number + length)]
    return replace(row, label=classes[0], score=number - 1.5, tags=tuple(classes[: len(at_K)]), tag_K=at_K)


def several(number: int, length: int, family: Family) -> Rendered:
    """Texts side by side, of which the last is a pair."""
    rows = side_by_side((length, length - 2, 5), number, family.pooled, chosen=number % 2)
    pair = text(5, 40 + number, family.pooled, second=2)
    return replace(rows, beside=(rows.beside[0], pair))


def two_answers(number: int, length: int, family: Family) -> Rendered:
    """A text of which the second half is an answer, and another answer to the same."""
    row = written(number, length, family)
    other = text(3 + length // 2, 20 + number)
    start = length // 2
    tokens_T = np.concatenate([row.tokens_T[:start], other.tokens_T[:3]])
    weight_T = (np.arange(len(tokens_T)) >= start).astype(np.float32)
    return replace(row, beside=(replace(other, tokens_T=tokens_T, weight_T=weight_T),))


def ranked(number: int, length: int, family: Family) -> Rendered:
    """Answers to one text, of which one is better than another: two or three of them, and once a tie with a margin."""
    pair = two_answers(number, length, family)
    if family.pooled == "first":
        pair = side_by_side((length, 5, 4), number, "first")
    texts = [replace(each, beside=(), pooled=family.pooled) for each in pair.texts]
    if number == 1 and len(texts) < 3:
        third = np.concatenate([texts[0].tokens_T[: length // 2], text(4, 50).tokens_T])
        weight_T = (np.arange(len(third)) >= length // 2).astype(np.float32)
        texts.append(replace(texts[0], tokens_T=third, weight_T=weight_T))
    if number == 2:
        first, second = (replace(each, share=0.5) for each in texts[:2])
        return replace(first, score=0.7, beside=(second,))
    first, *others = (replace(each, place=place, share=float(place == 0)) for place, each in enumerate(texts))
    return replace(first, beside=tuple(others))


def judged(number: int, length: int, family: Family) -> Rendered:
    """A text of which the second half is an answer, and whether it is a good one."""
    return replace(written(number, length, family), score=float(number % 2))


REFERENCE = (("reference", "mistral"),)

TASKS: tuple[Task, ...] = (
    Task(SFT(label_smoothing=0.1, z_loss=1e-2, noise=3.0), "llama", written),
    Task(SFT(), "bart", written),
    Task(CLM(), "gpt2", plain),
    Task(MLM(rate=0.3), "bert", plain),
    Task(SpanCorruption(density=0.4, mean_length=2.0), "t5", plain),
    Task(Denoising(), "bart", plain),
    Task(UL2(), "llama", plain),
    Task(UL2(), "t5", plain),
    Task(PrefixLM(), "llama", plain),
    Task(PrefixLM(), "t5", plain),
    Task(FIM(marks=("[NLU]", "[NLG]", "[S2S]")), "llama", plain),
    Task(Classification(classes=CLASSES), "llama", whole),
    Task(Classification(classes=CLASSES), "bert", whole),
    Task(Regression(), "llama", whole),
    Task(Regression(), "roberta", whole),
    Task(TokenClassification(classes=CLASSES), "llama", whole),
    Task(TokenClassification(classes=CLASSES), "bert", whole),
    Task(MultipleChoice(), "llama", several),
    Task(MultipleChoice(), "bert", several),
    Task(Embedding(), "llama", several),
    Task(Embedding(), "bert", several),
    Task(
        Distillation(teacher=TEACHER, alpha=0.3, temperature=2.0),
        "llama",
        written,
        (("teacher", "falcon"),),
    ),
    Task(Distillation(teacher=TEACHER, direction="jsd"), "bart", written, (("teacher", "t5"),)),
    Task(DPO(label_smoothing=0.1), "llama", two_answers, REFERENCE),
    Task(DPO(loss="ipo", beta=0.5), "bloom", two_answers, REFERENCE),
    Task(KTO(undesirable_weight=1.5), "llama", judged, REFERENCE),
    Task(ORPO(), "llama", two_answers),
    Task(SimPO(), "gpt2", two_answers),
    Task(CPO(), "llama", two_answers),
    Task(Reward(centre=0.1), "llama", ranked),
    Task(Reward(ranking="plackett-luce", centre=0.1), "bloom", ranked),
    Task(Reward(centre=0.1, label_noise=0.1), "bert", ranked),
)
