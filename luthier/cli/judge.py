"""`luthier judge`: a person or a model compares two answers to the same prompt, without knowing who wrote them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.judging_models import (
    MAX_TOKENS,
    MAX_UNREADABLE,
    PARALLEL,
    RETRIES,
    TIMEOUT_SECONDS,
    JudgeKeyEnv,
    JudgeMaxTokens,
    JudgeModel,
    JudgeName,
    JudgeOptions,
    JudgeParallel,
    JudgeRetries,
    JudgeTimeout,
    JudgeUrl,
    MaxUnreadable,
    judged_by_model,
    load_judge,
)
from luthier.cli.options import Json, MaxNewTokens, MinP, Seed, System, Temperature, TopK, TopP, given
from luthier.cli.output import emit, quoted, say
from luthier.errors import NotFound, UsageError

if TYPE_CHECKING:
    from luthier.evaluation.judged.blind import Question
    from luthier.evaluation.judged.by_person import PreferenceRows
    from luthier.evaluation.judged.records import JudgmentFile

_RUNS = Path("runs")


def judge(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE | RUN | MODEL MODEL]",
            help="Rows with prompt and answers (or chosen and rejected); or a run with rollouts; or models, with --prompts.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where judgments go, a line each.")] = Path("judgments.jsonl"),
    prompts: Annotated[
        str | None, typer.Option("--prompts", help="Rows that ask: what the named models are to answer first.")
    ] = None,
    annotator: Annotated[str, typer.Option("--annotator", help="Who judges, by a name or a pseudonym.")] = "person",
    guideline: Annotated[
        str | None, typer.Option("--guideline", help="What is to be judged by: shown with each pair, and kept.")
    ] = None,
    order_seed: Annotated[
        int, typer.Option("--order-seed", min=0, help="Which answer of a pair is shown first; the same seed, the same.")
    ] = 0,
    pairs_per_prompt: Annotated[
        int, typer.Option("--pairs-per-prompt", min=1, help="Most pairs of a prompt that has more than two answers.")
    ] = 1,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first so many prompts.")] = None,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help="Write the choices as rows with prompt, chosen and rejected.")
    ] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Ask nothing: say what the judgments come to.")] = False,
    judge_model: JudgeModel = None,
    judge_url: JudgeUrl = None,
    judge_name: JudgeName = None,
    judge_key_env: JudgeKeyEnv = None,
    judge_timeout: JudgeTimeout = TIMEOUT_SECONDS,
    judge_retries: JudgeRetries = RETRIES,
    judge_parallel: JudgeParallel = PARALLEL,
    judge_max_tokens: JudgeMaxTokens = MAX_TOKENS,
    max_unreadable: MaxUnreadable = MAX_UNREADABLE,
    system: System = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
    as_json: Json = False,
) -> None:
    """Compare answers two by two, blind; stop at any time, and go on with the same command."""
    from luthier.evaluation.judged.records import JudgmentFile
    from luthier.store.files import locked
    from luthier.store.places import expanded

    drawing = given(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, max_new_tokens=max_new_tokens
    )
    if prompts is None and (drawing or system is not None):
        raise UsageError(
            "How answers are drawn matters only where models are asked.", "Name models, and --prompts FILE."
        )
    options = JudgeOptions(
        judge_model, judge_url, judge_name, judge_key_env, judge_timeout, judge_retries, judge_parallel,
        judge_max_tokens, max_unreadable,
    )  # fmt: skip
    options.check(needs_name=True)
    file, left = expanded(out), None
    if summary or not sources:
        if not file.exists():
            raise _nothing_to_read(file, asks=not summary and pairs is None)
        judgments = JudgmentFile.opened(file, say)
    else:
        with locked(file, timeout_seconds=2, announce=say):
            judgments = JudgmentFile.opened(file, say)
            model = load_judge(options, guideline) if options.is_named else None  # before others answer for minutes
            questions = _questions(sources, prompts, file, system, drawing, limit)
            if model is not None:
                left = judged_by_model(questions, judgments, model, options, order_seed, pairs_per_prompt)
            else:
                left = _asked(questions, judgments, annotator, guideline, order_seed, pairs_per_prompt)
        if left:
            say(f"{left:,} pairs are left; the same command goes on.")
    document, lines = _account(file, judgments, left, pairs)
    emit(document, "\n".join(lines), as_json)


def _account(
    file: Path, judgments: JudgmentFile, left: int | None, pairs: Path | None
) -> tuple[dict[str, Any], list[str]]:
    """What the judgments come to, as a document and as lines; with `pairs`, their choices are written there."""
    from luthier.evaluation.judged.by_judge import judge_summaries, settled
    from luthier.evaluation.judged.by_person import preference_rows, summary_of
    from luthier.store.places import expanded

    judges = judge_summaries(judgments.records)
    found = summary_of([each for each in judgments.records if each.judge is None])
    document: dict[str, Any] = {
        "judgments": str(file), "left": left, **found.as_json(), "judges": [each.as_json() for each in judges]
    }  # fmt: skip
    lines = [line for each in judges for line in each.as_lines()]
    if found.annotators or not judges:
        lines += found.as_lines()
    if pairs is not None:
        rows = preference_rows(settled(judgments.records))
        _write_pairs(expanded(pairs), rows)
        document["pairs"] = {"file": str(pairs), **rows.as_json()}
        lines += [f"{len(rows.rows):,} rows to train on: {pairs}", *rows.as_lines()]
    return document, lines


def _questions(
    sources: list[str], prompts: str | None, out: Path, system: str | None, drawing: dict[str, Any], limit: int | None
) -> list[Question]:
    """The prompts with their answers, from wherever they come."""
    from luthier.evaluation.judged.questions import questions_in
    from luthier.store.places import expanded
    from luthier.store.runs import find_run, is_run

    if prompts is not None:
        return _answered(sources, prompts, out, system, drawing, limit)
    if len(sources) > 1:
        raise UsageError("Several models need prompts to answer.", "Name a file of them with --prompts FILE.")
    name = sources[0]
    if name == "latest" or is_run(expanded(name)) or is_run(_RUNS / name):
        from luthier.studies.judging import questions_of_run

        return questions_of_run(find_run(name, _RUNS), limit)
    return questions_in(name, say, limit)


def _answered(
    models: list[str], prompts: str, out: Path, system: str | None, drawing: dict[str, Any], limit: int | None
) -> list[Question]:
    """The prompts with an answer of each model, generated now as far as they are not kept beside the judgments."""
    from luthier.api import load_any_text
    from luthier.cli.display import TaskBar
    from luthier.cli.measuring import ProgressLines
    from luthier.evaluation.judged.questions import prompts_in
    from luthier.prediction.text_model import make_sampling
    from luthier.store.runs import find_run
    from luthier.studies.judging import Answering, questions_for

    if len(models) < 2:
        raise UsageError(f"{models[0]} alone has nothing to be compared with.", "Name two models, or two runs.")
    names = [str(find_run(name, _RUNS)) if name == "latest" else name for name in models]
    asked = prompts_in(prompts, system, say, limit)
    kept = out.with_name(f"{out.stem}.answers.jsonl")
    with TaskBar() as bar:
        progress = bar if sys.stderr.isatty() else ProgressLines()
        asking = Answering(lambda name: load_any_text(name, say), make_sampling(drawing), progress, say)
        return questions_for(names, asked, kept, asking)


def _asked(
    questions: list[Question],
    judgments: JudgmentFile,
    annotator: str,
    guideline: str | None,
    order_seed: int,
    pairs_per_prompt: int,
) -> int:
    """Have the person at the terminal judge the pairs; how many are left. Raises UsageError where there is no terminal."""
    from luthier.cli.judging_screen import Screen
    from luthier.evaluation.judged.blind import pairs_of
    from luthier.evaluation.judged.session import Annotator, judge

    pairs = pairs_of(questions, pairs_per_prompt, say)
    who = Annotator(annotator, guideline, order_seed)
    judgments.check(pairs, annotator, order_seed)
    if len(judgments.of(annotator)) < len(pairs) and not sys.stdin.isatty():
        raise UsageError(
            "There is no terminal at which a person could judge: standard in is no terminal.",
            "Run it in one, or have a model judge (--judge). Or write the judgments as a file of rows with model_1, model_2 and verdict, "
            "which 'luthier tournament FILE' reads (docs/judging.md).",
        )
    return judge(pairs, judgments, who, Screen(), say)


def _write_pairs(path: Path, rows: PreferenceRows) -> None:
    from luthier.store.files import write_text

    if not rows.rows:
        say(f"There is no choice to learn from: {path} is not written.")
        return
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.rows))


def _nothing_to_read(file: Path, *, asks: bool) -> UsageError | NotFound:
    if asks:
        return UsageError("There is nothing to judge.", "Name a file of answers, a run, or two models with --prompts.")
    return NotFound(
        f"There are no judgments in {quoted(file)}.", "Name their file with --out, or make some: 'luthier judge FILE'."
    )
