"""`luthier evaluate`: base against tuned on the same rows."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.judging_models import (
    MAX_TOKENS,
    PARALLEL,
    RETRIES,
    TIMEOUT_SECONDS,
    GradersJudge,
    GradersJudgeName,
    JudgeKeyEnv,
    JudgeMaxTokens,
    JudgeOptions,
    JudgeParallel,
    JudgeRetries,
    JudgeTimeout,
    JudgeUrl,
)
from luthier.cli.measuring import (
    GraderFiles,
    Metrics,
    ProgressLines,
    evaluation_text,
    graders_of,
    names_of,
)
from luthier.cli.options import CacheGB, Json, MaxNewTokens, PlainAllocator
from luthier.cli.output import emit, say
from luthier.cli.process import keep_freed_memory
from luthier.errors import LuthierError, UsageError

if TYPE_CHECKING:
    from luthier.evaluation.verdict import Evaluation


def evaluate(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="The run: its folder, its name under runs/, or latest. Or a model of no run, measured alone: a folder that was exported "
            "or merged, a .gguf file, a hub or built-in name.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Rows to evaluate on; unset: what the run held out. Models of no run need some, or --suite."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first so many rows.")] = None,
    max_new_tokens: MaxNewTokens = None,
    cache_gb: CacheGB = None,
    plain_allocator: PlainAllocator = False,
    grader: GraderFiles = None,
    metric: Metrics = None,
    judge: GradersJudge = None,
    judge_url: JudgeUrl = None,
    judge_name: GradersJudgeName = None,
    judge_key_env: JudgeKeyEnv = None,
    judge_timeout: JudgeTimeout = TIMEOUT_SECONDS,
    judge_retries: JudgeRetries = RETRIES,
    judge_parallel: JudgeParallel = PARALLEL,
    judge_max_tokens: JudgeMaxTokens = MAX_TOKENS,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", help="A PNG: of reward models calibration, margins and length; with --best-of its curves."
        ),
    ] = None,
    best_of: Annotated[
        int,
        typer.Option(
            "--best-of",
            min=0,
            metavar="N",
            help="For runs that learned from rewards: draw N answers to each prompt, and say what choosing the best of 1, 2, 4, … N earns; 0: none.",
        ),
    ] = 0,
    safety: Annotated[
        bool,
        typer.Option("--safety/--no-safety", help="Look for refusals, stereotypes and rude words, before and after."),
    ] = False,
    shots: Annotated[
        int,
        typer.Option("--shots", min=0, help="Also ask the base with so many training rows shown before each question."),
    ] = 0,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="RUN[@STEP]",
            help="A further run, a checkpoint of one, or a model, on the same rows; repeatable.",
        ),
    ] = None,
    probes: Annotated[
        bool,
        typer.Option("--forgetting/--no-forgetting", help="Measure what was known beyond the rows, before and after."),
    ] = True,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="lm-eval:TASK",
            help="Instead of rows a task of lm-evaluation-harness, by its name or its YAML file; repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Of a model of no run: a new folder for report.html, report.md and evaluation.json.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether the tuned model is better than its base, on the same rows, with the evidence; and whether it forgot.

    Of a model of no run its measures are told, alone or, with --also, against further ones.
    """
    if not plain_allocator:
        keep_freed_memory(say)
    from luthier import api
    from luthier.prediction.text_model import make_sampling

    judging = JudgeOptions(
        judge, judge_url, judge_name, judge_key_env, judge_timeout, judge_retries, judge_parallel, judge_max_tokens
    )
    is_run = api.names_a_run(run)
    _check_out(run, out, is_run)
    sampling = None if max_new_tokens is None else make_sampling({"max_new_tokens": max_new_tokens})
    progress = ProgressLines()
    evaluation = api.evaluate(
        run,
        data,
        limit=limit,
        sampling=sampling,
        cache_gb=cache_gb,
        graders=graders_of(grader, metric),
        metrics=names_of(metric),
        judge=judging.of_graders(),
        judge_max_tokens=judge_max_tokens,
        shots=shots,
        also=also or (),
        probes=probes,
        best_of=best_of,
        safety=safety,
        suites=suite or (),
        announce=say,
        progress=progress,
    )
    command = shlex.join(["luthier", *context.find_root().obj])
    if is_run:
        _write_reports(run, evaluation, command)
    elif out is not None:
        _write_model_reports(run, evaluation, command, out)
    if plot is not None:
        _write_picture(run, evaluation, plot)
    emit({"run" if is_run else "model": run, **evaluation.as_json()}, evaluation_text(evaluation), as_json)


def _write_picture(run: str, evaluation: Evaluation, plot: Path) -> None:
    """What an evaluation has to show beside its measures."""
    from luthier.store.places import expanded

    if evaluation.details is None:
        raise UsageError(
            f"There is no picture of the run {run}: it is no reward model, and --best-of was not asked for.",
            "Leave out --plot.",
        )
    evaluation.details.write_picture(expanded(plot))
    say(f"As a picture: {plot}")


def _check_out(run: str, out: Path | None, is_run: bool) -> None:
    """Raise UsageError for a folder of reports that could not be written."""
    from luthier.store.places import expanded

    if out is None:
        return
    if is_run:
        raise UsageError(f"The reports of {run} stand in its own folder.", "Leave --out out.")
    if expanded(out).exists():
        raise UsageError(f"{out} is there already.", "Choose another folder with --out.")


def _write_model_reports(name: str, evaluation: Evaluation, command: str, out: Path) -> None:
    """Write the reports on a model of no run, with what was found and the command that found it."""
    from luthier.evaluation.run_report import PAGE, write_model_evaluation
    from luthier.store.places import expanded

    try:
        write_model_evaluation(expanded(out), name, evaluation, command)
    except LuthierError as error:  # what was found must not be lost with it
        say(f"The reports could not be written to {out}: {error}")
    else:
        say(f"Report: {out / PAGE}")


def _write_reports(run: str, evaluation: Evaluation, command: str) -> None:
    """Write the run's reports anew, with what was found and the command that found it."""
    from luthier import api
    from luthier.evaluation.run_report import PAGE, write_evaluation
    from luthier.recipe.loading import recipe_of_run
    from luthier.store.runs import find_run

    folder = find_run(run, api.RUNS)
    try:
        write_evaluation(folder, evaluation, type(recipe_of_run(folder).objective), command)
    except LuthierError as error:  # what was found must not be lost with it
        say(f"The reports of {folder} could not be written: {error}")
    else:
        say(f"Report: {folder / PAGE}")
