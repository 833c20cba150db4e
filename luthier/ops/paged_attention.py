"""Attention of single queries over keys and values that lie in pages, and of whole prompts that go on from such pages.

A row's past is a list of pages; pages may be part of several rows' pasts. The fast path calls the fused CPU kernel over
neighbouring pages where they lie, so nothing is copied: each page gives an output and the logarithm of its sum of
exponentials to each of its readers, and a row's output is out = Σ_p out_p exp(lse_p − lse), lse = log Σ_p exp(lse_p). A
page that several rows read is read once for all of them. The reference gathers every row's keys and pads them.

Shapes: P pages, S places of a page, N rows, M readers of a page, X pairs of a page and a reader, C pages of a row, K
key/value heads, G query heads of each, H = K · G, R = N · H heads of all rows, Z = X · H heads of all pairs, Q = M · G queries of a
page, E head width, T new tokens, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.ops.attention import AttentionTerms, masked_attention
from luthier.ops.row_attention import has_cpu_kernel
from luthier.ops.segments import block_mask

Numbers = npt.NDArray[np.int64]
_MOST_SKIPPED = 2  # unread pages between read ones that are read in vain rather than by one call more


@dataclass(frozen=True)
class Pasts:
    """Which pages the past of each row is made of, a pair of page and row at a time; all shapes (X,) but the last.

    first: how many tokens of the row stand before the page. fill: how many places of the page are filled. length_N: the
    tokens of each row's past, its new one included.
    """

    row: Numbers
    page: Numbers
    first: Numbers
    fill: Numbers
    length_N: Numbers


@dataclass(frozen=True)
class Reading:
    """Neighbouring pages start..stop that one call reads; pair_PM: which pair each reader of them is, −1 for none."""

    start: int
    stop: int
    pair_PM: Numbers


@dataclass(frozen=True)
class Heads:
    """Where the heads of a step are, for layers of K key/value heads with G query heads each.

    query_Z: for each reading, which head (of R) asks in each of its P · K · Q places; a place without a reader asks what head 0
    asks, and nobody hears the answer. part_CR: the parts of each head among the outputs of all readings, which lie as (X, G, K);
    missing_CR: −∞ where a head has fewer parts, else 0.
    """

    query_Z: list[Tensor]
    part_CR: Tensor
    missing_CR: Tensor


class PagePlan:
    """How the pasts of a step are read, the same in every layer."""

    def __init__(self, pasts: Pasts, page_size: int, device: torch.device) -> None:
        self.pasts = pasts
        self.page_size = page_size
        self.device = device
        self._masks: dict[int | None, list[Tensor | None]] = {}
        self._seen: dict[int | None, Tensor] = {}
        self._heads: dict[tuple[int, int], Heads] = {}

    @cached_property
    def readings(self) -> list[Reading]:
        """The calls that read all pages."""
        pasts = self.pasts
        order = np.argsort(pasts.page, kind="stable")
        pages, starts, counts = np.unique(pasts.page[order], return_index=True, return_counts=True)
        widths = 1 << np.ceil(np.log2(counts)).astype(np.int64)  # like numbers of readers are read together
        gaps = np.diff(pages) - 1
        ends = np.flatnonzero((gaps > _MOST_SKIPPED) | (np.diff(widths) != 0)) + 1
        found = []
        for begin, end in zip([0, *ends], [*ends, len(pages)], strict=True):
            first, width = int(pages[begin]), int(widths[begin])
            pair_PM = np.full((int(pages[end - 1]) - first + 1, width), -1, dtype=np.int64)
            own = slice(begin, end)
            page_Y = np.repeat(pages[own] - first, counts[own])
            at_Y = np.arange(len(page_Y)) - np.repeat(np.cumsum(counts[own]) - counts[own], counts[own])
            pair_PM[page_Y, at_Y] = order[starts[begin] : starts[begin] + len(page_Y)]
            found.append(Reading(first, first + len(pair_PM), pair_PM))
        return found

    def heads(self, num_kv: int, group: int) -> Heads:
        """Where the heads of layers with so many are."""
        if (num_kv, group) not in self._heads:
            self._heads[num_kv, group] = Heads(
                [self._asking(reading, num_kv, group) for reading in self.readings], *self._parts(num_kv, group)
            )
        return self._heads[num_kv, group]

    def _asking(self, reading: Reading, num_kv: int, group: int) -> Tensor:
        """`Heads.query_Z` of a reading."""
        row_PM = np.where(reading.pair_PM < 0, 0, self.pasts.row[reading.pair_PM])
        of_kv, of_group = np.arange(num_kv)[:, None, None] * group, np.arange(group)
        return self._tensor((row_PM[:, None, :, None] * (num_kv * group) + of_kv + of_group).reshape(-1))

    def _parts(self, num_kv: int, group: int) -> tuple[Tensor, Tensor]:
        """`Heads.part_CR` and `Heads.missing_CR`."""
        pair_Y = np.concatenate([reading.pair_PM.reshape(-1) for reading in self.readings])
        place_X = np.empty(len(self.pasts.row), dtype=np.int64)
        place_X[pair_Y[pair_Y >= 0]] = np.flatnonzero(pair_Y >= 0)
        place_CN = np.full((self._column_X.max() + 1, len(self.pasts.length_N)), -1, dtype=np.int64)
        place_CN[self._column_X, self.pasts.row] = place_X
        of_head = np.arange(num_kv)[:, None] + np.arange(group) * num_kv
        part_CR = (np.maximum(place_CN, 0)[..., None, None] * (group * num_kv) + of_head).reshape(len(place_CN), -1)
        missing_CR = np.repeat(np.where(place_CN < 0, -np.inf, 0.0).astype(np.float32), num_kv * group, axis=1)
        return self._tensor(part_CR), torch.from_numpy(missing_CR).to(self.device)

    @cached_property
    def _column_X(self) -> Numbers:
        """The number of each pair among those of its row."""
        order = np.argsort(self.pasts.row, kind="stable")
        counts = np.bincount(self.pasts.row, minlength=len(self.pasts.length_N))
        column_X = np.empty_like(self.pasts.row)
        column_X[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        return column_X

    @cached_property
    def token_NL(self) -> Tensor:
        """The place of each token of each row among all places of all pages; those beyond its past are 0."""
        pasts = self.pasts
        token_NL = np.zeros((len(pasts.length_N), int(pasts.length_N.max())), dtype=np.int64)
        within_Y = np.arange(pasts.fill.sum()) - np.repeat(np.cumsum(pasts.fill) - pasts.fill, pasts.fill)
        token_NL[np.repeat(pasts.row, pasts.fill), np.repeat(pasts.first, pasts.fill) + within_Y] = (
            np.repeat(pasts.page * self.page_size, pasts.fill) + within_Y
        )
        return self._tensor(token_NL)

    def seen_NL(self, window: int | None) -> Tensor:
        """Which tokens of `token_NL` the newest token of each row sees."""
        if window not in self._seen:
            self._seen[window] = self._newly_seen(window)
        return self._seen[window]

    def _newly_seen(self, window: int | None) -> Tensor:
        length_N1 = self._tensor(self.pasts.length_N)[:, None]
        at_L = torch.arange(int(self.pasts.length_N.max()), device=self.device)
        seen_NL = at_L < length_N1
        return seen_NL if window is None else seen_NL & (at_L >= length_N1 - window)

    def masks(self, window: int | None, dtype: torch.dtype) -> list[Tensor | None]:
        """What is added to the scores of each reading, (P, 1, M or 1, S); finite, so that no row of it gives NaN."""
        if window not in self._masks:
            self._masks[window] = [self._mask(reading, window, dtype) for reading in self.readings]
        return self._masks[window]

    def _mask(self, reading: Reading, window: int | None, dtype: torch.dtype) -> Tensor | None:
        pasts, pair_PM = self.pasts, reading.pair_PM
        at_S = np.arange(self.page_size)
        is_seen = at_S < np.where(pair_PM[:, :1] < 0, self.page_size, pasts.fill[pair_PM[:, :1]])[..., None]
        if window is not None:
            oldest_PM = pasts.length_N[pasts.row[pair_PM]] - window - pasts.first[pair_PM]
            is_seen = is_seen & (at_S >= oldest_PM[..., None])
        if is_seen.all():
            return None
        mask = torch.zeros(is_seen.shape, dtype=dtype).masked_fill_(
            torch.from_numpy(~is_seen), torch.finfo(dtype).min / 2
        )
        return mask[:, None].to(self.device)

    def _tensor(self, numbers: Numbers) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)


@dataclass(frozen=True)
class PromptPart:
    """New tokens start..stop of a row, and the places of what stands before them, shape (C,); None for nothing.

    causal: whether each sees of the new tokens those before it; else it sees all of them.
    """

    start: int
    stop: int
    past_C: Tensor | None
    causal: bool = True


def paged_attention(q_NHE: Tensor, k_PSKE: Tensor, v_PSKE: Tensor, plan: PagePlan, terms: AttentionTerms) -> Tensor:
    """The attention output of the newest token of each row, shape (N, H, E); its own key and value are in its past."""
    if not _has_kernel(q_NHE, k_PSKE, v_PSKE, terms):
        return paged_attention_reference(q_NHE, k_PSKE, v_PSKE, plan, terms)
    num_rows, num_heads, width = q_NHE.shape
    num_kv = k_PSKE.shape[2]
    group = num_heads // num_kv
    heads = plan.heads(num_kv, group)
    q_RE = q_NHE.reshape(-1, width)
    outs, sums = [], []
    for reading, query_Z, mask in zip(plan.readings, heads.query_Z, plan.masks(terms.window, q_NHE.dtype), strict=True):
        pages, readers = reading.pair_PM.shape
        q_PKQE = q_RE.index_select(0, query_Z).view(pages, num_kv, readers * group, width)
        k_PKSE, v_PKSE = (x[reading.start : reading.stop].transpose(1, 2) for x in (k_PSKE, v_PSKE))
        if mask is not None:
            mask = mask if mask.shape[2] == 1 else mask.repeat_interleave(group, dim=2)
            mask = mask.expand(-1, -1, readers * group, -1)
        out_PKQE, lse_PKQ = _kernel(q_PKQE, k_PKSE, v_PKSE, terms.scale, mask)
        outs.append(out_PKQE.transpose(1, 2).reshape(-1, width))  # as the kernel lays it out
        sums.append(lse_PKQ.transpose(1, 2).reshape(-1))
    out_ZE, lse_Z = (torch.cat(each) if len(each) > 1 else each[0] for each in (outs, sums))
    return _joined(out_ZE, lse_Z, heads).view(num_rows, num_heads, width)


def _joined(out_ZE: Tensor, lse_Z: Tensor, heads: Heads) -> Tensor:
    """The outputs of all parts of each head as one, shape (R, E)."""
    part_CR = heads.part_CR
    if len(part_CR) == 1:
        return out_ZE.index_select(0, part_CR[0])
    lse_CR = lse_Z.index_select(0, part_CR.view(-1)).view_as(part_CR)
    share_CR = torch.softmax(lse_CR + heads.missing_CR, dim=0)
    # one pass over the parts: Σ_c share_c out_c
    return F.embedding_bag(part_CR.t().contiguous(), out_ZE, per_sample_weights=share_CR.t().contiguous(), mode="sum")


def paged_attention_reference(
    q_NHE: Tensor, k_PSKE: Tensor, v_PSKE: Tensor, plan: PagePlan, terms: AttentionTerms
) -> Tensor:
    """The same, each row's keys gathered and padded."""
    k_NKLE, v_NKLE = (x.flatten(0, 1)[plan.token_NL].transpose(1, 2) for x in (k_PSKE, v_PSKE))
    seen_N11L = plan.seen_NL(terms.window)[:, None, None]
    return masked_attention(q_NHE[:, :, None], k_NKLE, v_NKLE, seen_N11L, terms)[:, :, 0]


def prompt_attention(
    q_1HTE: Tensor,
    k_1KTE: Tensor,
    v_1KTE: Tensor,
    k_PSKE: Tensor,
    v_PSKE: Tensor,
    parts: Sequence[PromptPart],
    terms: AttentionTerms,
) -> list[Tensor]:
    """The attention outputs of the new tokens of each part, each (1, H, T, E): they see all of their past."""
    is_fast = _has_kernel(q_1HTE, k_1KTE, v_1KTE, terms)
    outs = []
    for part in parts:
        q, k, v = (x[:, :, part.start : part.stop] for x in (q_1HTE, k_1KTE, v_1KTE))
        num_past = 0 if part.past_C is None else len(part.past_C)
        is_whole = terms.window is None or num_past + part.stop - part.start <= terms.window
        if part.past_C is None and is_fast and is_whole:
            outs.append(_kernel(q, k, v, terms.scale, None, part.causal)[0])
            continue
        if part.past_C is None:
            k_past, v_past = k[:, :, :0], v[:, :, :0]
        else:
            k_past, v_past = (x.flatten(0, 1)[part.past_C].transpose(0, 1)[None] for x in (k_PSKE, v_PSKE))
        if is_fast and is_whole:
            outs.append(_gone_on(q, k, v, k_past, v_past, terms.scale, part.causal))
            continue
        k, v = (torch.cat([past, own], dim=2) for past, own in ((k_past, k), (v_past, v)))
        mask = block_mask(q.shape[2], k.shape[2], part.causal, terms.window, q.device)
        outs.append(masked_attention(q, k, v, mask, terms))
    return outs


def _gone_on(q: Tensor, k: Tensor, v: Tensor, k_past: Tensor, v_past: Tensor, scale: float, is_causal: bool) -> Tensor:
    """Attention that sees all of a past besides."""
    own, own_lse = _kernel(q, k, v, scale, None, is_causal)
    past, past_lse = _kernel(q, k_past, v_past, scale, None)
    share = torch.sigmoid(own_lse - past_lse).unsqueeze(-1).to(own.dtype)
    return torch.lerp(past, own, share)


def _has_kernel(q: Tensor, k: Tensor, v: Tensor, terms: AttentionTerms) -> bool:
    is_fp32 = q.dtype == k.dtype == v.dtype == torch.float32
    same_width = q.shape[-1] == k.shape[-1] == v.shape[-1]
    return q.device.type == "cpu" and is_fp32 and same_width and terms.is_plain and has_cpu_kernel()


def _kernel(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, is_causal: bool = False
) -> tuple[Tensor, Tensor]:
    """The output of a block, and the logarithm of its sum of exponentials."""
    found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, is_causal, attn_mask=mask, scale=scale
    )
    return found
