"""What holds for every method with every objective that learns from the model's own answers, or from pairs of answers.

On one tiny model each method takes a step by each of them, one after another; or it is refused, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from methods.examples import EXAMPLES, ready
from methods.test_every_objective import KIN, ONE_CUT, SEED, Task, model_for, placed
from models.tuned import quiet
from objectives.examples import TASKS, two_answers

from luthier import rewarded
from luthier.data.batches import StepBatches, Steps
from luthier.errors import RecipeError
from luthier.generation.engine_settings import OwnEngine
from luthier.methods import Attachment, LeTS, Method
from luthier.models.families import family_of
from luthier.models.language_model import LanguageModel
from luthier.objectives import Objective, SimPO
from luthier.ops.workers import Workers
from luthier.prediction.passes import Passes, silent
from luthier.prepared import check_kind
from luthier.recipe import Recipe
from luthier.rewarded import check_policy, others_of
from luthier.rlhf import ALGORITHMS, RolloutObjective
from luthier.rlhf.parts import Ear, Policy, Prompts, Size
from luthier.rlhf.ppo import CRITIC
from luthier.rlhf.rollouts import Rollouts
from luthier.rlhf.worth import Answer, Worth
from luthier.rlhf.writers import OwnWriter
from luthier.training.checkpoint import Checkpoint
from luthier.training.companions import Companions
from luthier.training.loop import Outside, Plan, train
from luthier.training.settings import TrainingSettings
from luthier.types import Origin, Rendered

REWARDS = [{"grader": {"type": "length", "most": 5}}]
PAIRS = (
    *(task for task in TASKS if task.family == "llama" and task.objective.kind in ("dpo", "kto", "orpo", "cpo")),
    Task(SimPO(), "llama", two_answers),
)
WORDS = next(task for task in TASKS if str(task) == "dpo-llama")
DRAWS = "draws at random"

REFUSED: dict[str, str] = {"adamix": DRAWS}
"""method → what the refusal says of every objective that learns from the model's own answers."""


def algorithm(kind: type[RolloutObjective]) -> RolloutObjective:
    """Its smallest settings, with more than one step a rollout where that makes a ratio."""
    return kind.model_validate(
        {"rewards": REWARDS, "max_new_tokens": 3, "num_answers": 2, "reuse": 1, "minibatches": 1}
    )


def worth_of(answers: Sequence[Answer]) -> list[Worth]:
    """Rewards that differ with the tokens."""
    return [Worth(float(sum((at + 1) * token for at, token in enumerate(each.tokens)) % 97), {}) for each in answers]


def prompts(objective: RolloutObjective) -> Prompts:
    rows = [Rendered(np.arange(3 + row, 8 + row), np.zeros(5, np.float32)) for row in range(2)]
    examples = [objective.example(row, number, Origin("p", number + 1)) for number, row in enumerate(rows)]
    return Prompts(examples, ["p"] * 2, [{}] * 2)


def steps_of(method: Method) -> int:
    """Fewest steps in which all of a method is at work."""
    return 4 if isinstance(method, LeTS) else 1


def taken(
    model: LanguageModel,
    attachment: Attachment,
    objective: Objective,
    steps: Steps,
    companions: Companions,
    pool: Workers,
) -> list[dict[str, Any]]:
    """What is written down of the steps that the loop takes."""
    lines: list[dict[str, Any]] = []
    saved: list[Checkpoint] = []
    plan = Plan(TrainingSettings(clip_norm=None), SEED, steps.num_steps, 1e-3, evaluate_every=9, checkpoint_every=9)
    train(model, attachment, objective, steps, plan, Outside(None, saved.append, lines.append, quiet, Path(".")), pool,
          companions=companions)  # fmt: skip
    return lines


def by_rewards(
    method: Method,
    model: LanguageModel,
    attachment: Attachment,
    objective: RolloutObjective,
    folder: Path,
    pool: Workers,
) -> list[dict[str, Any]]:
    check_policy(objective, attachment)
    training = SimpleNamespace(fast=SimpleNamespace(lora=True))
    recipe = SimpleNamespace(objective=objective, method=method, seed=SEED, training=training)
    others = others_of(cast(Recipe, recipe), model, attachment, quiet)
    rollouts = Rollouts(
        objective, prompts(objective),
        Policy(model, others.attachment, frozenset({2}), OwnWriter(others.attachment, OwnEngine())), worth_of,
        Passes(pool, ONE_CUT, silent), Size(2, steps_of(method), ONE_CUT), SEED, folder,
        Ear(others.reference, None if others.critic is None else others.critic.of_examples),
    )  # fmt: skip
    companions = Companions({})
    if others.critic is not None:
        others.critic.rows = rollouts.examples
        companions = Companions({CRITIC: others.critic})
    return taken(model, others.attachment, objective, rollouts, companions, pool)


def by_pairs(
    model: LanguageModel, attachment: Attachment, task: Task, pool: Workers, count: int
) -> list[dict[str, Any]]:
    rows = placed(task, attachment)
    steps = StepBatches(
        rows, rows_per_step=len(rows), tokens_per_step=None, budget=ONE_CUT, workers=1, layout=model.layout,
        pad_id=model.pad_id, seed=SEED, steps=count,
    )  # fmt: skip
    return taken(model, attachment, task.objective, steps, task.companions(), pool)


@pytest.mark.parametrize("method", EXAMPLES, ids=lambda method: method.kind)
def test_a_method_takes_a_step_by_every_reward_and_every_pair_or_says_why_not(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = ready(method, "llama", lambda: tmp_path, "words")
    monkeypatch.setattr(rewarded, "load_base_of", lambda recipe, announce: model_for(method, WORDS))
    refusal = REFUSED.get(method.kind)
    model = model_for(method, WORDS)
    attachment = method.attach(model, "default", SEED)
    # what differs from another in its formula alone, or takes several steps, takes one of each sort
    takes_few = (method.kind in KIN or steps_of(method) > 1) and refusal is None
    rewards, pairs = (ALGORITHMS[:1], PAIRS[-1:]) if takes_few else (ALGORITHMS, PAIRS)
    with Workers(1) as pool:
        for number, kind in enumerate(rewards):
            objective = algorithm(kind)
            if isinstance(method, LeTS):  # which prunes, once
                model = model_for(method, WORDS)
                attachment = method.attach(model, "default", SEED)
            if refusal is not None:
                with pytest.raises(RecipeError, match=refusal) as caught:
                    by_rewards(method, model, attachment, objective, tmp_path, pool)
                assert caught.value.mend
                continue
            lines = by_rewards(method, model, attachment, objective, tmp_path / objective.kind, pool)
            assert_learned(lines, objective)
            if "ratio" in lines[0]:
                assert lines[0]["ratio"] == pytest.approx(1, abs=1e-4), objective.kind
            if number == 0:
                assert lines[0]["kl"] == pytest.approx(0, abs=1e-4), "nothing was learned before the first step"
        for task in pairs:
            if isinstance(method, LeTS):
                model = model_for(method, WORDS)
                attachment = method.attach(model, "default", SEED)
            assert_learned(by_pairs(model, attachment, task, pool, steps_of(method)), task.objective)


def assert_learned(lines: Sequence[dict[str, Any]], objective: Objective) -> None:
    """Fail unless every step had a loss and a gradient."""
    for line in lines:
        assert math.isfinite(line["loss"]), objective.kind
        assert line["grad_norm"] > 0, objective.kind


def test_every_algorithm_is_refused_for_models_that_do_not_go_on_writing() -> None:
    for kind in ALGORITHMS:
        for model_type in ("bert", "t5"):
            with pytest.raises(RecipeError, match="decoder") as caught:
                check_kind(algorithm(kind), family_of(model_type), model_type)
            assert caught.value.field == "objective.kind"
