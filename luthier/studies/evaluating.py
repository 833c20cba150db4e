"""A run measured against what it began from: on its rows, by what it learned, and beyond them; and models of no run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.data.dataset import load_examples
from luthier.errors import DataError, NetworkError, NotFound, UsageError
from luthier.evaluation.candidates import Candidate
from luthier.evaluation.classification import evaluate_classes
from luthier.evaluation.compare import evaluate_records
from luthier.evaluation.contamination import contamination, text_of
from luthier.evaluation.embedding import evaluate_embedding
from luthier.evaluation.forgetting.probe import forgetting, read_probe
from luthier.evaluation.harness.suite import evaluate_suite
from luthier.evaluation.multiple_choice import evaluate_choices
from luthier.evaluation.preference import evaluate_pairs, evaluate_verdicts
from luthier.evaluation.pretraining import ANSWERED, evaluate_targets
from luthier.evaluation.regression import evaluate_scores
from luthier.evaluation.reward import evaluate_rewards
from luthier.evaluation.rows import Rows
from luthier.evaluation.safety.probe import probe_safety, read_probes
from luthier.evaluation.shots import choose_shots
from luthier.evaluation.token_classification import evaluate_tags
from luthier.evaluation.verdict import Evaluation
from luthier.generation.engine_settings import bytes_in
from luthier.generation.settings import Sampling
from luthier.objectives.asking import AS_WRITTEN
from luthier.ops.workers import Workers
from luthier.prediction.chooser import Chooser
from luthier.prediction.contract import Reader
from luthier.prediction.embedder import Embedder
from luthier.prediction.passes import Passes, Progress
from luthier.prediction.reward import RewardScorer
from luthier.prediction.scorer import Scorer
from luthier.prediction.tagger import Tagger
from luthier.prediction.text_model import TextModel
from luthier.prepared import asked_of, drawing_of, laid_out, read_dataset
from luthier.recipe import Recipe, make_recipe
from luthier.recipe.loading import recipe_of_run
from luthier.rlhf import RolloutObjective
from luthier.studies.evaluating_rewards import evaluate_rewarded
from luthier.studies.further_models import Others, further_readers, further_writers
from luthier.types import Example, Record

Announce = Callable[[str], None]


@dataclass(frozen=True)
class AskedFor:
    """How a run is evaluated: on which rows (None: those it held out) and how many of them, how answers are drawn (None: greedily),
    how many training rows the base is also shown first, whether what was known beyond the rows is measured, of how many answers
    the best are chosen by reward (0: that is not asked), and whether refusals, stereotypes and rude words are looked for.

    cache_gb: most gigabytes that keys and values of answers take. measures_answers: whether measures of answers were asked for.
    """

    data: str | None = None
    limit: int | None = None
    sampling: Sampling | None = None
    shots: int = 0
    probes: bool = False
    best_of: int = 0
    safety: bool = False
    suites: tuple[str, ...] = ()
    cache_gb: float | None = None
    measures_answers: bool = False


def evaluate_on_suites(
    folder: Path,
    tuned: TextModel | Reader,
    load_base: Callable[[], TextModel | Reader],
    asked: AskedFor,
    announce: Announce,
    progress: Progress,
) -> Evaluation:
    """The base and what is made of it on tasks of others; arguments and Raises as `evaluate_run` and `evaluate_suite` have them."""
    if not isinstance(tuned, TextModel) or not tuned.asking.causal or tuned.language_model.answer_start is not None:
        raise UsageError(
            f"The model of {folder} does not go on from a text from left to right, which the tasks of a suite ask for.",
            "Leave --suite out.",
        )
    if asked.data is not None or asked.shots:
        raise UsageError("A suite brings its own rows.", "Leave out --data and --shots.")
    recipe = recipe_of_run(folder)
    training, trained = recipe.training, _training_records(recipe, tuned, announce)
    base = load_base()
    candidates = [
        Candidate("base", base.language_model, base.adapter), Candidate("tuned", tuned.language_model, tuned.adapter)
    ]  # fmt: skip
    with Workers(training.workers if isinstance(training.workers, int) else 1) as pool:
        passes = Passes(pool, training.tokens_per_micro_batch, progress)
        shared = replace(passes, shares_prefix=True)
        learned = None if trained is None else map(text_of, trained)
        evaluation = evaluate_suite(candidates, asked.suites, tuned.renderer.stop_ids, shared, asked.limit, learned)
        if asked.probes:
            probed = forgetting(candidates, tuned.renderer, passes, read_probe())
            evaluation = replace(evaluation, forgetting=probed)
    return replace(evaluation, subject="tuned")


def evaluate_model(
    name: str, model: TextModel, others: Others, asked: AskedFor, announce: Announce, progress: Progress
) -> Evaluation:
    """A model of no run on rows or on suites that are named, alone, or as the first of several by name.

    Raises: UsageError for what only a run has; other Raises as `evaluate_run`.
    """
    if asked.shots or asked.best_of:
        option = "--shots" if asked.shots else "--best-of"
        raise UsageError(f"{name} is no run: it has neither training rows nor rewards.", f"Leave {option} out.")
    candidate = Candidate(name, model.language_model, model.adapter)
    with Workers(1) as pool:
        passes = Passes(pool, 1024, progress, cache_bytes=bytes_in(asked.cache_gb))
        if asked.suites:
            candidates = [candidate]
            shared = replace(passes, shares_prefix=True)
            evaluation = evaluate_suite(candidates, asked.suites, model.renderer.stop_ids, shared, asked.limit)
        else:
            recipe = make_recipe({"model": name, "data": {"train": asked.data}})
            rows = rows_to_evaluate(recipe, asked.data, model, announce)
            candidates = [candidate, *further_writers(others, model, rows.records[: asked.limit])]
            evaluation = _measured(recipe, model, candidates, rows, passes, asked, announce)
            evaluation = _with_contamination_of(others, evaluation, rows, asked.limit, announce)
        return _probed(evaluation, candidates, model, passes, asked)


def _probed(
    evaluation: Evaluation, candidates: Sequence[Candidate], model: TextModel, passes: Passes, asked: AskedFor
) -> Evaluation:
    """The evaluation with the probes of what is known beyond the rows, and of safety, where they are asked for."""
    if asked.probes and model.asking.causal:
        evaluation = replace(evaluation, forgetting=forgetting(candidates, model.renderer, passes, read_probe()))
    if asked.safety and evaluation.safety is None:
        evaluation = replace(evaluation, safety=probe_safety(candidates, model, passes, read_probes(), {}))
    return evaluation


def evaluate_run(
    folder: Path,
    tuned: TextModel | Reader,
    load_base: Callable[[], TextModel | Reader],
    others: Others,
    asked: AskedFor,
    announce: Announce,
    progress: Progress,
) -> Evaluation:
    """The base, what is made of it, and further models by name, on the same rows; arguments and Raises as `api.evaluate` has them.

    load_base: gives the model that the run began from; asked only where the tuned one can be compared with it.
    """
    recipe = recipe_of_run(folder)
    rows = rows_to_evaluate(recipe, asked.data, tuned, announce)
    workers, budget = recipe.training.workers, recipe.training.tokens_per_micro_batch
    candidate = Candidate("tuned", tuned.language_model, tuned.adapter)
    trained = _training_records(recipe, tuned, announce)
    answers = isinstance(tuned, TextModel) and recipe.objective.takes == "text" and not recipe.objective.splits
    if not answers and asked.shots:
        raise UsageError(f"The run {folder} did not learn to answer in text.", "Leave --shots out.")
    if asked.best_of and not isinstance(recipe.objective, RolloutObjective):
        raise UsageError(f"The run {folder} learned from no reward that could choose.", "Leave --best-of out.")
    if asked.safety and not (isinstance(tuned, TextModel) and tuned.asking.causal):
        raise UsageError(f"The run {folder} is no model that is asked and answers in text.", "Leave --safety out.")
    with Workers(workers if isinstance(workers, int) else 1) as pool:
        passes = Passes(pool, budget, progress, cache_bytes=bytes_in(asked.cache_gb))
        if isinstance(tuned, Reader) and not tuned.base_answers:
            readers = [candidate, *further_readers(others, tuned, rows.records[: asked.limit])]
            evaluation = _with_new_head(tuned, readers, rows, passes, asked.limit)
        else:
            base = load_base()
            first = Candidate("base", base.language_model, base.adapter)
            shown = _shown(first, asked, rows, trained, recipe.seed)
            if isinstance(tuned, TextModel):
                further = further_writers(others, tuned, rows.records[: asked.limit])
            else:
                further = further_readers(others, tuned, rows.records[: asked.limit])
            candidates = [first, *shown, candidate, *further]
            evaluation = _measured(recipe, tuned, candidates, rows, passes, asked, announce)
            if isinstance(tuned, TextModel):
                evaluation = _probed(evaluation, candidates, tuned, passes, asked)
    evaluation = _with_contamination(replace(evaluation, subject="tuned"), rows, trained, asked.limit)
    return _with_contamination_of(others, evaluation, rows, asked.limit, announce)


def _measured(
    recipe: Recipe,
    tuned: TextModel | Reader,
    candidates: Sequence[Candidate],
    rows: Rows,
    passes: Passes,
    asked: AskedFor,
    announce: Announce,
) -> Evaluation:
    """The candidates by the measures of what the run learned."""
    limit, sampling = asked.limit, asked.sampling
    if isinstance(recipe.objective, RolloutObjective):
        assert isinstance(tuned, TextModel)
        return evaluate_rewarded(
            recipe.objective, candidates, tuned, rows, passes, limit, sampling, announce, asked.best_of, asked.safety
        )
    if isinstance(tuned, Embedder):
        return evaluate_embedding(candidates, rows, tuned.objective, passes, limit)
    if recipe.objective.takes == "preferences":
        return evaluate_pairs(candidates, rows, passes, limit)
    if recipe.objective.takes == "verdicts":
        return evaluate_verdicts(candidates, rows, passes, limit)
    if recipe.objective.splits:
        asking = tuned.asking if isinstance(tuned, TextModel) else AS_WRITTEN
        most = None if asked.measures_answers else ANSWERED
        return evaluate_targets(candidates, rows, passes, limit, asking=asking, sampling=sampling, num_answered=most)
    assert isinstance(tuned, TextModel)
    return evaluate_records(
        candidates,
        rows.records,
        rows.examples,
        tuned.renderer,
        sampling or Sampling(),
        passes.workers,
        tokens_per_micro_batch=passes.tokens_at_once,
        limit=limit,
        cache_bytes=passes.cache_bytes,
        progress=passes.progress,
    )


def _shown(
    base: Candidate, asked: AskedFor, rows: Rows, trained: Sequence[Record] | None, seed: int
) -> list[Candidate]:
    """The base that is shown examples first; none if none are asked for."""
    if not asked.shots:
        return []
    if trained is None:
        raise UsageError("The rows that the run was trained on cannot be read.", "Put them back, or leave --shots out.")
    shots = choose_shots(trained, asked.shots, seed, {text_of(record) for record, _ in rows.records})
    return [replace(base, name=f"base, {asked.shots} shot{'' if asked.shots == 1 else 's'}", shots=shots)]


def _training_records(recipe: Recipe, tuned: TextModel | Reader, announce: Announce) -> Sequence[Record] | None:
    """The rows that a run was trained on; None, which is said, where they can no longer be read."""
    model = tuned.language_model
    try:
        dataset, _ = read_dataset(recipe, model.hf.config, model.tokenizer, lambda sentence: None, model.answer_start)
    except (NotFound, DataError, NetworkError) as error:
        announce(
            f"The rows that the run was trained on cannot be read, so nothing is compared with them: {error.found}"
        )
        return None
    return dataset.train_records


def _with_contamination(
    evaluation: Evaluation, rows: Rows, trained: Sequence[Record] | None, limit: int | None
) -> Evaluation:
    """The evaluation with which of its rows stand in the training rows."""
    if trained is None or not rows.records:
        return evaluation
    found = contamination([text_of(record) for record, _ in rows.records[:limit]], map(text_of, trained))
    notes = (*evaluation.notes, *([found.note] if found.note else []))
    return replace(evaluation, contamination=found, notes=notes)


def _with_contamination_of(
    others: Others, evaluation: Evaluation, rows: Rows, limit: int | None, announce: Announce
) -> Evaluation:
    """The evaluation with what is to be said of rows that further runs were trained on."""
    notes = []
    texts = [text_of(record) for record, _ in rows.records[:limit]]
    for other in (each for each in others if each.run is not None):
        assert other.run is not None
        trained = _training_records(recipe_of_run(other.run), other.model, announce)
        if trained is not None:
            note = contamination(texts, map(text_of, trained)).told(f"the training rows of {other.name}", "it")
            notes += [note] if note else []
    return replace(evaluation, notes=(*evaluation.notes, *notes))


def _with_new_head(
    tuned: Reader, candidates: Sequence[Candidate], rows: Rows, passes: Passes, limit: int | None
) -> Evaluation:
    """Models whose heads are new, the tuned one first, against the best that needs no text."""
    match tuned:
        case Tagger():
            return evaluate_tags(candidates, rows, passes, limit)
        case Scorer():
            return evaluate_scores(candidates, rows, passes, limit)
        case RewardScorer():
            return evaluate_rewards(candidates, rows, passes, limit)
        case Chooser():
            return evaluate_choices(candidates, rows, passes, limit)
        case _:
            return evaluate_classes(candidates, rows, passes, limit)


def rows_to_evaluate(recipe: Recipe, data: str | None, model: TextModel | Reader, announce: Announce) -> Rows:
    """The rows of `data`, or those that the run held out; `document` is the index of the row."""
    objective, loaded = recipe.objective, model.language_model
    if data is None:
        dataset, _ = read_dataset(recipe, loaded.hf.config, loaded.tokenizer, announce, loaded.answer_start)
        if not dataset.validation:
            raise UsageError("The run held out no rows.", "Give rows to evaluate on with --data FILE.")
        return _rows(dataset.validation_records, dataset.validation)
    # what was too long to train on can be measured all the same; texts are cut into pieces as in training
    settings = recipe.data if objective.splits else recipe.data.model_copy(update={"max_length": 2**31})
    found = load_examples(data, settings, model.renderer, objective.example, announce, asked_of(objective))
    found_rows = laid_out(found.examples, objective, loaded.anatomy.family, settings.max_length)
    drawing = drawing_of(recipe, objective, loaded.tokenizer, loaded.answer_start)
    examples = found_rows if drawing is None else tuple(drawing.held_out(text) for text in found_rows)
    return _rows(found.records, examples)


def _rows(records: Sequence[Record], examples: Sequence[Example]) -> Rows:
    placed = [(record, example.origin) for record, example in zip(records, examples, strict=True)]
    return Rows(placed, [replace(example, document=index) for index, example in enumerate(examples)])
