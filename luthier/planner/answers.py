"""Answers that a run draws: the keys and values that the engine holds meanwhile, and copies of weights that it draws them from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from luthier.generation.engine import CACHE_TOKENS
from luthier.generation.engine_settings import OwnEngine, bytes_in
from luthier.generation.held import Lengths, keys_bytes
from luthier.generation.room import room_of
from luthier.methods import Attachment
from luthier.planner.tracker import Tracker
from luthier.planner.work import Work, longest_first
from luthier.rlhf import RolloutObjective
from luthier.types import Example

KEYS = "keys and values"
FOLDED = "weights with the adapter folded in"
DRAWN = "answers are drawn"
HELD_OUT = "answers to held-out rows are drawn"


@dataclass(frozen=True)
class Answers:
    """Answers that are drawn at once. phase: when."""

    phase: str
    asked: Sequence[Lengths]
    engine: OwnEngine


def answers_of(work: Work, attachment: Attachment) -> list[Answers]:
    """All that a run draws in its own process; none where a server does."""
    objective, virtual = work.objective, attachment.num_virtual
    found: list[Answers] = []
    if isinstance(objective, RolloutObjective) and isinstance(objective.generation, OwnEngine):
        new, engine = objective.max_new_tokens, objective.generation
        prompts = _longest(work.rows, work.prompts_per_step * objective.minibatches)
        found.append(Answers(DRAWN, [(each + virtual, new, objective.num_answers) for each in prompts], engine))
        if prompts := _longest(work.held_out, objective.held_out_prompts):
            found.append(Answers(DRAWN, [(each + virtual, new, 1) for each in prompts], engine))
    settings = work.training.evaluate_generated
    if settings is not None and len(work.held_out):
        rows = [work.held_out[index] for index in range(min(settings.rows, len(work.held_out)))]
        asked = [(num_asked(row) + virtual, settings.max_new_tokens, 1) for row in rows]
        found.append(Answers(HELD_OUT, asked, OwnEngine(folds_adapter=False)))
    return found


def _longest(prompts: Sequence[Example], count: int) -> list[int]:
    """The lengths of so many prompts, the longest ones."""
    if not len(prompts):
        return []
    return [prompts[index].num_part_tokens for index in longest_first(prompts)[:count].tolist()]


def num_asked(row: Example) -> int:
    """The tokens before a row's last answer; of an encoder-decoder's, those of its source."""
    if row.num_source_tokens:
        return row.num_source_tokens
    if not len(row.source_N):
        return row.num_part_tokens
    source_N = np.sort(row.source_N)
    breaks = np.flatnonzero(np.diff(source_N) > 1)
    return int(source_N[breaks[-1] + 1 if len(breaks) else 0]) + 1


def draw(answers: Answers, attachment: Attachment, tracker: Tracker) -> None:
    """Hold what drawing them holds, counted as their phase."""
    engine = answers.engine
    folded = attachment.folded() if engine.folds_adapter else nullcontext(attachment.adapter)
    model = attachment.model
    with tracker.doing(answers.phase, FOLDED), folded as adapter:
        room = room_of(model, CACHE_TOKENS, bytes_in(engine.cache_gb))
        count = keys_bytes(model, adapter, answers.asked, engine.max_rows, room)
        with tracker.doing(answers.phase, KEYS):
            held = torch.empty(count, dtype=torch.uint8, device=model.device)
            del held
