"""Parity is counted over all positions by its definition, and what is over a limit, or no number, does not pass."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import ExportMismatch
from luthier.export.parity import EXACT, Limits, Parity, check, coarser, compare, limits_of


def test_difference_divergence_and_agreement_are_those_of_their_definitions() -> None:
    texts = [(torch.randn(3, 5), torch.randn(3, 5)), (torch.randn(4, 5), torch.randn(4, 5))]
    p_NV, q_NV = (torch.cat(each) for each in zip(*texts, strict=True))
    parity = compare(texts)
    kl = torch.nn.functional.kl_div(q_NV.log_softmax(-1), p_NV.log_softmax(-1), reduction="sum", log_target=True) / 7
    assert parity.num_tokens == 7
    assert parity.difference == pytest.approx(float((p_NV - q_NV).abs().max() / p_NV.abs().max()))
    assert parity.kl == pytest.approx(float(kl), rel=1e-5)
    assert parity.agreement == pytest.approx(float((p_NV.argmax(-1) == q_NV.argmax(-1)).float().mean()))


def test_a_model_agrees_with_itself() -> None:
    logits = torch.randn(6, 9)
    parity = compare([(logits, logits)])
    assert parity == Parity(6, 0.0, 0.0, 1.0)
    assert parity.within(EXACT)


@pytest.mark.parametrize(
    "parity",
    [
        Parity(9, 1e-2, 1e-7, 1.0),
        Parity(9, 1e-5, 1e-3, 1.0),
        Parity(9, 1e-5, 1e-5, 0.9),
        Parity(9, *[float("nan")] * 3),
    ],
)
def test_what_is_over_any_limit_does_not_pass_and_the_error_says_by_how_much(parity: Parity) -> None:
    limits = Limits(1e-3, 1e-5 if parity.agreement != 0.9 else 1.0, 0.995)
    worse = Parity(9, parity.difference, 0.5 if parity.agreement == 0.9 else parity.kl, parity.agreement)
    with pytest.raises(ExportMismatch, match=r"The file does not say what the run's model says: .*0\.001 allowed"):
        check(worse, limits, "The file", "")


def test_another_likeliest_token_where_nothing_else_differs_is_a_tie() -> None:
    assert Parity(100, 1e-6, 1e-7, 0.9).within(EXACT)


def test_logits_that_are_no_numbers_do_not_pass() -> None:
    parity = compare([(torch.randn(2, 3), torch.full((2, 3), float("nan"))), (torch.randn(2, 3), torch.randn(2, 3))])
    assert not parity.within(Limits(1e9, 1e9, None))


def test_models_with_other_vocabularies_are_told_apart() -> None:
    with pytest.raises(ExportMismatch, match="4 logits for 2 tokens, the run's 3"):
        compare([(torch.randn(2, 3), torch.randn(2, 4))])


def test_the_coarsest_format_on_the_way_sets_the_limit() -> None:
    assert limits_of("fp32", "q8_0", "fp16") == limits_of("q8_0")
    assert coarser(limits_of("bf16"), EXACT) == limits_of("bf16")
