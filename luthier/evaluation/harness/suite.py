"""`lm-eval:TASK`: a task of lm-evaluation-harness, by its name or its file, as measures with intervals over its documents.

The harness gives the prompts, the answers' scores and what they come to; our own engine gives likelihoods and texts. A metric whose
value is the mean over documents is compared by pairs; any other (perplexity of texts, BLEU, groups of labels) as a statistic of documents
that are drawn anew. Documents that a run was trained on are told as rows are: by the question and its answer, as the harness renders them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from luthier.errors import DataError, NetworkError, NotFound, UsageError
from luthier.evaluation.candidates import Candidate, comparisons
from luthier.evaluation.contamination import Contamination, contamination
from luthier.evaluation.harness.scoring import Scored
from luthier.evaluation.intervals import bootstrap_mean
from luthier.evaluation.measure import SCORE_MARGIN, Measure, scale_of
from luthier.evaluation.rows import statistic_measure
from luthier.evaluation.verdict import Evaluation
from luthier.prediction.passes import Passes
from luthier.types import IntArray

PREFIX = "lm-eval:"
_SEED = 1234
"""Of the rows that are shown first, as the harness has it."""

_RESAMPLES = 200
"""Of a metric of all documents together: the harness counts each anew from the texts, which takes seconds for BLEU."""

_OF_TEXTS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
"""Metrics that tell how likely texts are; one scale or another of the same, and no answers."""

_IN_HUNDREDTHS = ("bleu", "chrf", "ter")
"""Metrics that the harness gives from 0 to 100."""

_RELATIVE_MARGIN = 0.01
"""Of what the first candidate has: as the margin of a loss, 1 % of perplexity."""

Documents = Mapping[tuple[str, str, str], Sequence[Any]]
"""By task, metric and filter: what the metric says of each document, in their order."""


def evaluate_suite(
    candidates: Sequence[Candidate],
    suites: Sequence[str],
    stop_ids: frozenset[int],
    passes: Passes,
    limit: int | None = None,
    trained: Iterable[str] | None = None,
) -> Evaluation:
    """The candidates on tasks of the harness. limit: use only the first so many documents of each.

    trained: the texts of training rows, among which the documents are looked for; None: they are not.

    Raises: UsageError without the harness, or for what is no task of it; NotFound for a file that is not there; DataError, NetworkError
    for data that cannot be read; NotFinite, if a model gives NaN.
    """
    harness = _harness()
    names = [suite.removeprefix(PREFIX) for suite in suites]
    found, notes = [], []
    for candidate in candidates:
        scored = Scored(candidate, stop_ids, passes)
        loaded = _loaded(harness, names)
        found.append((_results(harness, scored, loaded, limit), loaded["tasks"]))
        if scored.num_cut:
            notes.append(f"{candidate.name}: {scored.num_cut:,} requests are too long for it and lost their beginning.")
    results = [each for each, _ in found]
    documents = [_documents(each) for each in results]
    measures = [_measure(key, results, [own[key] for own in documents], found[0][1][key[0]]) for key in documents[0]]
    if not measures:
        raise DataError("The tasks hold no documents, so there is nothing to measure.", "Give a task with some.")
    counts = {task: len(rows) for (task, _, _), rows in documents[0].items()}
    if limit is not None:
        notes.append(f"Of each task at most the first {limit} documents were used.")
    learned = None
    if trained is not None:
        learned, told = _learned(_texts(results[0], found[0][1]), trained)
        notes += told
    return Evaluation(
        candidates=tuple(each.name for each in candidates),
        num_rows=sum(counts.values()),
        measures=tuple(measures),
        notes=tuple(notes),
        answers=(),
        contamination=learned,
    )


def check_suites(suites: Sequence[str]) -> None:
    """Raise UsageError for what is no suite, or without the harness; NotFound for a task's file that is not there."""
    for suite in suites:
        name = suite.removeprefix(PREFIX)
        if name == suite or not name:
            raise UsageError(f"There is no suite {suite!r}.", f"Write {PREFIX}TASK, or {PREFIX}FILE.yaml.")
        if _is_file(name) and not Path(name).is_file():
            raise NotFound(f"There is no task file {name}.", "Check the path.", file=name)
    _harness()


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _harness() -> Any:
    try:
        return importlib.import_module("lm_eval.evaluator")
    except ImportError as error:
        raise UsageError(
            f"Suites of lm-eval need lm-evaluation-harness ({error}).", "Install it: pip install 'luthier[lm-eval]'"
        ) from None


def _loaded(harness: Any, names: Sequence[str]) -> dict[str, Any]:
    """The tasks as the harness loads them, with as many documents shown first as each says (none where it says nothing)."""
    try:
        manager = harness.TaskManager(include_defaults=not all(map(_is_file, names)))
        loaded: dict[str, Any] = manager.load([*names])
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=_SEED)
    except ConnectionError as error:
        raise NetworkError(f"The data of {', '.join(names)} could not be fetched: {error}.") from error
    except KeyError as error:
        raise UsageError(
            f"lm-evaluation-harness cannot load {', '.join(names)}: {error.args[0] if error.args else error}.",
            "'lm_eval ls tasks' lists its tasks; a file of your own is named by its path.",
        ) from error
    except (
        Exception
    ) as error:  # a task's file is code and data of others: whatever is wrong with it, it is said as such
        raise DataError(
            f"lm-evaluation-harness cannot load {', '.join(names)}: {type(error).__name__}: {error}.",
            "Check the task's file, its data and its columns.",
        ) from error
    return loaded


def _results(harness: Any, scored: Scored, loaded: dict[str, Any], limit: int | None) -> dict[str, Any]:
    from luthier.evaluation.harness.language_model import HarnessModel

    try:
        found: dict[str, Any] = harness.evaluate(
            HarnessModel(scored), loaded, limit=limit, bootstrap_iters=0, log_samples=True
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise DataError(
            f"lm-evaluation-harness cannot carry out {', '.join(loaded['tasks'])}: {type(error).__name__}: {error}.",
            "Check the task's file and its data's columns; tasks that run code or need pictures are not carried out.",
        ) from error
    return found


def _documents(results: Mapping[str, Any]) -> Documents:
    found: dict[tuple[str, str, str], list[Any]] = {}
    for task, samples in results["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                found.setdefault((task, metric, sample["filter"]), []).append(sample[metric])
    return found


# ── documents among training rows ───────────────────────────────────────────────────────────────────────────────────


def _learned(texts: Mapping[str, Sequence[str]], trained: Iterable[str]) -> tuple[Contamination, list[str]]:
    """Which documents stand in the training texts, counted through all tasks, and what is to be said of each task."""
    found = contamination([text for own in texts.values() for text in own], trained)
    notes, start = [], 0
    for task, own in texts.items():
        note = found.part(range(start, start + len(own))).note
        if note is not None:
            notes.append(note if len(texts) == 1 else f"{task}: {note}")
        start += len(own)
    return found, notes


def _texts(results: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, list[str]]:
    """By task the texts of the documents that were used, in their order."""
    found = {}
    for task, samples in results["samples"].items():
        documents = {sample["doc_id"]: sample["doc"] for sample in samples}  # each stands there once a filter
        found[task] = [_text(tasks[task], document) for document in documents.values()]
    return found


def _text(task: Any, document: Any) -> str:
    """The question of a document, without examples shown first, and its right answer; of several answers the first."""
    return "\n".join(
        _words(task, document, part) for part in (task.doc_to_text(document), task.doc_to_target(document))
    )


def _words(task: Any, document: Any, part: Any) -> str:
    """A question or an answer as text, which the harness may have as the place of a choice."""
    if isinstance(part, list | tuple):
        return _words(task, document, part[0]) if part else ""
    if isinstance(part, int) and task.get_config("doc_to_choice") is not None:
        choices = task.doc_to_choice(document)
        return (
            str(choices[part]) if 0 <= part < len(choices) else ""
        )  # places beyond them stand for answers that are kept secret
    return str(part)


# ── measures ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _measure(
    key: tuple[str, str, str], results: Sequence[Mapping[str, Any]], values: Sequence[Sequence[Any]], task: Any
) -> Measure:
    """One metric of one task; values: of each candidate, those of the documents."""
    name, metric, by = key
    reported = [float(each["results"][name][f"{metric},{by}"]) for each in results]
    rises = bool(results[0]["higher_is_better"].get(name, {}).get(metric, True))
    title = f"{name}: {metric}" + ("" if by == "none" else f" ({by})")
    if all(_is_mean(own, number) for own, number in zip(values, reported, strict=True)):
        columns = [[float(value) for value in own] for own in values]
        margin, span = scale_of(columns)
        estimates = tuple(map(bootstrap_mean, columns))
        return Measure(title, rises, len(columns[0]), estimates, comparisons(columns), margin, span=span)
    aggregate = task.aggregation()[metric]
    of_rows = [partial(_aggregated, aggregate, own) for own in values]
    margin, span = _scale(metric, reported)
    return statistic_measure(
        title,
        of_rows,
        len(values[0]),
        higher_is_better=rises,
        witness="likelihood" if metric in _OF_TEXTS else "answers",
        margin=margin,
        span=span,
        resamples=_RESAMPLES,
    )


def _scale(metric: str, reported: Sequence[float]) -> tuple[float, float]:
    """The margin and the span of a metric that is no mean over documents: in hundredths, relative, or a share."""
    if metric in _IN_HUNDREDTHS:
        return 100 * SCORE_MARGIN, 100.0
    if metric in _OF_TEXTS or not all(0 <= value <= 1 for value in reported):
        return _RELATIVE_MARGIN * abs(reported[0]), max(map(abs, reported))
    return SCORE_MARGIN, 1.0


def _is_mean(values: Sequence[Any], reported: float) -> bool:
    if not all(isinstance(value, int | float) for value in values):
        return False
    return math.isclose(sum(values) / len(values), reported, rel_tol=1e-9, abs_tol=1e-12)


def _aggregated(aggregate: Any, values: Sequence[Any], index_R: IntArray) -> float:
    return float(aggregate([values[row] for row in index_R]))
