"""The Python door: train a recipe, load what it made, and ask it things. The command line stands on the same objects."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from luthier.corruption.vocabulary import Vocabulary
from luthier.data import tokenizer_training
from luthier.data.reading import called
from luthier.data.rendering import Renderer, build_renderer
from luthier.data.settings import files_of
from luthier.data.tokenizer_training import TokenizerSettings, TrainedTokenizer
from luthier.errors import NotFound, UsageError
from luthier.evaluation.candidates import Candidate
from luthier.evaluation.compare import evaluate_records, questions_of
from luthier.evaluation.graded import Grading, columns_of, graded
from luthier.evaluation.grading import Aids, Grader
from luthier.evaluation.harness.suite import check_suites
from luthier.evaluation.judged.asking import ask_endpoint
from luthier.evaluation.judged.endpoint import Endpoint
from luthier.evaluation.verdict import Evaluation
from luthier.faults import setting_fault
from luthier.generation.settings import Sampling
from luthier.methods import ADAPTER
from luthier.models.language_model import LanguageModel
from luthier.models.sources import names_a_model
from luthier.objectives import Embedding, Objective, Reward
from luthier.ops.workers import Workers
from luthier.prediction.chooser import Chooser
from luthier.prediction.classifier import Classifier
from luthier.prediction.contract import Reader
from luthier.prediction.embedder import Embedder
from luthier.prediction.passes import Progress, silent
from luthier.prediction.readers import reader_for
from luthier.prediction.reward import RewardScorer
from luthier.prediction.scorer import Scorer
from luthier.prediction.tagger import Tagger
from luthier.prediction.text_model import Chat, Prompt, TextModel, make_sampling
from luthier.recipe import Recipe, load_recipe, make_recipe
from luthier.recipe.loading import recipe_of_run
from luthier.run import RunResult, train_recipe
from luthier.store.places import expanded
from luthier.store.runs import find_run, is_run, list_runs, new_run_folder
from luthier.studies.evaluating import (
    AskedFor,
    evaluate_model,
    evaluate_on_suites,
    evaluate_run,
    rows_to_evaluate,
)
from luthier.studies.further_measures import MAX_TOKENS, FurtherMeasures, ask_model
from luthier.studies.further_models import Further
from luthier.tuned import load_at_step, load_base, load_plain_text, load_reward, load_reward_at_step, load_run

__all__ = [
    "RUNS",
    "Chat",
    "Chooser",
    "Classifier",
    "Embedder",
    "Model",
    "Prompt",
    "Reader",
    "RewardScorer",
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
    "names_a_run",
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

    A run that learned to write gives a TextModel; others, by their objective, a Classifier, Scorer, Tagger, Chooser, Embedder,
    RewardScorer or Filler.
    """
    folder = find_run(str(run), RUNS)
    recipe = recipe_of_run(folder)
    if isinstance(recipe.objective, Reward):
        return load_reward(folder, announce) if step is None else load_reward_at_step(folder, step, announce)
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
    _check_writes(run)
    model = load(run, announce)
    assert isinstance(model, TextModel)
    return model


def _check_writes(run: str | Path) -> None:
    reader = reader_for(recipe_of_run(find_run(str(run), RUNS)).objective)
    if reader is not None:
        raise UsageError(
            f"The model of the run {run} {reader.does}: it does not write.",
            f"Ask it with 'luthier generate {run} {reader.asking}'.",
        )


Model = TypeVar("Model", bound=TextModel | Reader)


def base_of(run: str | Path, tuned: Model, announce: Announce = _log.info) -> Model:
    """The model that a run began from, asked in the same way; it shares the tuned model's weights where it can."""
    if tuned.adapter is not None:
        return replace(tuned, adapter=None)
    return replace(tuned, language_model=load_base(find_run(str(run), RUNS), announce))


def load_plain(name: str, announce: Announce = _log.info) -> TextModel:
    """A model without a run: a built-in name, a folder, a hub id or a .gguf file."""
    return load_plain_text(name, announce)


def load_any(name: str, announce: Announce = _log.info) -> TextModel | Reader:
    """The model of a run where `name` is one, else the plain model of that name."""
    if names_a_run(name):
        return load(name, announce)
    return _plain_or_near(name, announce)


def load_any_text(name: str, announce: Announce = _log.info) -> TextModel:
    """The same, of a model that writes. Raises UsageError for a run that learned anything else."""
    return load_text(name, announce) if names_a_run(name) else _plain_or_near(name, announce)


def names_a_run(name: str) -> bool:
    """Whether that is a run's folder, the name of one under `runs/`, or `latest`."""
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
    judge: str | Endpoint | None = None,
    judge_max_tokens: int = MAX_TOKENS,
    shots: int = 0,
    also: Sequence[str] = (),
    probes: bool = False,
    cache_gb: float | None = None,
    best_of: int = 0,
    safety: bool = False,
    suites: Sequence[str] = (),
    announce: Announce = _log.info,
    progress: Progress = silent,
) -> Evaluation:
    """The base and the tuned model of a run on the same rows: those of `data`, or what the run held out.

    A model whose head is new is compared with the best that needs no text, instead of a base that knows nothing of it. A model of
    no run (a folder that was exported or merged, a .gguf file, a hub or built-in name) is measured alone, on `data` or `suites`.

    Args:
        limit: use only the first so many rows.
        sampling: how answers are drawn; unset, greedily.
        metrics: further measures by name (`luthier.evaluation.named_metrics.NAMES`). graders: further measures of the answers.
        judge: whom graders by a model ask: a run, a plain model, or an endpoint (without a model's name, each grader's own is asked).
        judge_max_tokens: most tokens of what a judge that is a model here says to a grader that sets no bound of its own.
        shots: also ask the base with so many training rows shown before each question.
        also: further runs of the same tokenizer and template, checkpoints (`RUN@STEP`) or models of no run, on the same rows; of a
            run that does not write, runs and checkpoints that learned the same.
        probes: whether what the models know beyond the rows is measured too.
        cache_gb: most gigabytes that keys and values of answers take; ResourceError for a row that has no room in them.
        best_of: for runs that learned from rewards, of how many answers to each prompt the best of n are chosen; 0: of none.
        safety: whether refusals, stereotypes and rude words are looked for too.
        suites: `lm-eval:TASK`, tasks of lm-evaluation-harness, instead of rows.
        progress: called with what is being done, how much of it is done, and how much there is.

    Raises: NotFound for a run, a judge or data that is not there; DataError for rows that cannot be used; UsageError for
    graders or metrics of a run that is not evaluated by answers, or graders that want a judge where none is named; NetworkError,
    NotAllowed for an endpoint that cannot be asked.
    """
    if suites:
        _check_suites(suites, alone=not (graders or metrics or also or best_of or safety or sampling is not None))
    measures, is_run = FurtherMeasures(graders, metrics, judge, judge_max_tokens), names_a_run(str(run))
    if is_run:
        measures.check_run(str(run), recipe_of_run(find_run(str(run), RUNS)))
    measures = _checked(measures, announce)
    asked_for = AskedFor(
        data, limit, sampling, shots, probes, best_of, safety, tuple(suites), cache_gb, bool(graders or metrics)
    )
    if is_run:
        evaluation = _evaluated_run(run, also, asked_for, announce, progress)
    else:
        evaluation = _evaluated_model(str(run), also, asked_for, announce, progress)
    return _with_measures(evaluation, measures, announce, progress)


def _check_suites(suites: Sequence[str], *, alone: bool) -> None:
    """Raise UsageError for suites that there are not, and for those that are not asked for alone."""
    check_suites(suites)
    if not alone:
        raise UsageError(
            "A suite brings its own measures and settings, and compares a run with its base.",
            "Leave out --grader, --metric, --also, --best-of, --safety and --max-new-tokens.",
        )


def _checked(measures: FurtherMeasures, announce: Announce) -> FurtherMeasures:
    """The measures, whose judge can be asked. Raises: as `FurtherMeasures.checked`; NotFound for a judge that is not there."""
    measures = measures.checked(announce)
    if isinstance(measures.judge, str):
        if names_a_run(measures.judge):
            _check_writes(measures.judge)
        elif not names_a_model(measures.judge):
            _plain_or_near(measures.judge, announce)  # tells that there is none, and what may have been meant
    return measures


def _with_measures(
    evaluation: Evaluation, measures: FurtherMeasures, announce: Announce, progress: Progress
) -> Evaluation:
    """An evaluation with further measures of its answers."""
    if not measures.graders and not measures.metrics:
        return evaluation
    judge, ask = measures.judge, None
    if isinstance(judge, Endpoint):
        ask = ask_endpoint(judge)
    elif judge is not None:
        ask = ask_model(load_any_text(judge, announce), measures.judge_max_tokens)
    columns = columns_of(answered.origin for answered in evaluation.answers)
    return graded(evaluation, Grading(measures.graders, measures.metrics, Aids(ask), columns), progress)


def _evaluated_run(
    run: str | Path, also: Sequence[str], asked: AskedFor, announce: Announce, progress: Progress
) -> Evaluation:
    """A run against what it began from."""
    folder, tuned = find_run(str(run), RUNS), load(run, announce)

    def load_first() -> TextModel | Reader:
        return base_of(run, tuned, announce)

    if asked.suites:
        return evaluate_on_suites(folder, tuned, load_first, asked, announce, progress)
    others = [_further(name, announce) for name in also]
    return evaluate_run(folder, tuned, load_first, others, asked, announce, progress)


def _evaluated_model(
    name: str, also: Sequence[str], asked: AskedFor, announce: Announce, progress: Progress
) -> Evaluation:
    """A model of no run. Raises: UsageError without rows or a suite; NotFound for what names neither run nor model."""
    if not names_a_model(name):
        find_run(name, RUNS)  # tells that there is none, and what may have been meant
    if asked.data is None and not asked.suites:
        raise UsageError(
            f"{name} is no run but a model, which held out no rows.",
            "Give rows to evaluate on with --data FILE, or a task with --suite lm-eval:TASK.",
        )
    if asked.data is not None and asked.suites:
        raise UsageError("A suite brings its own rows.", "Leave out --data.")
    model = _plain_or_near(name, announce)
    others = [_further(other, announce) for other in also]
    return evaluate_model(name, model, others, asked, announce, progress)


def _further(name: str, announce: Announce) -> Further:
    """A further run, a checkpoint of one (`RUN@STEP`), or a model of no run."""
    run, _, step = name.rpartition("@")
    if run and step.isdecimal():
        return Further(name, load(run, announce, step=int(step)), find_run(run, RUNS))
    if names_a_model(name) and not names_a_run(name):
        return Further(name, _plain_or_near(name, announce), None)
    return Further(name, load(name, announce), find_run(name, RUNS))


def compare(
    runs: Sequence[str | Path],
    data: str | None = None,
    *,
    limit: int | None = None,
    sampling: Sampling | None = None,
    graders: Sequence[Grader] = (),
    metrics: Sequence[str] = (),
    judge: str | Endpoint | None = None,
    judge_max_tokens: int = MAX_TOKENS,
    announce: Announce = _log.info,
    progress: Progress = silent,
) -> Evaluation:
    """Several runs that learned to answer, on the same rows: those of `data`, or what the first run held out.

    The first run is what the others are compared with. Arguments as `evaluate` has them.

    Raises: as `evaluate`; UsageError for runs that learned anything else, or that read prompts in another way than the first.
    """
    measures = _checked(FurtherMeasures(graders, metrics, judge, judge_max_tokens), announce)
    recipes = [recipe_of_run(find_run(str(run), RUNS)) for run in runs]
    for run, recipe in zip(runs, recipes, strict=True):  # before any model is loaded
        if recipe.objective.splits or recipe.objective.takes != "text":
            raise UsageError(
                f"The run {run} did not learn to answer (objective {recipe.objective.kind}).",
                f"'luthier evaluate {runs[0]} --also {runs[1]}' measures runs that learned the same on the same rows.",
            )
    first = recipes[0]
    models = [load_text(run, announce) for run in runs]
    rows = rows_to_evaluate(first, data, models[0], announce).first(limit)
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
    evaluation = replace(evaluation, notes=(*rows.notes, *evaluation.notes))
    return _with_measures(evaluation, measures, announce, progress)
