"""Preference objectives: which tokens count, what the losses are, where they start, and TRL's on the same numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from models.rows import plain_logprobs
from models.tiny import plain_model, tiny_model
from near import assert_near
from pydantic import ValidationError
from torch import Tensor

from luthier.data.apart import laid_apart
from luthier.data.packing import collate
from luthier.errors import DataError
from luthier.models.families import family_of
from luthier.objectives import CPO, DPO, KTO, ORPO, Objective, SimPO
from luthier.objectives.cpo import cpo
from luthier.objectives.dpo import DPOLoss, dpo
from luthier.objectives.kto import divergence, kto
from luthier.objectives.orpo import log1mexp, log_odds_gap, orpo
from luthier.objectives.preference import Pairs, pairs_of
from luthier.objectives.simpo import simpo
from luthier.prepared import laid_out
from luthier.training.companions import with_beside
from luthier.types import Example, Origin, Part, Rendered

ORIGIN = Origin("rows", 4)


def answer(prompt: list[int], words: list[int]) -> Rendered:
    tokens_T = np.array([*prompt, *words], dtype=np.int64)
    return Rendered(tokens_T, (np.arange(len(tokens_T)) >= len(prompt)).astype(np.float32))


def pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> Rendered:
    return replace(answer(prompt, chosen), beside=(answer(prompt, rejected),))


ROWS = [
    pair([5, 6, 7, 8], [9, 10, 11], [12, 13]),
    pair([20, 21], [22], [22, 23, 24, 25]),  # the answers begin alike
    pair([30, 31, 32], [33, 34], [35]),
]


def examples(objective: Objective) -> list[Example]:
    return [objective.example(row, number, ORIGIN) for number, row in enumerate(ROWS)]


def random_pairs(seed: int, size: int = 8) -> Pairs:
    draw = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(1, 20, (size,), generator=draw).float() for _ in range(2)]
    sums = [-count_B * (0.1 + torch.rand(size, generator=draw)) for count_B in tokens]
    return Pairs(*sums, *tokens)


# ── which tokens count ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_prompt_stands_once_and_its_last_token_predicts_both_first_ones() -> None:
    example = DPO().example(ROWS[0], 0, ORIGIN)
    assert [part.tokens_T.tolist() for part in example.parts] == [[5, 6, 7, 8], [9, 10, 11], [12, 13]]
    assert [part.parent for part in example.parts] == [None, 0, 0]
    assert example.source_N.tolist() == [3, 4, 5, 3, 7]
    assert example.token_N.tolist() == [9, 10, 11, 12, 13]
    assert example.sample_N.tolist() == [0, 0, 0, 1, 1]
    assert float(example.weight_N.sum()) == pytest.approx(1.0)


def test_what_answers_begin_with_in_common_is_no_part_of_the_prompt() -> None:
    example = DPO().example(ROWS[1], 0, ORIGIN)
    assert [part.tokens_T.tolist() for part in example.parts] == [[20, 21], [22], [22, 23, 24, 25]]
    assert example.num_learned == 5


def test_answers_to_prompts_that_differ_stand_apart_from_where_they_do() -> None:
    row = replace(answer([5, 6, 7], [9]), beside=(answer([5, 8], [10]),))
    example = DPO().example(row, 0, ORIGIN)
    assert [part.tokens_T.tolist() for part in example.parts] == [[5], [6, 7, 9], [8, 10]]
    assert example.source_N.tolist() == [2, 4]


def test_a_prompt_that_shall_not_be_shared_stands_before_each_answer_and_says_the_same() -> None:
    model, rows = tiny_model("llama"), examples(DPO())
    apart = list(laid_out(rows, DPO(), family_of("llama"), 99, shares=False))
    assert [part.parent for row in apart for part in row.parts] == [None] * 6
    assert [part.tokens_T.tolist() for part in apart[0].parts] == [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 12, 13]]
    said = [model.forward(collate(each, model.layout, model.pad_id)) for each in (rows, apart)]
    together, alone = (pairs_of(outputs.logprob_N, outputs.targets) for outputs in said)
    assert_near(alone.chosen_B, together.chosen_B)
    assert_near(alone.rejected_B, together.rejected_B)


@pytest.mark.parametrize(
    ("row", "found"),
    [(pair([5, 6], [7], [7]), "are the same"), (pair([5, 6], [7], []), "no token of its own")],
)
def test_answers_that_teach_nothing_are_refused(row: Rendered, found: str) -> None:
    with pytest.raises(DataError, match=found) as refused:
        DPO().example(row, 0, ORIGIN)
    assert (refused.value.file, refused.value.line) == ("rows", 4)


@pytest.mark.parametrize("objective", [DPO(), ORPO()], ids=lambda objective: objective.kind)
@pytest.mark.parametrize("family", ["llama", "qwen2", "bloom"])
def test_each_answers_log_probability_is_that_of_the_answer_alone(family: str, objective: Objective) -> None:
    model = tiny_model(family)
    rows = examples(objective)
    rows = rows if model.layout == "packed" else [laid_apart(row) for row in rows]
    outputs = model.forward(collate(rows, model.layout, model.pad_id))
    found = pairs_of(outputs.logprob_N, outputs.targets)
    for side, sums_B, tokens_B in (
        (0, found.chosen_B, found.chosen_tokens_B),
        (1, found.rejected_B, found.rejected_tokens_B),
    ):
        for row, sum_B, count in zip(ROWS, sums_B, tokens_B, strict=True):
            text = row.texts[side]
            (at_N,) = np.nonzero(text.weight_T)
            alone = Example(
                (Part(text.tokens_T),),
                at_N - 1,
                text.tokens_T[at_N],
                text.weight_T[at_N],
                np.zeros_like(at_N),
                0,
                ORIGIN,
            )
            assert_near(sum_B, plain_logprobs(plain_model(family), [alone]).sum())
            assert count == len(at_N)


def test_orpo_learns_the_prompt_too_unless_told_not_to() -> None:
    row, without = (ORPO(learn_prompt=learns).example(ROWS[0], 0, ORIGIN) for learns in (True, False))
    assert row.token_N.tolist() == [9, 10, 11, 12, 13, 6, 7, 8]
    assert row.sample_N.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert without.num_learned == 5
    model = tiny_model("llama")
    outputs = model.forward(collate([row], "packed", 0))
    whole = -outputs.logprob_N[[0, 1, 2, 5, 6, 7]].mean()
    assert_near(ORPO().loss_sum(outputs), whole + orpo(pairs_of(outputs.logprob_N, outputs.targets), 0.1)[0])


# ── where they start ────────────────────────────────────────────────────────────────────────────────────────────────


def same_ratios() -> Pairs:
    policy = random_pairs(1)
    return policy.over(policy)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [("sigmoid", math.log(2)), ("robust", math.log(2)), ("hinge", 1.0), ("ipo", 25.0), ("sigmoid-norm", math.log(2))],
)
def test_dpo_starts_where_the_policy_is_the_reference(loss: DPOLoss, expected: float) -> None:
    smoothing = 0.2 if loss in ("sigmoid", "robust", "sigmoid-norm") else 0.0
    assert_near(dpo(same_ratios(), 0.1, loss, smoothing), torch.full((8,), expected), 1e-6)


def test_kto_starts_at_a_half_and_simpo_at_its_margin() -> None:
    zeros = torch.zeros(6)
    loss_M = kto(zeros, torch.arange(6) % 2 == 0, divergence(zeros), 0.1, 1.0, 1.0)
    assert_near(loss_M, torch.full((6,), 0.5))
    means = Pairs(torch.tensor([-6.0]), torch.tensor([-2.0]), torch.tensor([3.0]), torch.tensor([1.0]))
    for gamma in (0.5, 1.375):
        assert float(simpo(means, 2.0, gamma)) == pytest.approx(math.log(1 + math.exp(gamma)), abs=1e-5)


def test_orpos_odds_are_those_of_the_sheet() -> None:
    policy = Pairs(torch.tensor([-1.0]), torch.tensor([-3.0]), torch.tensor([2.0]), torch.tensor([3.0]))
    assert float(log_odds_gap(policy)) == pytest.approx(0.974077, abs=1e-5)
    assert float(orpo(policy, 1.0)) == pytest.approx(0.320300, abs=1e-5)


def test_log1mexp_and_its_gradient_are_right_near_both_ends() -> None:
    x = torch.tensor([-1e-6, -1e-3, -0.6, -0.8, -5.0, -40.0], requires_grad=True)
    wide = x.detach().double().requires_grad_()
    expected = torch.log(-torch.expm1(wide))
    assert_near(log1mexp(x), expected.float(), 1e-5)
    gradients = [torch.autograd.grad(each.sum(), at)[0].double() for each, at in ((log1mexp(x), x), (expected, wide))]
    assert torch.allclose(*gradients, rtol=1e-4)
    certain = Pairs(torch.zeros(1, requires_grad=True), torch.tensor([-2.0]), torch.ones(1), torch.ones(1))
    assert bool(torch.isfinite(orpo(certain, 1.0)).all())


# ── properties ──────────────────────────────────────────────────────────────────────────────────────────────────────


def turned(pairs: Pairs) -> Pairs:
    return Pairs(pairs.rejected_B, pairs.chosen_B, pairs.rejected_tokens_B, pairs.chosen_tokens_B)


def test_turning_a_pair_round_changes_the_loss_by_its_margin() -> None:
    ratios = random_pairs(1).over(random_pairs(2))
    assert_near(dpo(ratios, 0.3) - dpo(turned(ratios), 0.3), -0.3 * ratios.gap_B)
    half = (dpo(ratios, 0.3, "sigmoid", 0.25), dpo(turned(ratios), 0.3, "sigmoid", 0.25))
    assert_near(half[0] - half[1], -0.5 * 0.3 * ratios.gap_B)


def test_robust_is_without_bias_under_its_noise() -> None:
    ratios, noise = random_pairs(1).over(random_pairs(2)), 0.2
    mean = (1 - noise) * dpo(ratios, 0.3, "robust", noise) + noise * dpo(turned(ratios), 0.3, "robust", noise)
    assert_near(mean, dpo(ratios, 0.3))


def test_the_gradient_of_dpo_is_the_papers() -> None:
    policy, reference = random_pairs(1), random_pairs(2)
    chosen_B = policy.chosen_B.clone().requires_grad_()
    ratios = Pairs(chosen_B, policy.rejected_B, policy.chosen_tokens_B, policy.rejected_tokens_B).over(reference)
    (found,) = torch.autograd.grad(dpo(ratios, 0.5).sum(), chosen_B)
    assert_near(found, (-0.5 * torch.sigmoid(-0.5 * ratios.gap_B)).detach())


def test_more_tokens_of_equal_likelihood_leave_means_and_change_sums() -> None:
    policy = random_pairs(1)
    longer = Pairs(2 * policy.chosen_B, policy.rejected_B, 2 * policy.chosen_tokens_B, policy.rejected_tokens_B)
    for loss in (lambda pairs: simpo(pairs, 2.0, 0.5), lambda pairs: orpo(pairs, 1.0)):
        assert_near(loss(longer), loss(policy))
    assert not torch.allclose(cpo(longer, 1.0, 0.0), cpo(policy, 1.0, 0.0))


def test_ktos_divergence_is_no_less_than_0_and_has_no_gradient() -> None:
    ratio_M = torch.tensor([-3.0, 1.0], requires_grad=True)
    assert float(divergence(ratio_M)) == 0
    assert float(divergence(-ratio_M)) == 1
    assert not divergence(ratio_M).requires_grad


@pytest.mark.parametrize("objective", [DPO(), SimPO(), CPO(), ORPO()], ids=lambda objective: objective.kind)
def test_what_is_measured_is_the_same_in_any_cut(objective: Objective) -> None:
    model, other = tiny_model("llama"), tiny_model("mistral")

    def measured(rows: list[Example]) -> dict[str, tuple[float, int]]:
        batch = collate(rows, "packed", 0)
        outputs = with_beside(model.forward(batch), {"reference": other.forward(batch)})
        return {name: (float(total), count) for name, (total, count) in objective.measured(outputs).items()}

    rows = examples(objective)
    whole, parts = measured(rows), [measured([row]) for row in rows]
    assert {"reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward"} <= set(whole)
    assert ("kl" in whole) == (objective.kind == "dpo")
    for name, (total, count) in whole.items():
        assert total == pytest.approx(sum(part[name][0] for part in parts), abs=1e-4)
        assert count == 3


@pytest.mark.parametrize("loss", ["hinge", "ipo"])
def test_smoothing_where_it_does_nothing_is_refused(loss: DPOLoss) -> None:
    with pytest.raises(ValidationError, match="does nothing"):
        DPO(loss=loss, label_smoothing=0.1)


# ── kto's rows ──────────────────────────────────────────────────────────────────────────────────────────────────────


def kto_rows(objective: KTO, rows: list[Rendered], longest: int) -> list[Example]:
    made = tuple(objective.example(row, number, ORIGIN) for number, row in enumerate(rows))
    return list(laid_out(made, objective, family_of("llama"), longest))


def test_each_row_of_kto_brings_the_answer_of_the_row_before_it() -> None:
    rows = [answer([5, 6], [7, 8]), answer([9], [10, 11, 12]), answer([13, 14], [15])]
    found = kto_rows(KTO(), [replace(row, score=1.0) for row in rows], longest=4)
    texts = [[part.tokens_T.tolist() for part in row.parts] for row in found]
    assert texts == [
        [[5, 6], [7, 8], [15]],
        [[9], [10, 11, 12], [7, 8]],
        [[13, 14], [15], [10, 11]],
    ]  # 4 tokens at most
    assert found[2].source_N.tolist() == [1, 1, 3]
    assert found[2].token_N.tolist() == [15, 10, 11]
    assert found[2].sample_N.tolist() == [0, 1, 1]
    assert [float(row.weight_N.sum()) for row in found] == [1.0, 1.0, 1.0]


def test_a_row_of_kto_with_the_same_answer_as_the_one_before_is_its_own_stand_in() -> None:
    (one, other) = kto_rows(KTO(), [replace(answer([p], [7, 8]), score=1.0) for p in (5, 6)], longest=9)
    assert (one.num_learned, other.num_learned) == (2, 2)


def test_kto_is_the_formula_over_a_whole_step() -> None:
    rows = [answer([5, 6], [7, 8]), answer([9], [10, 11, 12]), answer([13, 14], [15])]
    objective = KTO(beta=0.7, undesirable_weight=2.0)
    judged = [replace(row, score=float(number != 1)) for number, row in enumerate(rows)]
    batch = collate(kto_rows(objective, judged, 9), "packed", 0)
    policy, reference = (tiny_model(name).forward(batch) for name in ("llama", "mistral"))
    ratio_N = policy.logprob_N - reference.logprob_N
    key_N = batch.targets.row_N * 2 + batch.targets.sample_N
    ratio_MS = torch.zeros(6).index_add(0, key_N, ratio_N).view(3, 2)
    kl = ratio_MS[:, 1].mean().clamp(min=0).detach()
    good = 1 - torch.sigmoid(0.7 * (ratio_MS[[0, 2], 0] - kl))
    bad = 2 * (1 - torch.sigmoid(0.7 * (kl - ratio_MS[1, 0])))
    found = objective.loss_sum(with_beside(policy, {"reference": reference}))
    assert_near(found, good.sum() + bad)
    whole = objective.whole(with_beside(policy, {"reference": reference}))
    assert_near(objective.measured_jointly(whole)["kl"][0], kl)


# ── TRL ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Anything(SimpleNamespace):
    """What a trainer of TRL is, as far as its loss asks."""

    def __getattr__(self, name: str) -> Any:
        return None


def gathering() -> Any:
    return SimpleNamespace(device="cpu", gather_for_metrics=lambda each: each, gather=lambda each: each)


def trl_dpo(policy: Pairs, reference: Pairs, loss: str, beta: float, smoothing: float) -> Tensor:
    """The mean loss of TRL's trainer on a batch whose answers have these log-probabilities."""
    from trl import DPOTrainer

    longest = int(max(policy.chosen_tokens_B.max(), policy.rejected_tokens_B.max()))
    counts_R = torch.cat([policy.chosen_tokens_B, policy.rejected_tokens_B])
    sums_R = torch.cat([policy.chosen_B, policy.rejected_B])
    mask = torch.arange(longest)[None] < counts_R[:, None]
    log_probs = mask * (sums_R / counts_R)[:, None]
    blank = torch.zeros_like(log_probs)
    said = SimpleNamespace(log_probs=log_probs, entropy=blank, mean_logits=blank, is_top1=blank.bool())
    trainer = Anything(
        model=SimpleNamespace(training=True), accelerator=gathering(), precompute_ref_logps=True, beta=beta,
        loss_types=[loss], loss_weights=[1.0], label_smoothing=smoothing, f_divergence_type="reverse_kl",
        use_weighting=False, aux_loss_enabled=False, _metrics={"train": defaultdict(list)}, _total_train_tokens=0,
        _tp_size=1,
    )  # fmt: skip
    first = torch.zeros(len(mask), 1, dtype=torch.long)
    inputs = {
        "input_ids": torch.cat([first, mask.long()], 1),
        "attention_mask": torch.cat([first + 1, mask.long()], 1),
        "completion_mask": torch.cat([first, mask.long()], 1),
        "ref_chosen_logps": reference.chosen_B,
        "ref_rejected_logps": reference.rejected_B,
    }
    return cast(Tensor, DPOTrainer._compute_loss(trainer, lambda **_: said, inputs, False))


@pytest.mark.parametrize(
    ("ours", "theirs", "smoothing"),
    [
        ("sigmoid", "sigmoid", 0.0),
        ("robust", "robust", 0.15),
        ("hinge", "hinge", 0.0),
        ("ipo", "ipo", 0.0),
        ("sigmoid-norm", "sigmoid_norm", 0.0),
    ],
)
def test_dpo_is_trls(ours: DPOLoss, theirs: str, smoothing: float) -> None:
    policy, reference = random_pairs(1), random_pairs(2)
    reference = Pairs(reference.chosen_B, reference.rejected_B, policy.chosen_tokens_B, policy.rejected_tokens_B)
    found = dpo(policy.over(reference), 0.3, ours, smoothing).mean()
    assert_near(found, trl_dpo(policy, reference, theirs, 0.3, smoothing), 1e-5)


def cpo_of_trl(pairs: Pairs, **settings: Any) -> Tensor:
    from trl.experimental.cpo import CPOTrainer

    trainer = Anything(accelerator=gathering(), alpha=0.0, label_smoothing=0.0, **settings)
    losses, _, _ = CPOTrainer.cpo_loss(trainer, pairs.chosen_B, pairs.rejected_B)
    return cast(Tensor, losses)


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
def test_cpo_simpo_and_orpo_are_trls() -> None:
    from trl.experimental.orpo import ORPOTrainer

    policy = random_pairs(3)
    assert_near(cpo(policy, 0.2, alpha=0.0), cpo_of_trl(policy, loss_type="sigmoid", beta=0.2), 1e-5)
    means = policy.means()
    theirs = cpo_of_trl(means, loss_type="simpo", beta=2.5, simpo_gamma=1.375)
    assert_near(simpo(policy, 2.5, 1.375), theirs, 1e-5)
    trainer = Anything(accelerator=gathering(), beta=0.4)
    losses, *_ = ORPOTrainer.odds_ratio_loss(trainer, means.chosen_B, means.rejected_B)
    assert_near(orpo(policy, 0.4), -losses, 1e-5)


def test_kto_is_trls() -> None:
    from trl import KTOTrainer

    policy, reference = random_pairs(1), random_pairs(2)
    is_good_M = torch.arange(8) % 3 > 0
    blank = torch.zeros(8, 1)
    said = SimpleNamespace(log_probs=policy.chosen_B[:, None], entropy=blank, mean_logits=blank, is_top1=blank.bool())
    other_M = torch.linspace(-1, 3, 8)
    trainer = Anything(
        model=SimpleNamespace(training=True), accelerator=gathering(), precompute_ref_logps=True, calculate_KL=True,
        beta=0.3, loss_type="kto", desirable_weight=1.2, undesirable_weight=0.7, aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
        _compute_kl_logps=lambda model, batch: other_M,
    )  # fmt: skip
    ones = torch.ones(8, 2, dtype=torch.long)
    inputs = {
        "input_ids": ones, "attention_mask": ones, "completion_mask": torch.tensor([[0, 1]]).expand(8, 2),
        "label": is_good_M, "ref_logps": reference.chosen_B, "ref_KL_logps": torch.zeros(8),
    }  # fmt: skip
    theirs = KTOTrainer._compute_loss(trainer, lambda **_: said, inputs, False)
    loss_M = kto(policy.chosen_B - reference.chosen_B, is_good_M, divergence(other_M), 0.3, 1.2, 0.7)
    assert_near(loss_M.mean(), theirs, 1e-5)
