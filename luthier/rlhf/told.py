"""What the rollouts of a run show: answers from the first to the last, and the signs that were told on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from luthier.errors import LuthierError
from luthier.evaluation.report import Told
from luthier.evaluation.verdict import Table
from luthier.rlhf.kept import FOLDER, read_rollout
from luthier.rlhf.samples import Sample
from luthier.training.checkpoint import load_checkpoint

_ROLLOUTS = 4
_LONGEST = 280
_PLACES = ("best", "middle", "worst")


def told_of_rollouts(run: Path) -> Told:
    """The signs of a run that learned from rewards, and a table of its answers over time."""
    rows = list(_rows(run))
    head = ["step", "", "reward", "prompt", "answer"]
    return Told(signs_of(run), (Table("Answers over time", [head, *rows]),) if rows else ())


def signs_of(run: Path) -> tuple[str, ...]:
    """What its rollouts told of how the reward was earned, a sentence or two each."""
    try:
        state = load_checkpoint(run).state["batches"]
    except LuthierError:
        return ()
    return tuple(state.get("signs", {}).values())


def _rows(run: Path) -> Iterator[list[str]]:
    """Of a few rollouts, from the first to the last, the answers with the highest, the middle and the lowest reward."""
    files = sorted((run / FOLDER).glob("*.jsonl"))
    places = np.unique(np.linspace(0, len(files) - 1, min(_ROLLOUTS, len(files))).round().astype(int)) if files else ()
    for place in places:
        known = [sample for sample in read_rollout(files[place]) or () if sample.reward is not None]
        known.sort(key=lambda sample: -(sample.reward or 0.0))
        chosen = dict(zip(_PLACES, (0, len(known) // 2, len(known) - 1), strict=True)) if known else {}
        for name, index in chosen.items():
            yield _row(name, known[index])


def _row(name: str, sample: Sample) -> list[str]:
    return [str(sample.version), name, f"{sample.reward:.3g}", _brief(sample.prompt), _brief(sample.text)]


def _brief(text: str) -> str:
    """A text, or its beginning and its end."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} … {text[-half:]}"
