"""The critic's gradient is taken at once, and is that of the whole loss all the same."""

from __future__ import annotations

import numpy as np
import torch
from models.tiny import tiny_model
from near import assert_near
from torch import Tensor

from luthier.data.packing import collate
from luthier.rlhf import PPO
from luthier.rlhf.contract import ADVANTAGE, OLD, REFERENCE
from luthier.rlhf.critic import Critic
from luthier.rlhf.experience import Given, example_of
from luthier.rlhf.policy_losses import value_loss
from luthier.rlhf.ppo import RETURN, VALUE
from luthier.rlhf.samples import Sample
from luthier.types import Batch, Example, Origin, Rendered

PROMPT_LENGTH, LENGTHS = 6, (4, 2, 5)


def objective_and_batch() -> tuple[PPO, Example, Batch]:
    objective = PPO.model_validate({"rewards": [{"grader": {"type": "length", "most": 5}}], "value_clip": 0.2})
    prompt = objective.example(
        Rendered(np.arange(5, 5 + PROMPT_LENGTH), np.zeros(PROMPT_LENGTH, np.float32)), 0, Origin("p", 1)
    )
    draw = np.random.default_rng(0)
    samples, given = [], list[Given]()
    for length in LENGTHS:
        tokens = tuple(int(token) for token in draw.integers(3, 60, length))
        samples.append(Sample(0, 0, "", "", tokens, "stop", 0, np.zeros(length, np.float32), reward=0.0))
        names = (ADVANTAGE, OLD, REFERENCE, VALUE, RETURN)
        given.append({name: draw.normal(size=length).astype(np.float32) for name in names})
    example = example_of(prompt, samples, given, [1.0, 0.5, 2.0], 0)
    return objective, example, collate([example], "packed", pad_id=0)


def test_the_gradient_that_is_settled_at_once_is_that_of_the_whole_loss() -> None:
    objective, example, batch = objective_and_batch()
    critic = Critic(tiny_model("llama"), 2, 1, {0: example}, objective.value_slope)
    tensors = [tensor for group in critic.groups for tensor in group.tensors.values()]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))

    def gradients(value_N: Tensor) -> tuple[Tensor, ...]:
        given = batch.targets.given
        loss_N = value_loss(value_N, given[VALUE], given[RETURN], objective.value_clip)
        loss = 3 * objective.value_weight * (loss_N * batch.targets.weight_N).sum()
        return torch.autograd.grad(loss, tensors)

    whole = critic.values(critic.speaker.of_batch(batch))
    settled = critic.say(batch).value_N
    assert torch.equal(settled, whole)
    for found, expected in zip(gradients(settled), gradients(whole), strict=True):
        assert expected.abs().max() > 0
        assert_near(found, expected)
    with torch.no_grad():
        assert torch.equal(critic.say(batch).value_N, whole)


def test_a_critic_that_is_right_has_no_gradient() -> None:
    _, example, batch = objective_and_batch()
    critic = Critic(tiny_model("llama"), 2, 1, {0: example}, lambda value_N, targets: torch.zeros_like(value_N))
    (gradient,) = torch.autograd.grad(critic.say(batch).value_N.sum() * 0, [critic.bias])
    assert float(gradient) == 0
