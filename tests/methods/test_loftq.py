"""LoftQ: what it makes up for, how it is written, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models.quantized import in_nf4, quantized_for
from models.tiny import tiny_model
from models.tuned import logprobs, quiet, randomize
from near import assert_near
from torch import Tensor

from luthier.errors import LuthierError, RecipeError
from luthier.methods import LoftQ, LoRA
from luthier.models.anatomy import weight_of


def weight(outputs: int = 96, inputs: int = 128) -> Tensor:
    """A weight whose numbers are not independent, as in models."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(outputs, 6, generator=generator) @ torch.randn(6, inputs, generator=generator)
    return 0.02 * (torch.randn(outputs, inputs, generator=generator) + low)


def left(method: LoftQ, whole: Tensor) -> float:
    """‖W − Q − s B A‖ over ‖W − q(W)‖."""
    prepared = method.alternated("layer", whole, in_nf4)
    product = method.scale_of("layer") * prepared.first["b_OR"] @ prepared.first["a_RI"]
    plain = (whole - in_nf4(whole).dense(torch.float32)).norm()
    return float((whole - prepared.packed.dense(torch.float32) - product).norm() / plain)


@pytest.mark.parametrize("alpha", [1.0, 8.0, 64.0])
def test_the_start_makes_up_for_part_of_what_was_lost_whatever_the_strength(alpha: float) -> None:
    shares = [left(LoftQ(rank=8, alpha=alpha, iterations=iterations), weight()) for iterations in (1, 2, 5)]
    assert shares[0] < 0.97
    assert shares[1] <= shares[0] + 1e-3
    assert shares[2] <= shares[1] + 1e-3


def test_more_ranks_make_up_for_more() -> None:
    shares = [left(LoftQ(rank=rank), weight()) for rank in (2, 8, 32)]
    assert shares[0] > shares[1] > shares[2]


def test_the_start_is_closer_to_the_whole_model_than_the_quantized_one_is() -> None:
    whole = logprobs(tiny_model("llama"), None)
    method = LoftQ(rank=8)
    begun = quantized_for(method, tiny_model("llama"))
    method.attach(begun, "default", seed=0)
    plain = quantized_for(LoRA(), tiny_model("llama"))
    distances = [float((logprobs(model, name) - whole).norm()) for model, name in ((begun, "default"), (plain, None))]
    assert distances[0] < 0.9 * distances[1]


def test_layers_that_are_not_adapted_are_quantized_as_ever() -> None:
    method = LoftQ(rank=4, targets=("q_proj",))
    model, plain = quantized_for(method, tiny_model("llama")), quantized_for(LoRA(), tiny_model("llama"))
    assert {name.rpartition(".")[2] for name in model.prepared} == {"q_proj"}
    for name in model.anatomy.linears:
        same = torch.equal(weight_of(model.hf.get_submodule(name)), weight_of(plain.hf.get_submodule(name)))
        assert same or name.endswith("q_proj")


def test_its_file_says_that_it_is_over_another_base_and_is_read_only_as_such(tmp_path: Path) -> None:
    method = LoftQ(rank=4)
    attachment = method.attach(quantized_for(method, tiny_model("llama")), "default", seed=0)
    randomize(attachment)
    (tmp_path / "adapter").mkdir()
    attachment.write(tmp_path / "adapter", quiet)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["init_lora_weights"] == "loftq"
    with pytest.raises(LuthierError, match="init_lora_weights"):
        LoRA(begin_from=str(tmp_path / "adapter")).attach(tiny_model("llama"), "default", seed=0)


def test_merging_gives_the_trained_function_on_plain_layers() -> None:
    method = LoftQ(rank=4, iterations=2)
    model = quantized_for(method, tiny_model("llama"))
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    trained = logprobs(model)
    attachment.merge()
    assert_near(logprobs(model, None), trained, 2e-4)


def test_over_a_base_that_is_not_quantized_it_is_refused() -> None:
    with pytest.raises(RecipeError, match="is not quantized") as refused:
        LoftQ(rank=4).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "quantization"


def test_over_layers_that_came_in_few_bits_it_is_refused_with_a_mend_that_leads_out() -> None:
    with pytest.raises(RecipeError, match="comes in few bits") as refused:
        LoftQ(rank=4).attach(quantized_for(LoRA(), tiny_model("llama")), "default", seed=0)
    assert refused.value.field == "method.kind"
    assert "unquantized model" in refused.value.mend
    assert "nf4" not in str(refused.value)


def test_a_rank_beyond_the_layer_is_refused() -> None:
    with pytest.raises(RecipeError, match="fewer than the rank 200") as refused:
        LoftQ(rank=200).alternated("layer", weight(), in_nf4)
    assert refused.value.field == "method.rank"


def test_a_second_adapter_begins_where_the_first_did_and_not_where_it_went() -> None:
    method = LoftQ(rank=4)
    model = quantized_for(method, tiny_model("llama"))
    first = method.attach(model, "first", seed=0)
    begun = logprobs(model, "first")
    randomize(first)
    method.attach(model, "second", seed=0)
    assert_near(logprobs(model, "second"), begun, 1e-6)
