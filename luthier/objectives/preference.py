"""What objectives have in common that learn which of two answers is better.

A row is a prompt and two answers. In a packed row the prompt stands once, and both answers go on from it; what is summed for
each answer are the log-probabilities of its own tokens, its end among them.
Shapes: N targets, B pairs, S samples of a row.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from luthier.errors import DataError
from luthier.models.outputs import KnownLogprobs, Outputs
from luthier.objectives.contract import Companion, Objective, Sums
from luthier.objectives.sft import SFT
from luthier.ops.prefixes import common_prefix
from luthier.types import Example, Gives, IntArray, ModelKind, Origin, Part, Rendered, Targets

CHOSEN, REJECTED, PROMPT = 0, 1, 2
"""The samples of a row: both answers, and the prompt where it is learned too."""
REFERENCE = "reference"


@dataclass(frozen=True)
class Pairs:
    """log p of the better and the worse answers (nats, summed over each one's tokens), and how many tokens they have; all (B,)."""

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor

    def means(self) -> Pairs:
        """The same by the token: log p over the number of tokens."""
        ones_B = torch.ones_like(self.chosen_tokens_B)
        chosen_B, rejected_B = self.chosen_B / self.chosen_tokens_B, self.rejected_B / self.rejected_tokens_B
        return Pairs(chosen_B, rejected_B, ones_B, ones_B)

    def over(self, reference: Pairs) -> Pairs:
        """log p / p_ref, of the same answers."""
        chosen_B, rejected_B = self.chosen_B - reference.chosen_B, self.rejected_B - reference.rejected_B
        return Pairs(chosen_B, rejected_B, self.chosen_tokens_B, self.rejected_tokens_B)

    def times(self, factor: float) -> Pairs:
        """The same, each log p times a number."""
        tokens = self.chosen_tokens_B, self.rejected_tokens_B
        return Pairs(factor * self.chosen_B, factor * self.rejected_B, *tokens)

    @property
    def gap_B(self) -> Tensor:
        """How much likelier the better answer is."""
        return self.chosen_B - self.rejected_B


def sums_by_sample(logprob_N: Tensor, targets: Targets, num_samples: int) -> tuple[Tensor, Tensor]:
    """Σ log p of each row's samples, and how many targets each has, both fp32, shape (B, S)."""
    place_N = targets.row_N * num_samples + targets.sample_N
    zeros = torch.zeros(targets.num_rows * num_samples, device=logprob_N.device)
    sum_K = zeros.index_add(0, place_N, logprob_N.float())
    count_K = zeros.index_add(0, place_N, torch.ones_like(logprob_N, dtype=torch.float32))
    return sum_K.view(-1, num_samples), count_K.view(-1, num_samples)


def pairs_of(logprob_N: Tensor, targets: Targets) -> Pairs:
    """A micro-batch's pairs from the log-probabilities of its targets."""
    sum_BS, count_BS = sums_by_sample(logprob_N, targets, PROMPT + 1)
    return Pairs(sum_BS[:, CHOSEN], sum_BS[:, REJECTED], count_BS[:, CHOSEN], count_BS[:, REJECTED])


def reference_logprobs(outputs: Outputs) -> Tensor:
    """What the reference says of the targets' tokens, shape (N,)."""
    said = outputs.beside[REFERENCE]
    assert isinstance(said, Outputs | KnownLogprobs), "the reference is asked for log-probabilities"
    return said.logprob_N


class PreferenceObjective(Objective):
    """An objective over pairs. asks_reference: whether it hears the model as it was before anything trained."""

    loss_unit: ClassVar[str] = "per pair"
    targets_are: ClassVar[str] = "tokens of answers"
    takes: ClassVar[Gives] = "preferences"
    kinds: ClassVar[tuple[ModelKind, ...]] = ("decoder",)
    is_likelihood: ClassVar[bool] = False
    asks_reference: ClassVar[bool] = False

    beta: float

    @property
    def learns_prompts(self) -> bool:
        """Whether the prompt's tokens are targets too, as sample `PROMPT`."""
        return False

    @property
    def companions(self) -> tuple[Companion, ...]:
        """The reference, if it hears one."""
        return (Companion(REFERENCE, None, "objective.kind"),) if self.asks_reference else ()

    @property
    def alone(self) -> Objective:
        """The plain loss of the better answer."""
        return SFT()

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """The prompt with both answers behind it; the better one's tokens have weight 1 together, the worse one's 0.

        Raises: DataError, where an answer has no token left, or both are the same.
        """
        return pair_example(rendered, document, origin, learns_prompt=self.learns_prompts)

    @abstractmethod
    def losses(self, outputs: Outputs) -> Tensor:
        """The loss of each pair, shape (B,)."""

    @abstractmethod
    def rewards(self, outputs: Outputs) -> Pairs:
        """What the model is taken to think of the answers."""

    def loss_sum(self, outputs: Outputs) -> Tensor:
        """The pairs' losses, summed."""
        return self.losses(outputs).sum()

    def row_losses(self, outputs: Outputs) -> Tensor:
        """See the base class."""
        return self.losses(outputs)

    def policy(self, outputs: Outputs) -> Pairs:
        """The pairs under the model that trains."""
        return pairs_of(outputs.logprob_N, outputs.targets)

    def ratios(self, outputs: Outputs) -> Pairs:
        """log π / π_ref of the answers."""
        return self.policy(outputs).over(pairs_of(reference_logprobs(outputs), outputs.targets))

    def measured(self, outputs: Outputs) -> dict[str, Sums]:
        """How often the better answer has the higher reward (a tie counts half), by how much, both rewards, and log p of both.

        With a reference, too, the mean of log π / π_ref over both answers: an estimate of the divergence from it, on the rows' own
        answers.
        """
        rewards, policy = self.rewards(outputs), self.policy(outputs)
        found = {
            "reward_accuracy": (rewards.gap_B.sign() + 1) / 2,
            "reward_margin": rewards.gap_B,
            "chosen_reward": rewards.chosen_B,
            "rejected_reward": rewards.rejected_B,
            "chosen_logprob": policy.chosen_B,
            "rejected_logprob": policy.rejected_B,
        }
        if self.asks_reference:
            ratios = self.ratios(outputs)
            found["kl"] = (ratios.chosen_B + ratios.rejected_B) / 2
        return {name: (each_B.sum(), len(each_B)) for name, each_B in found.items()}


def pair_example(rendered: Rendered, document: int, origin: Origin, *, learns_prompt: bool = False) -> Example:
    """Two answers to one prompt, which stands once. Raises: DataError, where one has no token, or both are the same."""
    chosen, rejected = rendered.texts
    if rejected.share > 0 and rejected.share >= chosen.share:
        raise DataError(
            "The row's first answer is not the better one, as its probability or its votes say.",
            "Turn the answers round, leave ties out, or set objective.kind to reward, which learns from shares.",
            file=origin.file,
            line=origin.line,
        )
    return answers_example((chosen, rejected), document, origin, learns_prompt=learns_prompt)


@dataclass(frozen=True)
class Laid:
    """Several answers behind what they begin with in common. at: for each answer the place of each of its tokens in the example."""

    parts: tuple[Part, ...]
    at: tuple[IntArray, ...]


def laid_behind(tokens: Sequence[IntArray], longest: int) -> Laid:
    """Texts laid out as one, what they begin with in common (at most so many tokens) standing once."""
    shared = common_prefix(tokens, longest)
    starts = shared + np.cumsum([0, *(len(row) - shared for row in tokens[:-1])])
    at = []
    for row, start in zip(tokens, starts, strict=True):
        own_T = np.arange(len(row), dtype=np.int64)
        at.append(np.where(own_T < shared, own_T, start + own_T - shared))
    if not shared:
        return Laid(tuple(Part(row) for row in tokens), tuple(at))
    return Laid((Part(tokens[0][:shared]), *(Part(row[shared:], parent=0) for row in tokens)), tuple(at))


def learned_places(answers: Sequence[Rendered], origin: Origin) -> list[IntArray]:
    """Which of each answer's tokens are its own. Raises: DataError, where one has none."""
    learned = [np.flatnonzero(answer.weight_T > 0) for answer in answers]
    if any(len(at_N) == 0 for at_N in learned):
        raise DataError(
            "One of the row's answers has no token of its own that could be compared.",
            "Give two answers that are not empty, or leave the row out.",
            file=origin.file,
            line=origin.line,
        )
    return learned


def same_answers(origin: Origin) -> DataError:
    """That answers which should differ are the same."""
    return DataError(
        "Both answers of the row are the same, as tokens, so there is nothing to prefer.",
        "Leave the row out; if they differ beyond data.max_length only, raise that.",
        file=origin.file,
        line=origin.line,
    )


def answers_example(
    answers: tuple[Rendered, ...], document: int, origin: Origin, *, learns_prompt: bool = False
) -> Example:
    """Several answers behind what they begin with in common; the tokens of the first have weight 1 together, all others 0.

    Raises: DataError, where one has no token to be learned, or two are the same.
    """
    learned = learned_places(answers, origin)
    tokens = [answer.tokens_T for answer in answers]
    if any(np.array_equal(tokens[0], other) for other in tokens[1:]):
        raise same_answers(origin)
    laid = laid_behind(tokens, min(int(at_N[0]) for at_N in learned))
    sources = [at_T[at_N - 1] for at_T, at_N in zip(laid.at, learned, strict=True)]
    words = [row[at_N] for row, at_N in zip(tokens, learned, strict=True)]
    if learns_prompt:
        start = int(learned[0][0])
        sources.append(laid.at[0][: start - 1])
        words.append(tokens[0][1:start])
    return Example(
        parts=laid.parts,
        source_N=np.concatenate(sources).astype(np.int64),
        token_N=np.concatenate(words).astype(np.int64),
        weight_N=np.concatenate(
            [np.full(len(each), (1 / len(each)) * (k == 0)) for k, each in enumerate(words)]
        ).astype(np.float32),
        sample_N=_numbers([len(each) for each in words], len(answers)),
        document=document,
        origin=origin,
    )


def _numbers(counts: list[int], num_answers: int) -> IntArray:
    """The sample of each target; what comes after the answers is of the prompt."""
    samples = [k if k < num_answers else PROMPT for k in range(len(counts))]
    return np.repeat(np.array(samples, dtype=np.int64), counts)
