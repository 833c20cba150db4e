"""The losses of TRL's trainers on the same log-probabilities: values and gradients."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from near import assert_near
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.rlhf import GRPO, RLOO
from luthier.rlhf.contract import ADVANTAGE, OLD, REFERENCE, RolloutObjective
from luthier.types import Targets

REWARDS = [{"grader": {"type": "length", "most": 5}}]
LENGTHS = (5, 3, 7, 1, 4, 7)
LONGEST = 9


@dataclass
class Said:
    """What a policy says, as an objective reads it."""

    logprob_N: Tensor
    targets: Targets

    def at(self, temperature: float) -> Said:
        return self


def numbers(*shape: int, seed: int, scale: float = 0.3) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


MASK = torch.tensor([[position < length for position in range(LONGEST)] for length in LENGTHS])
OWN, THEN, REF = (numbers(len(LENGTHS), LONGEST, seed=seed) - 1 for seed in range(3))
ADVANTAGES = numbers(len(LENGTHS), seed=3, scale=1.0)


def ours(objective: RolloutObjective, with_old: bool) -> tuple[Tensor, Tensor]:
    """The loss of a step of these answers, two behind each of three prompts, and its gradient."""
    own = OWN.clone().requires_grad_()
    row, sample = torch.arange(len(LENGTHS)) // 2, torch.arange(len(LENGTHS)) % 2
    answers = [SimpleNamespace(num_tokens=length) for length in LENGTHS]
    weights = [objective.token_weight(cast(Any, answer)) for answer in answers]
    given = {
        ADVANTAGE: ADVANTAGES[:, None].expand_as(OWN)[MASK],
        REFERENCE: REF[MASK],
        **({OLD: THEN[MASK]} if with_old else {}),
    }
    wide = [each[:, None].expand_as(OWN)[MASK] for each in (torch.tensor(weights), sample, row)]
    none = torch.zeros(sum(LENGTHS), dtype=torch.int64)
    targets = Targets(none, none, wide[0], wide[1], wide[2], given=given)
    loss = objective.loss_sum(cast(Outputs, Said(own[MASK], targets))) / objective.divisor(cast(Any, answers))
    (gradient,) = torch.autograd.grad(loss, own)
    return loss.detach(), gradient


def of_trl(trainer_class: Any, with_old: bool, **settings: Any) -> tuple[Tensor, Tensor]:
    own = OWN.clone().requires_grad_()
    nothing = torch.zeros(len(LENGTHS), 2, dtype=torch.int64)
    accelerator = SimpleNamespace(
        gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x, num_processes=1
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator, aux_loss_enabled=False, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, importance_sampling_level="token", use_vllm=False, current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST, _entropy_bonus_enabled=False, use_adaptive_entropy=False, beta=0.0, epsilon_low=0.2,
        epsilon_high=0.2, loss_type="dapo", _metrics={"train": defaultdict(list)}, _entropy_window_stats=None,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=True, steps_per_generation=1),
        _get_per_token_logps_and_entropies=lambda *_, **__: (own, torch.zeros_like(own), None),
    )  # fmt: skip
    vars(trainer).update(settings)
    inputs = {
        "prompt_ids": nothing, "prompt_mask": nothing, "completion_ids": torch.zeros_like(OWN).long(),
        "completion_mask": MASK.long(), "advantages": ADVANTAGES, "ref_per_token_logps": REF,
        "old_logps": (THEN * MASK).sum(1) if with_old else (OWN * MASK).sum(1), "num_items_in_batch": MASK.sum(),
        **({"old_per_token_logps": THEN} if with_old else {}),
    }  # fmt: skip
    loss = trainer_class._compute_loss(trainer, None, inputs)
    (gradient,) = torch.autograd.grad(loss, own)
    return loss.detach(), gradient


@pytest.mark.parametrize("with_old", [False, True], ids=["of its own", "of an older policy"])
@pytest.mark.parametrize("kl", [0.0, 0.04])
@pytest.mark.parametrize(
    ("reduction", "loss_type"), [("answer", "grpo"), ("token", "dapo"), ("token", "bnpo"), ("constant", "dr_grpo")]
)
def test_grpo_is_trls(reduction: str, loss_type: str, kl: float, with_old: bool) -> None:
    from trl import GRPOTrainer

    objective = GRPO.model_validate(
        {"rewards": REWARDS, "reduction": reduction, "kl": kl, "clip_high": 0.28, "max_new_tokens": LONGEST}
    )
    found, gradient = ours(objective, with_old)
    expected, theirs = of_trl(GRPOTrainer, with_old, loss_type=loss_type, beta=kl, epsilon_high=0.28)
    assert_near(found, expected)
    assert_near(gradient, theirs)


@pytest.mark.parametrize("with_old", [False, True], ids=["of its own", "of an older policy"])
def test_rloo_is_trls(with_old: bool) -> None:
    from trl import RLOOTrainer

    found, gradient = ours(RLOO.model_validate({"rewards": REWARDS}), with_old)
    expected, theirs = of_trl(RLOOTrainer, with_old)
    assert_near(found, expected)
    assert_near(gradient, theirs)
