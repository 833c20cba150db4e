"""A GGUF file's layers in its own blocks compute what its unpacked weights do."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from near import assert_near
from tiny_gguf import K_SCALES, WIDTH, write_tiny_gguf

from luthier.errors import RecipeError
from luthier.methods import LoRA
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.quantization.packed import QuantizedLinear
from luthier.quantization.settings import QuantizationSettings

WORDS = ["<s>", "</s>", "a", "b", "c", "Ġ", "ab"]


def written(tmp_path: Path, format_: Type | None) -> Path:
    width = 256 if format_ in K_SCALES else WIDTH
    return write_tiny_gguf(tmp_path / "tiny.gguf", WORDS, ["a b"], bos=0, eos=1, format_=format_, width=width)


def loaded(file: Path | str, quantization: QuantizationSettings | None = None) -> LanguageModel:
    settings = ModelSettings(name=str(file), dtype="fp32", device="cpu")
    return load_model(settings, lambda sentence: None, quantization=quantization)


@pytest.mark.parametrize("format_", [Type.Q8_0, Type.Q4_0, Type.Q4_1, *K_SCALES], ids=lambda format_: format_.name)
def test_packed_layers_compute_what_unpacked_ones_do(format_: Type, tmp_path: Path) -> None:
    file = written(tmp_path, format_)
    plain, packed = loaded(file), loaded(file, QuantizationSettings(kind="gguf"))
    layers = [module for module in packed.hf.modules() if isinstance(module, QuantizedLinear)]
    assert len(layers) == len(packed.anatomy.linears) == 7
    assert {layer.packed.kind for layer in layers} == {format_.name.lower()}
    tokens = torch.tensor([[2, 6, 3, 4, 2]])
    for model in (plain, packed):
        model.hf.set_attn_implementation("sdpa")
    assert_near(packed.hf(tokens).logits, plain.hf(tokens).logits)
    assert packed.identity == plain.identity


def test_what_the_recipe_leaves_out_is_unpacked(tmp_path: Path) -> None:
    some = loaded(written(tmp_path, Type.Q8_0), QuantizationSettings(kind="gguf", skip=("down_proj",)))
    assert not isinstance(some.hf.get_submodule("model.layers.0.mlp.down_proj"), QuantizedLinear)
    assert isinstance(some.hf.get_submodule("model.layers.0.mlp.up_proj"), QuantizedLinear)


@pytest.mark.parametrize("format_", [None, Type.F16], ids=str)
def test_a_file_in_which_nothing_is_in_blocks_is_refused_rather_than_taken_for_packed(
    format_: Type | None, tmp_path: Path
) -> None:
    file = written(tmp_path, format_)
    with pytest.raises(RecipeError, match=r"tiny\.gguf has none of the layers") as refused:
        loaded(file, QuantizationSettings(kind="gguf"))
    assert refused.value.field == "quantization.kind"
    assert "eave quantization out" in refused.value.mend
    loaded(file)


def test_a_lora_trains_over_it(tmp_path: Path) -> None:
    model = loaded(written(tmp_path, Type.Q4_0), QuantizationSettings(kind="gguf"))
    attachment = LoRA(rank=2).attach(model, "default", seed=0)
    layer = model.hf.get_submodule("model.layers.0.mlp.up_proj")
    x = torch.randn(3, 32, requires_grad=True)
    y = layer(x)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    assert attachment.num_trainable > 0


def test_a_form_that_does_not_go_with_the_source_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match=r"no \.gguf file") as refused:
        loaded(tiny_model, QuantizationSettings(kind="gguf"))
    assert refused.value.field == "quantization.kind"
    with pytest.raises(RecipeError, match=r"quantization\.kind to gguf"):
        loaded(written(tmp_path, Type.Q8_0), QuantizationSettings(kind="nf4"))


def test_an_architecture_that_is_not_laid_out_so_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(file, "bloom")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    from luthier.models.gguf_packed import GGUFBlocks

    with pytest.raises(RecipeError, match="bloom") as refused:
        GGUFBlocks(file, None)
    assert "unpacked" in refused.value.mend
