"""What is asked of llama.cpp and what comes back, through its own process: with a binding that stands in for it here."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import PreTrainedConfig

from luthier.errors import ExportMismatch
from luthier.export import readers
from luthier.export.llama_cpp_program import BINDINGS
from luthier.export.readers import Reader, gguf_reader, whole_text
from luthier.types import Origin

BINDING = """
import sys
import numpy as np
class Llama:
    def __init__(self, file, lora_path, n_ctx, logits_all, type_k, type_v, **rest):
        if "broken" in file:
            print("llama_model_load: error loading model: no such tensor", file=sys.stderr)
            sys.exit(1)
        print("llama.cpp prints to standard out, too")
        assert logits_all and type_k == type_v == 0
        self.lora = 0 if lora_path is None else 1
    def tokenize(self, text, add_bos, special):
        assert special and not add_bos
        return list(text)
    def reset(self):
        pass
    def eval(self, tokens):
        self.scores = np.array([[token, 2 * token, self.lora] for token in tokens], np.float32)
"""


@pytest.fixture
def binding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "llama_cpp.py").write_text(BINDING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(readers, "check_header", lambda file, config: None)  # of files that are none
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    return tmp_path


def reader(file: Path, adapter: Path | None = None, text: str = "ab", tokens: tuple[int, ...] = (97, 98)) -> Reader:
    return gguf_reader(file, PreTrainedConfig(), adapter, [(text, np.array(tokens))])


def test_each_rows_logits_come_back_in_order_and_the_reader_is_named(binding: Path) -> None:
    found = reader(binding / "model.gguf", binding / "adapter.gguf")
    rows = [whole_text(np.array(tokens), Origin("rows", 1)) for tokens in ([5, 6, 7], [8])]
    first, second = found.say(rows)
    assert first.tolist() == [[5, 10, 1], [6, 12, 1], [7, 14, 1]]
    assert second.tolist() == [[8, 16, 1]]
    assert found.is_elsewhere
    assert found.name == f"llama.cpp ({BINDINGS['llama_cpp']})"


def test_a_file_that_it_does_not_take_is_an_error_with_its_own_words(binding: Path) -> None:
    found = reader(binding / "broken.gguf")
    with pytest.raises(ExportMismatch, match="error loading model: no such tensor"):
        next(found.say([whole_text(np.array([1]), Origin("rows", 1))]))


def test_a_text_that_it_cuts_otherwise_is_an_error(binding: Path) -> None:
    found = reader(binding / "model.gguf", tokens=(97, 99))
    with pytest.raises(ExportMismatch, match=r"other tokens than the run's tokenizer, from token 1 on: 'ab'"):
        next(found.say([whole_text(np.array([1]), Origin("rows", 1))]))


def test_without_a_binding_an_adapter_is_added_to_the_files_own_matrices(tmp_path: Path) -> None:
    from luthier.export.readers import add_adapter

    weight_OI, a_RI, b_OR = torch.randn(6, 4), torch.randn(2, 4), torch.randn(6, 2)
    base, adapter = gguf.GGUFWriter(tmp_path / "base.gguf", "llama"), gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    base.add_tensor("blk.0.attn_q.weight", weight_OI.numpy())
    adapter.add_float32("adapter.lora.alpha", 8.0)
    adapter.add_tensor("blk.0.attn_q.weight.lora_a", a_RI.numpy())
    adapter.add_tensor("blk.0.attn_q.weight.lora_b", b_OR.numpy())
    for writer in (base, adapter):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    add_adapter(tmp_path / "base.gguf", tmp_path / "a.gguf")
    (tensor,) = gguf.GGUFReader(tmp_path / "base.gguf").tensors
    torch.testing.assert_close(torch.from_numpy(np.array(tensor.data)), weight_OI + 4 * b_OR @ a_RI)
