"""What one forward call tells the layers below: the documents of the batch, which adapter each uses, and its draws.

Wrapped layers and the attention operation sit deep inside a `transformers` model whose own code passes tensors only, so
this one thing travels beside the arguments, in a context variable: each thread sees its own call, and a checkpointed
layer enters the same call again when it is recomputed. Nothing else in the package is passed this way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from luthier.models.taps import Tapped
from luthier.ops.attention import AttentionTerms
from luthier.ops.draws import token_keys
from luthier.ops.recompute import Recomputable
from luthier.ops.segments import segment_positions
from luthier.types import Batch, Segment


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens start..stop of the flattened batch that use one adapter; None is the base model."""

    start: int
    stop: int
    adapter: str | None


@dataclass(frozen=True)
class Draws:
    """The address of a forward pass's random draws: the run's seed, the step, and which pass over a batch it is.

    noise: α of the noise on the embeddings; 0 adds none.
    """

    seed: int
    step: int
    repeat: int = 0
    noise: float = 0.0

    @property
    def address(self) -> int:
        """Step and pass as one number."""
        return self.step + (self.repeat << 40)


@dataclass(frozen=True)
class PlacedPrefix:
    """A prefix in one call: where in the flattened batch its placeholders are, and which virtual token each stands for."""

    token_M: Tensor
    virtual_M: Tensor
    states_LSVKE: Tensor

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """The placeholders' keys and values in a layer, each (M, K, E)."""
        keys_VKE, values_VKE = self.states_LSVKE[layer]
        return keys_VKE[self.virtual_M], values_VKE[self.virtual_M]

    def place(self, num_new: int, num_columns: int) -> tuple[Tensor, Tensor]:
        """Row and column of each placeholder among keys whose last `num_new` columns are the call's own tokens."""
        row_M = torch.div(self.token_M, num_new, rounding_mode="floor")
        return row_M, num_columns - num_new + self.token_M % num_new


Gate = Callable[[int, Tensor], Tensor]
"""Each token's share of a prefix, shape (N,), at the place of attention of a number, of what enters it, shape (N, D)."""


@dataclass(frozen=True)
class GatedPrefixes:
    """The gates of a call's prefixes, and what its tokens see without those.

    gates: by adapter. is_free_N: which tokens take a share: those of an adapter with a gate, but for its placeholders.
    kept_K, segments: the packed row without these placeholders; kept_K is None where a mask says what is seen.
    is_kept_BL: then, which columns of the keys are no such placeholders.
    """

    gates: Mapping[str, Gate]
    is_free_N: Tensor
    kept_K: Tensor | None = None
    segments: tuple[Segment, ...] = ()
    is_kept_BL: Tensor | None = None


@dataclass(frozen=True)
class PlacedEdit:
    """A change of the residual stream in one call.

    token_M: which tokens of the flattened batch change. layers: after which layers. added: what is added to the states
    (M, D) that a layer of that index gave for them.
    """

    token_M: Tensor
    layers: frozenset[int]
    added: Callable[[int, Tensor], Tensor]


class HeldKeys(Protocol):
    """Keys and values of rows in generation, held apart from the call, that its attention goes on from."""

    def attend(self, layer: int, q_1HTE: Tensor, k_1KTE: Tensor, v_1KTE: Tensor, terms: AttentionTerms) -> Tensor:
        """Take the new keys and values of a layer, and attend over all that each token sees; shape (1, H, T, E)."""


@dataclass(frozen=True)
class Call:
    """One forward call.

    segments: the documents of a packed row, or None where a mask says what is seen.
    runs: the adapters over the flattened tokens, in order and without gaps.
    keys_N: one key a token for random draws; None draws nothing (no dropout).
    draws: the address of draws that are made for the whole call; None draws nothing.
    recomputable: takes tensors that the backward pass should compute again; None keeps everything.
    notes: what one layer leaves for a later one, which takes it out, by the reader's name and the run's start (what is
    left for an attention: by a name for it and the attention's id).
    is_checkpointed: whether the layer at work keeps its inputs alone and is computed again in the backward pass.
    watched: takes each layer's attention weights (1, H, T, T) in order; None does not compute them.
    tapped: takes what each layer gives, by its number from 1, and as 0 what enters the first; None notes nothing.
    positions_N: each token's position in its document; None at the head, where nothing depends on it.
    prompt_N: for each token the position at which the prompt of its document is over; None where no adapter asks for it,
    and in generation after the prompt.
    edits: changes of the residual stream.
    prefixes: learned keys and values that take the place of some tokens' own.
    gated: which of these prefixes each token takes a share of; None where every token takes all of them.
    entering: what enters the layer of this number in its stack: those below it compute nothing; None computes all.
    source: in a decoder's call, the call of the encoder's tokens that its layers read; None where there is no encoder, or
    where a cache holds what the layers made of them.
    is_source: whether the tokens are an encoder's.
    source_prefixes: in a decoder's call, learned keys and values in the place of some of the encoder's tokens.
    source_gated: which of those each of its tokens takes a share of; None where every token takes all of them.
    states: takes the keys and values of each attention, by whether it is a cross-attention and its number in its stack.
    noise_N: how much noise is added to each token's embedding, before the width counts; None adds none.
    held: of a packed row in generation, the keys and values of what stands before its tokens; None: nothing is held.
    untaken: with how many virtual tokens that take no position each row begins, for a model that counts its positions
    itself; empty where none does.
    """

    segments: tuple[Segment, ...] | None
    runs: tuple[Run, ...]
    keys_N: Tensor | None = None
    draws: Draws | None = None
    recomputable: Recomputable | None = None
    notes: dict[tuple[str, int], Tensor] = field(default_factory=dict, repr=False, compare=False)
    is_checkpointed: bool = False
    watched: list[Tensor] | None = None
    tapped: dict[int, Tensor] | None = None
    positions_N: Tensor | None = None
    prompt_N: Tensor | None = None
    edits: tuple[PlacedEdit, ...] = ()
    prefixes: tuple[PlacedPrefix, ...] = ()
    gated: GatedPrefixes | None = None
    entering: tuple[int, Tensor] | None = None
    source: Call | None = None
    is_source: bool = False
    source_prefixes: tuple[PlacedPrefix, ...] = ()
    source_gated: GatedPrefixes | None = None
    states: dict[tuple[bool, int], tuple[Tensor, Tensor]] | None = None
    held: HeldKeys | None = None
    untaken: tuple[int, ...] = ()
    noise_N: Tensor | None = None

    def again(self) -> Call:
        """The call for a layer that keeps its inputs alone and is computed again in the backward pass."""
        source = None if self.source is None else self.source.again()
        return replace(self, recomputable=None, is_checkpointed=True, source=source)

    def noting(self) -> Call:
        """The same call, which notes what each layer gives."""
        source = None if self.source is None else self.source.noting()
        return replace(self, tapped={}, source=source)

    def holding(self, tapped: Tapped) -> Call:
        """The same call, as if it had noted these states."""
        source = None if self.source is None else replace(self.source, tapped=tapped.source)
        return replace(self, tapped=tapped.own, source=source)

    @property
    def noted(self) -> Tapped:
        """What a call that notes them has of its layers."""
        assert self.tapped is not None
        source = None if self.source is None else self.source.tapped
        return Tapped(self.tapped, source or {})

    def at(self, source_N: Tensor) -> Call:
        """The call over chosen positions, which must be in the order of the runs; each keeps its adapter and its key."""
        keys_N = None if self.keys_N is None else self.keys_N.index_select(0, source_N)
        if len(self.runs) == 1:
            return Call(None, (Run(0, len(source_N), self.runs[0].adapter),), keys_N, self.draws)
        runs: list[Run] = []
        for run in self.runs:
            start = runs[-1].stop if runs else 0
            count = int(((source_N >= run.start) & (source_N < run.stop)).sum())
            runs.append(Run(start, start + count, run.adapter))
        return Call(None, tuple(run for run in runs if run.stop > run.start), keys_N, self.draws)

    def slice(self, start: int, stop: int) -> Call:
        """The call over positions start..stop of this one."""
        keys_N = None if self.keys_N is None else self.keys_N[start:stop]
        inside = (run for run in self.runs if run.start < stop and run.stop > start)
        runs = tuple(Run(max(r.start, start) - start, min(r.stop, stop) - start, r.adapter) for r in inside)
        return Call(None, runs, keys_N, self.draws)


_BASE = Call(segments=None, runs=(Run(0, 0, None),))
_current: ContextVar[Call] = ContextVar("luthier_call", default=_BASE)


def current_call() -> Call:
    """The call that is being computed; outside of one, the plain base model."""
    return _current.get()


@contextmanager
def calling(call: Call) -> Iterator[None]:
    """Within: layers compute for `call`."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)


Adapters = str | None | tuple[str | None, ...]
"""One adapter for all documents, None for the base model, or one entry for each segment of the batch."""


def call_of_batch(batch: Batch, adapters: Adapters, draws: Draws | None) -> Call:
    """The call that computes a batch: each segment (with its row's padding) under its adapter.

    For an encoder-decoder it is the decoder's, and holds the encoder's.
    """
    source = None
    if batch.sources is not None:
        positions_BS = batch.sources.positions_BS
        runs = _runs(batch.sources.segments, positions_BS.numel(), adapters)
        keys_N = None if draws is None else _keys(batch.sources.segments, batch.documents, positions_BS, draws)
        noise_N = _noise(batch.sources.segments, batch.documents, positions_BS, draws)
        source = Call(None, runs, keys_N, draws, is_source=True, noise_N=noise_N)
    return Call(
        segments=batch.segments if batch.layout == "packed" else None,
        runs=_runs(batch.segments, batch.tokens_BT.numel(), adapters),
        keys_N=None if draws is None else _keys(batch.segments, batch.documents, batch.positions_BT, draws),
        draws=draws,
        source=source,
        noise_N=_noise(batch.segments, batch.documents, batch.positions_BT, draws),
    )


def _runs(segments: tuple[Segment, ...], num_tokens: int, adapters: Adapters) -> tuple[Run, ...]:
    """Which tokens use which adapter."""
    if not isinstance(adapters, tuple):
        return (Run(0, num_tokens, adapters),)
    assert len(adapters) == len(segments), "one adapter for each segment"
    runs: list[Run] = []
    ends = [segment.start for segment in segments[1:]] + [num_tokens]
    for segment, stop, adapter in zip(segments, ends, adapters, strict=True):
        if runs and runs[-1].adapter == adapter:
            runs[-1] = Run(runs[-1].start, stop, adapter)
        else:
            runs.append(Run(segment.start, stop, adapter))
    return tuple(runs)


def _keys(segments: tuple[Segment, ...], documents: tuple[int, ...], positions_BT: Tensor, draws: Draws) -> Tensor:
    """The tokens' draw keys, from each token's document and its place in it, shape (B·T,)."""
    documents_N = torch.zeros(positions_BT.numel(), dtype=torch.int64, device=positions_BT.device)
    for segment, document in zip(segments, documents, strict=True):
        documents_N[segment.start : segment.end] = document
    return token_keys(draws.seed, draws.address, documents_N, positions_BT.reshape(-1))


def _noise(
    segments: tuple[Segment, ...], documents: tuple[int, ...], positions_BT: Tensor, draws: Draws | None
) -> Tensor | None:
    """α / √L for each token, L the tokens of its document, shape (B·T,), 0 on padding; None where no noise is asked for."""
    if draws is None or draws.noise == 0:
        return None
    lengths = Counter[int]()
    for segment, document in zip(segments, documents, strict=True):
        lengths[document] += segment.length
    noise_N = torch.zeros(positions_BT.numel(), device=positions_BT.device)
    for segment, document in zip(segments, documents, strict=True):
        noise_N[segment.start : segment.end] = draws.noise / lengths[document] ** 0.5
    return noise_N


def prompts_of_batch(batch: Batch, *, whole: bool = False) -> Tensor:
    """For each token the position at which the prompt of its document is over, shape (B·T,); 0 for padding.

    whole: whether a document is all prompt, as an encoder's is.

    A prompt ends with the token that the document first learns to go on from: one that is learned from its first token on
    has a prompt of one token. What learns nothing is a prompt as a whole. A token that several documents share is
    told the end of the first one's.
    """
    positions_N = batch.positions_BT.reshape(-1)
    device = positions_N.device
    roots: list[int] = []
    for index, segment in enumerate(batch.segments):
        roots.append(index if segment.parent is None else roots[segment.parent])
    owned = list(zip(batch.documents, roots, strict=True))  # a document may have two answers without a common beginning
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owned))}
    owner_N = torch.full_like(positions_N, len(numbers))
    for segment, owner in zip(batch.segments, owned, strict=True):
        owner_N[segment.start : segment.end] = numbers[owner]
    owner_S = torch.tensor([numbers[owner] for owner in owned], device=device)
    last_S = torch.tensor([segment.end - 1 for segment in batch.segments], device=device)
    end_K = positions_N.new_zeros(len(numbers) + 1).scatter_reduce(0, owner_S, positions_N[last_S] + 1, "amax")
    source_N = batch.targets.source_N
    if not whole:
        end_K = end_K.scatter_reduce(0, owner_N[source_N], positions_N[source_N] + 1, "amin")
    return end_K[owner_N]


def prompts_of_row(segments: Sequence[Segment], device: torch.device) -> Tensor:
    """The same for a packed row of prompts, shape (T,)."""
    lengths = [segment.length for segment in segments]
    ends = [start + length for start, length in zip(segment_positions(segments), lengths, strict=True)]
    return torch.tensor(ends, device=device).repeat_interleave(torch.tensor(lengths, device=device))


def prompts_of_rows(mask_BT: Tensor) -> Tensor:
    """The same for prompts that are padded rows, shape (B·T,)."""
    return (mask_BT.sum(-1, keepdim=True) * mask_BT).reshape(-1)
