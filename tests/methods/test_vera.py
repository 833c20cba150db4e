"""VeRA: one frozen pair for all layers, its slices, and peft's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from methods.adapted import dense, first_layer, output_of, some_inputs
from methods.by_peft import MEANT, read_by_peft, saved_by_peft, tuned_by_peft, written
from models.tiny import tiny_model
from models.tuned import logprobs, quiet, randomize
from near import assert_apart, assert_near
from peft import VeraConfig
from pydantic import ValidationError
from safetensors.torch import load_file

from luthier.errors import RecipeError
from luthier.methods import VeRA
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.bank import AdaptedLinear
from luthier.methods.vera import VeRABranch, projections
from luthier.ops.dropout import Dropout

pytestmark = MEANT


def branches(attachment: AdapterAttachment) -> list[VeRABranch]:
    """Its branches."""
    return [branch for branch in attachment.branches.values() if isinstance(branch, VeRABranch)]


@pytest.mark.parametrize("target", ["k_proj", "q_proj", "down_proj"])
@pytest.mark.parametrize("keys_N", [None, torch.arange(5)])
def test_a_layer_uses_the_first_columns_and_rows_of_the_pair_between_its_vectors(
    target: str, keys_N: torch.Tensor | None
) -> None:
    method = VeRA(rank=5, dropout=0.4, targets=(f"0.self_attn.{target}", "0.mlp.up_proj", "1.mlp.down_proj"))
    method = method if target != "down_proj" else VeRA(rank=5, dropout=0.4, targets=("0.mlp.down_proj", "up_proj"))
    attachment = method.attach(tiny_model("llama"), "default", seed=0)
    randomize(attachment, 0.5)
    layer = next(layer for name, layer in attachment.layers.items() if name.endswith(target))
    assert isinstance(layer, AdaptedLinear)
    branch = layer.branch("default")
    assert isinstance(branch, VeRABranch)
    pair_a_RI, pair_b_OR = projections(40, 40, 5, seed=0)
    outputs, inputs = layer.weight.shape
    x_NI = some_inputs(layer)
    branch_NI = x_NI if keys_N is None else Dropout(keys_N, layer.salt, 0.4)(x_NI)
    update_OI = branch.b_O.diag() @ pair_b_OR[:outputs] @ branch.d_R.diag() @ pair_a_RI[:, :inputs]
    assert_near(output_of(layer, x_NI, keys_N), dense(layer, x_NI, layer.weight) + branch_NI @ update_OI.t())


def test_the_pair_is_as_wide_as_the_widest_layer_and_one_for_all() -> None:
    attachment = VeRA(rank=6, targets=("q_proj", "k_proj", "down_proj")).attach(tiny_model("llama"), "default", seed=0)
    assert {key: tuple(t.shape) for key, t in attachment.frozen.items()} == {"vera_A": (6, 40), "vera_B": (32, 6)}
    addresses = {(branch.wide_a_RI.data_ptr(), branch.wide_b_OR.data_ptr()) for branch in branches(attachment)}
    assert addresses == {(attachment.frozen["vera_A"].data_ptr(), attachment.frozen["vera_B"].data_ptr())}


def test_the_pair_comes_from_its_own_seed_and_not_from_the_run_s() -> None:
    pairs = [
        VeRA(rank=4, projection_seed=key).attach(tiny_model("llama"), "default", seed=run).frozen["vera_A"]
        for key, run in ((0, 1), (0, 2), (1, 1))
    ]
    assert torch.equal(pairs[0], pairs[1])
    assert_apart(pairs[0], pairs[2])


def test_the_pair_is_the_one_that_peft_draws_from_the_same_seed() -> None:
    config = VeraConfig(r=6, projection_prng_key=11, target_modules=["q_proj", "down_proj"])
    tuned = tuned_by_peft("llama", config)
    a_RI, b_OR = projections(40, 32, 6, seed=11)
    assert torch.equal(tuned.base_model.vera_A["default"], a_RI)
    assert torch.equal(tuned.base_model.vera_B["default"], b_OR)


def test_at_the_start_only_the_outer_vector_has_a_gradient() -> None:
    layer = first_layer(VeRA(rank=4, targets=("q_proj",)).attach(tiny_model("llama"), "default", seed=0))
    branch = layer.branch("default")
    assert isinstance(branch, VeRABranch)
    loss = output_of(layer, some_inputs(layer)).square().sum()
    db_O, dd_R = torch.autograd.grad(loss, [branch.b_O, branch.d_R])
    assert bool(db_O.ne(0).all())
    assert not bool(dd_R.any())


def test_the_count_is_outputs_and_rank_for_each_layer() -> None:
    tiny = VeRA(rank=4, targets=("q_proj", "v_proj")).attach(tiny_model("llama"), "default", seed=0)
    assert tiny.num_trainable == 112
    for name in ("gpt2", "falcon-new"):
        attachment = VeRA(rank=7).attach(tiny_model(name), "default", seed=0)
        shapes = [layer.weight.shape for layer in attachment.layers.values() if isinstance(layer, AdaptedLinear)]
        assert attachment.num_trainable == sum(outputs + 7 for outputs, _ in shapes)


def test_a_resumed_run_has_the_pair_of_the_first_whatever_its_seed_draws() -> None:
    model, resumed = tiny_model("llama"), tiny_model("llama")
    first = VeRA(rank=4).attach(model, "default", seed=0)
    second = VeRA(rank=4, projection_seed=5).attach(resumed, "default", seed=0)
    randomize(first, 0.5)
    randomize(second, 0.5)
    assert_apart(logprobs(resumed), logprobs(model))
    second.load_state(first.state())
    assert torch.equal(logprobs(resumed), logprobs(model))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"rank": 6}),
        ("llama", {"rank": 6, "dropout": 0.2, "projection_seed": 3, "targets": ("q_proj", "v_proj"), "layers": (1,)}),
        ("gpt2", {"rank": 6}),
        ("falcon-new", {"rank": 6}),
        ("phi3", {"rank": 6}),
    ],
)
def test_peft_computes_the_same_from_a_written_adapter(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    expected = written(tmp_path / "a", name, VeRA(**settings))
    assert_near(read_by_peft(tmp_path / "a", name), expected)


@pytest.mark.parametrize("keeps_pair", [True, False])
@pytest.mark.parametrize(
    ("name", "targets"), [("llama", ["q_proj", "v_proj", "up_proj"]), ("gpt2", ["c_attn", "c_fc"])]
)
@pytest.mark.filterwarnings("ignore:Specified to not save vera_A and vera_B")
def test_an_adapter_saved_by_peft_computes_the_same_here_with_its_pair_or_its_seed_alone(
    name: str, targets: list[str], keeps_pair: bool, tmp_path: Path
) -> None:
    config = VeraConfig(
        task_type="CAUSAL_LM", r=6, projection_prng_key=11, target_modules=targets,
        save_projection=keeps_pair, fan_in_fan_out=name == "gpt2",
    )  # fmt: skip
    expected = saved_by_peft(tmp_path / "a", name, config)
    model = tiny_model(name)
    attachment = VeRA(begin_from=str(tmp_path / "a")).attach(model, "default", seed=0)
    assert_near(logprobs(model), expected)
    (tmp_path / "b").mkdir()
    attachment.write(tmp_path / "b", quiet)
    assert_near(read_by_peft(tmp_path / "b", name), expected)
    assert "base_model.vera_A" in load_file(tmp_path / "b" / "adapter_model.safetensors")


def test_the_embedding_is_refused_with_the_mend() -> None:
    with pytest.raises(RecipeError) as refused:
        VeRA(targets=("embed_tokens",)).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.targets"
    assert refused.value.mend


@pytest.mark.parametrize("settings", [{"rank": 0}, {"dropout": 1.0}, {"projection_seed": -1}, {"d_initial": 0}])
def test_values_that_make_no_vera_are_refused_by_the_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VeRA.model_validate(settings)
