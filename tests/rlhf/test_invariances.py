"""What changes nothing: shifts of rewards and critics, prices that are too high, steps that are too small."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from rollout_desk import write_desk
from safetensors.torch import load_file
from tiny_runs import begin, course, one_thread, recipe_values
from torch import Tensor

from bench import toys
from luthier.models.outputs import Outputs, Values
from luthier.rlhf import PPO
from luthier.rlhf.contract import ADVANTAGE, OLD
from luthier.rlhf.experience import Given
from luthier.rlhf.ppo import CRITIC, RETURN, VALUE
from luthier.rlhf.samples import Sample
from luthier.types import Targets

# ── shifts ──────────────────────────────────────────────────────────────────────────────────────────────────────────

LENGTHS = (1, 3, 6, 2)
SHIFT = 2.5


def ppo(**settings: Any) -> PPO:
    return PPO.model_validate({"rewards": [{"grader": {"type": "length", "most": 5}}], **settings})


def samples(reward_shift: float = 0.0, value_shift: float = 0.0) -> list[Sample]:
    """Answers with rewards, log-probabilities and values of their own."""
    draw = np.random.default_rng(3)
    made = []
    for number, length in enumerate(LENGTHS):
        own_T, reference_T, value_T = (draw.standard_normal(length).astype(np.float32) for _ in range(3))
        reward = float(draw.standard_normal()) + reward_shift
        made.append(
            Sample(
                number, number, "", "", (1,) * length, "stop", 0, own_T, reward, old_T=own_T, reference_T=reference_T,
                value_T=value_T + np.float32(value_shift),
            )
        )  # fmt: skip
    return made


@dataclass(frozen=True)
class Said:
    """What a policy and its critic say, as the loss reads it."""

    logprob_N: Tensor
    targets: Targets
    beside: dict[str, Values] = field(default_factory=dict)

    def at(self, temperature: float) -> Said:
        return self


def joined(given: list[Given], name: str) -> Tensor:
    return torch.from_numpy(np.concatenate([own[name] for own in given]))


def loss_of(objective: PPO, given: list[Given], value_shift: float) -> Tensor:
    """The loss of a step by a policy and a critic that have moved since."""
    count = sum(LENGTHS)
    policy_N, critic_N = (0.3 * torch.randn(count, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    none = torch.zeros(count, dtype=torch.int64)
    names = (ADVANTAGE, OLD, VALUE, RETURN)
    targets = Targets(none, none, torch.ones(count), none, none, given={name: joined(given, name) for name in names})
    said = Said(joined(given, OLD) + policy_N, targets, {CRITIC: Values(critic_N + value_shift)})
    return objective.loss_sum(cast(Outputs, said))


@pytest.mark.parametrize("whitens", [True, False])
@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_rewards_and_critic_that_are_shifted_alike_leave_the_whole_loss(lam: float, whitens: bool) -> None:
    """At γ = 1 with the reward on the last token: every δ_t is as it was, so A is, and G moves as V does."""
    objective = ppo(lam=lam, whiten_advantages=whitens)
    plain, shifted = (objective.credit(samples(shift, shift), 0.1) for shift in (0.0, SHIFT))
    torch.testing.assert_close(joined(shifted, ADVANTAGE), joined(plain, ADVANTAGE), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(joined(shifted, RETURN), joined(plain, RETURN) + SHIFT, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss_of(objective, shifted, SHIFT), loss_of(objective, plain, 0.0), rtol=1e-5, atol=1e-5)


def test_where_later_rewards_are_worth_less_such_a_shift_costs_every_token_that_another_follows() -> None:
    """A_t changes by − (1 − γ) c Σ_{k < T − t} (γλ)^k: δ_t keeps (γ − 1) c but on the last token."""
    objective = ppo(gamma=0.9, lam=0.8, whiten_advantages=False)
    plain, shifted = (objective.credit(samples(shift, shift), 0.1) for shift in (0.0, SHIFT))
    expected = [-0.1 * SHIFT * sum(0.72**k for k in range(length - 1 - t)) for length in LENGTHS for t in range(length)]
    changed = joined(shifted, ADVANTAGE) - joined(plain, ADVANTAGE)
    torch.testing.assert_close(changed, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shifts", [(SHIFT, 0.0), (0.0, SHIFT)], ids=["rewards", "critic"])
def test_a_shift_of_one_alone_goes_in_whitening_where_lambda_is_one_and_only_there(
    shifts: tuple[float, float],
) -> None:
    """At γ = λ = 1 A_t = R_t − V_t, which moves by the same number everywhere; else by more the nearer the end is."""
    for lam, stays in ((1.0, True), (0.9, False)):
        plain, shifted = (ppo(lam=lam).credit(samples(*each), 0.1) for each in ((0.0, 0.0), shifts))
        is_same = torch.allclose(joined(shifted, ADVANTAGE), joined(plain, ADVANTAGE), atol=1e-5)
        assert is_same == stays


# ── prices and steps ────────────────────────────────────────────────────────────────────────────────────────────────


def divergence_in(kind: str, beta: float, monkeypatch: pytest.MonkeyPatch) -> float:
    """KL(π ‖ π_ref) of what learns for a few steps that one of four words is worth something."""
    environment = replace(toys.ENVIRONMENTS["one of four"], beta=beta)
    with monkeypatch.context() as patched, one_thread():
        patched.setitem(toys.ENVIRONMENTS, "one of four", environment)
        found = toys.solve("one of four", kind, seed=0, steps=15)
    return float((found["reward"] - found["value"]) / beta)


@pytest.mark.parametrize("kind", ["rloo", "grpo", "ppo"])
def test_a_high_price_of_divergence_holds_the_policy_at_the_reference(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert divergence_in(kind, 100.0, monkeypatch) < 1e-3


def test_a_low_price_of_divergence_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert divergence_in("rloo", 0.01, monkeypatch) > 0.1


KINDS: dict[str, dict[str, Any]] = {
    "ppo": {"minibatches": 2, "reuse": 2, "num_answers": 1},
    "grpo": {"kl": 0.1, "minibatches": 2, "reuse": 2},
    "rloo": {"minibatches": 2, "reuse": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_steps_below_what_a_number_can_hold_leave_every_weight_and_every_ratio_at_one(
    kind: str, tmp_path: Path
) -> None:
    desk = write_desk(tmp_path)
    values = recipe_values(
        desk / "model", desk / "rows.jsonl", method={"kind": "full", "rank": None}, data={"max_length": 64},
        training={"peak_lr": 1e-60, "rows_per_step": 2, "tokens_per_micro_batch": 128},
    )  # fmt: skip
    rewards = {"rewards": [{"function": str(desk / "vowels.py")}], "max_new_tokens": 6, "num_answers": 2}
    begin({**values, "objective": {"kind": kind, **rewards, **KINDS[kind]}}, tmp_path / "run")
    lines = course(tmp_path / "run")
    assert len(lines) == 6
    for line in lines:
        assert line["ratio"] == pytest.approx(1, abs=1e-5)
        assert line["kl"] == pytest.approx(0, abs=1e-5)
        assert line["clip_share"] == 0
        assert line["grad_norm"] > 0
    before, after = (
        {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}
        for folder in (desk / "model", tmp_path / "run" / "model")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
