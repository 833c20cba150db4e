"""BOFT: its sparse rotations against dense matrices, how far they reach, its scale and count, and peft's files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods.beside_peft import WARNINGS, read_by_peft, read_here, written_by_peft, written_here
from models.tiny import plain_model, tiny_model
from models.tuned import logprobs, randomize
from near import assert_near
from peft import BOFTConfig
from peft.tuners.boft.layer import BOFTLayer
from pydantic import ValidationError
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods import BOFT
from luthier.methods.boft import butterfly
from luthier.methods.oft import cayley_turn, skew

pytestmark = WARNINGS


def rotations(blocks: int, width: int) -> Tensor:
    """Random orthogonal blocks in double precision, less the identity."""
    torch.manual_seed(blocks)
    return cayley_turn(skew(torch.randn(blocks, width * (width - 1) // 2, dtype=torch.float64), width))


def dense_factor(turn: Tensor, level: int) -> Tensor:
    """One factor as a matrix: block k acts on the half blocks whose numbers differ in one binary digit, `level`."""
    blocks, width, _ = turn.shape
    half = width // 2
    firsts = [number for number in range(2 * blocks) if not number >> level & 1]
    dense = torch.zeros(blocks * width, blocks * width, dtype=turn.dtype)
    for block, first in zip(turn + torch.eye(width, dtype=turn.dtype), firsts, strict=True):
        places = [*range(first * half, (first + 1) * half)]
        places += [place + half * 2**level for place in places]
        dense[torch.tensor(places)[:, None], torch.tensor(places)] = block
    return dense


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(("blocks", "width"), [(4, 2), (4, 4), (12, 6)])
def test_a_factor_mixes_half_blocks_that_are_a_power_of_two_apart(blocks: int, width: int, level: int) -> None:
    turn = rotations(blocks, width)
    x = torch.randn(5, blocks * width, dtype=torch.float64)
    assert_near(butterfly(x, turn, level), x @ dense_factor(turn, level), 1e-12)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_order_of_the_half_blocks_is_that_of_peft(level: int) -> None:
    turn = rotations(8, 4)
    order = BOFTLayer.block_butterfly_perm(None, 32, 8 >> level, 2, 2)
    p = torch.eye(32, dtype=torch.float64)[order]
    theirs = p @ torch.block_diag(*(turn + torch.eye(4, dtype=torch.float64))) @ p.t()
    assert_near(butterfly(torch.eye(32, dtype=torch.float64), turn, level), theirs, 1e-12)


def rotation_of(x: Tensor) -> Tensor:
    """R of a layer by the paper's formula: (I − S) (I + S)⁻¹ for every block, the last factor first."""
    identity = torch.eye(x.shape[-1])
    s = (x - x.transpose(2, 3)) / 2
    turns = (identity - s) @ torch.linalg.inv(identity + s) - identity
    rotation = torch.eye(x.shape[1] * x.shape[-1])
    for level in range(len(x)):
        rotation = dense_factor(turns[level], level) @ rotation
    return rotation


@pytest.mark.parametrize("factors", [1, 2, 3])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merged_the_weight_is_turned_back_and_scaled_and_the_bias_stays(name: str, factors: int) -> None:
    model = tiny_model(name)
    target = model.anatomy.linears[0]
    attachment = BOFT(block_size=4, factors=factors, targets=(target,)).attach(model, "default", seed=0)
    randomize(attachment, 0.5)
    unmerged = logprobs(model)
    x, scale = (tensor.detach() for tensor in attachment.trainables.values())
    assert x.shape == (factors, 8, 4, 4)
    rotation = rotation_of(x)
    assert_near(rotation @ rotation.t(), torch.eye(32))
    attachment.merge()
    before, after = plain_model(name).get_submodule(target), model.hf.get_submodule(target)
    weight = before.weight.t() if name == "gpt2" else before.weight
    assert_near(after.weight.t() if name == "gpt2" else after.weight, scale * (weight @ rotation.t()))
    assert torch.equal(after.bias, before.bias)
    assert_near(logprobs(model, None), unmerged)


@pytest.mark.parametrize(("factors", "reached"), [(1, 4), (2, 8), (3, 16), (4, 32)])
def test_every_further_factor_doubles_how_many_inputs_each_reaches(factors: int, reached: int) -> None:
    torch.manual_seed(0)
    rotation = rotation_of(torch.randn(factors, 8, 4, 4))
    assert (rotation.abs() > 1e-9).sum(1).tolist() == [reached] * 32


def test_the_symmetric_part_of_x_has_no_effect() -> None:
    model = tiny_model("llama")
    attachment = BOFT(block_size=4).attach(model, "default", seed=0)
    randomize(attachment, 0.5)
    before = logprobs(model)
    for name, tensor in attachment.trainables.items():
        if name.endswith("boft_R"):
            draw = torch.randn(tensor.shape)
            tensor.data += draw + draw.transpose(2, 3)
    assert_near(logprobs(model), before)


def test_the_count_is_that_of_whole_blocks_and_one_for_each_output() -> None:
    attachment = BOFT(block_size=4, factors=1, targets=("q_proj",)).attach(tiny_model("llama"), "default", seed=0)
    assert attachment.num_trainable == 2 * (8 * 4 * 4 + 32) == 320
    more = BOFT(num_blocks=4, factors=2, targets=("down_proj",)).attach(tiny_model("llama"), "default", seed=0)
    assert more.num_trainable == 2 * (2 * 4 * 10 * 10 + 32)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi3"])
@pytest.mark.parametrize("method", [BOFT(block_size=4, factors=1), BOFT(num_blocks=8, factors=1)])
def test_peft_computes_the_same_from_a_written_adapter_of_one_factor(name: str, method: BOFT, tmp_path: Path) -> None:
    expected = written_here(method, name, tmp_path, size=0.4)
    assert_near(read_by_peft(tmp_path, name), expected)


@pytest.mark.parametrize(
    "config",
    [
        {"boft_block_size": 4, "target_modules": "all-linear"},
        {"boft_block_size": 0, "boft_block_num": 8, "boft_dropout": 0.1, "target_modules": ["q_proj", "down_proj"]},
        {"boft_block_size": 4, "boft_n_butterfly_factor": 2, "target_modules": ["q_proj"]},  # of which it takes one
    ],
)
def test_an_adapter_of_peft_computes_the_same_here(config: dict[str, object], tmp_path: Path) -> None:
    expected = written_by_peft(BOFTConfig(task_type="CAUSAL_LM", **config), "llama", tmp_path, size=0.4)
    assert_near(read_here(BOFT, tmp_path, "llama"), expected)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"block_size": 5}, "method.block_size"),
        ({"block_size": 16, "factors": 2}, "method.block_size"),
        ({"num_blocks": 3}, "method.num_blocks"),
        ({"num_blocks": 32, "factors": 2, "targets": ("q_proj",)}, "method.num_blocks"),
    ],
)
def test_inputs_that_cannot_be_split_so_are_refused_by_name_with_the_field(
    settings: dict[str, object], field: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        BOFT.model_validate(settings).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == field
    assert "inputs" in refused.value.found
    assert refused.value.mend


@pytest.mark.parametrize(
    "settings", [{"block_size": 8, "num_blocks": 4}, {"block_size": 1}, {"factors": 0}, {"rank": 4}]
)
def test_values_that_make_no_boft_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BOFT.model_validate(settings)
