"""How well a model tells classes apart, against always giving the same answer.

A base model whose head is new cannot tell classes apart at all, so what the tuned model is compared with is the best that
needs no text: the most frequent class of the rows as the answer, and their shares as the probabilities.
Shapes: R rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from luthier.data.batches import evaluation_batches
from luthier.data.placeholders import with_placeholders
from luthier.errors import DataError
from luthier.evaluation.compare import Candidate, Progress, check_room, comparisons
from luthier.evaluation.intervals import bootstrap_mean, bootstrap_of, wilson
from luthier.evaluation.metrics import macro_f1
from luthier.evaluation.verdict import Answered, Comparison, Evaluation, Measure
from luthier.ops.workers import Workers
from luthier.types import Example, FloatArray, IntArray, Labelled, Origin, Record

MAJORITY = "majority"


@dataclass(frozen=True)
class Guesses:
    """What one candidate says of the rows: log-probabilities of all classes (nats)."""

    name: str
    logprob_RC: FloatArray

    @property
    def answer_R(self) -> IntArray:
        """The most probable class of each row."""
        answers: IntArray = self.logprob_RC.argmax(1).astype(np.int64)
        return answers


def evaluate_classes(
    candidate: Candidate,
    rows: Sequence[tuple[Record, Origin]],
    examples: Sequence[Example],
    workers: Workers,
    *,
    tokens_per_micro_batch: int = 1024,
    limit: int | None = None,
    progress: Progress = lambda task, done, total: None,
) -> Evaluation:
    """The candidate against the majority class: loss, accuracy and macro-F1.

    Args:
        examples: what the rows teach, aligned with them.
        limit: use only the first so many rows.

    Raises: DataError, if there are no rows, or one is beyond the model's context.
    """
    if not rows:
        raise DataError("There are no rows to evaluate on.", "Give a file that holds at least one row.")
    chosen, taught = rows[:limit], examples[:limit]
    check_room(candidate, [], taught)
    classes = candidate.model.classes
    true_R = np.array([int(example.token_N[0]) for example in taught], dtype=np.int64)
    logprob_RC = class_logprobs(candidate, taught, tokens_per_micro_batch, workers, progress)
    guesses = [majority(true_R, len(classes)), Guesses(candidate.name, logprob_RC.numpy())]
    notes = [] if len(chosen) == len(rows) else [f"The first {len(chosen)} of {len(rows)} rows were used."]
    most = classes[int(guesses[0].answer_R[0])]
    notes.append(
        f"{MAJORITY} always answers {most!r}, the most frequent class of these rows; a base with a new head knows none."
    )
    return Evaluation(
        candidates=tuple(guess.name for guess in guesses),
        num_rows=len(chosen),
        measures=class_measures(guesses, true_R),
        notes=tuple(notes),
        answers=tuple(
            Answered(
                origin, _asked(record), classes[true], tuple(classes[int(guess.answer_R[row])] for guess in guesses)
            )
            for row, ((record, origin), true) in enumerate(zip(chosen, true_R.tolist(), strict=True))
        ),
    )


def _asked(record: Record) -> str:
    assert isinstance(record, Labelled)
    return record.text if record.pair is None else f"{record.text} | {record.pair}"


def majority(true_R: IntArray, num_classes: int) -> Guesses:
    """The same answer for every row: the shares of the classes among the rows."""
    with np.errstate(divide="ignore"):  # a class without rows has probability 0
        share_C = np.log(np.bincount(true_R, minlength=num_classes) / len(true_R))
    return Guesses(MAJORITY, np.tile(share_C.astype(np.float32), (len(true_R), 1)))


def class_measures(guesses: Sequence[Guesses], true_R: IntArray) -> tuple[Measure, ...]:
    """Loss (nats a row), accuracy and macro-F1 of each candidate, each later one against the first."""
    rows, num_classes = np.arange(len(true_R)), guesses[0].logprob_RC.shape[1]
    losses = [(-guess.logprob_RC[rows, true_R]).astype(np.float64).tolist() for guess in guesses]
    right = [(guess.answer_R == true_R).astype(np.float64).tolist() for guess in guesses]

    def f1_of(guess: Guesses, index_R: IntArray) -> float:
        return macro_f1(guess.answer_R[index_R], true_R[index_R], num_classes)

    def gain_of(guess: Guesses, index_R: IntArray) -> float:
        return f1_of(guess, index_R) - f1_of(guesses[0], index_R)

    f1 = tuple(bootstrap_of(partial(f1_of, guess), len(true_R)) for guess in guesses)
    gains = tuple(Comparison(bootstrap_of(partial(gain_of, guess), len(true_R)), None) for guess in guesses[1:])
    return (
        Measure("loss", False, len(true_R), tuple(bootstrap_mean(loss) for loss in losses), comparisons(losses)),
        Measure("accuracy", True, len(true_R), tuple(wilson(round(sum(r)), len(r)) for r in right), comparisons(right)),
        Measure("macro-F1", True, len(true_R), f1, gains),
    )


def class_logprobs(
    candidate: Candidate,
    examples: Sequence[Example],
    budget: int,
    workers: Workers,
    progress: Progress = lambda task, done, total: None,
) -> Tensor:
    """Log-probabilities (nats, fp32) of all classes for each example, on all worker threads, shape (R, C)."""
    model = candidate.model
    placed = [with_placeholders(example, model.num_virtual(candidate.adapter)) for example in examples]
    budget = max([budget, *(example.num_tokens for example in placed)])  # a row too long for training can be measured
    numbered = [replace(example, document=row) for row, example in enumerate(placed)]
    batches = evaluation_batches(numbered, budget, workers.count, model.layout, model.pad_id)
    logprob_RC = torch.empty(len(examples), len(model.classes))
    done: list[int] = []  # appending is atomic: workers share it

    def share_of(worker: int) -> Callable[[], None]:
        def compute() -> None:
            for batch in batches[worker :: workers.count]:
                with torch.inference_mode():
                    outputs = model.forward(batch.to(model.device), candidate.adapter)
                    logits_NC = outputs.logits_NC
                    logprob_RC[list(batch.documents)] = logits_NC.float().log_softmax(-1).cpu()
                done.append(len(batch.documents))
                progress(f"{candidate.name}: classes", sum(done), len(examples))

        return compute

    workers.run([share_of(worker) for worker in range(min(workers.count, len(batches)))])
    return logprob_RC
