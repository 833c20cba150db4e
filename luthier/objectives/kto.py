"""KTO: learn from single answers that are said to be good or bad, rather than from pairs.

Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, equations 7 and 8. With r = log π(y|x) − log π_ref(y|x) summed over the answer's
tokens, the loss of a row is

    λ_D (1 − σ(β (r − z₀)))   of a good answer,        λ_U (1 − σ(β (z₀ − r)))   of a bad one,

the mean over the step's rows. z₀ is an estimate of KL(π ‖ π_ref) that has no gradient: the mean of r over the step for answers that
belong to other prompts, at least 0. Each row brings one such answer, that of the row before it in the data, behind its own prompt;
its tokens beyond data.max_length are left out. As z₀ is of the whole step, the loss does not depend on how it is cut into micro-batches.
Shapes: M rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.objectives.contract import Companion, JointObjective, Objective, Sums, Whole
from luthier.objectives.preference import REFERENCE, answers_example, reference_logprobs, sums_by_sample
from luthier.objectives.sft import SFT
from luthier.types import Example, Gives, ModelKind, Origin, Part, Rendered

OWN, OTHER = 0, 1
"""The samples of a row: its own answer, and one that belongs to another prompt."""


def kto(ratio_M: Tensor, is_good_M: Tensor, kl: Tensor, beta: float, desirable: float, undesirable: float) -> Tensor:
    """The loss of each row, shape (M,), from log π / π_ref of its answer.

    kl: z₀, shape (), without gradient. desirable, undesirable: λ_D and λ_U.
    """
    good_M = desirable * (1 - torch.sigmoid(beta * (ratio_M - kl)))
    bad_M = undesirable * (1 - torch.sigmoid(beta * (kl - ratio_M)))
    return torch.where(is_good_M, good_M, bad_M)


def divergence(ratio_M: Tensor) -> Tensor:
    """z₀ from log π / π_ref of answers that belong to other prompts, shape ()."""
    return ratio_M.detach().mean().clamp(min=0)


class KTO(JointObjective):
    """Write more like what was called good, and less like what was called bad."""

    loss_unit: ClassVar[str] = "per answer"
    targets_are: ClassVar[str] = "tokens of answers"
    takes: ClassVar[Gives] = "verdicts"
    kinds: ClassVar[tuple[ModelKind, ...]] = ("decoder",)
    is_likelihood: ClassVar[bool] = False
    needs_others: ClassVar[bool] = True

    kind: Literal["kto"] = "kto"
    beta: float = Field(
        0.1, gt=0.0, description="β: how much a nat of log π / π_ref is worth; the larger, the nearer the model stays."
    )
    desirable_weight: float = Field(
        1.0,
        gt=0.0,
        description="λ_D: weight of good answers. With n_D good and n_U bad rows, λ_D n_D / (λ_U n_U) from 1 to 4/3 is advised.",
    )
    undesirable_weight: float = Field(1.0, gt=0.0, description="λ_U: weight of bad answers.")

    @property
    def companions(self) -> tuple[Companion, ...]:
        """The reference."""
        return (Companion(REFERENCE, None, "objective.kind"),)

    @property
    def alone(self) -> Objective:
        """The plain loss of the answers, good and bad."""
        return SFT()

    def beside_other(self, example: Example, other: Example, longest: int) -> Example:
        """The row with the answer of the row before it behind its own prompt; one with the same answer is its own stand-in."""
        prompt, own = (part.tokens_T for part in example.parts)
        answer = other.parts[1].tokens_T[: max(1, longest - len(prompt))]
        if np.array_equal(answer, own):
            return example
        at_K = other.source_N + 1 - len(other.parts[0].tokens_T)
        at_K = at_K[at_K < len(answer)]
        source_K = np.where(at_K == 0, len(prompt) - 1, len(prompt) + len(own) + at_K - 1)
        more = len(at_K)
        assert example.value_N is not None, "rows of kto have a verdict"
        return replace(
            example,
            parts=(*example.parts, Part(answer, parent=0)),
            source_N=np.concatenate([example.source_N, source_K]),
            token_N=np.concatenate([example.token_N, answer[at_K]]),
            weight_N=np.concatenate([example.weight_N, np.zeros(more, dtype=np.float32)]),
            sample_N=np.concatenate([example.sample_N, np.full(more, OTHER, dtype=np.int64)]),
            value_N=np.concatenate([example.value_N, np.full(more, example.value_N[0], dtype=np.float32)]),
        )

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """The prompt and the answer behind it, as two parts; every target has the verdict as its number."""
        example = answers_example((rendered,), document, origin)
        return replace(example, value_N=np.full(example.num_learned, rendered.score, dtype=np.float32))

    def whole(self, outputs: Outputs) -> Whole:
        """Of each row log π and log π_ref of its own answer, log π / π_ref of the other one, and whether its own is good."""
        targets = outputs.targets
        assert targets.value_N is not None, "rows of kto have a verdict"
        policy_MS, count_MS = sums_by_sample(outputs.logprob_N, targets, 2)
        reference_MS, _ = sums_by_sample(reference_logprobs(outputs), targets, 2)
        has_other_M = count_MS[:, OTHER] > 0
        other_M = torch.where(has_other_M, policy_MS[:, OTHER], policy_MS[:, OWN]).detach()
        other_ref_M = torch.where(has_other_M, reference_MS[:, OTHER], reference_MS[:, OWN])
        first_M = torch.searchsorted(targets.row_N, torch.arange(targets.num_rows, device=targets.row_N.device))
        columns = (policy_MS[:, OWN], reference_MS[:, OWN], other_M - other_ref_M, targets.value_N[first_M])
        rows_M = torch.arange(targets.num_rows, device=targets.row_N.device)
        return Whole(torch.stack(columns, dim=1), rows_M, torch.zeros_like(rows_M))

    def joint_loss(self, whole: Whole) -> Tensor:
        """The rows' losses, summed."""
        ratio_M, kl, is_good_M = self._of(whole)
        return kto(ratio_M, is_good_M, kl, self.beta, self.desirable_weight, self.undesirable_weight).sum()

    def measured_jointly(self, whole: Whole) -> dict[str, Sums]:
        """z₀, the rewards β r of good and of bad answers, and how often a good one's is above 0 and a bad one's below (a tie counts half)."""
        ratio_M, kl, is_good_M = self._of(whole)
        reward_M = self.beta * ratio_M
        right_M = (torch.where(is_good_M, ratio_M, -ratio_M).sign() + 1) / 2
        found: dict[str, Sums] = {"kl": (kl, 1), "reward_accuracy": (right_M.sum(), len(right_M))}
        for name, is_one_M in (("chosen_reward", is_good_M), ("rejected_reward", ~is_good_M)):
            if bool(is_one_M.any()):
                found[name] = reward_M[is_one_M].sum(), int(is_one_M.sum())
        return found

    def _of(self, whole: Whole) -> tuple[Tensor, Tensor, Tensor]:
        """log π / π_ref of the rows' own answers, z₀, and which are good."""
        policy_M, reference_M, other_M, good_M = whole.vector_MD.unbind(dim=1)
        return policy_M - reference_M, divergence(other_M), good_M > 0.5
