"""Further measures of answers by name: what `--metric` takes beside a Python file.

Measures of single answers are means over the rows; BLEU, chrF and the macro F1 are of all rows together, and their intervals come
from drawing rows anew. All lie between 0 and 1. BLEU is counted by sacrebleu (an extra, `luthier[grading]`).

Shapes: R rows, K counts that a row brings to a statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from luthier.errors import DataError
from luthier.evaluation.candidates import comparisons
from luthier.evaluation.final_answer import FINAL_ANSWER, same_final_answer
from luthier.evaluation.grading.libraries import needed
from luthier.evaluation.grading.number import number_in
from luthier.evaluation.intervals import bootstrap_mean
from luthier.evaluation.measure import Measure
from luthier.evaluation.metrics import (
    best,
    exact_match,
    field_accuracy,
    json_object,
    macro_f1,
    ngram_counts,
    rouge_l,
    rouge_n,
    token_f1,
)
from luthier.evaluation.rows import OfRows, statistic_measure
from luthier.types import IntArray

Counts = NDArray[np.float64]
References = Sequence[Sequence[str]]
"""Of each row the right answers, one or more: the nearest counts."""
OfAnswer = Callable[[str, str], float | None]
"""The score of an answer against a reference; None where the reference has nothing to compare with."""

CHRF_ORDER, CHRF_BETA = 6, 2.0
BLEU_ORDER = 4
MOST_LABELS = 200


def named_measure(name: str, answers: Sequence[Sequence[str]], references: References) -> tuple[Measure, list[str]]:
    """A measure of each candidate's answers, and what is to be said of it. answers: of each candidate, one a row.

    Raises: DataError, if no reference serves; UsageError, if a library that it needs is not installed.
    """
    if name in OF_ANSWERS:
        return _of_answers(name, OF_ANSWERS[name], answers, references)
    return OF_ALL[name](answers, references)


def row_scores(
    name: str, answers: Sequence[Sequence[str]], references: References
) -> list[tuple[float | None, ...]] | None:
    """Of each row the score of each candidate's answer; None for a metric of all rows together."""
    score = OF_ANSWERS.get(name)
    return None if score is None else list(zip(*_scores(score, answers, references), strict=True))


def _scores(score: OfAnswer, answers: Sequence[Sequence[str]], references: References) -> list[list[float | None]]:
    return [[best(score, text, rights) for text, rights in zip(texts, references, strict=True)] for texts in answers]


def _of_answers(
    name: str, score: OfAnswer, answers: Sequence[Sequence[str]], references: References
) -> tuple[Measure, list[str]]:
    scores = _scores(score, answers, references)
    rows = [row for row, value in enumerate(scores[0]) if value is not None]
    if not rows:
        raise DataError(f"No reference serves the metric {name!r}.", "docs/evaluation.md says what each metric needs.")
    kept = [[float(value) for value in (each[row] for row in rows) if value is not None] for each in scores]
    left_out = len(references) - len(rows)
    notes = [f"{name}: {left_out} of {len(references)} references cannot be compared with."] if left_out else []
    return Measure(name, True, len(rows), tuple(map(bootstrap_mean, kept)), comparisons(kept)), notes


# ── single answers ──────────────────────────────────────────────────────────────────────────────────────────────────


def label_of(text: str) -> str:
    """An answer as a label: its case, and signs and blanks at its ends, do not count."""
    return text.strip().strip(".!\"'`*").strip().casefold()


def _json_fields(answer: str, reference: str) -> float | None:
    wanted = json_object(reference)
    return field_accuracy(answer, wanted) if wanted else None


def _number(answer: str, reference: str) -> float | None:
    wanted = number_in(reference)
    return None if wanted is None else float(number_in(answer) == wanted)


ALWAYS: Mapping[str, str] = {"exact-match": "exact match", "token-f1": "token F1", "rouge-l": "ROUGE-L"}
"""What an evaluation of answers measures unasked, and what it calls them (`compare.SCORES`)."""

OF_ANSWERS: Mapping[str, OfAnswer] = {
    "exact-match": exact_match,
    "token-f1": token_f1,
    "rouge-l": rouge_l,
    "accuracy": lambda answer, reference: float(label_of(answer) == label_of(reference)),
    "rouge-1": partial(rouge_n, n=1),
    "rouge-2": partial(rouge_n, n=2),
    "json-valid": lambda answer, reference: float(json_object(answer) is not None),
    "json-fields": _json_fields,
    "number": _number,
    FINAL_ANSWER: same_final_answer,
}


# ── all rows together ───────────────────────────────────────────────────────────────────────────────────────────────


def _of_counts(name: str, counts: Sequence[Counts], of_sum: Callable[[Counts], float]) -> tuple[Measure, list[str]]:
    """A statistic of the summed counts of rows; counts: (R, K) of each candidate."""

    def of(count_RK: Counts) -> OfRows:
        return lambda index_R: of_sum(count_RK[index_R].sum(0))

    return statistic_measure(name, [of(each) for each in counts], len(counts[0])), []


def _bleu(answers: Sequence[Sequence[str]], references: References) -> tuple[Measure, list[str]]:
    counts = [bleu_counts(texts, references) for texts in answers]
    return _of_counts("bleu", counts, bleu_of)


def bleu_counts(answers: Sequence[str], references: References) -> Counts:
    """What each answer brings to BLEU: matching and all runs of 1 to 4 words, and both lengths; shape (R, K).

    Of several references a run counts as often as any one of them has it, and the length nearest to the answer's is taken.
    """
    bleu = needed("sacrebleu").BLEU(effective_order=True)
    found = [bleu.sentence_score(answer, list(rights)) for answer, rights in zip(answers, references, strict=True)]
    return np.array([[*each.counts, *each.totals, each.sys_len, each.ref_len] for each in found], dtype=np.float64)


def bleu_of(sum_K: Counts) -> float:
    """BLEU from summed counts: Papineni et al. 2002, smoothed as sacrebleu does (Post 2018, https://aclanthology.org/W18-6319)."""
    numbers = [int(number) for number in sum_K]
    matches, totals, (own, right) = numbers[:BLEU_ORDER], numbers[BLEU_ORDER:-2], numbers[-2:]
    return float(needed("sacrebleu").BLEU.compute_bleu(matches, totals, own, right, smooth_method="exp").score) / 100


def _chrf(answers: Sequence[Sequence[str]], references: References) -> tuple[Measure, list[str]]:
    counts = [
        np.array([chrf_counts(text, rights) for text, rights in zip(texts, references, strict=True)])
        for texts in answers
    ]
    return _of_counts("chrf", counts, chrf_of)


def chrf_counts(answer: str, references: Sequence[str]) -> list[float]:
    """What an answer brings to chrF, as sacrebleu has it: the counts against the reference that gives the highest chrF."""
    return max((_chrf_counts(answer, right) for right in references), key=lambda counts: chrf_of(np.array(counts)))


def _chrf_counts(answer: str, reference: str) -> list[float]:
    """For runs of 1 to 6 letters how many the answer has, how many the reference, and how many are in both."""
    own, right = ("".join(text.split()) for text in (answer, reference))
    counts: list[float] = []
    for order in range(1, CHRF_ORDER + 1):
        left, other = ngram_counts(own, order), ngram_counts(right, order)
        # as sacrebleu has it, an answer's runs do not count where the reference has none so long
        counts += [left.total() if other else 0, other.total(), (left & other).total()]
    return counts


def chrf_of(sum_K: Counts) -> float:
    """chrF from summed counts: Popović 2015, https://aclanthology.org/W15-3049, over the orders that both sides have."""
    own_N, right_N, both_N = sum_K.reshape(-1, 3).T
    has = (own_N > 0) & (right_N > 0)
    if not has.any():
        return 0.0
    precision, recall = float((both_N[has] / own_N[has]).mean()), float((both_N[has] / right_N[has]).mean())
    square = CHRF_BETA**2
    return (1 + square) * precision * recall / (square * precision + recall) if precision + recall else 0.0


def _macro_f1(answers: Sequence[Sequence[str]], references: References) -> tuple[Measure, list[str]]:
    labels = sorted({label_of(first) for first, *_ in references})
    if len(labels) > MOST_LABELS:
        raise DataError(
            f"The references have {len(labels)} labels, and the metric 'macro-f1' is for at most {MOST_LABELS}.",
            "Take it for rows whose answers are labels.",
        )
    number = {label: place for place, label in enumerate(labels)}
    true_R = np.array([number[label_of(first)] for first, *_ in references])
    given = [np.array([number.get(label_of(text), len(labels)) for text in texts]) for texts in answers]

    def of(answer_R: IntArray) -> OfRows:
        # what is no label at all is a class of its own, which nothing truly is
        return lambda index_R: macro_f1(answer_R[index_R], true_R[index_R], len(labels) + 1)

    outside = max(int((answer_R == len(labels)).sum()) for answer_R in given)
    notes = [f"macro-f1: up to {outside} of {len(references)} answers are none of the labels."] if outside else []
    return statistic_measure("macro-f1", [of(each) for each in given], len(references)), notes


OF_ALL: Mapping[str, Callable[[Sequence[Sequence[str]], References], tuple[Measure, list[str]]]] = {
    "bleu": _bleu,
    "chrf": _chrf,
    "macro-f1": _macro_f1,
}

NAMES = (*OF_ANSWERS, *OF_ALL)
