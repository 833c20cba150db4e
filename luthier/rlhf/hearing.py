"""What policy, reference and critic say of answers that are written: the numbers that ratios, pulls and advantages are made of.

Each answer is read behind its prompt, which its group shares, as the trainer reads rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from luthier.data.apart import laid_apart
from luthier.errors import RunMismatch
from luthier.prediction.passes import Passes, Said, said_of_each
from luthier.rlhf.contract import RolloutObjective
from luthier.rlhf.experience import Given, chunks_within, example_of, split_by_sample
from luthier.rlhf.parts import Ear, Policy, Prompts
from luthier.rlhf.samples import Sample, by_group, with_said
from luthier.training.companions import Speaker
from luthier.types import Example, FloatArray

_MOST_APART = {torch.float32: 1e-3}
_MOST_APART_IN_HALF = 0.05

_OTHER_POLICY = (
    "If the run was resumed, its files under rollouts/ may be of another policy: remove those of the steps to come. Otherwise this is a "
    "fault of Luthier's: please report it with the recipe. model.dtype: fp32 may go round it."
)


@dataclass(frozen=True)
class Hearing:
    """Who is heard on a run's answers, and how these are read."""

    objective: RolloutObjective
    prompts: Prompts
    policy: Policy
    ear: Ear
    passes: Passes

    def heard(self, samples: Sequence[Sample], budget: int) -> list[Sample]:
        """The samples with log-probabilities of the policy and of the reference, and values, as far as they are needed.

        budget: most tokens that are read at once.

        Raises: RunMismatch, if writer and trainer are too far apart.
        """
        if self._reads_policy:
            samples = with_said(samples, "old_T", self._own(samples, budget))
            self._check_apart(samples)
        if self.ear.reference is not None:
            samples = with_said(samples, "reference_T", self._said(self.ear.reference, samples, budget))
        if self.ear.values is not None:
            examples, lengths = self._asked(samples, budget)
            samples = with_said(samples, "value_T", split_by_sample(self.ear.values(examples, self.passes), lengths))
        return list(samples)

    @property
    def _reads_policy(self) -> bool:
        """Whether the trainer reads what the policy wrote before it learns from it: where the writer's own numbers are not its."""
        objective, is_heard = self.objective, self.ear.reference is not None
        if objective.needs_old or self.policy.writer.apart is not None:
            return True
        # in half precision the difference between engine and trainer, summed over an answer, would be part of its reward
        is_coarse = objective.kl_start > 0 and self.policy.compute_dtype != torch.float32
        return is_heard and (objective.temperature != 1 or is_coarse)

    @property
    def _most_apart(self) -> float:
        return _MOST_APART.get(self.policy.compute_dtype, _MOST_APART_IN_HALF)

    def check_first(self, measured: Mapping[str, float]) -> None:
        """See that the step that a rollout begins with was taken by the policy that wrote it. measured: its means, by name.

        Raises: RunMismatch, if engine and trainer are too far apart, or the ratio to the policy that wrote is not 1.
        """
        if self.policy.writer.apart is None:
            self._check_gap(measured.get("engine_gap", 0.0))
        ratio = measured.get("ratio", 1.0)
        if abs(ratio - 1) > self._most_apart:
            raise RunMismatch(
                f"The policy wrote these answers itself, but its ratio to the one that wrote them is {ratio:.4g}, not 1.",
                _OTHER_POLICY,
            )

    def _check_gap(self, gap: float) -> None:
        if gap > self._most_apart:
            raise RunMismatch(
                f"The engine that wrote the answers and the trainer give their tokens log-probabilities {gap:.3g} nats apart.",
                _OTHER_POLICY,
            )

    def room(self, prompt: Example, budget: int) -> int:
        """Most tokens of a prompt with answers: as many as are read at once, but room for an answer in any case."""
        attachment = self.policy.attachment
        return max(budget - attachment.num_virtual, prompt.num_part_tokens + self.objective.max_new_tokens)

    def fitting(self, example: Example) -> Example:
        """As the model's family reads answers that share a prompt."""
        return laid_apart(example) if self.policy.model.layout == "bucketed" else example

    def _own(self, samples: Sequence[Sample], budget: int) -> list[FloatArray]:
        return self._said(Speaker(self.policy.model, self.policy.attachment.adapter), samples, budget)

    def _check_apart(self, samples: Sequence[Sample]) -> None:
        """Raise RunMismatch if trainer and engine do not say the same of the tokens: every ratio would then be false."""
        gaps = [np.abs(sample.old_T - sample.engine_T) for sample in samples if sample.old_T is not None]
        gap = float(np.mean(np.concatenate(gaps)))
        apart = self.policy.writer.apart
        if apart is not None:
            apart.check(gap, self.objective.temperature)
        else:
            self._check_gap(gap)

    def _asked(self, samples: Sequence[Sample], budget: int) -> tuple[list[Example], list[list[int]]]:
        """The answers behind their prompts, as examples, and how long each one's answers are."""
        examples: list[Example] = []
        lengths: list[list[int]] = []
        for group in by_group(samples):
            prompt = self.prompts.examples[group[0].row]
            for chunk in chunks_within(prompt, group, self.room(prompt, budget)):
                chosen = [group[index] for index in chunk]
                none: list[Given] = [{} for _ in chosen]
                examples.append(self.fitting(example_of(prompt, chosen, none, [1.0] * len(chosen), len(examples))))
                lengths.append([sample.num_tokens for sample in chosen])
        return examples, lengths

    def _said(self, speaker: Speaker, samples: Sequence[Sample], budget: int) -> list[FloatArray]:
        """log p of each answer's tokens, at the temperature."""
        examples, lengths = self._asked(samples, budget)
        temperature = self.objective.temperature

        def say(outputs: Any) -> Said:
            return outputs.at(temperature).logprob_N, outputs.targets.row_N

        said = said_of_each(speaker.model, speaker.adapter, examples, say, self.passes, "reading answers")
        return split_by_sample([each.float().numpy() for each in said], lengths)
