"""Reward models: which tokens are read, what the losses are and where they start, what they recover, and TRL's on the same numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from models.tiny import tiny_model
from near import assert_near
from pydantic import ValidationError
from torch import Tensor, nn

from luthier.data.apart import laid_apart
from luthier.data.packing import collate
from luthier.errors import DataError
from luthier.objectives import DPO, Reward
from luthier.objectives.ranking import (
    Ranked,
    all_pairs,
    best_of,
    bradley_terry,
    centring,
    plackett_luce,
)
from luthier.types import Example, Origin, Part, Rendered

ORIGIN = Origin("rows", 4)
LOSSES = {"pairs": all_pairs, "plackett-luce": plackett_luce, "best-of": best_of}


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ranked(score_BK: Tensor, margin: float = 0.0) -> Ranked:
    """Answers in their order, the first the best and better than the second by the margin."""
    place_BK = torch.arange(score_BK.shape[1]).expand(score_BK.shape)
    is_best_BK = (place_BK == 0).float()
    return Ranked(score_BK, is_best_BK, place_BK, margin * is_best_BK, torch.ones_like(is_best_BK).bool())


def answer(prompt: list[int], words: list[int], place: int = 0, share: float = 0.0) -> Rendered:
    tokens_T = np.array([*prompt, *words], dtype=np.int64)
    weight_T = (np.arange(len(tokens_T)) >= len(prompt)).astype(np.float32)
    return Rendered(tokens_T, weight_T, place=place, share=share)


def row(prompt: list[int], *answers: list[int], share: float = 1.0, margin: float | None = None) -> Rendered:
    """Answers to a prompt, the best first; share: of those who find the first the best of two."""
    shares = [share, 1 - share, *[0.0] * len(answers)]
    first, *others = (answer(prompt, words, place, shares[place]) for place, words in enumerate(answers))
    return replace(first, beside=tuple(others), score=margin)


ROWS = [
    row([5, 6, 7, 8], [9, 10, 11], [12, 13]),
    row([20, 21], [22], [22, 23, 24, 25], [26, 27]),
    row([30, 31, 32], [33, 34], [35], share=0.5),
]


def examples() -> list[Example]:
    return [Reward().example(each, number, ORIGIN) for number, each in enumerate(ROWS)]


# ── which tokens are read ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_last_token_of_each_answer_is_read_and_the_prompt_stands_once() -> None:
    example = examples()[1]
    assert [part.tokens_T.tolist() for part in example.parts] == [[20, 21], [22], [22, 23, 24, 25], [26, 27]]
    assert example.source_N.tolist() == [2, 6, 8]
    assert example.token_N.tolist() == [0, 1, 2]
    assert example.weight_N.tolist() == [1, 0, 0]
    assert example.sample_N.tolist() == [0, 1, 2]


def test_what_comes_after_the_end_of_an_answer_is_not_read() -> None:
    trailing = replace(answer([5, 6], [7, 8, 9]), weight_T=np.array([0, 0, 1, 1, 0], dtype=np.float32))
    example = Reward().example(replace(trailing, share=1.0, beside=(answer([5, 6], [10], 1),)), 0, ORIGIN)
    assert [part.tokens_T.tolist() for part in example.parts] == [[5, 6], [7, 8], [10]]


def test_texts_that_are_read_at_their_beginning_stand_apart() -> None:
    texts = [replace(each, pooled="first") for each in row([5, 6], [7], [8, 9], margin=0.5).texts]
    example = Reward().example(replace(texts[0], beside=(texts[1],)), 0, ORIGIN)
    assert [part.parent for part in example.parts] == [None, None]
    assert example.source_N.tolist() == [0, 3]
    assert example.value_N is not None
    assert example.value_N.tolist() == [0.5, 0]


@pytest.mark.parametrize("family", ["llama", "qwen2", "bloom", "gpt2"])
def test_an_answers_score_is_that_of_the_answer_alone(family: str) -> None:
    model = tiny_model(family, purpose="number")
    rows = examples() if model.layout == "packed" else [laid_apart(each) for each in examples()]
    found = model.forward(collate(rows, model.layout, model.pad_id)).logits_NC[:, 0]
    alone = []
    for each in ROWS:
        for text in each.texts:
            ends = np.array([len(text.tokens_T) - 1]), np.zeros(1, dtype=np.int64)
            example = Example((Part(text.tokens_T),), *ends, np.ones(1, dtype=np.float32), ends[1], 0, ORIGIN)
            alone.append(model.forward(collate([example], model.layout, model.pad_id)).logits_NC[0, 0])
    assert_near(found, torch.stack(alone))


@pytest.mark.parametrize(
    ("objective", "rendered", "found"),
    [
        (Reward(), row([5, 6], [7], [7]), "are the same"),
        (Reward(), row([5, 6], [7], []), "no token of its own"),
        (
            Reward(ranking="plackett-luce"),
            replace(answer([5], [6], 0, 0.5), beside=(answer([5], [7], 0, 0.5), answer([5], [8], 1))),
            "needs one order of all",
        ),
        (DPO(), row([5, 6], [7], [8], share=0.5), "is not the better one"),
    ],
)
def test_rows_that_teach_nothing_are_refused(objective: Reward | DPO, rendered: Rendered, found: str) -> None:
    with pytest.raises(DataError, match=found) as refused:
        objective.example(rendered, 0, ORIGIN)
    assert (refused.value.file, refused.value.line) == ("rows", 4)
    assert refused.value.mend


# ── where they start, and what they are ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ranking", "num", "start"),
    [
        ("pairs", 2, math.log(2)),
        ("pairs", 4, math.log(2)),
        ("best-of", 4, math.log(4)),
        ("plackett-luce", 4, math.log(24)),
    ],
)
def test_where_all_scores_are_the_same_the_loss_is_that_of_a_guess(ranking: str, num: int, start: float) -> None:
    assert_near(LOSSES[ranking](ranked(torch.zeros(3, num))), torch.full((3,), start))


@pytest.mark.parametrize("ranking", LOSSES)
def test_a_shift_of_all_scores_of_a_prompt_changes_nothing(ranking: str) -> None:
    score_BK = drawn(5, 4)
    assert_near(LOSSES[ranking](ranked(score_BK + drawn(5, 1, seed=2))), LOSSES[ranking](ranked(score_BK)))


@pytest.mark.parametrize("ranking", LOSSES)
def test_gradients_over_the_answers_of_a_prompt_sum_to_zero(ranking: str) -> None:
    score_BK = drawn(5, 4).requires_grad_()
    (gradient_BK,) = torch.autograd.grad(LOSSES[ranking](ranked(score_BK)).sum(), score_BK)
    assert_near(gradient_BK.sum(1) + 1, torch.ones(5))
    assert bool((gradient_BK[:, 0] < 0).all())


@pytest.mark.parametrize("ranking", LOSSES)
def test_of_two_answers_all_losses_are_bradley_and_terrys(ranking: str) -> None:
    score_BK = drawn(6, 2)
    expected = bradley_terry(score_BK[:, 0] - score_BK[:, 1])
    assert_near(LOSSES[ranking](ranked(score_BK)), expected)
    assert_near(expected, -torch.log(torch.sigmoid(score_BK[:, 0] - score_BK[:, 1])))


def test_turning_a_pair_round_changes_the_loss_by_its_gap() -> None:
    gap_B = drawn(6)
    assert_near(bradley_terry(gap_B) - bradley_terry(-gap_B), -gap_B)


def test_a_tie_pulls_scores_together_and_nowhere_where_they_are_the_same() -> None:
    gap_B = torch.tensor([-2.0, 0.0, 2.0], requires_grad=True)
    (gradient_B,) = torch.autograd.grad(bradley_terry(gap_B, 0.5).sum(), gap_B)
    assert gradient_B[1] == 0
    assert gradient_B[0] < 0 < gradient_B[2]


def test_the_gradient_of_a_pair_is_minus_the_chance_of_the_worse() -> None:
    gap_B = drawn(6).requires_grad_()
    (gradient_B,) = torch.autograd.grad(bradley_terry(gap_B).sum(), gap_B)
    assert_near(gradient_B, -torch.sigmoid(-gap_B))


def test_noise_mixes_the_prediction_with_a_guess() -> None:
    gap_B = drawn(6) * 20
    expected = -torch.log(0.8 * torch.sigmoid(gap_B.double()) + 0.1)
    assert_near(bradley_terry(gap_B, noise=0.2), expected.float())
    assert float(bradley_terry(torch.tensor(-1e4), noise=0.2)) == pytest.approx(-math.log(0.1))


def test_rankings_of_different_length_stand_beside_each_other() -> None:
    objectives = [Reward(), Reward(ranking="best-of"), Reward(ranking="plackett-luce"), Reward(centre=0.3)]
    rows = examples()
    for objective in objectives:
        batch = collate(rows, "packed", 0)
        score_N = drawn(len(batch.targets.token_N))
        found = objective.losses(score_N, batch.targets)
        parts = score_N.split([each.num_learned for each in rows])
        alone = [
            objective.losses(part, collate([each], "packed", 0).targets)[0]
            for part, each in zip(parts, rows, strict=True)
        ]
        assert_near(found, torch.stack(alone))


def test_margins_are_taken_off_and_centring_added_in_training_alone() -> None:
    objective = Reward(margin_weight=2.0, centre=0.01)
    targets = collate([objective.example(row([5], [6], [7], margin=0.5), 0, ORIGIN)], "packed", 0).targets
    score_N = torch.tensor([0.7, -0.4])
    plain = bradley_terry(torch.tensor([1.1]))
    assert_near(objective.losses(score_N, targets), bradley_terry(torch.tensor([0.1])) + 0.01 * 0.3**2)
    assert_near(objective.losses(score_N, targets, is_trained=False), plain)
    assert_near(centring(ranked(score_N[None])), torch.tensor([0.09]))


def test_noise_where_it_does_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="does nothing"):
        Reward(ranking="best-of", label_noise=0.1)


def test_what_is_measured_is_of_pairs_that_have_an_order_and_the_same_in_any_cut() -> None:
    model, objective = tiny_model("llama", purpose="number"), Reward()

    def measured(rows: list[Example]) -> dict[str, tuple[float, int]]:
        outputs = model.forward(collate(rows, "packed", 0))
        return {name: (float(total), count) for name, (total, count) in objective.measured(outputs).items()}

    whole, parts = measured(examples()), [measured([each]) for each in examples()]
    assert parts[2] == {}, "a tie has no order"
    assert whole["reward_margin"][1] == 1 + 3
    for name, (total, _) in whole.items():
        assert total == pytest.approx(sum(part[name][0] for part in parts[:2]), abs=1e-5)


# ── what they recover ───────────────────────────────────────────────────────────────────────────────────────────────


def test_chances_that_answers_were_drawn_with_are_recovered() -> None:
    """5,000 pairs of 12 answers with known strengths."""
    draw = torch.Generator().manual_seed(3)
    true_A = torch.linspace(-1.5, 1.5, 12)
    pair_P2 = torch.stack([torch.randperm(12, generator=draw)[:2] for _ in range(5000)])
    first_wins = torch.rand(5000, generator=draw) < torch.sigmoid(true_A[pair_P2[:, 0]] - true_A[pair_P2[:, 1]])
    pair_P2 = torch.where(first_wins[:, None], pair_P2, pair_P2.flip(1))
    score_A = fitted(torch.eye(12), pair_P2)
    found, expected = (torch.sigmoid(each[:, None] - each[None]) for each in (score_A, true_A))
    assert float((found - expected).abs().mean()) < 0.02


def test_a_linear_truth_is_found_nearly_as_well_as_it_can_be() -> None:
    feature_AD, true_D = drawn(400, 6, seed=4), drawn(6, seed=5)
    true_A = feature_AD @ true_D
    draw = torch.Generator().manual_seed(6)
    pair_P2 = torch.randint(0, 400, (5000, 2), generator=draw)
    pair_P2 = pair_P2[pair_P2[:, 0] != pair_P2[:, 1]]
    chance_P = torch.sigmoid(true_A[pair_P2[:, 0]] - true_A[pair_P2[:, 1]])
    wins_P = torch.rand(len(chance_P), generator=draw) < chance_P
    score_A = fitted(feature_AD, torch.where(wins_P[:, None], pair_P2, pair_P2.flip(1)))
    says_P = score_A[pair_P2[:, 0]] > score_A[pair_P2[:, 1]]
    share, best = (float(torch.where(says, chance_P, 1 - chance_P).mean()) for says in (says_P, chance_P > 0.5))
    assert share >= 0.98 * best


def fitted(feature_AD: Tensor, pair_P2: Tensor) -> Tensor:
    """The scores, linear in the features, of least loss over pairs of which the first is better."""
    weight_D = torch.zeros(feature_AD.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_D], max_iter=100)

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = all_pairs(ranked((feature_AD @ weight_D)[pair_P2])).mean()
        total.backward()
        return total

    cast(Any, optimizer).step(loss)
    return (feature_AD @ weight_D).detach()


# ── TRL ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def trl_loss(score_R: Tensor, margin_B: Tensor | None, centre: float | None) -> Tensor:
    """The loss of TRL's trainer where its model gives these scores, those of the better answers first."""
    from trl import RewardTrainer

    trainer = SimpleNamespace(
        model=nn.Identity(), args=SimpleNamespace(center_rewards_coefficient=centre),
        accelerator=SimpleNamespace(gather=lambda each: each, gather_for_metrics=lambda each: each),
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {"attention_mask": torch.ones(len(score_R), 2)} | ({} if margin_B is None else {"margin": margin_B})
    said = SimpleNamespace(logits=score_R[:, None])
    return cast(Tensor, RewardTrainer.compute_loss(cast(Any, trainer), lambda **_: said, inputs))


@pytest.mark.parametrize("margin", [None, 0.7])
@pytest.mark.parametrize("centre", [0.0, 0.01])
def test_loss_and_gradient_are_trls(margin: float | None, centre: float) -> None:
    objective = Reward(centre=centre)
    rows = [objective.example(row([5], [n + 6], [n + 40], margin=margin), n, ORIGIN) for n in range(8)]
    score_BK = drawn(8, 2).requires_grad_()
    ours = objective.losses(score_BK.reshape(-1), collate(rows, "packed", 0).targets).mean()
    margin_B = None if margin is None else torch.full((8,), margin)
    theirs = trl_loss(score_BK.T.reshape(-1), margin_B, centre or None)
    assert_near(ours, theirs, 1e-6)
    assert_near(*(torch.autograd.grad(each, score_BK)[0] for each in (ours, theirs)))
