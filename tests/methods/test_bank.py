"""The bank around a frozen layer: whose branch a token takes, and what is left when branches are gone."""

from __future__ import annotations

import pytest
import torch
from models.tiny import tiny_model
from models.tuned import random_lora
from near import assert_near
from torch import nn

from luthier.errors import RecipeError
from luthier.methods import LoRA
from luthier.methods.bank import AdaptedLinear, LinearBranch
from luthier.models.call import Call, Run, calling


class Shift(LinearBranch):
    """Adds a number to what the layer gives."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        return {"by": self.by}

    def forward(self, x_NI: torch.Tensor, layer: AdaptedLinear, run: Run) -> torch.Tensor:
        return layer.product(x_NI) + self.by


def test_each_run_of_tokens_takes_its_own_branch_and_the_others_the_base() -> None:
    base = nn.Linear(3, 2)
    layer = AdaptedLinear(base, "place")
    layer.add("one", Shift(1.0))
    layer.add("ten", Shift(10.0))
    x = torch.randn(1, 6, 3)
    with calling(Call(None, (Run(0, 2, "ten"), Run(2, 3, None), Run(3, 5, "one"), Run(5, 6, "unknown")))):
        y = layer(x)
    assert_near(y - base(x), torch.tensor([10.0, 10, 0, 1, 1, 0]).view(1, 6, 1).expand(1, 6, 2), 1e-6)


def test_what_no_linear_layer_can_compute_is_not_merged() -> None:
    layer = AdaptedLinear(nn.Linear(3, 2), "place")
    layer.add("one", Shift(1.0))
    with pytest.raises(RecipeError, match="merge"):
        layer.merge("one")


def test_only_a_method_with_dropout_says_that_it_draws() -> None:
    assert not random_lora(tiny_model("llama")).draws
    assert LoRA(dropout=0.1).attach(tiny_model("llama"), "default", seed=0).draws
