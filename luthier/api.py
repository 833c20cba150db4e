"""The Python door: train a recipe, load what it made, and ask it things. The command line stands on the same objects."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from luthier.corruption.vocabulary import Vocabulary
from luthier.data import tokenizer_training
from luthier.data.dataset import load_examples
from luthier.data.reading import called
from luthier.data.rendering import Renderer, build_renderer
from luthier.data.settings import files_of
from luthier.data.template import read_template
from luthier.data.tokenizer_training import TokenizerSettings, TrainedTokenizer
from luthier.errors import DataError, NetworkError, NotFound, UsageError
from luthier.evaluation.classification import evaluate_classes
from luthier.evaluation.compare import Candidate, evaluate_records, questions_of
from luthier.evaluation.contamination import contamination, text_of
from luthier.evaluation.embedding import evaluate_embedding
from luthier.evaluation.forgetting.probe import forgetting, read_probe
from luthier.evaluation.graded import Grading, columns_of, graded
from luthier.evaluation.grading import Aids, Ask, Grader
from luthier.evaluation.multiple_choice import evaluate_choices
from luthier.evaluation.named_metrics import NAMES
from luthier.evaluation.preference import evaluate_pairs, evaluate_verdicts
from luthier.evaluation.pretraining import evaluate_targets
from luthier.evaluation.regression import evaluate_scores
from luthier.evaluation.rows import Rows
from luthier.evaluation.shots import choose_shots
from luthier.evaluation.token_classification import evaluate_tags
from luthier.evaluation.verdict import Evaluation
from luthier.faults import setting_fault
from luthier.generation.settings import Sampling
from luthier.methods import ADAPTER
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.objectives import Embedding, Objective
from luthier.objectives.asking import AS_WRITTEN
from luthier.ops.workers import Workers
from luthier.prediction.chooser import Chooser
from luthier.prediction.classifier import Classifier
from luthier.prediction.contract import Reader
from luthier.prediction.embedder import Embedder
from luthier.prediction.passes import Passes, Progress, silent
from luthier.prediction.readers import reader_for
from luthier.prediction.scorer import Scorer
from luthier.prediction.tagger import Tagger
from luthier.prediction.text_model import Chat, Prompt, TextModel, make_sampling
from luthier.prepared import asked_of, drawing_of, laid_out, read_dataset
from luthier.recipe import Recipe, load_recipe, make_recipe
from luthier.recipe.loading import recipe_of_run
from luthier.run import RunResult, train_recipe
from luthier.store.places import expanded
from luthier.store.runs import find_run, is_run, list_runs, new_run_folder
from luthier.tuned import load_at_step, load_base, load_run
from luthier.types import Example, Message, Record

__all__ = [
    "RUNS",
    "Chat",
    "Chooser",
    "Classifier",
    "Embedder",
    "Model",
    "Prompt",
    "Reader",
    "Scorer",
    "Tagger",
    "TextModel",
    "base_of",
    "compare",
    "evaluate",
    "load",
    "load_any",
    "load_any_text",
    "load_plain",
    "load_text",
    "make_sampling",
    "train",
    "train_tokenizer",
]

Announce = Callable[[str], None]

RUNS = Path("runs")
"""Where runs go and are looked for, in the working folder."""

_log = logging.getLogger("luthier")


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    announce: Announce = _log.info,
    on_step: Callable[[dict[str, Any]], None] = lambda record: None,
) -> RunResult:
    """Carry out a recipe (typed, as plain values, or the path of its file) in a new run folder.

    Args:
        out: the run folder; unset, `runs/NAME-N` after the recipe's or the data's name.
        announce: is told what is worth knowing, a sentence at a time.
        on_step: is handed each step's numbers, as in metrics.jsonl, with `total_steps`.

    Raises: the errors of `luthier.errors`.
    """
    if isinstance(recipe, str | Path):
        name, typed = Path(recipe).stem, load_recipe(recipe)
    else:
        typed = recipe if isinstance(recipe, Recipe) else make_recipe(recipe)
        name = called(files_of(typed.data.train)[0])
    folder = new_run_folder(RUNS, name) if out is None else expanded(out)
    return train_recipe(typed, folder, announce=announce, on_step=on_step)


def train_tokenizer(
    data: str | Sequence[str], out: str | Path, *, announce: Announce = _log.info, **settings: Any
) -> TrainedTokenizer:
    """Train a tokenizer on the texts of data files and write it into a new folder; `settings` as `TokenizerSettings` has them.

    Raises: UsageError for a setting that is wrong or a folder that is not empty; DataError for texts that support no such
    vocabulary.
    """
    try:
        asked = TokenizerSettings(**settings)
    except ValidationError as error:
        raise setting_fault(error, "A tokenizer", TokenizerSettings) from error
    files = (data,) if isinstance(data, str) else tuple(data)
    return tokenizer_training.train_tokenizer(files, expanded(out), asked, announce)


def load(run: str | Path, announce: Announce = _log.info, *, step: int | None = None) -> TextModel | Reader:
    """The model of a run with what it learned; `run` is its folder, its name under `runs/`, or `latest`.

    step: the model as it was after so many steps, from that checkpoint; None: as the run ended.

    A run that learned to write gives a TextModel; others, by their objective, a Classifier, Scorer, Tagger, Chooser, Embedder
    or Filler.
    """
    folder = find_run(str(run), RUNS)
    recipe = recipe_of_run(folder)
    model = load_run(folder, announce) if step is None else load_at_step(folder, step, announce)
    adapter = None if recipe.method.tunes_base else ADAPTER
    renderer = build_renderer(recipe.data, model.tokenizer, model.anatomy.family.pooled, model.answer_start)
    return _asked_as(recipe.objective, model, renderer, adapter)


def _asked_as(
    objective: Objective, model: LanguageModel, renderer: Renderer, adapter: str | None
) -> TextModel | Reader:
    """A model in the form in which its objective can be asked."""
    if isinstance(objective, Embedding):
        return Embedder(model, renderer, adapter, objective)
    reader = reader_for(objective)
    if reader is not None:
        return reader(model, renderer, adapter)
    is_plain = objective.splits and renderer.completions_as == "auto"  # plain texts were learned, not chats
    asking = objective.asking(Vocabulary(model.tokenizer, model.answer_start))
    return TextModel(model, replace(renderer, completions_as="plain") if is_plain else renderer, adapter, asking)


def load_text(run: str | Path, announce: Announce = _log.info) -> TextModel:
    """The model of a run that learned to write. Raises UsageError for one that learned anything else."""
    reader = reader_for(recipe_of_run(find_run(str(run), RUNS)).objective)
    if reader is not None:
        raise UsageError(
            f"The model of the run {run} {reader.does}: it does not write.",
            f"Ask it with 'luthier generate {run} {reader.asking}'.",
        )
    model = load(run, announce)
    assert isinstance(model, TextModel)
    return model


Model = TypeVar("Model", bound=TextModel | Reader)


def base_of(run: str | Path, tuned: Model, announce: Announce = _log.info) -> Model:
    """The model that a run began from, asked in the same way; it shares the tuned model's weights where it can."""
    if tuned.adapter is not None:
        return replace(tuned, adapter=None)
    return replace(tuned, language_model=load_base(find_run(str(run), RUNS), announce))


def load_plain(name: str, announce: Announce = _log.info) -> TextModel:
    """A model without a run: a built-in name, a folder, a hub id or a .gguf file."""
    model = load_model(ModelSettings(name=name), announce)
    renderer = Renderer(model.tokenizer, read_template(None, model.tokenizer), answer_start=model.answer_start)
    return TextModel(model, renderer, None)


def load_any(name: str, announce: Announce = _log.info) -> TextModel | Reader:
    """The model of a run where `name` is one, else the plain model of that name."""
    if _names_a_run(name):
        return load(name, announce)
    return _plain_or_near(name, announce)


def load_any_text(name: str, announce: Announce = _log.info) -> TextModel:
    """The same, of a model that writes. Raises UsageError for a run that learned anything else."""
    return load_text(name, announce) if _names_a_run(name) else _plain_or_near(name, announce)


def _names_a_run(name: str) -> bool:
    return name == "latest" or is_run(expanded(name)) or is_run(RUNS / name)


def _plain_or_near(name: str, announce: Announce) -> TextModel:
    """The plain model of that name. Raises NotFound, with the runs whose names come near."""
    try:
        return load_plain(name, announce)
    except NotFound as error:
        error.mend = f"{error.mend} {_near_runs(name)}".strip()
        raise


def _near_runs(name: str) -> str:
    """What to say of the runs here that a name may have meant; nothing if none come near."""
    names = [run.name for run in list_runs(RUNS)]
    near = [run for run in names if run.startswith(name)] or difflib.get_close_matches(name, names, n=3)
    return f"If a run is meant: did you mean {' or '.join(near[-3:])}?" if near else ""


def evaluate(
    run: str | Path,
    data: str | None = None,
    *,
    limit: int | None = None,
    sampling: Sampling | None = None,
    graders: Sequence[Grader] = (),
    metrics: Sequence[str] = (),
    judge: str | None = None,
    shots: int = 0,
    also: Sequence[str] = (),
    probes: bool = False,
    announce: Announce = _log.info,
    progress: Progress = silent,
) -> Evaluation:
    """The base and the tuned model of a run on the same rows: those of `data`, or what the run held out.

    A model whose head is new is compared with the best that needs no text, instead of a base that knows nothing of it.

    Args:
        limit: use only the first so many rows.
        sampling: how answers are drawn; unset, greedily.
        metrics: further measures by name (`luthier.evaluation.named_metrics.NAMES`). graders: further measures of the answers. judge: the model (a run or a plain one) that graders by a model ask.
        shots: also ask the base with so many training rows shown before each question.
        also: further runs of the same tokenizer and template, or checkpoints (`RUN@STEP`), on the same rows.
        probes: whether what the models know beyond the rows is measured too.
        progress: called with what is being done, how much of it is done, and how much there is.

    Raises: NotFound for a run, a judge or data that is not there; DataError for rows that cannot be used; UsageError for
    graders of a model that writes no answers, or that want a judge where none is named.
    """
    if unknown := [name for name in metrics if name not in NAMES]:
        raise UsageError(f"There is no metric {unknown[0]!r}.", f"There are {', '.join(NAMES)}.")
    asking = [grader.name for grader in graders if grader.asks_model]
    if asking and judge is None:
        raise UsageError(f"The grader {asking[0]!r} asks a model, and none is named.", "Name one with --judge MODEL.")
    asked_for = _AskedFor(str(run), data, limit, sampling, shots, tuple(also), probes)
    evaluation = _evaluated(asked_for, announce, progress)
    if not graders and not metrics:
        return evaluation
    asked = None if judge is None else _asked(load_any_text(judge, announce))
    columns = columns_of(answered.origin for answered in evaluation.answers)
    return graded(evaluation, Grading(graders, metrics, Aids(asked), columns), progress)


def _asked(judge: TextModel) -> Ask:
    """A model as graders ask it: greedily, with room for a few sentences, unless they say otherwise."""

    def ask(chats: Sequence[tuple[Message, ...]], sampling: Mapping[str, Any]) -> list[str]:
        settings = make_sampling({"max_new_tokens": 256, **sampling})
        return [completed.text for completed in judge.complete(chats, settings)]

    return ask


@dataclass(frozen=True)
class _AskedFor:
    """What is to be evaluated, as `evaluate` has it."""

    run: str
    data: str | None
    limit: int | None
    sampling: Sampling | None
    shots: int
    also: tuple[str, ...]
    probes: bool


def _evaluated(asked: _AskedFor, announce: Announce, progress: Progress) -> Evaluation:
    """See `evaluate`."""
    recipe = recipe_of_run(find_run(asked.run, RUNS))
    tuned = load(asked.run, announce)
    rows = _rows_to_evaluate(recipe, asked.data, tuned, announce)
    workers, budget = recipe.training.workers, recipe.training.tokens_per_micro_batch
    candidate = Candidate("tuned", tuned.language_model, tuned.adapter)
    trained = _training_records(recipe, tuned, announce)
    with Workers(workers if isinstance(workers, int) else 1) as pool:
        passes = Passes(pool, budget, progress)
        if isinstance(tuned, Reader) and not tuned.base_answers:
            _check_writes(asked, tuned)
            evaluation = _with_new_head(tuned, candidate, rows, passes, asked.limit)
        else:
            base = base_of(asked.run, tuned, announce)
            candidates = [Candidate("base", base.language_model, base.adapter), candidate]
            answers = isinstance(tuned, TextModel) and recipe.objective.takes == "text" and not recipe.objective.splits
            if answers:
                assert isinstance(tuned, TextModel)
                candidates = _contenders(candidates, tuned, asked, rows, trained, recipe.seed, announce)
            else:
                _check_writes(asked, tuned)
            evaluation = _measured(recipe, tuned, candidates, rows, passes, asked)
            if asked.probes and isinstance(tuned, TextModel) and tuned.asking.causal:
                renderer = tuned.renderer
                probed = forgetting(candidates, renderer, passes, read_probe())
                evaluation = replace(evaluation, forgetting=probed)
    return _with_contamination(replace(evaluation, subject="tuned"), rows, trained, asked.limit)


def _measured(
    recipe: Recipe,
    tuned: TextModel | Reader,
    candidates: Sequence[Candidate],
    rows: Rows,
    passes: Passes,
    asked: _AskedFor,
) -> Evaluation:
    """The candidates by the measures of what the run learned."""
    limit, sampling = asked.limit, asked.sampling
    if isinstance(tuned, Embedder):
        return evaluate_embedding(candidates, rows, tuned.objective, passes, limit)
    if recipe.objective.takes == "preferences":
        return evaluate_pairs(candidates, rows, passes, limit)
    if recipe.objective.takes == "verdicts":
        return evaluate_verdicts(candidates, rows, passes, limit)
    if recipe.objective.splits:
        asking = tuned.asking if isinstance(tuned, TextModel) else AS_WRITTEN
        return evaluate_targets(candidates, rows, passes, limit, asking=asking, sampling=sampling)
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
        progress=passes.progress,
    )


def _check_writes(asked: _AskedFor, tuned: TextModel | Reader) -> None:
    """Raise UsageError where shots or further runs are asked for, and the run did not learn to answer."""
    option = "--shots" if asked.shots else "--also" if asked.also else None
    if option is not None:
        raise UsageError(f"The run {asked.run} did not learn to answer in text.", f"Leave {option} out.")


def _contenders(
    candidates: Sequence[Candidate],
    tuned: TextModel,
    asked: _AskedFor,
    rows: Rows,
    trained: Sequence[Record] | None,
    seed: int,
    announce: Announce,
) -> list[Candidate]:
    """Base and tuned, the base that is shown examples between them, and the further runs behind them."""
    base, candidate = candidates
    found = [base]
    if asked.shots:
        if trained is None:
            raise UsageError(
                "The rows that the run was trained on cannot be read.", "Put them back, or leave --shots out."
            )
        measured = {text_of(record) for record, _ in rows.records}
        shown = choose_shots(trained, asked.shots, seed, measured)
        found.append(replace(base, name=f"base, {asked.shots} shot{'' if asked.shots == 1 else 's'}", shots=shown))
    found.append(candidate)
    questions = questions_of(rows.records[: asked.limit], tuned.renderer)
    for name in asked.also:
        folder, _, step = name.rpartition("@")
        is_step = bool(folder) and step.isdecimal()
        model = load(folder, announce, step=int(step)) if is_step else load_text(name, announce)
        if not isinstance(model, TextModel) or questions_of(rows.records[: asked.limit], model.renderer) != questions:
            raise UsageError(
                f"{name} makes other tokens of a prompt than {asked.run}: their answers are to different questions.",
                "Compare runs of one tokenizer and one chat template.",
            )
        found.append(Candidate(name, model.language_model, model.adapter))
    return found


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
    texts = [text for record, _ in rows.records[:limit] if (text := text_of(record)) is not None]
    if trained is None or not texts:
        return evaluation
    found = contamination(texts, (text for record in trained if (text := text_of(record)) is not None))
    notes = (*evaluation.notes, *([found.note] if found.note else []))
    return replace(evaluation, contamination=found, notes=notes)


def compare(
    runs: Sequence[str | Path],
    data: str | None = None,
    *,
    limit: int | None = None,
    sampling: Sampling | None = None,
    announce: Announce = _log.info,
    progress: Progress = silent,
) -> Evaluation:
    """Several runs that learned to answer, on the same rows: those of `data`, or what the first run held out.

    The first run is what the others are compared with. Arguments as `evaluate` has them.

    Raises: as `evaluate`; UsageError for runs that learned anything else, or that read prompts in another way than the first.
    """
    first = recipe_of_run(find_run(str(runs[0]), RUNS))
    if first.objective.splits or first.objective.takes != "text":
        raise UsageError(
            f"The run {runs[0]} did not learn to answer (objective {first.objective.kind}).",
            "Compare its measures: 'luthier evaluate' gives them for each run.",
        )
    models = [load_text(run, announce) for run in runs]
    rows = _rows_to_evaluate(first, data, models[0], announce).first(limit)
    asked = questions_of(rows.records, models[0].renderer)
    for run, model in zip(runs, models, strict=True):
        if questions_of(rows.records, model.renderer) != asked:
            raise UsageError(
                f"The run {run} makes other tokens of a prompt than {runs[0]}: their answers are to different questions.",
                "Compare runs of one tokenizer and one chat template.",
            )
    candidates = [
        Candidate(str(run), model.language_model, model.adapter) for run, model in zip(runs, models, strict=True)
    ]
    examples = [replace(example, document=index) for index, example in enumerate(rows.examples)]
    workers, budget = first.training.workers, first.training.tokens_per_micro_batch
    with Workers(workers if isinstance(workers, int) else 1) as pool:
        evaluation = evaluate_records(
            candidates, rows.records, examples, models[0].renderer, sampling or Sampling(), pool,
            tokens_per_micro_batch=budget, progress=progress,
        )  # fmt: skip
    return replace(evaluation, notes=(*rows.notes, *evaluation.notes))


def _with_new_head(tuned: Reader, candidate: Candidate, rows: Rows, passes: Passes, limit: int | None) -> Evaluation:
    """A model whose head is new, against the best that needs no text."""
    match tuned:
        case Tagger():
            return evaluate_tags(candidate, rows, passes, limit)
        case Scorer():
            return evaluate_scores(candidate, rows, passes, limit)
        case Chooser():
            return evaluate_choices(candidate, rows, passes, limit)
        case _:
            return evaluate_classes(candidate, rows, passes, limit)


def _rows_to_evaluate(recipe: Recipe, data: str | None, model: TextModel | Reader, announce: Announce) -> Rows:
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
