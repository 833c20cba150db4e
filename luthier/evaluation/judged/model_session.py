"""Judging by a model: every pair in each order that it is asked in, each verdict on the disk as it comes, none asked for twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from luthier.errors import JudgeFault, NetworkError, NotAllowed, RunMismatch
from luthier.evaluation.judged.blind import Pair, Response
from luthier.evaluation.judged.records import JudgmentFile, Record
from luthier.evaluation.judged.verdicts import Compared, Judge, Verdict
from luthier.prediction.passes import Progress

MOST_UNREADABLE = 0.2


@dataclass(frozen=True)
class _Task:
    """A pair in one order."""

    pair: Pair
    shown: tuple[Response, Response]

    @property
    def key(self) -> tuple[str, str]:
        return self.pair.id, self.shown[0].id


def judge_by_model(
    pairs: Sequence[Pair],
    file: JudgmentFile,
    judge: Judge,
    *,
    seed: int,
    most_unreadable: float,
    progress: Progress,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Have a model judge what it has not judged yet.

    seed: of the order in which a judge that sees each pair once is shown it; most_unreadable: the share of all verdicts that may be
    without one that can be read.

    Raises: RunMismatch, if the file holds judgments of other pairs, or some of this judge that were asked for otherwise; JudgeFault,
    as soon as more verdicts than that cannot be read; NetworkError, where a judge cannot be reached. What was judged stays.
    """
    own = _own(file, judge)
    file.check_pairs(pairs)
    tasks = [task for pair in pairs for task in _tasks(pair, judge.settings["orders"], seed)]
    done = {(each.pair.id, each.shown[0].id) for each in own}
    left = [task for task in tasks if task.key not in done]
    allowed = most_unreadable * len(tasks)
    unreadable = [each for each in own if each.outcome is None]
    _check_readable(unreadable, allowed, len(tasks), judge, file)
    last = now()
    for start in range(0, len(left), judge.at_once):
        part = left[start : start + judge.at_once]
        progress(f"judged by {judge.name}", len(tasks) - len(left) + start, len(tasks))
        for place, verdict in _verdicts(judge, part):
            moment = now()
            record = _record(part[place], verdict, judge, moment - last)
            last = moment
            file.add(record)
            if record.outcome is None:
                unreadable.append(record)
                _check_readable(unreadable, allowed, len(tasks), judge, file)
    progress(f"judged by {judge.name}", len(tasks), len(tasks))


def _verdicts(judge: Judge, tasks: Sequence[_Task]) -> Iterator[tuple[int, Verdict]]:
    """The verdicts on some tasks. Raises: as `Judge.verdicts`; of an endpoint's fault it is told that what came before is kept."""
    compared = [Compared(task.pair.prompt, task.shown[0].text, task.shown[1].text) for task in tasks]
    try:
        yield from judge.verdicts(compared)
    except (NetworkError, NotAllowed) as error:
        error.mend = f"{error.mend} What was judged is kept: the same command goes on.".strip()
        raise


def _own(file: JudgmentFile, judge: Judge) -> list[Record]:
    """What this judge said already. Raises: RunMismatch, where it was asked otherwise."""
    own = [each for each in file.records if each.annotator == judge.name]
    if any(each.judge != judge.settings for each in own):
        raise RunMismatch(
            f"{judge.name} judged in it under other settings than these.",
            "Go on with the options that it began with, or choose another file with --out.",
            file=str(file.path),
        )
    return own


def _tasks(pair: Pair, orders: int, seed: int) -> Iterable[_Task]:
    first, second = pair.shown(seed)
    yield _Task(pair, (first, second))
    if orders == 2:
        yield _Task(pair, (second, first))


def _record(task: _Task, verdict: Verdict, judge: Judge, seconds: float) -> Record:
    outcome, shown = verdict.outcome, task.shown
    return Record(
        task.pair,
        shown,
        choice=None if outcome not in (0.0, 1.0) else shown[0 if outcome == 1.0 else 1].id,
        seconds=round(seconds, 3),
        annotator=judge.name,
        tie=outcome == 0.5,
        skipped=outcome is None,
        strength=1 if outcome in (0.0, 1.0) else None,
        guideline=judge.settings.get("guideline"),
        judge=judge.settings,
        said=verdict.said,
        scores=verdict.scores,
        refused=verdict.refused,
    )


def _check_readable(
    unreadable: Sequence[Record], allowed: float, num_all: int, judge: Judge, file: JudgmentFile
) -> None:
    if len(unreadable) <= allowed:
        return
    refused = sum(each.refused for each in unreadable)
    told = f"{len(unreadable):,} of {num_all:,} verdicts of {judge.name} cannot be read"
    told += f", {refused:,} of them because it would not say" if refused else ""
    raise JudgeFault(
        f"{told}; at most {allowed:g} may be. The last one says {(unreadable[-1].said or '')[-200:]!r}.",
        "Name a judge that follows instructions, or allow more with --max-unreadable; what it said is kept there.",
        file=str(file.path),
    )
