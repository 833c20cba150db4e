"""`luthier compare`: runs beside each other."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    SHOWN,
    GraderFiles,
    Metrics,
    ProgressLines,
    evaluation_text,
    graders_of,
    names_of,
)
from luthier.cli.options import Json, MaxNewTokens
from luthier.cli.output import aligned, emit, say

if TYPE_CHECKING:
    from luthier.evaluation.verdict import Evaluation
    from luthier.studies.run_comparison import RunsCompared


def compare(
    context: typer.Context,
    runs: Annotated[list[str], typer.Argument(help="Two runs or more; the others are compared with the first.")],
    answers: Annotated[
        bool, typer.Option("--answers", help="Load the models too, and compare loss and answers on the same rows.")
    ] = False,
    data: Annotated[
        str | None, typer.Option("--data", help="Rows for --answers; unset: what the first run held out.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first so many rows.")] = None,
    max_new_tokens: MaxNewTokens = None,
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
    show: Annotated[int, typer.Option("--show", min=0, help="So many rows with all answers to them.")] = SHOWN,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write the curves of all runs as a PNG.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html",
            help="Write all of it, answers side by side included, as one page that opens without a network.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show in what runs differ, how their losses went and what they cost; with --answers also which model is better.

    --data, --grader and --metric ask for answers too.
    """
    from luthier import api
    from luthier.prediction.text_model import make_sampling
    from luthier.store.places import expanded
    from luthier.store.runs import find_run
    from luthier.studies.run_comparison import compare_runs, write_curves, write_report

    judging = JudgeOptions(
        judge, judge_url, judge_name, judge_key_env, judge_timeout, judge_retries, judge_parallel, judge_max_tokens
    )
    asked = judging.of_graders()
    compared = compare_runs([find_run(run, api.RUNS) for run in runs])
    if plot is not None:
        write_curves(compared, expanded(plot))
        say(f"Curves: {plot}")
    evaluation = None
    if answers or data is not None or grader or metric:
        sampling = None if max_new_tokens is None else make_sampling({"max_new_tokens": max_new_tokens})
        evaluation = api.compare(
            runs, data, limit=limit, sampling=sampling, graders=graders_of(grader, metric), metrics=names_of(metric),
            judge=asked, judge_max_tokens=judge_max_tokens, announce=say, progress=ProgressLines(),
        )  # fmt: skip
    if report is not None:
        command = shlex.join(["luthier", *context.find_root().obj])
        write_report(compared, expanded(report), evaluation, command)
        say(f"Report: {report}")
    document: dict[str, Any] = compared.as_json()
    if evaluation is not None:
        document["evaluation"] = evaluation.as_json()
    emit(document, _text(compared, evaluation, show), as_json)


def _text(compared: RunsCompared, evaluation: Evaluation | None, show: int) -> str:
    rows, evaluated = compared.differences_table(), compared.evaluated_table()
    lines = [
        *aligned(compared.as_table()),
        "",
        *(aligned(rows) if len(rows) > 1 else ["Their recipes are the same."]),
        *(["", *aligned(evaluated)] if evaluated else []),
    ]
    if evaluation is not None:
        lines += ["", evaluation_text(evaluation, show)]
    return "\n".join(lines)
