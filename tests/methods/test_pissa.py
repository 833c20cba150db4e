"""PiSSA: where it starts, that the base stays whole, and the LoRA that it leaves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.adapted import dense, first_layer, output_of, some_inputs
from methods.by_peft import MEANT, read_by_peft, tuned_by_peft, written
from models.quantized import in_nf4, quantized_for
from models.rows import plain_logprobs, random_rows
from models.tiny import tiny_model
from models.tuned import LENGTHS, logprobs, quiet, randomize
from near import assert_apart, assert_near
from peft import LoraConfig
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods import LoRA, PiSSA
from luthier.methods.bank import AdaptedLinear
from luthier.methods.pissa import PiSSABranch, randomized_svd
from luthier.models.anatomy import weight_of
from luthier.models.language_model import LanguageModel
from luthier.ops.dropout import Dropout
from luthier.ops.spectrum import svd_of

pytestmark = MEANT
PLACES = [("llama", "k_proj"), ("llama", "down_proj"), ("gpt2", "c_attn")]


def fresh_layer(name: str, target: str, **settings: Any) -> tuple[AdaptedLinear, PiSSABranch]:
    """A layer under a PiSSA that has not trained."""
    attachment = PiSSA(rank=3, alpha=5, targets=(target,), **settings).attach(tiny_model(name), "default", seed=0)
    layer = first_layer(attachment)
    branch = layer.branch("default")
    assert isinstance(branch, PiSSABranch)
    return layer, branch


def start_of(branch: PiSSABranch) -> Tensor:
    """s B₀ A₀."""
    return branch.scale * branch.start["start_B"] @ branch.start["start_A"]


@pytest.mark.parametrize(("name", "target"), PLACES)
def test_it_starts_at_the_closest_matrix_of_its_rank_with_the_residual_left(name: str, target: str) -> None:
    layer, branch = fresh_layer(name, target)
    sigma_K = torch.linalg.svdvals(layer.weight)
    assert_near(torch.linalg.svdvals(start_of(branch))[:3], sigma_K[:3])
    assert_near(torch.linalg.svdvals(layer.weight - start_of(branch))[: len(sigma_K) - 3], sigma_K[3:])
    assert torch.equal(branch.a_RI, branch.start["start_A"])
    assert torch.equal(branch.b_OR, branch.start["start_B"])
    assert_near(branch.a_RI.norm(dim=1), branch.b_OR.norm(dim=0))


@pytest.mark.parametrize(("name", "target"), PLACES)
@pytest.mark.parametrize("niter", [None, 2])
def test_the_output_is_that_of_the_residual_and_the_learned_product(name: str, target: str, niter: int | None) -> None:
    layer, branch = fresh_layer(name, target, niter=niter)
    for index, tensor in enumerate((branch.a_RI, branch.b_OR)):
        tensor.data.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index)), alpha=0.2)
    x_NI = some_inputs(layer)
    weight_OI = layer.weight - start_of(branch) + 5 / 3 * branch.b_OR @ branch.a_RI
    assert_near(output_of(layer, x_NI), dense(layer, x_NI, weight_OI))
    assert_apart(output_of(layer, x_NI), dense(layer, x_NI, layer.weight))


def test_dropout_acts_on_the_input_of_the_change_alone() -> None:
    layer, branch = fresh_layer("llama", "v_proj", dropout=0.4)
    x_NI, keys_N = some_inputs(layer), torch.arange(5)
    assert_near(output_of(layer, x_NI, keys_N), dense(layer, x_NI, layer.weight))
    branch.b_OR.data.mul_(1.5)
    change_OI = 5 / 3 * branch.b_OR @ branch.a_RI - start_of(branch)
    dropped_NI = Dropout(keys_N, layer.salt, 0.4)(x_NI)
    assert_near(output_of(layer, x_NI, keys_N), dense(layer, x_NI, layer.weight) + dropped_NI @ change_OI.t())


def test_the_first_gradient_is_that_of_the_product_and_not_zero_anywhere() -> None:
    layer, branch = fresh_layer("llama", "up_proj")
    x_NI = some_inputs(layer)
    pull_NO = torch.randn(5, len(layer.weight), generator=torch.Generator().manual_seed(1))
    da_RI, db_OR = torch.autograd.grad((output_of(layer, x_NI) * pull_NO).sum(), [branch.a_RI, branch.b_OR])
    assert_near(da_RI, 5 / 3 * branch.b_OR.t() @ pull_NO.t() @ x_NI)
    assert_near(db_OR, 5 / 3 * pull_NO.t() @ x_NI @ branch.a_RI.t())
    assert_apart(da_RI, torch.zeros_like(da_RI))


def test_in_half_precision_too_a_fresh_adapter_changes_nothing() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    before = logprobs(model, None)
    PiSSA(rank=4).attach(model, "default", seed=0)
    assert_near(logprobs(model), before, 1e-6)


def test_power_iterations_come_close_to_the_exact_decomposition() -> None:
    weight_OI = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    u, sigma, vt = torch.linalg.svd(weight_OI, full_matrices=False)
    exact_OI = u[:, :4] * sigma[:4] @ vt[:4]

    def error(niter: int) -> float:
        close = randomized_svd(weight_OI, 4, niter, torch.Generator().manual_seed(1))
        return float((close.best(4).dense() - exact_OI).norm() / exact_OI.norm())

    errors = [error(niter) for niter in (1, 8, 64)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3
    whole = randomized_svd(weight_OI, 40, 1, torch.Generator().manual_seed(1))
    assert_near(whole.best(40).dense(), weight_OI)


@pytest.mark.parametrize("niter", [None, 4])
def test_a_resumed_run_computes_with_the_start_of_the_first_bit_for_bit(niter: int | None) -> None:
    model, resumed = tiny_model("llama"), tiny_model("llama")
    for parameter in resumed.hf.parameters():  # as if another machine found other singular vectors
        parameter.data.mul_(1.01)
    first = PiSSA(rank=3, niter=niter).attach(model, "default", seed=0)
    second = PiSSA(rank=3, niter=niter).attach(resumed, "default", seed=1)
    resumed.hf.load_state_dict(
        {key: tensor for key, tensor in model.hf.state_dict().items() if ".branches." not in key}, strict=False
    )
    randomize(first)
    randomize(second)
    assert_apart(logprobs(resumed), logprobs(model), 1e-4)
    second.load_state(first.state())
    assert torch.equal(logprobs(resumed), logprobs(model))


def test_over_four_bits_the_residual_is_what_is_quantized() -> None:
    method, plain = PiSSA(rank=4, alpha=5), tiny_model("llama")
    model = quantized_for(method, tiny_model("llama"))
    method.attach(model, "default", seed=0)
    for name, layer in adapted_linears(model):
        branch = layer.branch("default")
        assert isinstance(branch, PiSSABranch)
        weight_OI = plain.hf.get_submodule(name).get_parameter("weight")
        part_OI = svd_of(weight_OI).best(4).dense()
        expected_OI = in_nf4(weight_OI - part_OI).dense(torch.float32) + part_OI
        assert_near(layer.weight, expected_OI, 1e-5)
        assert_near(start_of(branch), part_OI, 1e-5)
        assert_near(layer.frozen.reference(), layer.weight, 1e-6)


def test_over_four_bits_it_begins_nearer_to_the_whole_model_and_layers_that_it_leaves_are_packed_as_ever() -> None:
    whole = logprobs(tiny_model("llama"), None)
    near, usual = (quantized_for(method, tiny_model("llama")) for method in (PiSSA(rank=12), LoRA()))
    distances = [float((logprobs(model, None) - whole).norm()) for model in (near, usual)]
    assert distances[0] < 0.9 * distances[1]
    some = quantized_for(PiSSA(rank=4, targets=("q_proj",)), tiny_model("llama"))
    for name in some.anatomy.linears:
        same = torch.equal(*(weight_of(model.hf.get_submodule(name)) for model in (some, usual)))
        assert same != name.endswith("q_proj")


def adapted_linears(model: LanguageModel) -> list[tuple[str, AdaptedLinear]]:
    """The adapted linear layers by name."""
    return [(name, module) for name, module in model.hf.named_modules() if isinstance(module, AdaptedLinear)]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"rank": 3, "alpha": 5}),
        ("gpt2", {"rank": 3}),
        ("falcon-new", {"rank": 3, "niter": 2}),
        (
            "llama",
            {"rank": 4, "alpha": 3, "rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 7}},
        ),
        ("llama", {"rank": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 7}}),
    ],
)
def test_what_is_written_is_a_lora_of_twice_the_rank_that_peft_computes_the_same_with(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    expected = written(tmp_path / "a", name, PiSSA(**settings))
    assert_near(read_by_peft(tmp_path / "a", name), expected)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    growth = math.sqrt(2) if settings.get("rslora") else 2
    assert config["r"] == 2 * settings["rank"]
    assert config["lora_alpha"] == pytest.approx(growth * settings.get("alpha", settings["rank"]))
    assert config["init_lora_weights"] is True


def test_peft_s_residual_model_with_the_same_a_and_b_computes_the_same() -> None:
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["k_proj", "up_proj"], init_lora_weights="pissa")
    tuned = tuned_by_peft("llama", config)
    model = tiny_model("llama")
    attachment = PiSSA(rank=3, alpha=5, targets=("k_proj", "up_proj")).attach(model, "default", seed=0)
    theirs = {
        key.removeprefix("base_model.model.").replace(".default", ""): parameter
        for key, parameter in tuned.named_parameters()
        if parameter.requires_grad
    }
    assert set(theirs) == set(attachment.trainables)
    for key, parameter in attachment.trainables.items():
        parameter.data.copy_(theirs[key])
    assert_near(logprobs(model), plain_logprobs(tuned, random_rows(LENGTHS)))


def test_going_on_from_it_is_lora(tmp_path: Path) -> None:
    written(tmp_path / "adapter", "llama", PiSSA(rank=3))
    again = PiSSA(rank=3).continued(tmp_path)
    assert isinstance(again, LoRA)
    (tmp_path / "b").mkdir()
    again.attach(tiny_model("llama"), "default", seed=0).write(tmp_path / "b", quiet)
    files = [(tmp_path / run / "adapter_model.safetensors").read_bytes() for run in ("adapter", "b")]
    assert files[0] == files[1]


def test_from_is_refused_and_the_mend_names_lora(tmp_path: Path) -> None:
    written(tmp_path / "a", "llama", PiSSA(rank=3))
    with pytest.raises(RecipeError) as refused:
        PiSSA(begin_from=str(tmp_path / "a")).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.from"
    assert "lora" in refused.value.mend


def test_a_rank_beyond_the_singular_vectors_is_refused_with_the_layer() -> None:
    with pytest.raises(RecipeError) as refused:
        PiSSA(rank=17).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.rank"
    assert "k_proj" in refused.value.found
    PiSSA(rank=17, rank_pattern={"k_proj|v_proj": 16}).attach(tiny_model("llama"), "default", seed=0)


def test_the_count_is_lora_s() -> None:
    attachment = PiSSA(rank=4, targets=("q_proj", "v_proj")).attach(tiny_model("llama"), "default", seed=0)
    assert attachment.num_trainable == 896


def test_the_strength_is_the_rank_unless_it_is_given() -> None:
    assert PiSSA(rank=6).scale_of("x") == 1.0
    assert PiSSA(rank=6, alpha=3).scale_of("x") == 0.5
