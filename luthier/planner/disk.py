"""What a run leaves on the disk at most, by what it is."""

from __future__ import annotations

import math
from collections.abc import Mapping

from luthier.planner.memory import checkpoint_bytes
from luthier.planner.trace import STATE, Trace
from luthier.planner.work import Work, longest_first
from luthier.recipe import Recipe
from luthier.rlhf import RolloutObjective

_LINE_BYTES, _WORD_BYTES, _TOKEN_BYTES, _NUMBER_BYTES = 350, 5, 7, 22
"""Of a sample as a line of JSON, roughly: its names, a token in words, a token's number, and a number of a token in full."""


def disk_of(recipe: Recipe, work: Work, trace: Trace, *, on_cpu: bool) -> Mapping[str, int]:
    """Bytes by what is written; what is deleted when the run ends counts too."""
    training = recipe.training
    kept = training.keep_last + (recipe.data.validation != "none") + 1  # one more while it is written
    in_files = training.optimizer.is_paged and on_cpu
    found = {
        "checkpoints": kept * checkpoint_bytes(trace),
        "result": trace.num_parameters * 4 if recipe.method.tunes_base else trace.num_trainable * 4,
        "words of other models": trace.kept_bytes,
        "trunk cache": trace.trunk_bytes,
        "optimizer state in files": trace.standing.get(STATE, 0) if in_files else 0,
        "rollouts, roughly": _rollout_bytes(work, trace),
    }
    return {name: count for name, count in found.items() if count}


def _rollout_bytes(work: Work, trace: Trace) -> int:
    """Every answer of a run, with what is said of its tokens; as if all were as long as they may be and none drawn again."""
    objective = work.objective
    if not isinstance(objective, RolloutObjective):
        return 0
    prompts = work.prompts_per_step * objective.minibatches
    num_answers = math.ceil(trace.num_steps / objective.steps_per_rollout) * prompts * objective.num_answers
    has_reference = objective.needs_reference or not work.method.tunes_base
    said = 1 + objective.needs_old + has_reference + objective.asks_critic
    middle = work.rows[int(longest_first(work.rows)[len(work.rows) // 2])].num_part_tokens
    return num_answers * line_bytes(middle, objective.max_new_tokens, said)


def line_bytes(num_prompt: int, num_new: int, said: int) -> int:
    """What a sample's line takes, roughly. said: how many numbers each token of its answer comes with."""
    return _LINE_BYTES + _WORD_BYTES * (num_prompt + num_new) + num_new * (_TOKEN_BYTES + said * _NUMBER_BYTES)
