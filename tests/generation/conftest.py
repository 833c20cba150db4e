"""Fixtures: a decoder of a few thousand random weights, one that says what it is told, and tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

STOP = "<stop>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 byte tokens and one special stop token (id 256): any text, several tokens for most characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(STOP, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=STOP)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's way: a space belongs to the word after it, and the first one of a text is not shown."""
    words = ["▁", "▁one", "▁two", "three", "▁caf", "é", "<0xE2>", "<0x82>", "<0xAC>"]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(STOP, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=STOP)


def tiny_llama(seed: int = 0, vocabulary: int = 257) -> LlamaForCausalLM:
    """A random Llama, with weights large enough that its choices are decided."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        initializer_range=0.5,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=256,
    )
    return LlamaForCausalLM(config).eval()


class TinyDecoder:
    """What the engine needs of a model, over transformers alone; each call of `decode` is recorded in `shapes`."""

    def __init__(
        self, hf: PreTrainedModel | None = None, stop_ids: Sequence[int] = (256,), context: int | None = 96
    ) -> None:
        self.hf = tiny_llama() if hf is None else hf
        self.tokenizer = byte_tokenizer()
        self.stop_ids = frozenset(stop_ids)
        self.context_length = context
        self.layout = "bucketed"
        self.answer_start = None
        self.device = torch.device("cpu")
        self.shapes: list[tuple[int, int]] = []
        self.adapters: list[str | None] = []

    def num_virtual(self, adapter: str | None) -> int:
        return 0

    def decode(
        self, tokens_BT: Tensor, positions_BT: Tensor, mask_BL: Tensor, cache: DynamicCache, adapters: str | None = None
    ) -> Tensor:
        self.shapes.append((tokens_BT.shape[0], tokens_BT.shape[1]))
        self.adapters.append(adapters)
        output = self.hf(
            input_ids=tokens_BT,
            position_ids=positions_BT,
            attention_mask=mask_BL.long(),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV if adapters is None else logits_BV.flip(-1)


class Script:
    """A decoder that says given tokens to everyone, whatever is asked."""

    def __init__(self, tokens: Sequence[int], tokenizer: PreTrainedTokenizerFast | None = None) -> None:
        self.tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
        self.stop_ids = frozenset([len(self.tokenizer) - 1])
        self.context_length = None
        self.layout = "bucketed"
        self.answer_start = None
        self.device = torch.device("cpu")
        self._tokens = list(tokens)
        self._said = 0

    def num_virtual(self, adapter: str | None) -> int:
        return 0

    def decode(
        self, tokens_BT: Tensor, positions_BT: Tensor, mask_BL: Tensor, cache: DynamicCache, adapters: str | None = None
    ) -> Tensor:
        logits_BV = torch.zeros(len(tokens_BT), len(self.tokenizer))
        logits_BV[:, self._tokens[self._said]] = 10.0
        self._said += 1
        return logits_BV


@pytest.fixture
def tiny_decoder() -> type[TinyDecoder]:
    return TinyDecoder


@pytest.fixture
def script() -> type[Script]:
    return Script


@pytest.fixture
def byte_level() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def word_level() -> PreTrainedTokenizerFast:
    return word_tokenizer()
