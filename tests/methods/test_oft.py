"""OFT: that the rotation is one, that it is the layer's, its approximation, its count, and peft's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from methods.beside_peft import CONFIG, WARNINGS, WEIGHTS, read_by_peft, read_here, written_by_peft, written_here
from models.tiny import plain_model, tiny_model
from models.tuned import quiet, randomize
from near import assert_near
from peft import OFTConfig
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods import OFT
from luthier.methods.oft import cayley_turn, nearest_divisor, neumann_turn, skew, turned

pytestmark = WARNINGS


def random_skew(blocks: int, width: int, size: float) -> Tensor:
    """Random Q in double precision."""
    torch.manual_seed(width)
    return skew(torch.randn(blocks, width * (width - 1) // 2, dtype=torch.float64) * size, width)


def test_q_is_skew_symmetric_and_has_its_entries_above_the_diagonal_row_by_row() -> None:
    q = skew(torch.arange(1.0, 7.0)[None], 4)[0]
    assert torch.equal(q, -q.t())
    assert torch.equal(q.triu(1), torch.tensor([[0.0, 1, 2, 3], [0, 0, 4, 5], [0, 0, 0, 6], [0, 0, 0, 0]]))


@pytest.mark.parametrize("width", [2, 5, 8])
def test_the_exact_rotation_is_the_cayley_transform_and_orthogonal(width: int) -> None:
    q, identity = random_skew(3, width, 1.0), torch.eye(width, dtype=torch.float64)
    rotation = cayley_turn(q) + identity
    assert_near(rotation, (identity + q) @ torch.linalg.inv(identity - q), 1e-12)
    assert_near(rotation @ rotation.transpose(1, 2), identity.expand_as(rotation), 1e-12)
    assert bool((torch.linalg.det(rotation) > 0).all())


def test_the_series_is_that_of_the_rotation_and_nears_it_with_its_length() -> None:
    q, identity = random_skew(2, 4, 0.1), torch.eye(4, dtype=torch.float64)
    five = identity + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    assert_near(neumann_turn(q, 5) + identity, five, 1e-12)
    errors = [float((neumann_turn(q, terms) - cayley_turn(q)).abs().max()) for terms in (4, 6, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6 < errors[0]


def test_a_rotation_keeps_the_length_of_every_input_and_mixes_within_blocks_only() -> None:
    turn = cayley_turn(random_skew(3, 4, 1.0))
    x = torch.randn(5, 12, dtype=torch.float64)
    y = turned(x, turn)
    assert_near(y.norm(dim=1), x.norm(dim=1), 1e-12)
    dense = torch.block_diag(*(turn + torch.eye(4, dtype=torch.float64)))
    assert_near(y, x @ dense, 1e-12)
    shared = turned(x, turn[:1])
    assert_near(shared[:, 4:8], x[:, 4:8] @ dense[:4, :4], 1e-12)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"shared": True}, {"neumann_terms": 6}, {"num_blocks": 2}])
def test_merged_the_weights_rows_are_turned_back_and_the_bias_stays(name: str, settings: dict[str, int]) -> None:
    model = tiny_model(name)
    target = model.anatomy.linears[0]
    method = OFT.model_validate(
        {"block_size": None if "num_blocks" in settings else 8, "targets": [target], **settings}
    )
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment, 0.2)
    (entries,) = attachment.trainables.values()
    width = 16 if "num_blocks" in settings else 8
    q = skew(entries.detach(), width)
    terms = method.neumann_terms
    blocks = (cayley_turn(q) if terms is None else neumann_turn(q, terms)) + torch.eye(width)
    dense = torch.block_diag(*blocks.expand(32 // width, -1, -1))
    attachment.merge()
    before, after = plain_model(name).get_submodule(target), model.hf.get_submodule(target)
    weight = before.weight.t() if name == "gpt2" else before.weight
    assert_near(after.weight.t() if name == "gpt2" else after.weight, weight @ dense.t())
    assert torch.equal(after.bias, before.bias)


def test_a_small_rotation_is_not_rounded_away_over_a_bf16_input() -> None:
    entries = torch.full((1, 6), 1e-3)
    x = torch.tensor([[0.0, 0.0, 0.0, 1.0]]).to(torch.bfloat16)
    y = turned(x, cayley_turn(skew(entries, 4)))
    assert y.dtype == torch.bfloat16
    assert_near(y.float(), torch.tensor([[-2e-3, -2e-3, -2e-3, 1.0]]), 1e-4)


def test_the_count_is_that_of_the_entries_above_the_diagonals() -> None:
    def count(method: OFT) -> int:
        return method.attach(tiny_model("llama"), "default", seed=0).num_trainable

    assert count(OFT(block_size=4, targets=("q_proj",))) == 2 * (32 // 4) * 6 == 96
    assert count(OFT(block_size=4, targets=("q_proj",), shared=True)) == 2 * 6
    assert count(OFT(num_blocks=2, targets=("down_proj",))) == 2 * 2 * (20 * 19 // 2)


def test_the_nearest_divisor_is_taken_and_of_two_the_smaller() -> None:
    found = [nearest_divisor(40, wanted) for wanted in (1, 3, 6, 7, 9, 16, 30, 31, 99)]
    assert found == [1, 2, 5, 8, 8, 20, 20, 40, 40]


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi3"])
@pytest.mark.parametrize(
    "method",
    [
        OFT(block_size=8),
        OFT(block_size=8, neumann_terms=5),
        OFT(block_size=8, neumann_terms=4),
        OFT(num_blocks=3, neumann_terms=7),
        OFT(block_size=16),  # no divisor of the feed-forward's width
        OFT(block_size=4, shared=True),
    ],
)
def test_peft_computes_the_same_from_a_written_adapter(name: str, method: OFT, tmp_path: Path) -> None:
    expected = written_here(method, name, tmp_path, size=0.2)
    assert_near(read_by_peft(tmp_path, name), expected)


@pytest.mark.parametrize(
    "config",
    [
        {"oft_block_size": 8, "use_cayley_neumann": False, "target_modules": "all-linear"},
        {"oft_block_size": 8, "target_modules": ["q_proj", "down_proj"], "module_dropout": 0.1},
        {"oft_block_size": 0, "r": 3, "num_cayley_neumann_terms": 8, "target_modules": "all-linear"},
        {"oft_block_size": 16, "block_share": True, "target_modules": "all-linear", "layers_to_transform": [1]},
    ],
)
def test_an_adapter_of_peft_computes_the_same_here(config: dict[str, object], tmp_path: Path) -> None:
    expected = written_by_peft(OFTConfig(task_type="CAUSAL_LM", **config), "llama", tmp_path, size=0.2)
    assert_near(read_here(OFT, tmp_path, "llama"), expected)


@pytest.mark.parametrize("terms", [None, 5])
def test_a_file_of_the_exact_form_holds_the_negative_for_peft_turns_the_other_way(
    terms: int | None, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    attachment = OFT(block_size=8, neumann_terms=terms).attach(model, "default", seed=0)
    randomize(attachment, 0.2)
    attachment.write(tmp_path, quiet)
    sign = -1 if terms is None else 1
    for key, tensor in load_file(tmp_path / WEIGHTS).items():
        assert torch.equal(tensor, sign * attachment.trainables[key.removeprefix("base_model.model.")])


@pytest.mark.parametrize(
    ("change", "field"),
    [({"coft": True}, "coft"), ({"use_cayley_neumann": True, "peft_version": "0.17.1"}, "use_cayley_neumann")],
)
def test_a_file_of_another_function_is_refused_with_the_field(
    change: dict[str, object], field: str, tmp_path: Path
) -> None:
    written_here(OFT(block_size=8), "llama", tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(RecipeError) as refused:
        OFT(begin_from=str(tmp_path)).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == field
    assert refused.value.mend


def test_blocks_of_one_input_have_nothing_to_rotate_and_are_refused() -> None:
    with pytest.raises(RecipeError) as refused:
        OFT(num_blocks=32).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.num_blocks"
    assert "q_proj has 32 inputs" in refused.value.found


@pytest.mark.parametrize(
    "settings", [{"block_size": 8, "num_blocks": 4}, {"block_size": 1}, {"neumann_terms": 3}, {"rank": 4}]
)
def test_values_that_make_no_oft_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        OFT.model_validate(settings)
