"""Models written as GGUF: another reader computes the same, in every shape and number format; what has no place is refused."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from export.gguf_shapes import SHAPES, UNREAD_BY_TRANSFORMERS, read_by_table, write_shape
from near import assert_all_near, assert_apart, assert_near
from transformers import AutoConfig, PreTrainedModel

from luthier.errors import ExportMismatch, RecipeError, ResourceError
from luthier.export import readers
from luthier.export.gguf_adapter import write_gguf_adapter
from luthier.export.gguf_architectures import architecture_of, paired_rows
from luthier.export.gguf_header import check_header
from luthier.export.gguf_model import GGUFDtype, write_gguf
from luthier.export.readers import add_adapter, gguf_reader, of_model, whole_text
from luthier.methods import ADAPTER, LoRA
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.models.gguf_files import read_gguf_config, read_gguf_weights
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.store.files import write_folder
from luthier.types import Origin

TOKENS = torch.arange(5, 45)[None]


def nothing(text: str) -> None:
    pass


def written(folder: Path, dtype: GGUFDtype = "fp32") -> Path:
    model = load_model(ModelSettings(name=str(folder), dtype="fp32"), nothing)
    file = folder / "model.gguf"
    write_gguf(model, file, dtype, "a model")
    return file


def logits(hf: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return hf.eval()(TOKENS).logits


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_reads_the_file_as_the_same_model(name: str, tiny_model: Path, tmp_path: Path) -> None:
    hf = write_shape(SHAPES[name], tmp_path / "model", tiny_model)
    read, _ = read_gguf_weights(written(tmp_path / "model"), hf.config, torch.float32)
    assert_near(logits(read), logits(hf), 1e-5)


@pytest.mark.parametrize("name", UNREAD_BY_TRANSFORMERS)
def test_shapes_that_transformers_does_not_read_are_written_with_every_tensor_once(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    hf = write_shape(UNREAD_BY_TRANSFORMERS[name], tmp_path / "model", tiny_model)
    tensors = gguf.GGUFReader(written(tmp_path / "model")).tensors
    assert sum(int(tensor.n_elements) for tensor in tensors) == sum(each.numel() for each in hf.parameters())


def test_a_falcon_with_several_groups_has_its_queries_then_its_keys_then_its_values(
    tiny_model: Path, tmp_path: Path
) -> None:
    hf = write_shape(UNREAD_BY_TRANSFORMERS["falcon 40b"], tmp_path / "model", tiny_model)
    fused = hf.get_parameter("transformer.h.0.self_attention.query_key_value.weight").detach().view(2, 4, 16, 64)
    tensors = {each.name: each.data for each in gguf.GGUFReader(written(tmp_path / "model")).tensors}
    expected = torch.cat([fused[:, :2].reshape(64, 64), fused[:, 2].reshape(32, 64), fused[:, 3].reshape(32, 64)])
    assert_near(torch.from_numpy(np.array(tensors["blk.0.attn_qkv.weight"])), expected, 0)


def test_gemmas_norms_are_written_as_what_they_multiply_by(tiny_model: Path, tmp_path: Path) -> None:
    hf = write_shape(UNREAD_BY_TRANSFORMERS["gemma"], tmp_path / "model", tiny_model)
    tensors = {each.name: each.data for each in gguf.GGUFReader(written(tmp_path / "model")).tensors}
    gain = torch.from_numpy(np.array(tensors["output_norm.weight"]))
    assert_near(gain, hf.get_parameter("model.norm.weight").detach() + 1, 1e-6)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("gemma", gguf.MODEL_ARCH.GEMMA), ("mistral", gguf.MODEL_ARCH.LLAMA), ("phi", gguf.MODEL_ARCH.PHI2)],
    ids=str,
)
def test_a_file_read_by_the_format_alone_into_a_model_of_its_own_kind_gives_the_same_logits(
    name: str, architecture: gguf.MODEL_ARCH, tiny_model: Path, tmp_path: Path
) -> None:
    hf = write_shape(UNREAD_BY_TRANSFORMERS[name], tmp_path / "model", tiny_model)
    read = read_by_table(written(tmp_path / "model"), hf, architecture)
    assert_near(logits(read), logits(hf), 1e-5)


def base_and_merged(name: str, folder: Path, words: Path) -> tuple[Path, Path, Path, LanguageModel]:
    """Files of a model, of an adapter of every linear layer of it, and of both merged; and the model with the adapter."""
    write_shape({**SHAPES, **UNREAD_BY_TRANSFORMERS}[name], folder / "model", words)
    base = written(folder / "model")
    model = load_model(ModelSettings(name=str(folder / "model"), dtype="fp32"), nothing)
    attachment = LoRA(rank=3, alpha=5).attach(model, ADAPTER, 0)
    assert isinstance(attachment, AdapterAttachment)
    assert set(attachment.layers) == set(model.anatomy.linears)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in attachment.trainables.values():
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=draw))
    write_gguf_adapter(model, attachment, folder / "adapter.gguf", "an adapter")
    both = load_model(ModelSettings(name=str(folder / "model"), dtype="fp32"), nothing)
    again = LoRA(rank=3, alpha=5).attach(both, ADAPTER, 0)
    for own, theirs in zip(again.trainables.values(), attachment.trainables.values(), strict=True):
        own.data.copy_(theirs)
    again.merge()
    write_gguf(both, folder / "merged.gguf", "fp32", "both")
    return base, folder / "adapter.gguf", folder / "merged.gguf", model


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    return {each.name: torch.from_numpy(np.array(each.data)) for each in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("name", [*SHAPES, *UNREAD_BY_TRANSFORMERS])
def test_a_file_and_its_adapter_are_together_the_file_of_the_merged_model(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    """So too where layers are fused (Phi-3, Falcon), stored turned round (GPT-2) or lie in another order (Llama, Falcon 40B)."""
    base, adapter, merged, _ = base_and_merged(name, tmp_path, tiny_model)
    before = tensors_of(base)
    add_adapter(base, adapter)
    after = tensors_of(base)
    assert_all_near(after, tensors_of(merged))
    changed = {key for key, tensor in after.items() if not torch.equal(tensor, before[key])}
    assert changed == {key for key in after if key.startswith("blk.") and after[key].ndim == 2}


@pytest.mark.parametrize("name", ["llama", "phi3", "falcon", "gpt2"])
def test_an_adapter_on_its_file_says_what_it_says_on_the_model(name: str, tiny_model: Path, tmp_path: Path) -> None:
    base, adapter, _, model = base_and_merged(name, tmp_path, tiny_model)
    texts = [whole_text(TOKENS[0].numpy(), Origin("rows", 1))]
    (expected,) = of_model(model, ADAPTER).say(texts)
    (bare,) = of_model(model, None).say(texts)
    assert_apart(expected, bare)
    reader = gguf_reader(base, model.hf.config, adapter)
    (said,) = reader.say(texts)
    # llama.cpp looks GELU up in a table in half precision
    looks_up = "llama.cpp" in reader.name and name in ("falcon", "gpt2")
    assert_near(said, expected, share=1e-3 if looks_up else 1e-5)


@pytest.mark.parametrize("name", ["mistral", "phi3"])
def test_within_a_window_attention_is_whole_so_a_file_without_windows_promises_no_more(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    kind, parts = {**UNREAD_BY_TRANSFORMERS, **SHAPES}[name]
    write_shape((kind, {**parts, "sliding_window": 128}), tmp_path / "model", tiny_model)
    reader = gguf.GGUFReader(written(tmp_path / "model"))
    field = next(field for key, field in reader.fields.items() if key.endswith(".context_length"))
    assert field.contents() == 128


def test_a_mistral_is_read_back_as_the_llama_that_its_file_says_it_is(tiny_model: Path, tmp_path: Path) -> None:
    hf = write_shape(UNREAD_BY_TRANSFORMERS["mistral"], tmp_path / "model", tiny_model)
    reader = gguf_reader(written(tmp_path / "model"), hf.config)
    (said,) = reader.say([whole_text(TOKENS[0].numpy(), Origin("rows", 1))])
    assert_near(said, logits(hf)[0], 1e-5)


@pytest.mark.parametrize("name", [*SHAPES, *UNREAD_BY_TRANSFORMERS])
def test_a_header_that_says_anything_else_than_the_config_is_caught(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    hf = write_shape({**SHAPES, **UNREAD_BY_TRANSFORMERS}[name], tmp_path / "model", tiny_model)
    file = written(tmp_path / "model")
    check_header(file, hf.config)
    fields = gguf.GGUFReader(file).fields
    prefix = fields["general.architecture"].contents()
    numbers = [
        key for key in fields if key.startswith(f"{prefix}.") and fields[key].types[0] != gguf.GGUFValueType.STRING
    ]
    assert len(numbers) >= 8
    for key in numbers:
        reader = gguf.GGUFReader(file, "r+")
        part = reader.fields[key].parts[reader.fields[key].data[0]]
        said = part[0].copy()
        part[0] = said * 2 + 1
        with pytest.raises(ExportMismatch, match=key):
            check_header(file, hf.config)
        part[0] = said
    check_header(file, hf.config)


def test_a_header_is_what_transformers_makes_a_config_of(tiny_model: Path, tmp_path: Path) -> None:
    hf = write_shape(SHAPES["qwen3"], tmp_path / "model", tiny_model)
    read = read_gguf_config(written(tmp_path / "model")).to_dict()
    for key in (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "num_hidden_layers",
        "vocab_size",
    ):
        assert read[key] == hf.config.to_dict()[key], key
    assert read["rms_norm_eps"] == pytest.approx(hf.config.rms_norm_eps)


def test_rows_go_into_pairs_head_by_head() -> None:
    rows_O = torch.arange(12.0)
    assert paired_rows(rows_O, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize(("dtype", "step"), [("fp16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 127), ("q4_0", 1 / 7)])
def test_a_number_format_rounds_by_no_more_than_its_step(
    dtype: Any, step: float, tiny_model: Path, tmp_path: Path
) -> None:
    hf = write_shape(SHAPES["qwen2"], tmp_path / "model", tiny_model)
    read, _ = read_gguf_weights(written(tmp_path / "model", dtype), hf.config, torch.float32)
    for name, parameter in hf.named_parameters():
        off = (read.get_parameter(name) - parameter).abs().max()
        assert off <= step * parameter.abs().max() * (1 if parameter.ndim == 2 else 0), name


def test_in_four_bits_the_embedding_has_eight_and_rows_without_whole_blocks_sixteen(
    tiny_model: Path, tmp_path: Path
) -> None:
    odd = ("qwen2", {**SHAPES["qwen2"][1], "intermediate_size": 80})
    write_shape(odd, tmp_path / "model", tiny_model)
    types = {each.name: each.tensor_type.name for each in gguf.GGUFReader(written(tmp_path / "model", "q4_0")).tensors}
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert types["blk.0.ffn_up.weight"] == "Q4_0"
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.attn_norm.weight"] == types["blk.0.attn_q.bias"] == "F32"


_LOCAL = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}


@pytest.mark.parametrize(
    ("kind", "parts", "field"),
    [
        ("opt", {}, "type 'opt'"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_type"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("gemma2", {"query_pre_attn_scalar": 7}, "query_pre_attn_scalar"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 26, "query_pre_attn_scalar": 256}, "layer_types"),
        ("gemma2", {"query_pre_attn_scalar": 256, "final_logit_softcapping": None}, "no final_logit_softcapping"),
        ("gemma2", {"query_pre_attn_scalar": 256, "attn_logit_softcapping": None}, "no attn_logit_softcapping"),
        ("gemma3_text", {"query_pre_attn_scalar": 256, "rope_parameters": _LOCAL}, "sliding_attention.rope_theta 5000"),
        ("gemma", {"hidden_act": "silu"}, "hidden_act"),
        ("falcon", {"alibi": True}, "alibi"),
        ("gpt2", {"activation_function": "relu"}, "activation_function"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm"),
        ("phi", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(kind: str, parts: dict[str, Any], field: str) -> None:
    with pytest.raises(RecipeError, match=field):
        architecture_of(AutoConfig.for_model(kind, **parts))


def test_a_write_that_numpy_reports_without_a_reason_is_told_with_the_systems(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(self: object, tensor: object) -> None:
        raise OSError("4096 requested and 12 written")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", short)
    model = load_model(ModelSettings(name=str(tiny_model), dtype="fp32"), nothing)
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        write_folder(tmp_path / "out", lambda partial: write_gguf(model, partial / "model.gguf", "fp32", "a model"))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EIO
    assert list(tmp_path.iterdir()) == []


def test_without_a_program_to_read_the_file_back_it_is_not_called_checked(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_binding", lambda: None)
    hf = write_shape(UNREAD_BY_TRANSFORMERS["gemma"], tmp_path / "model", tiny_model)
    with pytest.raises(ExportMismatch, match="No program here can read the file back"):
        gguf_reader(written(tmp_path / "model"), hf.config)
