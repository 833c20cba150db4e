"""What an algorithm of reinforcement learning owes the rollouts and the loop.

Its rows are prompts; the answers are the model's own. A rollout is the answers to some prompts by one version of the policy,
with what each is worth. The algorithm says what every token of them is to be learned by (`credit`), and turns what the model
says of these tokens into a loss.

Shapes: N targets (tokens of answers), T tokens of an answer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from luthier.generation.engine_settings import AnyEngine, OwnEngine
from luthier.generation.settings import Sampling
from luthier.models.outputs import Outputs
from luthier.objectives.contract import Objective, Sums
from luthier.rlhf.experience import Given, chunks_within, example_of
from luthier.rlhf.policy_losses import clipped, is_clipped
from luthier.rlhf.rewards import Reward
from luthier.rlhf.samples import Sample
from luthier.types import Example, Gives, ModelKind, Origin, Part, Rendered, Targets, fault_at

_WORTH = 1e9
"""What imagined answers are worth: more than any bound that a recipe sets."""

OLD, REFERENCE, ADVANTAGE, ENGINE = "old", "reference", "advantage", "engine"
"""What targets come with: log p under the policy that wrote them, and under the reference; the advantage; log p as the engine that
drew them told it, in a rollout's first step alone, whose policy is the one that drew."""


class RolloutObjective(Objective):
    """An objective whose answers the model writes itself.

    asks_critic: whether it hears a critic, which trains beside the policy. keeps_groups: whether the loss needs all answers to a
    prompt at once. compares: whether an answer is measured against the others to its prompt alone, so that equal ones teach nothing.
    """

    loss_unit: ClassVar[str] = "policy loss per token"
    targets_are: ClassVar[str] = "tokens of answers"
    takes: ClassVar[Gives] = "prompts"
    kinds: ClassVar[tuple[ModelKind, ...]] = ("decoder",)
    learns_ends: ClassVar[bool] = False
    is_likelihood: ClassVar[bool] = False
    asks_critic: ClassVar[bool] = False
    keeps_groups: ClassVar[bool] = False
    compares: ClassVar[bool] = False

    rewards: Annotated[tuple[Reward, ...], Field(min_length=1)] = Field(
        description="What an answer is worth: the weighted sum of these.",
        examples=[[{"grader": {"type": "number", "reference": "{{ item.answer }}"}}]],
    )
    num_answers: int = Field(8, ge=1, description="How many answers to each prompt are drawn.")
    max_new_tokens: int = Field(128, ge=1, description="Most tokens of an answer.")
    temperature: float = Field(
        1.0, gt=0, le=5, description="τ: what the logits are divided by, in drawing and in learning alike."
    )
    minibatches: int = Field(
        1,
        ge=1,
        description="How many optimizer steps the answers of a rollout are split into; a rollout takes so many times training.rows_per_step prompts.",
    )
    reuse: int = Field(1, ge=1, description="How often each answer is learned from.")
    resample_rounds: int = Field(
        0,
        ge=0,
        le=64,
        description="DAPO's dynamic sampling: prompts whose answers are all worth the same are replaced by the next ones up to so many times a rollout; 0 keeps them.",
    )
    unended_penalty: float = Field(
        0.0, ge=0, description="Taken from the reward of an answer that was cut off at max_new_tokens."
    )
    entropy_bonus: float = Field(
        0.0, ge=0, description="What a nat of entropy of the next token's distribution is worth; 0 leaves it alone."
    )

    generation: AnyEngine = Field(
        OwnEngine(), description="Where answers are computed: in the process that trains, or by a running vllm serve."
    )
    watched: tuple[Reward, ...] = Field(
        (),
        description="Measured and told, but not rewarded: an independent measure that must not fall while the reward rises.",
    )
    stop_on_signs: bool = Field(
        False,
        description="Whether the run stops, its state saved, when the rollouts show that the reward is earned in a way nobody wished.",
    )
    held_out_prompts: int = Field(
        64, ge=1, description="Most held-out prompts that are answered, greedily, at each evaluation."
    )

    @model_validator(mode="after")
    def _rewards_differ(self) -> Self:
        names = [reward.called for reward in (*self.rewards, *self.watched)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise fault_at("objective.rewards", f"Two rewards are called {twice!r}; give each a name.")
        return self

    @model_validator(mode="after")
    def _resamples_what_is_compared(self) -> Self:
        if not self.resample_rounds:
            return self
        if not self.compares:
            raise fault_at(
                "objective.resample_rounds",
                f"{self.kind} does not measure an answer against the others to its prompt alone, so equal ones teach it something; leave "
                "this out, or take grpo, rloo or online-dpo.",
            )
        if self.num_answers < 2:
            raise fault_at(
                "objective.resample_rounds", "With num_answers 1 no prompt's answers differ in worth; draw at least 2."
            )
        return self

    def with_paths(self, found: Callable[[str], str]) -> Self:
        """With the files of reward functions, the runs of reward models, and the engine's files where they are."""
        parts = {"rewards": self.rewards, "watched": self.watched}
        found_parts = {name: tuple(each.with_paths(found) for each in own) for name, own in parts.items()}
        return self.model_copy(update={**found_parts, "generation": self.generation.with_paths(found)})

    # ── prompts ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def longest_text(self, max_length: int) -> int:
        """What data.max_length leaves for the prompt."""
        return max(1, max_length - self.max_new_tokens)

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """The prompt; nothing of it is learned."""
        none = np.zeros(0, dtype=np.int64)
        return Example((Part(rendered.tokens_T),), none, none, np.zeros(0, dtype=np.float32), none, document, origin)

    def imagined(self, prompt: Example) -> Example:
        """The heaviest example that a prompt can lead to: as many answers as there may be, each as long as it may be."""
        return self._imagined(prompt, self._imagined_samples())

    def imagined_within(self, prompt: Example, most_tokens: int) -> list[Example]:
        """The heaviest examples that are learned from a prompt, its answers cut as rollouts cut them for so many tokens."""
        samples = self.learned(self._imagined_samples())
        whole = self.keeps_groups or not samples
        chunks = [list(range(len(samples)))] if whole else chunks_within(prompt, samples, most_tokens)
        return [self._imagined(prompt, [samples[index] for index in chunk]) for chunk in chunks if chunk]

    def _imagined_samples(self) -> list[Sample]:
        """Answers that differ in what they say and are worth."""
        length, said = self.max_new_tokens, np.zeros(self.max_new_tokens, np.float32)
        return [
            Sample(0, 0, "", "", (min(number, 1),) * length, "length", 0, said, reward=_WORTH + number)
            for number in range(self.num_answers)
        ]

    def _imagined(self, prompt: Example, samples: Sequence[Sample]) -> Example:
        given: Given = dict.fromkeys(self.given_names, np.zeros(self.max_new_tokens, np.float32))
        return example_of(prompt, samples, [given] * len(samples), [1.0] * len(samples), prompt.document)

    @property
    def given_names(self) -> tuple[str, ...]:
        """What targets come with."""
        old = (OLD,) if self.needs_old else ()
        return (ADVANTAGE, *old, REFERENCE, ENGINE)

    # ── rollouts ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def steps_per_rollout(self) -> int:
        """How many optimizer steps learn from one rollout."""
        return self.minibatches * self.reuse

    def sampling(self, seed: int) -> Sampling:
        """How answers are drawn: from the policy itself, but for the temperature; anything else would falsify ratios."""
        return Sampling(temperature=self.temperature, seed=seed, max_new_tokens=self.max_new_tokens)

    @property
    def needs_old(self) -> bool:
        """Whether the policy of a step may be another than the one that wrote its answers."""
        return self.steps_per_rollout > 1

    @property
    def needs_reference(self) -> bool:
        """Whether it cannot do without log-probabilities of the reference."""
        return False

    @property
    def models(self) -> tuple[Reward, ...]:
        """Those of the rewards, watched ones among them, that ask reward models."""
        return tuple(each for each in (*self.rewards, *self.watched) if each.runs)

    @property
    def asks_base(self) -> bool:
        """Whether somebody else asks the base as it was before training: the reference, the critic, or a reward model upon it."""
        return self.needs_reference or self.asks_critic or bool(self.models)

    def learned(self, samples: Sequence[Sample]) -> list[Sample]:
        """Which of the answers to one prompt are learned from, in the order in which the loss wants them."""
        return [sample for sample in samples if sample.reward is not None]

    def tells_apart(self, samples: Sequence[Sample]) -> bool:
        """Whether the answers to one prompt are worth different things, and some of them are learned from."""
        return len({sample.reward for sample in samples if sample.reward is not None}) > 1 and bool(
            self.learned(samples)
        )

    @abstractmethod
    def credit(self, samples: Sequence[Sample], kl_weight: float) -> list[Given]:
        """What the tokens of each answer of a rollout are learned by. kl_weight: what the pull to the reference is now worth."""

    def token_weight(self, sample: Sample) -> float:
        """What each token of an answer counts in the loss."""
        return 1.0

    def divisor(self, samples: Sequence[Sample]) -> float:
        """What a step's summed loss is divided by, given the answers that it learns from."""
        return float(sum(self.token_weight(sample) * sample.num_tokens for sample in samples)) or 1.0

    @property
    def kl_start(self) -> float:
        """What the pull to the reference is worth at the start."""
        return 0.0

    def kl_after(self, kl_weight: float, samples: Sequence[Sample]) -> float:
        """What it is worth after a rollout."""
        return kl_weight

    def measured_of(self, given: Sequence[Given]) -> dict[str, float]:
        """What is written down of a rollout, from what its answers are learned by."""
        return {}

    @property
    def most_change(self) -> float | None:
        """The `approx_kl` of a step after which the rest of its rollout is left out; None: never."""
        return None

    # ── losses ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def learned_at(self) -> float:
        """The temperature of the probabilities that the loss is of: that at which answers are drawn, for ratios are between like ones."""
        return self.temperature

    def entropy_share(self, targets: Targets) -> Tensor | float:
        """What a target's entropy counts in the summed loss, before its weight, so that a step has the mean over tokens."""
        return 1.0

    @abstractmethod
    def losses(self, outputs: Outputs) -> Tensor:
        """The loss of each target, before its weight, shape (N,); outputs are at the temperature `learned_at`."""

    def loss_sum(self, outputs: Outputs) -> Tensor:
        """The weighted sum over all targets."""
        outputs = outputs.at(self.learned_at)
        loss_N = self.losses(outputs)
        if self.entropy_bonus:
            loss_N = loss_N - self.entropy_bonus * outputs.entropy_N * self.entropy_share(outputs.targets)
        return (loss_N * outputs.targets.weight_N).sum()

    def measured(self, outputs: Outputs) -> dict[str, Sums]:
        """How far the policy is from the one that wrote the answers and from the reference, and how sure it is.

        entropy: of the next token, estimated by −log p of the tokens that were drawn. kl: of whole answers. engine_gap: between what
        the engine that drew the tokens and the trainer say of them, nats a token. Where the policy that wrote was not read anew by
        the trainer, the engine's numbers stand for its.
        """
        outputs = outputs.at(self.temperature)
        given, logprob_N = outputs.targets.given, outputs.logprob_N.detach()
        count = len(logprob_N)
        found: dict[str, Sums] = {"entropy": (-logprob_N.sum(), count)}
        if ENGINE in given:
            found["engine_gap"] = (logprob_N - given[ENGINE]).abs().sum(), count
        old_N = given.get(OLD, given.get(ENGINE))
        if old_N is not None:
            change_N = logprob_N - old_N
            found["approx_kl"] = change_N.square().sum() / 2, count
            found["ratio"] = change_N.exp().sum(), count
            found |= self.clipping(change_N.exp(), outputs)
        if REFERENCE in given:
            found["kl"] = (logprob_N - given[REFERENCE]).sum(), num_answers_in(outputs)
        return found

    def clipping(self, ratio_N: Tensor, outputs: Outputs) -> dict[str, Sums]:
        """How many tokens the clip leaves without a gradient, where there is a clip."""
        return {}


class ClippedObjective(RolloutObjective):
    """What learns by PPO's clipped ratio."""

    clip: float = Field(0.2, gt=0, lt=1, description="ε: a token's ratio π / π_old counts down to 1 − ε.")
    clip_high: float | None = Field(
        None, gt=0, description="It counts up to 1 + this; unset: as `clip`. 0.28 with clip 0.2 is DAPO's clip-higher."
    )

    approx_kl_stop: float | None = Field(
        None,
        gt=0,
        description="Most nats a token (approx_kl) that the policy may be from the one that wrote; the steps that are left of a rollout in which it is further are left out. Unset: all are taken.",
    )

    @model_validator(mode="after")
    def _has_steps_to_leave_out(self) -> Self:
        if self.approx_kl_stop is not None and self.steps_per_rollout == 1:
            raise fault_at(
                "objective.approx_kl_stop",
                "Each rollout has one step, so that none is left to leave out; raise reuse or minibatches, or leave this out.",
            )
        return self

    @property
    def most_change(self) -> float | None:
        """As `approx_kl_stop` has it."""
        return self.approx_kl_stop

    @property
    def high(self) -> float:
        """How far above 1 a ratio counts."""
        return self.clip if self.clip_high is None else self.clip_high

    def ratio(self, outputs: Outputs) -> Tensor:
        """π / π_old of each token; 1, with the gradient of log π, where the policy wrote the answers itself."""
        old_N = outputs.targets.given.get(OLD, outputs.logprob_N.detach())
        return (outputs.logprob_N - old_N).exp()

    def policy_losses(self, outputs: Outputs) -> Tensor:
        """The clipped loss of each target."""
        return clipped(self.ratio(outputs), outputs.targets.given[ADVANTAGE], self.clip, self.high)

    def losses(self, outputs: Outputs) -> Tensor:
        """The clipped loss of each target, and nothing else."""
        return self.policy_losses(outputs)

    def clipping(self, ratio_N: Tensor, outputs: Outputs) -> dict[str, Sums]:
        """See the base class."""
        lost_N = is_clipped(ratio_N, outputs.targets.given[ADVANTAGE], self.clip, self.high)
        return {"clip_share": (lost_N.float().sum(), len(ratio_N))}


def num_answers_in(outputs: Outputs) -> int:
    """How many answers a micro-batch has targets of."""
    targets = outputs.targets
    most = int(targets.sample_N.max()) + 1 if len(targets.sample_N) else 1
    return len(torch.unique(targets.row_N * most + targets.sample_N))


def for_tokens(
    samples: Sequence[Sample], of_sample: Callable[[int], float]
) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """One number of each answer, for all of its tokens."""
    return [np.full(sample.num_tokens, of_sample(index), dtype=np.float32) for index, sample in enumerate(samples)]


def given_of(
    samples: Sequence[Sample], **columns: Sequence[np.ndarray[tuple[int], np.dtype[np.float32]]]
) -> list[Given]:
    """What each answer's tokens come with: these columns, and the log-probabilities that were asked for."""
    found: list[Given] = []
    for index, sample in enumerate(samples):
        own = {name: column[index].astype(np.float32) for name, column in columns.items()}
        said = {OLD: sample.old_T, REFERENCE: sample.reference_T}
        found.append(own | {name: value for name, value in said.items() if value is not None})
    return found
