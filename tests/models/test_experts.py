"""Mixtures of experts whose weights are apart, so that they stay packed: the same function as transformers' stacked ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import batch_of
from models.tuned import logprobs, quiet, random_lora
from near import assert_near
from safetensors.torch import load_file, save_file
from tiny_experts import EXPERTS, WIDTH, WITHIN, write_tiny_experts
from tiny_runs import begin, course, one_thread, recipe_values, write_rows
from transformers import GptOssForCausalLM, Mxfp4Config

from luthier.errors import DataError, RecipeError
from luthier.methods import KronAB
from luthier.models.experts import SplitExperts, split_experts
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.models.writing import write_model
from luthier.quantization.packed import QuantizedLinear
from luthier.quantization.settings import QuantizationSettings
from luthier.tuned import load_run

FIRST = "model.layers.0.mlp.experts"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose experts come in MXFP4."""
    return write_tiny_experts(tmp_path_factory.mktemp("released"), packed=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose experts come as they were trained."""
    return write_tiny_experts(tmp_path_factory.mktemp("whole"), packed=False)


def loaded(folder: Path, **quantization: Any) -> LanguageModel:
    settings = ModelSettings(name=str(folder), dtype="fp32", device="cpu")
    return load_model(settings, quiet, quantization=QuantizationSettings(**quantization) if quantization else None)


def unpacked(folder: Path) -> GptOssForCausalLM:
    """The released model as transformers unpacks it."""
    model = GptOssForCausalLM.from_pretrained(
        folder, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def packed_layers(model: LanguageModel) -> set[str]:
    return {name for name, module in model.hf.named_modules() if isinstance(module, QuantizedLinear)}


def test_a_released_model_keeps_its_experts_packed_and_computes_what_transformers_does(released: Path) -> None:
    model, theirs = loaded(released), unpacked(released)
    assert packed_layers(model) == set(model.anatomy.experts)
    assert len(model.anatomy.experts) == 2 * 2 * EXPERTS
    assert set(model.anatomy.experts) < set(model.anatomy.linears)
    of_experts = sum(model.hf.get_submodule(name).packed.num_bytes for name in model.anatomy.experts)
    assert of_experts * 8 == 4.25 * 2 * EXPERTS * (WIDTH * 2 * WITHIN + WITHIN * WIDTH)
    for name, tensor in model.hf.get_submodule(FIRST).stacked().items():
        assert torch.equal(tensor, theirs.get_submodule(FIRST).get_parameter(name))
    batch = batch_of([5], model.layout)
    model.hf.set_attn_implementation("eager")
    assert_near(model.hf(batch.tokens_BT).logits, theirs(batch.tokens_BT).logits, 1e-5)


def test_documents_of_a_row_do_not_see_each_other(released: Path) -> None:
    model, theirs = loaded(released), unpacked(released)
    batch = batch_of([7, 12, 3], model.layout)
    hidden_TD = model.hidden(batch)[0]
    for segment in batch.segments or ():
        tokens = batch.tokens_BT[:, segment.start : segment.end]
        assert_near(hidden_TD[segment.start : segment.end], theirs.model(tokens).last_hidden_state[0], 1e-5)


def test_apart_is_the_same_function_and_the_same_weights(whole: Path) -> None:
    stacked = GptOssForCausalLM.from_pretrained(whole).get_submodule(FIRST)
    holder = torch.nn.ModuleDict({"experts": copy.deepcopy(stacked)})
    split_experts(holder)
    apart = holder.get_submodule("experts")
    assert isinstance(apart, SplitExperts)
    x_ND = torch.randn(9, WIDTH, requires_grad=True)
    share_NK, chosen_NK = torch.rand(9, EXPERTS).topk(2)
    outs = [module(x_ND, chosen_NK, share_NK) for module in (stacked, apart)]
    assert_near(outs[1], outs[0], 1e-6)
    gradients = [torch.autograd.grad(out.square().sum(), x_ND)[0] for out in outs]
    assert_near(gradients[1], gradients[0], 1e-6)
    assert all(torch.equal(tensor, stacked.get_parameter(name)) for name, tensor in apart.stacked().items())


@pytest.mark.parametrize("kind", ["nf4", "mxfp4"])
def test_experts_that_come_whole_are_packed_while_they_are_read(kind: str, whole: Path) -> None:
    plain, model = loaded(whole), loaded(whole, kind=kind)
    assert packed_layers(model) == {*model.anatomy.linears}
    assert plain.anatomy.experts == model.anatomy.experts
    for name, tensor in model.hf.get_submodule(FIRST).stacked().items():
        own = plain.hf.get_submodule(FIRST).stacked()[name]
        assert torch.equal(tensor, own) == name.endswith("bias")
        assert (tensor - own).norm() < 0.2 * own.norm()


def test_what_is_to_be_packed_may_be_named(whole: Path) -> None:
    assert packed_layers(loaded(whole, targets=("down_proj",))) == {
        f"model.layers.{layer}.mlp.experts.{expert}.down_proj" for layer in range(2) for expert in range(EXPERTS)
    }
    without = loaded(whole, skip=("gate_up_proj", "down_proj"))
    assert packed_layers(without) == {*without.anatomy.linears} - {*without.anatomy.experts}
    with pytest.raises(RecipeError, match=r"Some of the experts of model\.layers\.0\.mlp\.experts\.down_proj"):
        loaded(whole, skip=(f"{FIRST}.1.down_proj",))


def test_recomputed_layers_give_the_same(released: Path) -> None:
    model = loaded(released)
    random_lora(model)
    before = logprobs(model)
    model.checkpoint_layers()
    assert torch.equal(logprobs(model), before)


def test_a_lora_over_a_released_model_learns(released: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 12)
    with one_thread():
        values = recipe_values(released, rows)
        values["training"] |= {"steps": 20, "peak_lr": 0.05}
        begin(values, tmp_path / "run")
        losses = [line["loss"] for line in course(tmp_path / "run")]
        assert losses[-1] < losses[0] - 0.3
        adapted = {name.removesuffix(".base") for name in packed_layers(load_run(tmp_path / "run", quiet))}
        assert adapted == packed_layers(loaded(released))


def test_a_merged_model_is_written_as_transformers_has_it(released: Path, tmp_path: Path) -> None:
    model = loaded(released)
    attachment = random_lora(model)
    batch = batch_of([6], model.layout)
    expected = model.hf.get_submodule("lm_head")(model.hidden(batch, "default"))
    attachment.merge()
    write_model(model, tmp_path, torch.float32)
    merged = GptOssForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert_near(merged(batch.tokens_BT).logits, expected, 1e-5)


def test_methods_that_need_what_experts_have_not_are_refused(released: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="mixtures of experts") as refused:
        KronAB().attach(loaded(released), "default", seed=0)
    assert refused.value.field == "method.kind"
    values = recipe_values(released, write_rows(tmp_path / "rows.jsonl", 4), method={"kind": "full", "rank": None})
    with pytest.raises(RecipeError, match="trains layers that come quantized"):
        begin(values, tmp_path / "run")


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_a_damaged_file_is_refused_with_the_expert(fault: str, released: Path, tmp_path: Path) -> None:
    for file in released.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    scales = f"{FIRST}.down_proj_scales"
    tensors[scales] = tensors[scales][..., :1].contiguous()
    if fault == "missing":
        del tensors[scales]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=rf"{FIRST}\.0\.down_proj"):
        loaded(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "mxfp4"
