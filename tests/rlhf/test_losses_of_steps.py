"""What a step's loss comes to, and what is measured beside it, over targets whose distributions are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.rlhf import GRPO, PPO, RAFT, RLOO, OnlineDPO, ReinforcePlusPlus
from luthier.rlhf.contract import ADVANTAGE, ENGINE, REFERENCE, RolloutObjective
from luthier.rlhf.policy_losses import is_value_clipped, value_loss
from luthier.rlhf.samples import Sample
from luthier.types import Targets

REWARDS = [{"grader": {"type": "length", "most": 5}}]
LENGTHS = (2, 5, 3, 4)
"""Of two answers to each of two prompts."""


@dataclass(frozen=True)
class Known:
    """What a model says of targets, from its logits. Shape: N targets, V words."""

    logits_NV: Tensor
    targets: Targets
    temperature: float = 1.0

    def at(self, temperature: float) -> Known:
        return replace(self, temperature=temperature)

    @property
    def logprob_NV(self) -> Tensor:
        return (self.logits_NV / self.temperature).log_softmax(-1)

    @property
    def logprob_N(self) -> Tensor:
        return self.logprob_NV.gather(-1, self.targets.token_N[:, None])[:, 0]

    @property
    def entropy_N(self) -> Tensor:
        return -(self.logprob_NV.exp() * self.logprob_NV).sum(-1)


def known(logits_NV: Tensor, **given: Tensor) -> Outputs:
    count = sum(LENGTHS)
    answers = torch.tensor(LENGTHS)
    sample_N = torch.tensor([0, 1, 0, 1]).repeat_interleave(answers)
    row_N = torch.tensor([0, 0, 1, 1]).repeat_interleave(answers)
    token_N = torch.arange(count) % logits_NV.shape[1]
    zeros = dict.fromkeys((ADVANTAGE, REFERENCE), torch.zeros(count))
    targets = Targets(torch.arange(count), token_N, torch.ones(count), sample_N, row_N, given={**zeros, **given})
    return cast(Outputs, Known(logits_NV, targets))


def algorithm(kind: type[RolloutObjective], **settings: Any) -> RolloutObjective:
    return kind.model_validate({"rewards": REWARDS, **settings})


def answers() -> list[Sample]:
    none = np.zeros(max(LENGTHS), np.float32)
    return [Sample(0, 0, "", "", (1,) * length, "stop", 0, none[:length], reward=1.0) for length in LENGTHS]


@pytest.mark.parametrize("kind", [GRPO, RLOO, ReinforcePlusPlus, RAFT, OnlineDPO])
def test_a_nat_of_entropy_is_worth_the_same_whatever_is_learned_and_however_long_answers_are(
    kind: type[RolloutObjective],
) -> None:
    logits_NV = torch.tensor([2.0, 0.0, -1.0, 0.5]).repeat(sum(LENGTHS), 1)
    outputs = known(logits_NV)
    entropy = float(outputs.entropy_N[0])
    plain, with_bonus = (algorithm(kind, entropy_bonus=bonus) for bonus in (0.0, 0.25))
    gained = (plain.loss_sum(outputs) - with_bonus.loss_sum(outputs)) / plain.divisor(answers())
    assert float(gained) == pytest.approx(0.25 * entropy, rel=1e-5)


def test_rejection_sampling_learns_the_model_itself_at_whatever_temperature_it_drew() -> None:
    outputs = known(torch.randn(sum(LENGTHS), 6, generator=torch.Generator().manual_seed(1)))
    for temperature in (0.5, 1.0, 2.0):
        loss = algorithm(RAFT, temperature=temperature).loss_sum(outputs)
        torch.testing.assert_close(loss, -outputs.logprob_N.sum())


def test_the_gap_to_the_engine_is_measured_at_the_temperature_and_stands_for_a_policy_that_nobody_read() -> None:
    logits_NV = torch.randn(sum(LENGTHS), 6, generator=torch.Generator().manual_seed(2))
    told_N = known(logits_NV).at(0.7).logprob_N - 0.125
    found = algorithm(GRPO, temperature=0.7).measured(known(logits_NV, **{ENGINE: told_N}))
    means = {name: float(total) / count for name, (total, count) in found.items()}
    assert means["engine_gap"] == pytest.approx(0.125, rel=1e-5)
    assert means["ratio"] == pytest.approx(float(np.exp(0.125)), rel=1e-5)
    assert means["approx_kl"] == pytest.approx(0.125**2 / 2, rel=1e-4)
    assert means["clip_share"] == 0
    assert "engine_gap" not in algorithm(GRPO).measured(known(logits_NV))


@pytest.mark.parametrize(("error", "explained"), [(0.0, 1.0), (None, 0.0), (0.5, 1.0)])
def test_a_critic_explains_the_share_of_the_variance_that_its_errors_leave(
    error: float | None, explained: float
) -> None:
    """error: of each value, or None for one that expects the same everywhere; a constant error leaves no variance."""
    returns = [np.array([1.0, 2.0], np.float32), np.array([0.0, 4.0, 3.0], np.float32)]
    given = [
        {"return": own, "value": np.full_like(own, 0.7) if error is None else own + np.float32(error)}
        for own in returns
    ]
    assert algorithm(PPO).measured_of(given)["explained_variance"] == pytest.approx(explained, abs=1e-6)
    same = [{"return": np.ones(3, np.float32), "value": np.zeros(3, np.float32)}]
    assert algorithm(PPO).measured_of(same) == {}


def test_values_are_held_back_by_the_clip_just_where_their_loss_has_no_gradient() -> None:
    generator = torch.Generator().manual_seed(3)
    value, old, wanted = (torch.randn(400, generator=generator) for _ in range(3))
    value.requires_grad_()
    value_loss(value, old, wanted, 0.2).sum().backward()
    assert value.grad is not None
    held = is_value_clipped(value.detach(), old, wanted, 0.2)
    torch.testing.assert_close(held, value.grad == 0)
    assert 0 < int(held.sum()) < 400


def test_a_bound_of_change_is_refused_where_every_rollout_has_one_step() -> None:
    with pytest.raises(ValueError, match="none is left to leave out"):
        algorithm(GRPO, approx_kl_stop=0.1)
    assert algorithm(GRPO, approx_kl_stop=0.1, reuse=2).most_change == 0.1
    assert algorithm(PPO).most_change is None


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("kind", [GRPO, RLOO, ReinforcePlusPlus])
def test_the_gradient_for_answers_of_its_own_is_reinforce_at_the_temperature_they_were_drawn_at(
    kind: type[RolloutObjective], temperature: float
) -> None:
    """Σ A ∇(−log π_τ), Williams 1992: ratios are 1, and their gradient is that of log π_τ."""
    generator = torch.Generator().manual_seed(4)
    logits_NV = torch.randn(sum(LENGTHS), 6, generator=generator, requires_grad=True)
    advantage_N = torch.tensor([0.5, -1.0, 2.0, -1.5]).repeat_interleave(torch.tensor(LENGTHS))
    outputs = known(logits_NV, **{ADVANTAGE: advantage_N})
    loss = algorithm(kind, temperature=temperature, kl=0.0).loss_sum(outputs)
    (found_NV,) = torch.autograd.grad(loss, logits_NV)
    (wanted_NV,) = torch.autograd.grad(-(advantage_N * outputs.at(temperature).logprob_N).sum(), logits_NV)
    torch.testing.assert_close(found_NV, wanted_NV)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_loss_of_a_pair_that_the_policy_wrote_is_that_of_dpo(temperature: float) -> None:
    """−log σ(β [(log π(w) − log π_ref(w)) − (log π(l) − log π_ref(l))]), the better answer standing first."""
    generator = torch.Generator().manual_seed(5)
    logits_NV = torch.randn(sum(LENGTHS), 6, generator=generator)
    reference_N = -torch.rand(sum(LENGTHS), generator=generator)
    outputs = known(logits_NV, **{REFERENCE: reference_N})
    ratio_N = (outputs.at(temperature).logprob_N - reference_N).tolist()
    ends = np.cumsum(LENGTHS)
    better_a, worse_a, better_b, worse_b = (
        sum(ratio_N[end - length : end]) for end, length in zip(ends, LENGTHS, strict=True)
    )
    wanted = sum(np.log1p(np.exp(-0.3 * gap)) for gap in (better_a - worse_a, better_b - worse_b))
    online = algorithm(OnlineDPO, beta=0.3, temperature=temperature)
    assert float(online.loss_sum(outputs)) == pytest.approx(wanted, rel=1e-5)
    assert online.divisor(answers()) == 2


@pytest.mark.parametrize("baseline", ["none", "group"])
def test_a_token_s_advantage_is_its_return_beside_those_of_all_tokens(baseline: str) -> None:
    """(A − mean A) / std A with A_t = r − β Σ_{k ≥ t} log π / π_ref, token by token."""
    rng = np.random.default_rng(6)
    samples = []
    for index, length in enumerate(LENGTHS):
        engine_T, reference_T = (-rng.random(length).astype(np.float32) for _ in range(2))
        one = Sample(index // 2, index // 2, "", "", (1,) * length, "stop", 0, engine_T, reward=float(rng.random()))
        samples.append(replace(one, reference_T=reference_T))
    rewards = [sample.reward or 0.0 for sample in samples]
    if baseline == "group":
        rewards = [reward - np.mean(rewards[2 * (i // 2) : 2 * (i // 2) + 2]) for i, reward in enumerate(rewards)]
    returns = [
        [reward - 0.2 * sum(float(sample.ratio_T[k]) for k in range(t, n)) for t in range(n)]
        for sample, reward, n in zip(samples, rewards, LENGTHS, strict=True)
    ]
    flat = np.concatenate(returns)
    given = algorithm(ReinforcePlusPlus, baseline=baseline, kl=0.2).credit(samples, 0.2)
    for own, wanted in zip(given, returns, strict=True):
        np.testing.assert_allclose(own[ADVANTAGE], (np.array(wanted) - flat.mean()) / flat.std(ddof=1), atol=1e-5)
