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

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from luthier.errors import DataError
from luthier.models.outputs import Outputs
from luthier.objectives.contract import Companion, JointObjective, Objective, Sums, Whole
from luthier.objectives.preference import REFERENCE, answers_example, reference_logprobs, sums_by_sample
from luthier.objectives.sft import SFT
from luthier.types import Example, Gives, ModelKind, Origin, Rendered

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

    takes: ClassVar[Gives] = "verdicts"
    kinds: ClassVar[tuple[ModelKind, ...]] = ("decoder",)
    is_likelihood: ClassVar[bool] = False

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

    def beside_others(self, rendered: Mapping[int, Rendered], longest: int) -> dict[int, Rendered]:
        """Each row with the answer of the row before it behind its own prompt. Raises: DataError for a single row."""
        if len(rendered) == 1:
            raise DataError("There is a single row, and kto compares rows.", "Give at least two.", field="data.train")
        numbers = list(rendered)
        before = dict(zip(numbers, [*numbers[-1:], *numbers[:-1]], strict=True))
        return {
            number: replace(row, beside=(_swapped(row, rendered[before[number]], longest),))
            for number, row in rendered.items()
        }

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """The prompt with its own answer and another's; every target has the verdict as its number."""
        own, other = rendered.texts
        example = (
            answers_example((own, other), document, origin)
            if not np.array_equal(own.tokens_T, other.tokens_T)
            else answers_example((own,), document, origin)  # two rows with the same answer: it is its own stand-in
        )
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


def _swapped(row: Rendered, other: Rendered, longest: int) -> Rendered:
    """The row's prompt with the other's answer behind it, of so many tokens at most, but one token of the answer at least."""
    prompt, answer = (int(np.argmax(each.weight_T > 0)) for each in (row, other))
    kept = slice(answer, answer + max(1, longest - prompt))
    return Rendered(
        np.concatenate([row.tokens_T[:prompt], other.tokens_T[kept]]),
        np.concatenate([row.weight_T[:prompt], other.weight_T[kept]]),
    )
