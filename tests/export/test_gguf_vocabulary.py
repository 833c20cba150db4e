"""Tokenizers as GGUF files have them: kinds of tokens, merges or scores, special tokens, and the name of how texts are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from luthier.errors import RecipeError
from luthier.export.gguf_vocabulary import vocabulary_of

LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def test_a_byte_level_tokenizer_keeps_its_ids_merges_and_special_tokens(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = vocabulary_of(tokenizer, len(tokenizer) + 2, [tokenizer.eos_token_id, 1])
    assert found.model == "gpt2"
    assert found.pre == "gpt-2"
    assert [tokenizer.convert_tokens_to_ids(token) for token in found.tokens[:-2]] == list(range(len(tokenizer)))
    assert found.tokens[-1] == f"[PAD{len(tokenizer) + 1}]"
    assert found.types[-1] == TokenType.UNUSED
    assert found.types[tokenizer.eos_token_id] == TokenType.CONTROL
    assert found.types[50] == TokenType.NORMAL
    assert found.special == {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id, "eot": 1}
    assert found.template == tokenizer.chat_template
    assert all(left + right in found.tokens for left, right in (merge.split(" ") for merge in found.merges))
    assert not found.adds_bos


def cutting(*steps: Any) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE({"a": 0, "Ġ": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_level(use_regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([byte_level(True)], "gpt-2"),
        ([pre_tokenizers.Digits(individual_digits=True), byte_level(True)], "smollm"),
        ([pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), byte_level(False)], "llama-bpe"),
        ([pre_tokenizers.Split(Regex(LLAMA_3.replace("{1,3}", "")), "isolated"), byte_level(False)], "qwen2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ways_to_cut_a_text_have_llama_cpps_names(steps: list[Any], name: str) -> None:
    assert vocabulary_of(cutting(*steps), 2, []).pre == name


def test_a_byte_level_tokenizers_unknown_token_is_a_special_one_like_others() -> None:
    tokenizer = cutting(byte_level(True))
    tokenizer.add_special_tokens({"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    found = vocabulary_of(tokenizer, 3, [2])
    assert found.types[2] == TokenType.CONTROL
    assert found.special["unk"] == found.special["eos"] == 2


def sentencepiece() -> PreTrainedTokenizerBase:
    texts = ["<unk>", "<s>", "</s>", "<0x41>", "▁", "a", "b", "ab", "▁a", "▁ab", "<mark>"]
    vocab = {text: index for index, text in enumerate(texts)}
    merges = [("a", "b"), ("▁", "ab"), ("▁", "a"), ("▁a", "b")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.add_tokens([AddedToken("<mark>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_sentencepieces_scores_fall_in_the_order_of_its_merges() -> None:
    found = vocabulary_of(sentencepiece(), 11, [2])
    assert found.model == "llama"
    assert found.pre is None
    assert not found.merges
    assert found.scores is not None
    of = dict(zip(found.tokens, found.scores, strict=True))
    assert of["ab"] > of["▁ab"] > of["▁a"] > of["a"]
    kinds = dict(zip(found.tokens, found.types, strict=True))
    expected = {"<unk>": "UNKNOWN", "<s>": "CONTROL", "<0x41>": "BYTE", "ab": "NORMAL", "<mark>": "USER_DEFINED"}
    assert {text: TokenType(kinds[text]).name for text in expected} == expected
    assert found.adds_space


@pytest.mark.parametrize(
    ("tokenizer", "rows", "fault"),
    [
        (PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", 0.0)]))), 1, "Unigram"),
        (cutting(pre_tokenizers.Whitespace()), 2, "no name for how it cuts"),
        (cutting(pre_tokenizers.Split(Regex(r"\d+"), "isolated"), byte_level(False)), 2, "no name for how it cuts"),
        (cutting(byte_level(True)), 1, "2 tokens, and the model's embedding only 1 rows"),
    ],
    ids=["unigram", "whitespace", "another expression", "more tokens than rows"],
)
def test_a_tokenizer_that_has_no_place_there_is_refused(
    tokenizer: PreTrainedTokenizerBase, rows: int, fault: str
) -> None:
    with pytest.raises(RecipeError, match=fault):
        vocabulary_of(tokenizer, rows, [])
