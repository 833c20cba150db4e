"""Proximal policy optimization with a critic, as in reinforcement learning from human feedback.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347; for language models Ziegler et al. 2019, https://arxiv.org/abs/1909.08593,
and Ouyang et al. 2022, https://arxiv.org/abs/2203.02155. A token is an action. Its reward is

    r_t = − β log π_old / π_ref,  and on the answer's last token also the answer's own reward

from which generalized advantage estimation with a critic's values makes advantages A_t, whitened over the rollout, and returns G_t:

    loss = mean_t [ max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)) + c_v ½ max((V − G)², (V_old + clip(V − V_old, ±ε_v) − G)²) ]

With `pretraining` the loss also has γ times that of texts of pre-training (PPO-ptx, `pretraining.py`).
With `kl_target` β follows the divergence: β ← β (1 + e n / horizon), e = clip(KL / target − 1, ±0.2), n the answers of a rollout (Ziegler
et al., section 2.2).
Shapes: N targets, T tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from luthier.models.outputs import Outputs, Values
from luthier.objectives.contract import Sums
from luthier.rlhf.advantages import gae, whitened
from luthier.rlhf.contract import ADVANTAGE, ClippedObjective, given_of
from luthier.rlhf.experience import Given
from luthier.rlhf.policy_losses import clipped, is_value_clipped, value_loss
from luthier.rlhf.pretraining import Pretraining, is_pretraining, pretraining_measured, pretraining_sum
from luthier.rlhf.samples import Sample
from luthier.types import Targets

CRITIC = "critic"
VALUE, RETURN = "value", "return"


class PPO(ClippedObjective):
    """Learn from each token's advantage over what a critic expected."""

    asks_critic: ClassVar[bool] = True

    kind: Literal["ppo"] = "ppo"
    num_answers: int = Field(1, ge=1, description="How many answers to each prompt are drawn.")
    reuse: int = Field(4, ge=1, description="How often each answer is learned from.")
    kl: float = Field(0.05, ge=0, description="β: what a nat of log π / π_ref takes from a token's reward.")
    kl_target: float | None = Field(
        None, gt=0, description="Nats of KL(π ‖ π_ref) of an answer that β is moved towards; unset: β stays."
    )
    kl_horizon: int = Field(10_000, ge=1, description="With kl_target: how many answers β takes to follow.")
    gamma: float = Field(1.0, gt=0, le=1, description="γ: what a reward one token later is worth.")
    lam: float = Field(0.95, ge=0, le=1, description="λ of generalized advantage estimation.")
    value_clip: float | None = Field(
        0.2, gt=0, description="ε_v: how far a value may move before it counts no more; null: any."
    )
    value_weight: float = Field(0.1, gt=0, description="c_v: what the critic's loss counts beside the policy's.")
    value_lr_factor: float = Field(1.0, gt=0, description="The critic's learning rate, as a multiple of the policy's.")
    dual_clip: float | None = Field(
        None, gt=1, description="Most that a ratio counts where the advantage is negative; unset: any."
    )
    critic_rank: int = Field(8, ge=1, description="Rank of the critic's own LoRA adapter on the frozen base.")
    whiten_rewards: bool = Field(
        False, description="Divide the tokens' rewards by their standard deviation over the rollout."
    )
    whiten_advantages: bool = Field(True, description="Give the advantages of a rollout mean 0 and variance 1.")

    pretraining: Pretraining | None = Field(
        None, description="PPO-ptx: texts whose loss is added to each step's, against forgetting; unset: none."
    )

    def with_paths(self, found: Callable[[str], str]) -> Self:
        """Also with the texts of pre-training where they are."""
        own = super().with_paths(found)
        if own.pretraining is None:
            return own
        texts = own.pretraining.model_copy(update={"data": found(own.pretraining.data)})
        return own.model_copy(update={"pretraining": texts})

    @property
    def needs_old(self) -> bool:
        """The values are of the policy that wrote the answers in any case."""
        return True

    @property
    def needs_reference(self) -> bool:
        """Whether the reward has a pull to it."""
        return self.kl > 0

    @property
    def kl_start(self) -> float:
        """β."""
        return self.kl

    @property
    def given_names(self) -> tuple[str, ...]:
        """Also the value that was expected, and the return."""
        return (*super().given_names, VALUE, RETURN)

    def kl_after(self, kl_weight: float, samples: Sequence[Sample]) -> float:
        """β as it follows the divergence of the rollout."""
        if self.kl_target is None or not samples:
            return kl_weight
        found = float(np.mean([sample.ratio_T.sum() for sample in samples]))
        error = min(max(found / self.kl_target - 1, -0.2), 0.2)
        return kl_weight * (1 + error * len(samples) / self.kl_horizon)

    def credit(self, samples: Sequence[Sample], kl_weight: float) -> list[Given]:
        """Each token's advantage and return, and the value that was expected there."""
        rewards = [-kl_weight * sample.ratio_T for sample in samples]
        for reward_T, sample in zip(rewards, samples, strict=True):
            reward_T[-1] += sample.reward or 0.0
        if self.whiten_rewards:
            rewards = whitened(rewards, keeps_mean=True)
        values = [_values(sample) for sample in samples]
        found = [
            gae(r_T, v_T.astype(np.float64), self.gamma, self.lam) for r_T, v_T in zip(rewards, values, strict=True)
        ]
        advantages = [advantage_T for advantage_T, _ in found]
        if self.whiten_advantages:
            advantages = whitened(advantages)
        columns = {
            ADVANTAGE: [each.astype(np.float32) for each in advantages],
            RETURN: [return_T.astype(np.float32) for _, return_T in found],
            VALUE: values,
        }
        return given_of(samples, **columns)

    def measured_of(self, given: Sequence[Given]) -> dict[str, float]:
        """1 − Var(G − V) / Var(G) over a rollout's tokens, V as the critic expected them; nothing where all returns are the same."""
        if not given:
            return {}
        return_N, value_N = (
            np.concatenate([own[name] for own in given]).astype(np.float64) for name in (RETURN, VALUE)
        )
        spread = float(return_N.var())
        return {"explained_variance": 1 - float((return_N - value_N).var()) / spread} if spread > 0 else {}

    def policy_losses(self, outputs: Outputs) -> Tensor:
        """The clipped loss of each target, with the dual clip."""
        advantage_N = outputs.targets.given[ADVANTAGE]
        return clipped(self.ratio(outputs), advantage_N, self.clip, self.high, self.dual_clip)

    def losses(self, outputs: Outputs) -> Tensor:
        """The policy's loss and the critic's."""
        return self.policy_losses(outputs) + self.value_weight * self._value_losses(_expected(outputs), outputs.targets)

    def _value_losses(self, value_N: Tensor, targets: Targets) -> Tensor:
        return value_loss(value_N, targets.given[VALUE], targets.given[RETURN], self.value_clip)

    def value_slope(self, value_N: Tensor, targets: Targets) -> Tensor:
        """The derivative of a micro-batch's summed loss by the values, shape (N,)."""
        value_N = value_N.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.value_weight * (self._value_losses(value_N, targets) * targets.weight_N).sum()
        (slope_N,) = torch.autograd.grad(loss, value_N)
        return slope_N

    def loss_sum(self, outputs: Outputs) -> Tensor:
        """The weighted sum over the targets of answers, or over those of texts of pre-training."""
        return pretraining_sum(outputs) if is_pretraining(outputs.targets) else super().loss_sum(outputs)

    def measured(self, outputs: Outputs) -> dict[str, Sums]:
        """Also the critic's loss, its squared error, and how many values the clip holds back; of texts, their loss."""
        if is_pretraining(outputs.targets):
            return pretraining_measured(outputs)
        given = outputs.targets.given
        value_N = _expected(outputs).detach()
        error_N = value_N - given[RETURN]
        count = len(error_N)
        value = {
            "value_loss": (self._value_losses(value_N, outputs.targets).sum(), count),
            "value_error": (error_N.square().sum(), count),
        }
        if self.value_clip is not None:
            held_N = is_value_clipped(value_N, given[VALUE], given[RETURN], self.value_clip)
            value["value_clip_share"] = held_N.float().sum(), count
        return {**super().measured(outputs), **value}


def _values(sample: Sample) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    assert sample.value_T is not None, "ppo asks a critic"
    return sample.value_T


def _expected(outputs: Outputs) -> Tensor:
    said = outputs.beside[CRITIC]
    assert isinstance(said, Values), "a critic says values"
    return said.value_N
