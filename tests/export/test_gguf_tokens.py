"""A GGUF file's vocabulary, read back, cuts texts into the tokens that the tokenizer makes; one that was changed does not."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from export.test_gguf_vocabulary import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from luthier.errors import ExportMismatch
from luthier.export.gguf_tokens import tokens_by_file
from luthier.export.gguf_vocabulary import Vocabulary, vocabulary_of, write_vocabulary


def written(vocabulary: Vocabulary, file: Path) -> Path:
    writer = gguf.GGUFWriter(file, "llama")
    write_vocabulary(writer, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    return vocabulary_of(tokenizer, len(tokenizer), [tokenizer.eos_token_id])


def test_a_byte_level_vocabulary_cuts_texts_by_its_own_merges(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = vocabulary(tokenizer)
    texts = ["Where is my parcel? 42.50", "<|im_start|>user\nWord é ü<|im_end|>\n", ""]
    read = tokens_by_file(written(found, tmp_path / "model.gguf"), tokenizer)
    assert [read(text) for text in texts] == [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    fewer = Vocabulary(**{**vars(found), "merges": found.merges[: len(found.merges) // 2]})
    read = tokens_by_file(written(fewer, tmp_path / "fewer.gguf"), tokenizer)
    assert read(texts[0]) != tokenizer.encode(texts[0], add_special_tokens=False)


def test_scores_of_sentencepiece_are_merged_from_the_highest_on(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    found = vocabulary(tokenizer)
    texts = ["ab", "a b ab", "aab<mark>b", "A"]
    read = tokens_by_file(written(found, tmp_path / "model.gguf"), tokenizer)
    assert [read(text) for text in texts] == [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert found.scores is not None
    swap = {"ab": "▁a", "▁a": "ab"}
    turned = Vocabulary(**{**vars(found), "tokens": [swap.get(text, text) for text in found.tokens]})
    read = tokens_by_file(written(turned, tmp_path / "turned.gguf"), tokenizer)
    assert any(read(text) != tokenizer.encode(text, add_special_tokens=False) for text in texts)


def test_a_special_token_with_another_number_is_told(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = vocabulary(tokenizer)
    other = Vocabulary(**{**vars(found), "special": {**found.special, "eos": 1}})
    with pytest.raises(ExportMismatch, match="eos_token_id 1"):
        tokens_by_file(written(other, tmp_path / "model.gguf"), tokenizer)
