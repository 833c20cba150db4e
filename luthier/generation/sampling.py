"""From scores over the vocabulary to one token for each row.

A token is found by inverting the cumulative distribution at one uniform number: the draw costs one pass over the
vocabulary, where `torch.multinomial` and a full sort each cost as much as the forward pass on a CPU. The uniform
numbers are hashes of (seed, number of the token), so a request draws the same whatever is computed beside it.

Shapes: B rows, V vocabulary, C candidate tokens in falling order of probability, K blocks of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.errors import NotFinite
from luthier.generation.settings import Sampling
from luthier.ops.buffers import Buffers
from luthier.ops.draws import mix

CANDIDATES = 256  # likeliest tokens that top-p and min-p look at first; 16 times as many where these do not do
BLOCK = 256  # tokens of one block in the two-level search


def uniforms(seeds: Sequence[int], indices: Sequence[int]) -> Tensor:
    """One number in [0, 1) for each row, from its seed and the index of the token it draws; float64, shape (B,)."""
    seed_B = torch.tensor(seeds, dtype=torch.int64)
    index_B = torch.tensor(indices, dtype=torch.int64)
    hashed_B = mix(mix(seed_B) ^ index_B)
    return ((hashed_B >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


@torch.no_grad()
def sample(
    logits_BV: Tensor, samplings: Sequence[Sampling], uniform_B: Tensor, buffers: Buffers | None = None
) -> Tensor:
    """The next token of each row, shape (B,), int64.

    Args:
        logits_BV: scores of the next token; -inf excludes a token.
        samplings: how each row draws.
        uniform_B: one number in [0, 1) for each row, float64; greedy rows ignore theirs.
        buffers: where the probabilities are put; unset, into fresh memory, which costs as much as the sum.

    Raises: NotFinite, if a row holds NaN, +inf, or nothing but -inf.
    """
    if not bool(torch.isfinite(logits_BV.amax(-1)).all()):
        raise NotFinite(
            "The model's scores for the next token are not finite numbers.",
            "In fp16 set model.dtype to fp32 or bf16; if only the tuned model does this, its training diverged: "
            "use an earlier checkpoint, or train again with a lower training.peak_lr.",
        )
    uniform_B = uniform_B.to(logits_BV.device)
    buffers = buffers or Buffers()
    token_B = torch.empty(len(logits_BV), dtype=torch.int64, device=logits_BV.device)
    for rows in _alike(samplings):
        sampling = samplings[rows[0]]
        if len(rows) == len(logits_BV):
            return _sample_alike(logits_BV, sampling, uniform_B, buffers)
        at = torch.tensor(rows, device=logits_BV.device)
        token_B[at] = _sample_alike(logits_BV[at], sampling, uniform_B[at], buffers)
    return token_B


def probabilities(logits_BV: Tensor, temperature: float, buffers: Buffers) -> Tensor:
    """softmax(logits / temperature) in fp32, shape (B, V), good until the next; exact down to the smallest temperatures."""
    logits_BV = logits_BV.float()
    out_BV = buffers.take("probabilities", logits_BV.numel(), torch.float32, logits_BV.device).view_as(logits_BV)
    if temperature != 1:
        # at most 0: dividing cannot overflow to +inf
        logits_BV = torch.sub(logits_BV, logits_BV.amax(-1, keepdim=True), out=out_BV).div_(temperature)
    return torch.softmax(logits_BV, dim=-1, out=out_BV)


def num_kept(p_BC: Tensor, total_B: Tensor, sampling: Sampling) -> Tensor:
    """How many leading candidates top-k, top-p and min-p leave, at least 1, shape (B,).

    Args:
        p_BC: probabilities of the likeliest tokens, falling.
        total_B: probability of all tokens that top-k leaves; top-p is a share of it.
    """
    before_BC = F.pad(p_BC.double().cumsum(-1)[:, :-1], (1, 0))  # the mass of the likelier tokens
    kept_BC = p_BC >= sampling.min_p * p_BC[:, :1]
    if sampling.top_p < 1:
        kept_BC &= before_BC < sampling.top_p * total_B[:, None]
    if sampling.top_k is not None:
        kept_BC[:, sampling.top_k :] = False
    return kept_BC.sum(-1).clamp(min=1)


def _alike(samplings: Sequence[Sampling]) -> list[list[int]]:
    """The rows in groups that draw in the same way, so that a row's draw never depends on its neighbours' settings."""
    groups: dict[tuple[float, int | None, float, float], list[int]] = {}
    for row, s in enumerate(samplings):
        groups.setdefault((s.temperature, s.top_k, s.top_p, s.min_p), []).append(row)
    return list(groups.values())


def _sample_alike(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor, buffers: Buffers) -> Tensor:
    if sampling.is_greedy:
        return logits_BV.argmax(-1)
    p_BV = probabilities(logits_BV, sampling.temperature, buffers)
    top_k = sampling.top_k
    if (top_k is None or top_k >= p_BV.shape[-1]) and sampling.top_p == 1 and sampling.min_p == 0:
        return _draw_from_all(p_BV, uniform_B)
    return _draw_from_likeliest(p_BV, sampling, uniform_B)


def _draw_from_likeliest(p_BV: Tensor, sampling: Sampling, uniform_B: Tensor, width: int = CANDIDATES) -> Tensor:
    """A draw under top-k, top-p and min-p: from the `width` likeliest tokens, or more for rows where these do not do."""
    vocabulary = p_BV.shape[-1]
    width = min(max(sampling.top_k or 0, width), vocabulary)
    p_BC, token_BC = p_BV.topk(width, dim=-1)
    if sampling.top_k is None:
        total_B = torch.ones(len(p_BV), dtype=torch.float64, device=p_BV.device)
    else:
        total_B = p_BC[:, : sampling.top_k].sum(-1, dtype=torch.float64)
    kept_B = num_kept(p_BC, total_B, sampling)
    chosen_B = _draw_from_first(p_BC, token_BC, kept_B, uniform_B)
    if sampling.top_k is None and width < vocabulary:
        undecided = (kept_B == width).nonzero()[:, 0]  # the limit may lie beyond the candidates
        if len(undecided):
            chosen_B[undecided] = _draw_from_likeliest(p_BV[undecided], sampling, uniform_B[undecided], width * 16)
    return chosen_B


def _draw_from_first(p_BC: Tensor, token_BC: Tensor, kept_B: Tensor, uniform_B: Tensor) -> Tensor:
    """A draw among the first `kept_B` candidates of each row, each as likely as its share of their mass."""
    cumulative_BC = p_BC.double().cumsum(-1)
    mass_B = cumulative_BC.gather(-1, kept_B[:, None] - 1)[:, 0]
    place_B = _first_above(cumulative_BC, uniform_B * mass_B, mass_B)
    return token_BC.gather(-1, place_B[:, None])[:, 0]


def _draw_from_all(p_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """A draw from the whole vocabulary: first its block, then the token in the block."""
    gap = -p_BV.shape[-1] % BLOCK
    p_BKC = (F.pad(p_BV, (0, gap)) if gap else p_BV).view(len(p_BV), -1, BLOCK)  # a pad of nothing would copy
    cumulative_BK = p_BKC.sum(-1).double().cumsum(-1)
    mass_B = cumulative_BK[:, -1]
    target_B = uniform_B * mass_B
    block_B = _first_above(cumulative_BK, target_B, mass_B)
    before_B = F.pad(cumulative_BK, (1, 0)).gather(-1, block_B[:, None])[:, 0]
    rows = torch.arange(len(p_BV), device=p_BV.device)
    within_BC = p_BKC[rows, block_B].double().cumsum(-1)
    return block_B * BLOCK + _first_above(within_BC, target_B - before_B, within_BC[:, -1])


def _first_above(cumulative_BC: Tensor, target_B: Tensor, mass_B: Tensor) -> Tensor:
    """The first place where the cumulative mass exceeds the target: never one that adds no mass, shape (B,).

    Rounding may lift a target to the whole mass, which nothing exceeds; it is taken down to the next number below.
    """
    below_B = torch.nextafter(mass_B, torch.zeros_like(mass_B))
    return torch.searchsorted(cumulative_BC, torch.minimum(target_B, below_B)[:, None], right=True)[:, 0]
