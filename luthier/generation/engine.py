"""Text from a model: requests go in, tokens and text come out.

Callers hand over requests and read what comes back; key-value caches, padding (`rows`), batches and threads stay in here.
Rows of like length are computed together and leave the batch when their answer ends. On a CPU several batches are
computed side by side, each by one thread with one core.

Shapes: B rows in the batch, V vocabulary.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from luthier.data.placeholders import PLACEHOLDER
from luthier.errors import DataError
from luthier.generation.rows import Decoder, PromptRows, Rows, SourceRows
from luthier.generation.sampling import sample, uniforms
from luthier.generation.settings import Sampling
from luthier.generation.text import TextStream, decode_text
from luthier.ops.workers import Workers

FinishReason = Literal["stop", "length", "stop_string"]
Progress = Callable[[int, int], None]
"""Called with the number of requests answered and the number of all requests."""


@dataclass(frozen=True)
class Request:
    """A prompt in tokens, how to go on from it, and the adapter to use (None: the base model).

    stop_ids: tokens that end the answer beside the model's own, such as a chat template's end of turn.
    causal: whether a decoder reads the prompt left to right; else each of its tokens sees all of it.
    shown_ids: special tokens that the answer's text keeps.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: str | None = None
    stop_ids: frozenset[int] = frozenset()
    causal: bool = True
    shown_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Completed:
    """An answer.

    tokens: all new tokens; the stop token is among them, and so are those that made a stop text.
    text: the answer without special tokens but those to be shown, cut before the stop text.
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
    if model.answer_start is not None:  # source and answer have positions of their own
        opening = model.num_virtual_answer(request.adapter) + 1
        room = model.context_length - opening if room >= 0 else room + 1
    if room < 1:
        num_virtual = model.num_virtual(request.adapter)
        counted = f" ({num_virtual} of them virtual)" if num_virtual else ""
        raise DataError(
            f"A prompt has {len(request.prompt)} tokens{counted}, but the model holds {model.context_length}, answer included.",
            f"Shorten the prompt by at least {1 - room} tokens, or choose a model with a longer context.",
        )
    return min(room, request.sampling.max_new_tokens)


def _plan(requests: Sequence[Request], budgets: Sequence[int], max_rows: int, max_cache_tokens: int) -> list[list[int]]:
    """Batches of requests that are read alike and of like length, each within the limits (or of one request).

    The longest prompts come first: if memory does not suffice, that shows at once.
    """
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(requests)), key=lambda row: (*_reading(requests[row]), -len(requests[row].prompt))):
        batch = batches[-1] if batches else []
        length = len(requests[row].prompt) + budgets[row]
        together = max(longest, length)
        fits = len(batch) < max_rows and (len(batch) + 1) * together <= max_cache_tokens
        if batch and fits and _reading(requests[batch[0]]) == _reading(requests[row]):
            batch.append(row)
            longest = together
        else:
            batches.append([row])
            longest = length
    return batches


def _reading(request: Request) -> tuple[str, bool]:
    """What requests of a batch must have in common: the adapter, and how a prompt is read."""
    return request.adapter or "", request.causal


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
        self._text = TextStream(model.tokenizer, request.sampling.stop, request.shown_ids) if needs_text else None

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
        shown_ids = self.request.shown_ids
        text = decode_text(self._tokenizer, spoken, shown_ids) if self._text is None else self._text.text
        return Completed(tuple(self.tokens), text, self.finish_reason)


class _LiveBatch:
    """Answers that are computed together; those that end leave it."""

    def __init__(self, model: Decoder, answers: Sequence[_Answer]) -> None:
        self.answers = list(answers)
        prompts = [answer.request.prompt for answer in answers]
        adapter, causal = answers[0].request.adapter, answers[0].request.causal
        self._rows: Rows
        if model.answer_start is None:
            self._rows = PromptRows(model, prompts, adapter, causal=causal)
        else:
            self._rows = SourceRows(model, prompts, adapter)
        self._token_B: Tensor | None = None

    @torch.no_grad()
    def step(self) -> list[_Answer]:
        """Add one token to every answer; return those that ended with it."""
        logits_BV = self._rows.first_scores() if self._token_B is None else self._rows.next_scores(self._token_B)
        samplings = [answer.request.sampling for answer in self.answers]
        number = [len(answer.tokens) for answer in self.answers]
        self._token_B = sample(logits_BV, samplings, uniforms([sampling.seed for sampling in samplings], number))
        for answer, token in zip(self.answers, self._token_B.tolist(), strict=True):
            answer.add(token)
        return self._release_ended()

    def _release_ended(self) -> list[_Answer]:
        """Take the rows out of the batch whose answers have ended."""
        ended = [answer for answer in self.answers if answer.finish_reason is not None]
        if ended:
            live = [row for row, answer in enumerate(self.answers) if answer.finish_reason is None]
            self.answers = [self.answers[row] for row in live]
            if live:
                assert self._token_B is not None
                rows = torch.tensor(live, device=self._token_B.device)
                self._token_B = self._token_B[rows]
                self._rows.keep(rows)
        return ended
