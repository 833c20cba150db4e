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
from luthier.planner.answers import DRAWN, FOLDED, KEYS
from luthier.planner.beside import OTHERS
from luthier.planner.request import Rows, work_of
from luthier.planner.trace import BACKWARD, HEAD, KEPT, Trace
from luthier.recipe import make_recipe
from luthier.rlhf import RolloutObjective
from luthier.rlhf.pretraining import Texts
from luthier.types import Example, Origin, Part, Rendered

ROWS = Path(__file__)
WIDE = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 500, "tie_word_embeddings": False,
}  # fmt: skip
FULL = {"kind": "full", "rank": None}


def traced(
    kind: str,
    method: dict[str, Any],
    *,
    for_real: bool = False,
    objective: dict[str, Any] | None = None,
    held_out: int = 0,
    steps: int | None = 6,
    texts: Texts | None = None,
) -> Trace:
    rewards = [{"grader": {"type": "length", "most": 9}}]
    usual = {"kind": kind, "rewards": rewards, "max_new_tokens": 16, "num_answers": 3, "minibatches": 2}
    objective = {**usual, **(objective or {})}
    training = {"rows_per_step": 2, "tokens_per_micro_batch": 192, "steps": steps}
    values = recipe_values(Path("model"), ROWS, objective=objective, method=method, training=training)
    recipe = make_recipe(values)
    assert isinstance(recipe.objective, RolloutObjective)
    prompts = [
        recipe.objective.example(
            Rendered(np.arange(number, number + 12), np.zeros(12, np.float32)), number, Origin("p", number + 1)
        )
        for number in range(4)
    ]
    rows = Rows(tuple(prompts), held_out=(prompts[0],) * held_out, texts=texts)
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
    drawn = folded.peaks[DRAWN].parts[FOLDED]
    adapted = (
        4 * 3 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 160)
    )  # fp32, three layers: q and o, k and v, the feed-forward
    assert drawn >= adapted
    assert drawn == pytest.approx(adapted, rel=0.15)
    assert FOLDED not in beside.peaks[DRAWN].parts


def passes(trace: Trace) -> int:
    """The most that passes hold."""
    return max(sum(peak.parts.get(part, 0) for part in (KEPT, HEAD, BACKWARD)) for peak in trace.peaks.values())


def test_policy_and_critic_train_in_the_memory_of_one() -> None:
    assert passes(traced("ppo", {})) <= 1.1 * passes(traced("grpo", {}))


def token_bytes() -> int:
    """Keys and values of three layers, of two heads of 16 numbers each, in fp32."""
    return 2 * 3 * 2 * 16 * 4


def test_keys_and_values_are_those_of_all_answers_that_are_drawn_together() -> None:
    found = traced("grpo", {}).peaks[DRAWN].parts[KEYS]
    # a rollout of 2 × 2 prompts of 12 tokens: a page for each prompt and one more; three answers of 16 tokens, a page each
    assert found == 4 * (2 + 3) * 64 * token_bytes()
    few = traced("grpo", {}, objective={"generation": {"max_rows": 2}}).peaks[DRAWN].parts[KEYS]
    assert few == (2 * 2 + 2) * 64 * token_bytes()
    small = traced("grpo", {}, objective={"generation": {"cache_gb": 10.5 * 64 * token_bytes() / 1e9}})
    assert small.peaks[DRAWN].parts[KEYS] == 10 * 64 * token_bytes()


def test_held_out_prompts_are_answered_too() -> None:
    found = traced("grpo", {}, held_out=30).peaks[DRAWN].parts[KEYS]
    assert found == 30 * 2 * 64 * token_bytes()


def test_answers_that_a_server_draws_take_nothing_here() -> None:
    engine = {"generation": {"kind": "vllm", "url": "http://localhost:8000"}}
    assert DRAWN not in traced("grpo", {}, objective=engine).peaks


def test_answers_that_do_not_fit_behind_one_prompt_are_planned_in_several_examples() -> None:
    many = traced("grpo", {}, objective={"num_answers": 40})
    assert many.batch_tokens <= 192
    assert many.run_tokens >= many.num_steps * 2 * 40 * 16
    with pytest.raises(AssertionError, match="may hold only 192"):
        traced("online-dpo", {}, objective={"max_new_tokens": 170})


def test_a_run_of_rollouts_has_the_steps_that_its_prompts_come_to() -> None:
    # three epochs of 4 prompts, of which a rollout takes 2 × 2 and has 2 steps, taken as often as answers are reused
    once, thrice = (traced("grpo", {}, objective={"reuse": reuse}, steps=None) for reuse in (1, 3))
    assert (once.num_steps, thrice.num_steps) == (3 * 2, 3 * 2 * 3)


def test_texts_that_are_learned_besides_count_where_they_are_heavier_than_answers() -> None:
    tokens_T = np.arange(180)
    source_N = np.arange(179)
    ones = np.ones(179, np.float32)
    text = Example((Part(tokens_T),), source_N, tokens_T[1:], ones, np.zeros(179, np.int64), 0, Origin("t", 1))
    mixed = {"pretraining": {"data": str(ROWS)}}
    plain = traced("ppo", {})
    beside = traced("ppo", {}, objective=mixed, texts=Texts((text,) * 3, 1.0, 2, 0))
    assert passes(beside) > 1.2 * passes(plain)
    assert beside.run_tokens == plain.run_tokens + 2 * 180 * plain.num_steps
