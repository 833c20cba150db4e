"""How well a model tags words: against the most frequent tag, word by word and entity by entity.

An entity counts as found if its kind, its first and its last word are right (CoNLL's rule: `luthier.data.entities`); over
all rows precision = right / found, recall = right / there, F1 = 2 right / (found + there), 0 where nothing is found or there.
Words of one row depend on each other, so the intervals draw whole rows.
Shapes: K words of a row, C tags, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from luthier.data.entities import are_span_tags, spans_of
from luthier.evaluation.candidates import Candidate, comparisons, head_logits
from luthier.evaluation.classification import MAJORITY
from luthier.evaluation.intervals import bootstrap_mean
from luthier.evaluation.measure import LOSS_MARGIN, SCORE_MARGIN, Measure, Witness
from luthier.evaluation.rows import Rows, statistic_measure
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.prediction.passes import Passes
from luthier.types import FloatArray, IntArray, Tagged


@dataclass(frozen=True)
class TagGuesses:
    """What one candidate says of the rows: log-probabilities of all tags (nats) for each word, (K, C) a row."""

    name: str
    logprobs: Sequence[FloatArray]

    def tags(self, classes: Sequence[str]) -> list[list[str]]:
        """The most probable tag of each word of each row."""
        return [[classes[number] for number in logprob_KC.argmax(1).tolist()] for logprob_KC in self.logprobs]


def evaluate_tags(candidates: Sequence[Candidate], rows: Rows, passes: Passes, limit: int | None = None) -> Evaluation:
    """The candidates, which have the same tags, against the most frequent one: loss, accuracy, and precision, recall and F1 of entities.

    limit: use only the first so many rows. Raises: DataError, if there are no rows, or one is beyond a model's context.
    """
    rows = rows.first(limit)
    classes = candidates[0].model.classes
    said = head_logits(candidates, rows.examples, passes, "tags")
    true = [example.token_N for example in rows.examples]
    guesses = [
        most_frequent(true, len(classes)),
        *(
            TagGuesses(each.name, [logits_KC.log_softmax(-1).numpy() for logits_KC in logits])
            for each, logits in zip(candidates, said, strict=True)
        ),
    ]
    answers = [guess.tags(classes) for guess in guesses]
    most = answers[0][0][0]
    note = (
        f"{MAJORITY} always answers {most!r}, the most frequent tag of these rows; a base with a new head knows none."
    )
    return Evaluation(
        candidates=tuple(guess.name for guess in guesses),
        num_rows=len(rows.records),
        measures=tag_measures(guesses, true, classes),
        notes=(*rows.notes, note),
        answers=tuple(
            Answered(
                origin,
                _text(record.words),
                _marked(record.words, [classes[number] for number in true[row].tolist()]),
                tuple(_marked(record.words, tags[row]) for tags in answers),
            )
            for row, (record, origin) in enumerate(rows.records)
            if isinstance(record, Tagged)
        ),
    )


def most_frequent(true: Sequence[IntArray], num_classes: int) -> TagGuesses:
    """The same answer for every word: the shares of the tags."""
    counts_C = np.bincount(np.concatenate(true), minlength=num_classes)
    with np.errstate(divide="ignore"):  # a tag without words has probability 0
        share_C = np.log(counts_C / counts_C.sum()).astype(np.float32)
    return TagGuesses(MAJORITY, [np.tile(share_C, (len(row), 1)) for row in true])


def tag_measures(
    guesses: Sequence[TagGuesses], true: Sequence[IntArray], classes: Sequence[str]
) -> tuple[Measure, ...]:
    """Loss (nats a word) and accuracy; and precision, recall and F1 of entities, where the tags mark some."""
    num_rows, weights = len(true), [float(len(row)) for row in true]
    losses, right = [], []
    for guess in guesses:
        pairs = list(zip(guess.logprobs, true, strict=True))
        losses.append(
            [float(-logprob_KC[np.arange(len(row)), row].mean(dtype=np.float64)) for logprob_KC, row in pairs]
        )
        right.append([float((logprob_KC.argmax(1) == row).mean()) for logprob_KC, row in pairs])
    of_words: list[tuple[str, bool, list[list[float]], float, Witness]] = [
        ("loss", False, losses, LOSS_MARGIN, "likelihood"),
        ("accuracy", True, right, SCORE_MARGIN, "answers"),
    ]
    measures = [
        Measure(
            name,
            higher_is_better,
            num_rows,
            tuple(bootstrap_mean(each, weights) for each in values),
            comparisons(values, weights),
            margin,
            witness,
        )
        for name, higher_is_better, values, margin, witness in of_words
    ]
    if are_span_tags(classes):
        named = [[classes[number] for number in row.tolist()] for row in true]
        counts = [entity_counts(guess.tags(classes), named) for guess in guesses]
        measures += [
            statistic_measure(f"entity {name}", [partial(_share, each, name) for each in counts], num_rows)
            for name in ("precision", "recall", "F1")
        ]
    return tuple(measures)


def entity_counts(found: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> IntArray:
    """For each row how many entities are right, how many were found, and how many there are, shape (R, 3)."""
    counts = []
    for answer, reference in zip(found, true, strict=True):
        spans, wanted = set(spans_of(answer)), set(spans_of(reference))
        counts.append([len(spans & wanted), len(spans), len(wanted)])
    return np.array(counts, dtype=np.int64)


def _share(counts_R3: IntArray, name: str, index_R: IntArray) -> float:
    """Precision, recall or F1 over the rows of these indices."""
    right, found, there = counts_R3[index_R].sum(0).tolist()
    numerator, denominator = {
        "precision": (right, found),
        "recall": (right, there),
        "F1": (2 * right, found + there),
    }[name]
    return float(numerator / denominator) if denominator else 0.0


def _text(words: Sequence[str]) -> str:
    return " ".join(words)


def _marked(words: Sequence[str], tags: Sequence[str]) -> str:
    """Words with their tags, those outside of all entities bare; of a row that was cut, those that are left."""
    return _text([word if tag == "O" else f"{word}/{tag}" for word, tag in zip(words, tags, strict=False)])
