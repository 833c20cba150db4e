"""Text from a model: requests go in, tokens and text come out.

Callers hand over requests and read what comes back; key-value caches, padding, batches and threads stay in here. Rows of
like length are computed together and leave the batch when their answer ends: prompts packed, where the model's family
allows it, then token by token over a left-padded cache. On a CPU several batches are computed side by side, each by one
thread with one core.

Shapes: B rows in the batch, T new tokens of a row, L tokens of a row in cache and new, V vocabulary.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from luthier.data.placeholders import PLACEHOLDER
from luthier.errors import DataError
from luthier.generation.cache import GrowingCache, PackedKeys
from luthier.generation.prefill import groups_within, pack_prompts
from luthier.generation.sampling import sample, uniforms
from luthier.generation.settings import Sampling
from luthier.generation.text import TextStream, decode_text
from luthier.ops.workers import Workers
from luthier.types import Layout, Segment

_PREFILL_TOKENS = 2048  # most prompt tokens computed at once, if one prompt alone does not have more

FinishReason = Literal["stop", "length", "stop_string"]
Progress = Callable[[int, int], None]
"""Called with the number of requests answered and the number of all requests."""


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

    def num_virtual(self, adapter: str | None) -> int:
        """How many placeholders a prompt must begin with under an adapter."""

    def shares_tokens(self, adapter: str | None) -> bool:
        """Whether prompts may share the tokens of a common beginning under an adapter."""

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
        self, tokens_BT: Tensor, positions_BT: Tensor, mask_BL: Tensor, cache: DynamicCache, adapters: str | None = None
    ) -> Tensor:
        """Scores of the token that follows each row, fp32, shape (B, V); the cache grows by T."""


@dataclass(frozen=True)
class Request:
    """A prompt in tokens, how to go on from it, and the adapter to use (None: the base model).

    stop_ids: tokens that end the answer beside the model's own, such as a chat template's end of turn.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: str | None = None
    stop_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Completed:
    """An answer.

    tokens: all new tokens; the stop token is among them, and so are those that made a stop text.
    text: the answer without special tokens, cut before the stop text.
    finish_reason: a stop token, a stop text, or the length limit (`max_new_tokens` or the end of the context).
    """

    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason


def generate(
    model: Decoder,
    requests: Sequence[Request],
    *,
    max_rows: int = 64,
    max_cache_tokens: int = 65_536,
    progress: Progress | None = None,
) -> list[Completed]:
    """One answer for each request, in their order.

    Args:
        max_rows: most requests computed together.
        max_cache_tokens: most tokens (prompts, answers and padding) that the caches may come to hold.
        progress: called as answers end.

    Raises: DataError, if a prompt is empty or leaves no room in the context; NotFinite, if the model gives NaN.
    """
    requests = [_placed(model, request) for request in requests]
    budgets = [_token_budget(model, request) for request in requests]
    ended = _Ended(len(requests), progress)
    with Workers(_num_threads(model, len(requests))) as workers:
        share = math.ceil(min(max_rows, len(requests)) / workers.count)
        batches = _plan(requests, budgets, share, max_cache_tokens // workers.count)

        def answer(rows: Sequence[int]) -> None:
            batch = _LiveBatch(model, [_Answer(row, requests[row], budgets[row], model) for row in rows])
            while batch.answers and not workers.are_stopping.is_set():
                for answer in batch.step():
                    ended.add(answer.row, answer.completed())

        workers.run([partial(answer, rows) for rows in batches])
    return [ended.completed[row] for row in range(len(requests))]


class _Ended:
    """The answers that have ended, taken in from several threads."""

    def __init__(self, num_requests: int, progress: Progress | None) -> None:
        self.completed: dict[int, Completed] = {}
        self._num_requests = num_requests
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, row: int, completed: Completed) -> None:
        """Take in the answer to a request and tell of it."""
        with self._lock:
            self.completed[row] = completed
            if self._progress is not None:
                self._progress(len(self.completed), self._num_requests)


def _num_threads(model: Decoder, num_requests: int) -> int:
    """On a CPU as many threads as torch would use for one operation, if there is a request for each."""
    return min(torch.get_num_threads(), max(1, num_requests)) if model.device.type == "cpu" else 1


def stream(model: Decoder, request: Request) -> Generator[str, None, Completed]:
    """The answer's text piece by piece, as soon as no later token can change it; the generator's value is the answer.

    Pieces are never empty, never split a character, and never hold the beginning of a stop text.
    Raises: as `generate`, at the first piece.
    """
    request = _placed(model, request)
    answer = _Answer(0, request, _token_budget(model, request), model, watches_text=True)
    batch = _LiveBatch(model, [answer])
    while batch.answers:
        batch.step()
        if answer.fresh_text:
            yield answer.fresh_text
    return answer.completed()


def _placed(model: Decoder, request: Request) -> Request:
    """The request with placeholders for its adapter's virtual tokens before its prompt."""
    if not request.prompt:
        raise DataError("A prompt has no tokens, so there is nothing to go on from.", "Give at least one character.")
    before = (PLACEHOLDER,) * model.num_virtual(request.adapter)
    return replace(request, prompt=before + request.prompt) if before else request


def _token_budget(model: Decoder, request: Request) -> int:
    """The most new tokens that the request may get."""
    if model.context_length is None:
        return request.sampling.max_new_tokens
    room = model.context_length - len(request.prompt)
    if room < 1:
        num_virtual = model.num_virtual(request.adapter)
        counted = f" ({num_virtual} of them virtual)" if num_virtual else ""
        raise DataError(
            f"A prompt has {len(request.prompt)} tokens{counted}, but the model holds {model.context_length}, answer included.",
            f"Shorten the prompt by at least {1 - room} tokens, or choose a model with a longer context.",
        )
    return min(room, request.sampling.max_new_tokens)


def _plan(requests: Sequence[Request], budgets: Sequence[int], max_rows: int, max_cache_tokens: int) -> list[list[int]]:
    """Batches of requests that share an adapter and are of like length, each within the limits (or of one request).

    The longest prompts come first: if memory does not suffice, that shows at once.
    """
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(requests)), key=lambda row: (requests[row].adapter or "", -len(requests[row].prompt))):
        batch = batches[-1] if batches else []
        length = len(requests[row].prompt) + budgets[row]
        together = max(longest, length)
        fits = len(batch) < max_rows and (len(batch) + 1) * together <= max_cache_tokens
        if batch and fits and requests[batch[0]].adapter == requests[row].adapter:
            batch.append(row)
            longest = together
        else:
            batches.append([row])
            longest = length
    return batches


class _Answer:
    """One request on its way: what it has got so far, and whether it has ended."""

    def __init__(self, row: int, request: Request, budget: int, model: Decoder, watches_text: bool = False) -> None:
        self.row = row
        self.request = request
        self.tokens: list[int] = []
        self.fresh_text = ""  # what the latest token added
        self.finish_reason: FinishReason | None = None
        self._budget = budget
        self._stop_ids = model.stop_ids | request.stop_ids
        self._tokenizer = model.tokenizer
        needs_text = watches_text or bool(request.sampling.stop)
        self._text = TextStream(model.tokenizer, request.sampling.stop) if needs_text else None

    def add(self, token: int) -> None:
        """Take the next token; may end the answer."""
        self.tokens.append(token)
        if token in self._stop_ids:
            self.finish_reason = "stop"
        elif len(self.tokens) == self._budget:
            self.finish_reason = "length"
        if self._text is None:
            return
        self.fresh_text = "" if self.finish_reason == "stop" else self._text.add(token)
        if self.finish_reason is not None:
            self.fresh_text += self._text.end()
        if self._text.is_stopped:
            self.finish_reason = "stop_string"

    def completed(self) -> Completed:
        """The answer, once it has ended."""
        assert self.finish_reason is not None
        spoken = self.tokens[:-1] if self.finish_reason == "stop" else self.tokens
        text = decode_text(self._tokenizer, spoken) if self._text is None else self._text.text
        return Completed(tuple(self.tokens), text, self.finish_reason)


class _LiveBatch:
    """Answers that are computed together over one key-value cache; those that end leave the cache."""

    def __init__(self, model: Decoder, answers: Sequence[_Answer]) -> None:
        self.answers = list(answers)
        self._model = model
        self._adapter = answers[0].request.adapter
        self._cache = GrowingCache()
        self._prompts = [answer.request.prompt for answer in answers]
        longest = max(len(prompt) for prompt in self._prompts)
        # Padding stands on the left, so that every row's next token is in the last column.
        lengths_B = torch.tensor([len(prompt) for prompt in self._prompts], device=model.device)
        self._mask_BL = torch.arange(longest, device=model.device) >= longest - lengths_B[:, None]
        self._position_B1 = lengths_B[:, None] - 1  # of the latest token
        self._token_B1: Tensor | None = None

    @torch.no_grad()
    def step(self) -> list[_Answer]:
        """Add one token to every answer; return those that ended with it."""
        logits_BV = self._prompt_scores() if self._token_B1 is None else self._next_scores(self._token_B1)
        samplings = [answer.request.sampling for answer in self.answers]
        number = [len(answer.tokens) for answer in self.answers]
        token_B = sample(logits_BV, samplings, uniforms([sampling.seed for sampling in samplings], number))
        for answer, token in zip(self.answers, token_B.tolist(), strict=True):
            answer.add(token)
        self._token_B1 = token_B[:, None]
        return self._release_ended()

    def _prompt_scores(self) -> Tensor:
        """The scores (B, V) of the first token after each prompt; the cache comes to hold the prompts."""
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
            row = pack_prompts([self._prompts[index] for index in group], shares_prefix=shares_prefix)
            cache = DynamicCache()
            tokens_1T, positions_1T, last_B = (x.to(device) for x in (row.tokens_1T, row.positions_1T, row.last_B))
            scores.append(self._model.prefill(tokens_1T, positions_1T, row.segments, last_B, cache, self._adapter))
            packed.append(PackedKeys(cache, row.segments_of))
        self._cache.fill(packed)
        return torch.cat(scores)

    def _next_scores(self, token_B1: Tensor) -> Tensor:
        """The scores (B, V) of the token after the latest, which the cache comes to hold."""
        self._position_B1 = self._position_B1 + 1
        self._mask_BL = torch.cat([self._mask_BL, torch.ones_like(self._mask_BL[:, :1])], dim=1)
        return self._model.decode(token_B1, self._position_B1, self._mask_BL, self._cache, self._adapter)

    def _release_ended(self) -> list[_Answer]:
        """Take the rows out of the batch whose answers have ended."""
        ended = [answer for answer in self.answers if answer.finish_reason is not None]
        if ended:
            live = [row for row, answer in enumerate(self.answers) if answer.finish_reason is None]
            self.answers = [self.answers[row] for row in live]
            if live:
                self._keep(torch.tensor(live, device=self._model.device))
        return ended

    def _keep(self, rows: Tensor) -> None:
        assert self._token_B1 is not None
        self._cache.batch_select_indices(rows)
        self._token_B1, self._position_B1, self._mask_BL = (
            state[rows] for state in (self._token_B1, self._position_B1, self._mask_BL)
        )
