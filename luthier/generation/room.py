"""How much a cache of keys and values may hold: so many tokens, or as many as take so many bytes.

What one token takes is measured on a forward pass over one token, so that it is right for whatever the architecture keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from luthier.errors import CacheTooSmall
from luthier.generation.cache import held_length
from luthier.generation.paged_keys import PagedKeys, PagedStep
from luthier.generation.rows import Decoder, PromptRows, Rows, SourceRows
from luthier.models.call import Run
from luthier.ops.paged_attention import PromptPart
from luthier.sizes import readable_bytes

PAGE_SIZE = 64
COPIES = 2  # of what a padded batch holds there is at most as much again while it is packed, grows, or loses rows
_ANY_TOKEN = 0


@dataclass(frozen=True)
class Room:
    """tokens: how many the cache may hold.

    token_bytes, num_bytes: what each takes, and what all may, where memory is the limit; None: tokens are.
    """

    tokens: int
    token_bytes: int | None = None
    num_bytes: int | None = None

    @property
    def in_batches(self) -> int:
        """How many tokens of padded batches it is room for."""
        return self.tokens if self.token_bytes is None else self.tokens // COPIES

    def of_row(self, num_tokens: int) -> int:
        """What a row of a padded batch counts that comes to hold so many tokens."""
        return num_tokens if self.token_bytes is None else held_length(num_tokens)

    def at_most(self, tokens: int) -> Room:
        """No more than so many tokens."""
        return replace(self, tokens=min(self.tokens, tokens))

    def for_one(self, num_tokens: int) -> Room:
        """No more than one request needs that comes to so many tokens, whichever way it goes."""
        needed = whole_pages(num_tokens)
        return self.at_most(needed if self.token_bytes is None else max(needed, COPIES * held_length(num_tokens)))

    def split(self, count: int) -> Room:
        """The room of each of so many that share it."""
        return replace(self, tokens=self.tokens // count)

    def too_small(self, num_prompt: int, num_new: int, needed: int, copies: int = 1) -> CacheTooSmall:
        """The error for a request that has no room even alone. needed: tokens of the cache. copies: how often each is held."""
        found = (
            f"A prompt of {num_prompt} tokens with up to {num_new} new ones needs {needed} tokens of the cache, which holds "
            f"{self.tokens // copies}"
        )
        mend = "Lower max_new_tokens, shorten the prompt, or give the cache more"
        if self.token_bytes is None or self.num_bytes is None:
            return CacheTooSmall(f"{found}.", f"{mend} tokens.")
        least = math.ceil(needed * copies * self.token_bytes / 1e6) / 1e3
        return CacheTooSmall(
            f"{found} in {readable_bytes(self.num_bytes)}.",
            f"{mend} memory (cache_gb): {least:g} GB would do.",
        )


def room_of(model: Decoder, cache_tokens: int, cache_bytes: int | None) -> Room:
    """Room for so many tokens, or for as many whole pages of them as fit into so many bytes, where that is given."""
    if cache_bytes is None:
        return Room(cache_tokens)
    each = token_bytes(model)
    return Room(cache_bytes // each // PAGE_SIZE * PAGE_SIZE, each, cache_bytes)


def whole_pages(num_tokens: int) -> int:
    """So many tokens, up to the end of their last page."""
    return -(-num_tokens // PAGE_SIZE) * PAGE_SIZE


@torch.inference_mode()
def token_bytes(model: Decoder) -> int:
    """The bytes that the keys and values of one token take in all layers together."""
    if model.layout == "packed" and model.answer_start is None and model.keeps_pages(None):
        return _paged_bytes(model)
    is_one_stream = model.answer_start is None
    rows: Rows = PromptRows(model, [(_ANY_TOKEN,)], None) if is_one_stream else SourceRows(model, [(_ANY_TOKEN,)], None)
    rows.first_scores()
    return rows.token_bytes


def _paged_bytes(model: Decoder) -> int:
    keys = PagedKeys(1, 1)
    zero_T = torch.zeros(1, dtype=torch.long, device=model.device)
    none_N = torch.zeros(0, dtype=torch.long, device=model.device)
    step = PagedStep(keys, zero_T, none_N, None, [PromptPart(0, 1, None, True)])
    model.read(zero_T[None] + _ANY_TOKEN, zero_T[None], (Run(0, 1, None),), zero_T + 1, zero_T, step)
    return keys.bytes_held
