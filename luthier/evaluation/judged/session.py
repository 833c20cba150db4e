"""Judging: one pair after another is shown without names, and what is said of it is on the disk before the next is shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.evaluation.judged.blind import Asked, Pair
from luthier.evaluation.judged.records import JudgmentFile, Record

Move = Literal["first", "second", "tie", "both bad", "skip", "undo", "quit"]


@dataclass(frozen=True)
class Shown:
    """All that a person sees of a pair: nothing here tells who wrote the answers. number: of total, from 1 on."""

    number: int
    total: int
    prompt: Asked
    first: str
    second: str
    guideline: str | None


@dataclass(frozen=True)
class Said:
    """What a person says of it. strength: 1 for better, 2 for much better, where one is."""

    move: Move
    strength: int | None = None


Ask = Callable[[Shown | None], Said]
"""Shows a pair and waits; None: all are judged, and the last choice may be taken back before it ends."""


@dataclass(frozen=True)
class Annotator:
    """Who judges, by which guideline, and the seed of the orders that they are shown."""

    name: str
    guideline: str | None = None
    seed: int = 0


def judge(
    pairs: Sequence[Pair],
    file: JudgmentFile,
    annotator: Annotator,
    ask: Ask,
    announce: Callable[[str], None],
    now: Callable[[], float] = time.monotonic,
) -> int:
    """Have a person judge what they have not judged yet, until all is or they quit; return how many pairs are left.

    now: a clock in seconds.

    Raises: RunMismatch, if the file holds judgments of other pairs or in other orders; DiskFull, ResourceError.
    """
    file.check(pairs, annotator.name, annotator.seed)
    done = file.of(annotator.name)
    by_id = {pair.id: pair for pair in pairs}
    left = [pair for pair in reversed(pairs) if pair.id not in done]  # the next at the end
    if done:
        announce(f"{len(done):,} of {len(pairs):,} pairs are judged already; going on after the last one.")
    has_judged = False
    while left or has_judged:
        began = now()
        said = ask(_shown(left[-1], len(pairs) - len(left) + 1, len(pairs), annotator) if left else None)
        if said.move == "quit" or not (left or said.move == "undo"):
            break
        if said.move == "undo":
            taken = file.take_back(annotator.name)
            if taken is None:
                announce("There is no choice to take back.")
            else:
                left.append(by_id[taken.pair.id])
        else:
            file.add(_record(left.pop(), said, annotator, now() - began))
            has_judged = True
    return len(left)


def _shown(pair: Pair, number: int, total: int, annotator: Annotator) -> Shown:
    first, second = pair.shown(annotator.seed)
    return Shown(number, total, pair.prompt, first.text, second.text, annotator.guideline)


def _record(pair: Pair, said: Said, annotator: Annotator, seconds: float) -> Record:
    shown = pair.shown(annotator.seed)
    chosen = {"first": shown[0].id, "second": shown[1].id}.get(said.move)
    return Record(
        pair,
        shown,
        chosen,
        round(seconds, 2),
        annotator.name,
        tie=said.move in ("tie", "both bad"),
        both_bad=said.move == "both bad",
        skipped=said.move == "skip",
        strength=None if chosen is None else said.strength,
        guideline=annotator.guideline,
    )
