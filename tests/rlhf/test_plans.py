"""Runs that learn from rewards are planned: what is pretended holds what is carried out, critic and frozen copy among it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import recipe_values
from transformers import AutoConfig

from luthier.planner.alone import trace_all
from luthier.planner.beside import OTHERS
from luthier.planner.request import Rows, work_of
from luthier.planner.trace import BACKWARD, FOLDED, HEAD, KEPT, Trace
from luthier.recipe import make_recipe
from luthier.rlhf import RolloutObjective
from luthier.types import Origin, Rendered

ROWS = Path(__file__)
WIDE = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 500, "tie_word_embeddings": False,
}  # fmt: skip
FULL = {"kind": "full", "rank": None}


def traced(
    kind: str, method: dict[str, Any], *, for_real: bool = False, objective: dict[str, Any] | None = None
) -> Trace:
    rewards = [{"grader": {"type": "length", "most": 9}}]
    usual = {"kind": kind, "rewards": rewards, "max_new_tokens": 16, "num_answers": 3, "minibatches": 2}
    objective = {**usual, **(objective or {})}
    training = {"rows_per_step": 2, "tokens_per_micro_batch": 192}
    values = recipe_values(Path("model"), ROWS, objective=objective, method=method, training=training)
    recipe = make_recipe(values)
    assert isinstance(recipe.objective, RolloutObjective)
    prompts = [
        recipe.objective.example(
            Rendered(np.arange(number, number + 12), np.zeros(12, np.float32)), number, Origin("p", number + 1)
        )
        for number in range(4)
    ]
    rows = Rows(tuple(map(recipe.objective.imagined, prompts)))
    (found,) = trace_all([work_of(recipe, AutoConfig.for_model(**WIDE), rows, torch.device("cpu"))], for_real=for_real)
    assert isinstance(found, Trace), found
    return found


@pytest.mark.parametrize("method", [{}, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("kind", ["grpo", "ppo", "rloo", "online-dpo"])
def test_what_is_pretended_holds_what_is_carried_out(kind: str, method: dict[str, Any]) -> None:
    pretended, real = (traced(kind, method, for_real=for_real) for for_real in (False, True))
    wanted, found = (max(peak.num_bytes for peak in each.peaks.values()) for each in (real, pretended))
    assert found == pytest.approx(wanted, rel=0.02)


def test_a_critic_beside_a_tuned_base_stands_on_a_copy_that_is_counted() -> None:
    alone, with_critic = traced("grpo", FULL), traced("ppo", FULL)
    assert OTHERS not in alone.standing
    weights = 4 * alone.num_parameters
    assert weights <= traced("rloo", FULL).standing[OTHERS] <= 1.1 * weights
    assert weights <= with_critic.standing[OTHERS] <= 1.3 * weights
    shared, plain = traced("ppo", {}), traced("grpo", {})
    assert OTHERS not in shared.standing
    assert shared.num_trainable > plain.num_trainable


def test_weights_that_answers_are_drawn_from_are_counted_once_more() -> None:
    folded, beside = (traced("grpo", {}, objective={"generation": {"folds_adapter": folds}}) for folds in (True, False))
    drawn = folded.peaks["answers are drawn"].parts[FOLDED]
    adapted = (
        4 * 3 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 160)
    )  # fp32, three layers: q and o, k and v, the feed-forward
    assert drawn >= adapted
    assert drawn == pytest.approx(adapted, rel=0.15)
    assert "answers are drawn" not in beside.peaks


def test_policy_and_critic_train_in_the_memory_of_one() -> None:
    def passes(trace: Trace) -> int:
        return max(sum(peak.parts.get(part, 0) for part in (KEPT, HEAD, BACKWARD)) for peak in trace.peaks.values())

    assert passes(traced("ppo", {})) <= 1.1 * passes(traced("grpo", {}))
