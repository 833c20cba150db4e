"""The keys and values of all rows in pages, and the attention of a step over them.

Shapes: P pages, S places of a page, K key/value heads, T new tokens, N rows that get a token, H heads, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from luthier.ops.attention import AttentionTerms
from luthier.ops.paged_attention import PagePlan, PromptPart, paged_attention, prompt_attention


class PagedKeys:
    """Memory for a number of pages in every layer, asked for as the layer first writes to it."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes_held(self) -> int:
        """How much memory that is."""
        return sum(x.numel() * x.element_size() for layer in self.layers.values() for x in layer)

    def of_layer(self, layer: int, k_1KTE: Tensor, v_1KTE: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values, (P, S, K, E); their shapes, format and device are those of its first ones."""
        if layer not in self.layers:
            k_PSKE, v_PSKE = (
                _zeros((self.num_pages, self.page_size, x.shape[1], x.shape[3]), x) for x in (k_1KTE, v_1KTE)
            )  # zeros: what is masked must be finite
            self.layers[layer] = (k_PSKE, v_PSKE)
        return self.layers[layer]

    def move(self, moves: Mapping[int, int]) -> None:
        """Move pages, by where they are, to where they are to be; the moves are exchanges."""
        for layer in self.layers.values():
            for x_PSKE in layer:
                device = x_PSKE.device
                sources, targets = (torch.tensor(list(each), device=device) for each in (moves.keys(), moves.values()))
                x_PSKE[targets] = x_PSKE[sources]


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros in the format and on the device of another tensor; on a CPU fresh memory is given as it is written to."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    # numpy asks the system for zeros, where torch writes them
    return torch.from_numpy(np.zeros(math.prod(shape) * like.element_size(), np.uint8)).view(like.dtype).view(shape)


@dataclass(frozen=True)
class PagedStep:
    """One forward pass over a packed row: what is written where, and who reads what.

    place_T: the place of each new token among all places of all pages. single_N: which new tokens are one of a row, that
    reads by `plan`. parts: the new tokens of whole prompts.
    """

    keys: PagedKeys
    place_T: Tensor
    single_N: Tensor
    plan: PagePlan | None
    parts: Sequence[PromptPart]

    def attend(self, layer: int, q_1HTE: Tensor, k_1KTE: Tensor, v_1KTE: Tensor, terms: AttentionTerms) -> Tensor:
        """Write the new keys and values, then attend; shape (1, H, T, E)."""
        k_PSKE, v_PSKE = self.keys.of_layer(layer, k_1KTE, v_1KTE)
        for x_PSKE, x_1KTE in ((k_PSKE, k_1KTE), (v_PSKE, v_1KTE)):
            x_PSKE.flatten(0, 1).index_copy_(0, self.place_T, x_1KTE[0].transpose(0, 1))
        q_THE = q_1HTE[0].transpose(0, 1)
        if self.plan is not None and not self.parts:
            return paged_attention(q_THE, k_PSKE, v_PSKE, self.plan, terms).transpose(0, 1)[None]
        out_THE = q_THE.new_empty(*q_THE.shape[:2], v_1KTE.shape[3])
        if self.plan is not None:
            q_NHE = q_THE[self.single_N]
            out_THE[self.single_N] = paged_attention(q_NHE, k_PSKE, v_PSKE, self.plan, terms)
        outs = prompt_attention(q_1HTE, k_1KTE, v_1KTE, k_PSKE, v_PSKE, self.parts, terms)
        for part, out_1HTE in zip(self.parts, outs, strict=True):
            out_THE[part.start : part.stop] = out_1HTE[0].transpose(0, 1)
        return out_THE.transpose(0, 1)[None]
