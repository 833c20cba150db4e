"""Reward models: give answers numbers that rank them as people did.

Christiano et al. 2017, https://arxiv.org/abs/1706.03741; Ziegler et al. 2019, https://arxiv.org/abs/1909.08593. A head of one number r
reads the last token of prompt and answer (an encoder's first). Of two answers the loss is Bradley and Terry's,

    − p log P(Δ − m) − (1 − p) log (1 − P(Δ − m)),    Δ = r_w − r_l,    P(x) = (1 − ε) σ(x) + ε / 2,

with p the share of those asked who find the first better (1; ½ for a tie), m the row's margin (Touvron et al. 2023,
https://arxiv.org/abs/2307.09288, equation 2) times `margin_weight`, and ε the chance that a label is a guess. Of several answers it is

    pairs           the mean of that over every two (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, equation 1)
    plackett-luce   − Σ_k (r_(k) − log Σ_{j ≥ k} exp r_(j))     (Zhu et al. 2023, https://arxiv.org/abs/2301.11270)
    best-of         − r_best + log Σ_i exp r_i                  (Ziegler et al., equation 1)

which for two are the same. `centre` adds c (r_w + r_l)², because the loss leaves a shift of all scores free. The loss of a step is the
mean over its prompts; all answers to a prompt are of one row, which computes the prompt once.

The target of an answer: its source is the token that the head reads, its token the answer's place (0 is the best), its weight the
share of those who find it the best, its number the margin.
Shapes: N answers of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from luthier.errors import DataError
from luthier.models.heads import ClassHead
from luthier.models.outputs import Outputs
from luthier.objectives.contract import Objective, Sums
from luthier.objectives.pooling import apart, pooled_at
from luthier.objectives.preference import laid_behind, learned_places, same_answers
from luthier.objectives.ranking import all_pairs, best_of, centring, compared, plackett_luce, ranked_of
from luthier.objectives.regression import SCORE
from luthier.types import Example, Gives, ModelKind, Origin, Rendered, Targets, fault_at


class Reward(Objective):
    """Learn to give answers numbers that rank them as people did."""

    writes: ClassVar[bool] = False
    is_likelihood: ClassVar[bool] = False
    learns_ends: ClassVar[bool] = False
    takes: ClassVar[Gives] = "rankings"
    kinds: ClassVar[tuple[ModelKind, ...]] = ("decoder", "encoder")
    loss_unit: ClassVar[str] = "nats per prompt"
    targets_are: ClassVar[str] = "ranked answers"

    kind: Literal["reward"] = "reward"
    ranking: Literal["pairs", "plackett-luce", "best-of"] = Field(
        "pairs",
        description="The loss of rows with more than two answers: every two, the whole order, or the best alone.",
    )
    label_noise: float = Field(
        0.0, ge=0.0, lt=1.0, description="ε: the share of labels that are taken for guesses; for ranking pairs."
    )
    margin_weight: float = Field(
        1.0,
        ge=0.0,
        description="What a row's margin is times before it is taken off the gap of the scores; 0 leaves margins out.",
    )
    centre: float = Field(
        0.0, ge=0.0, description="c: weight of (r_w + r_l)², which holds the scores near 0; 0.01 is common."
    )
    normalise: Literal["answers", "chosen", "none"] = Field(
        "answers",
        description="Which held-out answers (without any, training ones) have mean 0 and standard deviation 1 after the gain and bias that are kept with the model: all, the best of each prompt, or none.",
    )
    clip: float = Field(
        10.0, gt=0.0, description="The largest score, and its negative the smallest, that the scorer gives after that."
    )

    @model_validator(mode="after")
    def _noise_is_of_pairs(self) -> Self:
        if self.label_noise and self.ranking != "pairs":
            raise fault_at(
                "objective.label_noise",
                f"label_noise does nothing with ranking {self.ranking}; set ranking to pairs, or leave it out.",
            )
        return self

    def head(self, seed: int) -> ClassHead:
        """A head of one number."""
        return ClassHead((SCORE,), seed, is_number=True)

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """All answers to one prompt, each with one target.

        Raises: DataError, where an answer has no token, two that differ in rank are the same, or the ranking has ties that
        the loss does not take.
        """
        texts = rendered.texts
        for index, text in enumerate(texts):
            for other in texts[:index]:
                is_tie = text.place == other.place and len(texts) > 2
                if not is_tie and np.array_equal(text.tokens_T, other.tokens_T):
                    raise same_answers(origin)
        if self.ranking == "plackett-luce" and len(texts) > 2 and len({text.place for text in texts}) < len(texts):
            raise DataError(
                "Some of the row's answers are as good, and the Plackett-Luce loss needs one order of all.",
                "Set objective.ranking to pairs, or leave the row out.",
                file=origin.file,
                line=origin.line,
            )
        return scored_example(texts, document, origin)

    def losses(self, score_N: Tensor, targets: Targets, *, is_trained: bool = True) -> Tensor:
        """The loss of each prompt, shape (B,). is_trained: with what only training adds: margins, noise, centring."""
        ranked = ranked_of(score_N, targets)
        margin_weight, noise = (self.margin_weight, self.label_noise) if is_trained else (0.0, 0.0)
        loss_B = all_pairs(ranked, margin_weight, noise)
        if self.ranking != "pairs":
            whole_B = plackett_luce(ranked) if self.ranking == "plackett-luce" else best_of(ranked)
            loss_B = loss_B.where(ranked.is_there_BK.sum(1) == 2, whole_B)
        return loss_B + self.centre * centring(ranked) if self.centre and is_trained else loss_B

    def loss_sum(self, outputs: Outputs) -> Tensor:
        """The prompts' losses, summed."""
        return self.losses(outputs.logits_NC[:, 0], outputs.targets).sum()

    def held_out_sum(self, outputs: Outputs) -> Tensor:
        """The same without margins, noise and centring: of pairs ln 2 where nothing is told apart."""
        return self.row_losses(outputs).sum()

    def row_losses(self, outputs: Outputs) -> Tensor:
        """See the base class."""
        return self.losses(outputs.logits_NC[:, 0], outputs.targets, is_trained=False)

    def measured(self, outputs: Outputs) -> dict[str, Sums]:
        """Over all pairs of which one is better: how often it has the higher score (a tie counts half), by how much, and both scores."""
        ranked = ranked_of(outputs.logits_NC[:, 0].detach(), outputs.targets)
        pairs = compared(ranked)
        sign_BKK = (pairs.probability_BKK - 0.5).sign()
        at = (pairs.is_pair_BKK & (sign_BKK != 0)).nonzero(as_tuple=True)
        if not len(at[0]):
            return {}
        is_first_P = sign_BKK[at] > 0
        first_P, second_P = ranked.score_BK[at[0], at[1]], ranked.score_BK[at[0], at[2]]
        better_P, worse_P = first_P.where(is_first_P, second_P), second_P.where(is_first_P, first_P)
        found = {
            "reward_accuracy": ((better_P - worse_P).sign() + 1) / 2,
            "reward_margin": better_P - worse_P,
            "chosen_reward": better_P,
            "rejected_reward": worse_P,
        }
        return {name: (each_P.sum(), len(each_P)) for name, each_P in found.items()}


def scored_example(texts: Sequence[Rendered], document: int, origin: Origin) -> Example:
    """Answers to one prompt, each with one target: where the head reads it. What they begin with in common stands once.

    Raises: DataError, where an answer has no token of its own.
    """
    shares = [np.array([text.share], dtype=np.float32) for text in texts]
    places = np.array([text.place for text in texts], dtype=np.int64)
    margins = np.array([text.score or 0.0 for text in texts], dtype=np.float32)
    if texts[0].pooled == "first":
        example = apart(
            texts, [np.array([pooled_at(text)], dtype=np.int64) for text in texts], shares, document, origin
        )
        return replace(example, token_N=places, value_N=margins)
    learned = learned_places(texts, origin)
    tokens = [text.tokens_T[: at_N[-1] + 1] for text, at_N in zip(texts, learned, strict=True)]
    laid = laid_behind(tokens, min(int(at_N[0]) for at_N in learned))
    return Example(
        parts=laid.parts,
        source_N=np.array([at_T[-1] for at_T in laid.at], dtype=np.int64),
        token_N=places,
        weight_N=np.concatenate(shares),
        sample_N=np.arange(len(texts), dtype=np.int64),
        document=document,
        origin=origin,
        value_N=margins,
    )
