"""Compacter: the formula, the shared rules, the published count, and where it starts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from methods.beside import gradients, places, reference_logprobs
from models.rows import batch_of
from models.tiny import NAMES, tiny_model
from models.tuned import LENGTHS, logprobs, randomize
from near import assert_all_near, assert_apart, assert_near
from pydantic import ValidationError
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods import Compacter
from luthier.methods.compacter import RULES, HypercomplexLinear
from luthier.methods.contract import Attachment
from luthier.methods.sublayers import End


def matrix(attachment: Attachment, place: str, side: str) -> Tensor:
    """Hmat (I, O), built term by term."""
    tensors = attachment.trainables
    left, right = tensors[f"{place}.adapter_{side}.W_left"], tensors[f"{place}.adapter_{side}.W_right"]
    terms = [torch.kron(a, s @ t) for a, s, t in zip(tensors[RULES], left, right, strict=True)]
    return torch.stack(terms).sum(0).detach()


def dense(attachment: Attachment, place: str):  # type: ignore[no-untyped-def]
    """f(z) of one place with its matrices built."""
    down, up = matrix(attachment, place, "down"), matrix(attachment, place, "up")
    down_bias, up_bias = (attachment.trainables[f"{place}.adapter_{side}.bias"].detach() for side in ("down", "up"))
    return lambda z: F.gelu(z @ down + down_bias, approximate="tanh") @ up + up_bias


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plus", [False, True])
def test_f_of_u_with_built_matrices_is_added_after_the_sublayers(name: str, plus: bool) -> None:
    model = tiny_model(name)
    attachment = Compacter(plus=plus, width=8, rank=2).attach(model, "default", seed=0)
    randomize(attachment, 0.5)
    sides = {index: [dense(attachment, place) for place in found] for index, found in places(attachment).items()}
    assert [len(found) for found in sides.values()] == ([1, 1] if plus else [2, 2])
    attention = {} if plus else {index: (lambda r, u, f=found[0]: f(u)) for index, found in sides.items()}
    feedforward = {index: (lambda r, u, f=found[-1]: f(u)) for index, found in sides.items()}
    expected = reference_logprobs(name, attention, feedforward)
    assert_apart(logprobs(model, None), expected)
    assert_near(logprobs(model), expected)


def test_the_cheap_form_trains_as_the_built_one() -> None:
    kept = [
        gradients("llama", lambda m, fast=fast: Compacter(width=8).attach(m, "default", seed=0, fast=fast), False)
        for fast in (True, False)
    ]
    assert_all_near(*kept)


def test_with_one_block_and_full_rank_it_is_a_plain_bottleneck() -> None:
    method = Compacter(blocks=1, width=5, rank=5)
    end = End("place", tiny_model("llama").anatomy.layers[0], 7, 1.0)
    side = method.fresh(end, nn.Parameter(torch.full((1, 1, 1), 0.7)), 0)
    x = torch.randn(4, 7)
    weight_HD = 0.7 * (side.down.left_MPR[0] @ side.down.right_MRQ[0]).T
    assert_near(side.down(x), F.linear(x, weight_HD))
    assert torch.linalg.matrix_rank(weight_HD) == 5


def test_the_rules_are_one_tensor_whose_gradient_is_the_sum_over_all_projections() -> None:
    model = tiny_model("llama")
    attachment = Compacter(width=8).attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    rules = attachment.trainables[RULES]
    assert sum(tensor is rules for tensor in attachment.trainables.values()) == 1
    batch = batch_of(LENGTHS, model.layout)
    (shared,) = torch.autograd.grad(model.forward(batch, "default").logprob_N.sum(), [rules])
    linears = [module for module in model.hf.modules() if isinstance(module, HypercomplexLinear)]
    assert len(linears) == 8
    for linear in linears:
        linear.rule_MMM = nn.Parameter(rules.detach().clone())
    parts = torch.autograd.grad(model.forward(batch, "default").logprob_N.sum(), [p.rule_MMM for p in linears])
    assert_near(shared, torch.stack(parts).sum(0))


def test_the_count_is_that_of_the_formula() -> None:
    for plus, sites in ((False, 4), (True, 2)):
        attachment = Compacter(plus=plus, width=8, rank=2).attach(tiny_model("llama"), "default", seed=0)
        assert attachment.num_trainable == sites * (2 * 2 * (32 + 8) + 32 + 8) + 4**3


def test_the_count_of_compacter_plus_plus_on_t5_base_is_the_published_one() -> None:
    method = Compacter(plus=True)
    rules = nn.Parameter(torch.zeros(4, 4, 4))
    side = method.fresh(End("place", tiny_model("llama").anatomy.layers[0], 768, 1.0), rules, 0)
    assert 24 * sum(tensor.numel() for tensor in side.tensors.values()) + rules.numel() == 57_088


def test_it_starts_within_a_millionth_of_the_base_but_not_on_it() -> None:
    model = tiny_model("llama")
    before = logprobs(model, None)
    attachment = Compacter(width=24).attach(model, "default", seed=0)
    assert_near(logprobs(model), before, 1e-6)
    assert 0.5e-4 < float(attachment.trainables[RULES].detach().std()) < 2e-4
    for key, tensor in attachment.trainables.items():
        if key.endswith(("W_left", "W_right")):
            bound = (12 / (tensor.shape[1] + tensor.shape[2])) ** 0.5
            assert 0.7 * bound < float(tensor.detach().abs().max()) <= bound
        elif key.endswith("bias"):
            assert not bool(tensor.any())


def test_a_width_that_the_blocks_do_not_divide_is_refused() -> None:
    with pytest.raises(ValidationError, match="width is 10"):
        Compacter(width=10)
    with pytest.raises(RecipeError) as refused:
        Compacter(width=12, blocks=3).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.blocks"
    assert "32" in refused.value.found
    assert "4" in refused.value.mend
