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
from methods.test_every_objective import ONE_CUT, SEED, Task, model_for, placed
from models.tuned import quiet
from objectives.examples import TASKS, two_answers

from luthier import rewarded
from luthier.data.batches import StepBatches, Steps
from luthier.errors import RecipeError
from luthier.methods import Attachment, Method
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
from luthier.rlhf.rewards import Answer, Worth
from luthier.rlhf.rollouts import Rollouts
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


def step(
    model: LanguageModel,
    attachment: Attachment,
    objective: Objective,
    steps: Steps,
    companions: Companions,
    pool: Workers,
) -> dict[str, Any]:
    """What is written down of one step that the loop takes."""
    lines: list[dict[str, Any]] = []
    saved: list[Checkpoint] = []
    plan = Plan(TrainingSettings(clip_norm=None), SEED, 1, 1e-3, evaluate_every=1, checkpoint_every=1)
    train(model, attachment, objective, steps, plan, Outside(None, saved.append, lines.append, quiet, Path(".")), pool,
          companions=companions)  # fmt: skip
    (line,) = lines
    return line


def by_rewards(
    method: Method,
    model: LanguageModel,
    attachment: Attachment,
    objective: RolloutObjective,
    folder: Path,
    pool: Workers,
) -> dict[str, Any]:
    check_policy(objective, attachment)
    training = SimpleNamespace(fast=SimpleNamespace(lora=True))
    recipe = SimpleNamespace(objective=objective, method=method, seed=SEED, training=training)
    others = others_of(cast(Recipe, recipe), model, attachment, quiet)
    rollouts = Rollouts(
        objective, prompts(objective), Policy(model, others.attachment, frozenset({2})), worth_of,
        Passes(pool, ONE_CUT, silent), Size(2, 1, ONE_CUT), SEED, folder,
        Ear(others.reference, None if others.critic is None else others.critic.of_examples),
    )  # fmt: skip
    companions = Companions({})
    if others.critic is not None:
        others.critic.rows = rollouts.examples
        companions = Companions({CRITIC: others.critic})
    return step(model, others.attachment, objective, rollouts, companions, pool)


def by_pairs(model: LanguageModel, attachment: Attachment, task: Task, pool: Workers) -> dict[str, Any]:
    rows = placed(task, attachment)
    steps = StepBatches(
        rows, rows_per_step=len(rows), tokens_per_step=None, budget=ONE_CUT, workers=1, layout=model.layout,
        pad_id=model.pad_id, seed=SEED, steps=1,
    )  # fmt: skip
    return step(model, attachment, task.objective, steps, task.companions(), pool)


@pytest.mark.parametrize("method", EXAMPLES, ids=lambda method: method.kind)
def test_a_method_takes_a_step_by_every_reward_and_every_pair_or_says_why_not(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = ready(method, "llama", lambda: tmp_path, "words")
    monkeypatch.setattr(rewarded, "load_base_of", lambda recipe, announce: model_for(method, WORDS))
    model = model_for(method, WORDS)
    attachment = method.attach(model, "default", SEED)
    refusal = REFUSED.get(method.kind)
    with Workers(1) as pool:
        for number, kind in enumerate(ALGORITHMS):
            objective = algorithm(kind)
            if refusal is not None:
                with pytest.raises(RecipeError, match=refusal) as caught:
                    by_rewards(method, model, attachment, objective, tmp_path, pool)
                assert caught.value.mend
                continue
            line = by_rewards(method, model, attachment, objective, tmp_path / objective.kind, pool)
            assert math.isfinite(line["loss"]), objective.kind
            assert line["grad_norm"] > 0, objective.kind
            if "ratio" in line:
                assert line["ratio"] == pytest.approx(1, abs=1e-4), objective.kind
            if number == 0:
                assert line["kl"] == pytest.approx(0, abs=1e-4), "nothing was learned before the first step"
        for task in PAIRS:
            line = by_pairs(model, attachment, task, pool)
            assert math.isfinite(line["loss"]), task.objective.kind
            assert line["grad_norm"] > 0, task.objective.kind


def test_every_algorithm_is_refused_for_models_that_do_not_go_on_writing() -> None:
    for kind in ALGORITHMS:
        for model_type in ("bert", "t5"):
            with pytest.raises(RecipeError, match="decoder") as caught:
                check_kind(algorithm(kind), family_of(model_type), model_type)
            assert caught.value.field == "objective.kind"
