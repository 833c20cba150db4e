"""The rows of one batch in generation: their keys and values, their padding, and the scores of their next tokens.

A model of one stream goes on from its prompts: packed, where its family allows it, then token by token over a left-padded
cache. An encoder-decoder reads its prompts once, padded on the right, and its decoder begins every answer alike.

Shapes: B rows, T new tokens of a row, L tokens of a row in cache and new, S tokens of a source, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedTokenizerBase

from luthier.data.packing import padded
from luthier.data.placeholders import PLACEHOLDER
from luthier.errors import RecipeError
from luthier.generation.cache import GrowingCache, PackedKeys, bytes_of, token_bytes_of
from luthier.generation.prefill import groups_within, pack_prompts
from luthier.models.call import HeldKeys, Run
from luthier.models.stacks import Encoded
from luthier.types import Layout, Segment, Sources

_PREFILL_TOKENS = 2048  # most prompt tokens computed at once, if one prompt alone does not have more


class Decoder(Protocol):
    """What generation needs of a language model."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Turns tokens into text."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def context_length(self) -> int | None:
        """The most positions that the model holds; None if unknown."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def layout(self) -> Layout:
        """Whether prompts may be packed into one row."""

    @property
    def answer_start(self) -> int | None:
        """The token that an encoder-decoder's decoder begins with; None for a model of one stream."""

    def num_virtual(self, adapter: str | None) -> int:
        """How many placeholders a prompt must begin with under an adapter."""

    def shares_tokens(self, adapter: str | None) -> bool:
        """Whether prompts may share the tokens of a common beginning under an adapter."""

    def num_virtual_answer(self, adapter: str | None) -> int:
        """How many an encoder-decoder's answer must begin with."""

    def encode(self, sources: Sources, adapters: str | None = None) -> Encoded:
        """What an encoder-decoder's encoder gives for prompts."""

    def keeps_pages(self, adapter: str | None) -> bool:
        """Whether `read` computes an adapter."""

    def read(
        self,
        tokens_1T: Tensor,
        positions_1T: Tensor,
        runs: tuple[Run, ...],
        prompt_T: Tensor,
        last_B: Tensor,
        held: HeldKeys,
    ) -> Tensor:
        """Scores of the tokens that follow some tokens of a packed row, fp32, shape (B, V); `held` takes the keys."""

    def prefill(
        self,
        tokens_1T: Tensor,
        positions_1T: Tensor,
        segments: tuple[Segment, ...],
        last_B: Tensor,
        cache: DynamicCache,
        adapters: str | None = None,
    ) -> Tensor:
        """Scores of the token that follows each prompt of a packed row, fp32, shape (B, V); `cache` takes their keys."""

    def decode(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor,
        mask_BL: Tensor,
        cache: Cache,
        adapters: str | None = None,
        read: Encoded | None = None,
    ) -> Tensor:
        """Scores of the token that follows each row, fp32, shape (B, V); the cache grows by T. read: of the encoder."""


class Rows(ABC):
    """Rows that get one token after another; those whose answers have ended leave."""

    @abstractmethod
    def first_scores(self) -> Tensor:
        """The scores (B, V) of the first token of each answer."""

    @abstractmethod
    def next_scores(self, token_B: Tensor) -> Tensor:
        """The scores (B, V) of the token after the latest, which the cache comes to hold."""

    @abstractmethod
    def keep(self, rows_K: Tensor) -> None:
        """Let go of all rows but these."""

    @property
    @abstractmethod
    def bytes_held(self) -> int:
        """The memory of all keys and values."""

    @property
    @abstractmethod
    def token_bytes(self) -> int:
        """What one token of one row takes of it."""


class PromptRows(Rows):
    """Rows of a model of one stream."""

    def __init__(
        self, model: Decoder, prompts: Sequence[tuple[int, ...]], adapter: str | None, *, causal: bool = True
    ) -> None:
        """causal: whether a prompt's tokens see those before them alone. Raises: RecipeError where it cannot be otherwise."""
        if not causal and model.layout != "packed":
            raise RecipeError(
                "Prompts read in both directions need packed rows, which this model's family does not allow.",
                "Choose a model of another family.",
                field="model",
            )
        self._model = model
        self._adapter = adapter
        self._causal = causal
        self._cache = GrowingCache()
        self._prompts = prompts
        longest = max(len(prompt) for prompt in prompts)
        # Padding stands on the left, so that every row's next token is in the last column.
        lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        self._mask_BL = torch.arange(longest, device=model.device) >= longest - lengths_B[:, None]
        self._position_B1 = lengths_B[:, None] - 1  # of the latest token

    def first_scores(self) -> Tensor:
        """Those after each prompt; the cache comes to hold the prompts."""
        if self._model.layout == "packed":
            return self._packed_scores()
        longest = self._mask_BL.shape[1]
        # Padding is masked: any id serves.
        rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in self._prompts]
        tokens_BT = torch.tensor(rows, device=self._model.device)
        positions_BT = (self._mask_BL.cumsum(-1) - 1).clamp(min=0)
        return self._model.decode(tokens_BT, positions_BT, self._mask_BL, self._cache, self._adapter)

    def _packed_scores(self) -> Tensor:
        scores: list[Tensor] = []
        packed: list[PackedKeys] = []
        device = self._model.device
        shares_prefix = self._model.shares_tokens(self._adapter)
        for group in groups_within([len(prompt) for prompt in self._prompts], _PREFILL_TOKENS):
            prompts = [self._prompts[index] for index in group]
            row = pack_prompts(prompts, shares_prefix=shares_prefix, causal=self._causal)
            cache = DynamicCache()
            tokens_1T, positions_1T, last_B = (x.to(device) for x in (row.tokens_1T, row.positions_1T, row.last_B))
            scores.append(self._model.prefill(tokens_1T, positions_1T, row.segments, last_B, cache, self._adapter))
            packed.append(PackedKeys(cache, row.segments_of))
        self._cache.fill(packed)
        return torch.cat(scores)

    def next_scores(self, token_B: Tensor) -> Tensor:
        """Those after each row's latest token."""
        self._position_B1 = self._position_B1 + 1
        self._mask_BL = torch.cat([self._mask_BL, torch.ones_like(self._mask_BL[:, :1])], dim=1)
        return self._model.decode(token_B[:, None], self._position_B1, self._mask_BL, self._cache, self._adapter)

    def keep(self, rows_K: Tensor) -> None:
        """Let go of all rows but these."""
        self._cache.batch_select_indices(rows_K)
        self._position_B1, self._mask_BL = self._position_B1[rows_K], self._mask_BL[rows_K]

    @property
    def bytes_held(self) -> int:
        """The memory of all keys and values."""
        return bytes_of(self._cache)

    @property
    def token_bytes(self) -> int:
        """What one token of one row takes of it."""
        return token_bytes_of(self._cache)


class SourceRows(Rows):
    """Answers of an encoder-decoder; all are of the same length, so nothing of them is padding."""

    def __init__(self, model: Decoder, prompts: Sequence[tuple[int, ...]], adapter: str | None) -> None:
        assert model.answer_start is not None
        self._model = model
        self._adapter = adapter
        self._cache = EncoderDecoderCache(GrowingCache(), DynamicCache())
        sources = padded([np.array(prompt, dtype=np.int64) for prompt in prompts], pad_id=0)  # masked: any id serves
        self._read = model.encode(sources.to(model.device), adapter)
        self._opening = [PLACEHOLDER] * model.num_virtual_answer(adapter) + [model.answer_start]
        self._num_held = 0

    def first_scores(self) -> Tensor:
        """Those after what every answer begins with."""
        num_rows = len(self._read.states_BSD)
        return self._scores(torch.tensor([self._opening] * num_rows, device=self._model.device))

    def next_scores(self, token_B: Tensor) -> Tensor:
        """Those after each row's latest token."""
        return self._scores(token_B[:, None])

    def _scores(self, tokens_BT: Tensor) -> Tensor:
        num_rows, num_new = tokens_BT.shape
        device = tokens_BT.device
        positions_T = torch.arange(self._num_held, self._num_held + num_new, device=device)
        self._num_held += num_new
        mask_BL = torch.ones(num_rows, self._num_held, dtype=torch.bool, device=device)
        positions_BT = positions_T.expand(num_rows, -1)
        return self._model.decode(tokens_BT, positions_BT, mask_BL, self._cache, self._adapter, self._read)

    def keep(self, rows_K: Tensor) -> None:
        """Let go of all rows but these."""
        self._cache.batch_select_indices(rows_K)
        self._read = self._read.of_rows(rows_K)

    @property
    def bytes_held(self) -> int:
        """The memory of all keys and values, and of what the encoder gave."""
        states_BSD = self._read.states_BSD
        own, of_source = self._cache.self_attention_cache, self._cache.cross_attention_cache
        return bytes_of(own) + bytes_of(of_source) + states_BSD.numel() * states_BSD.element_size()

    @property
    def token_bytes(self) -> int:
        """What one token takes, of the source or of the answer, whichever is more."""
        states_BSD = self._read.states_BSD
        of_state = states_BSD.shape[2] * states_BSD.element_size()
        own, of_source = self._cache.self_attention_cache, self._cache.cross_attention_cache
        return max(token_bytes_of(own), token_bytes_of(of_source) + of_state)
