"""Text from a model: requests go in, tokens and text come out.

An `Engine` takes requests at any time and computes one token for all live answers at each step; answers that end make room
for those that wait. Lanes compute the scores (`lanes`, `paged_lane`), `choosing` makes tokens of them, and this file moves
answers between the two. `generate` and `stream` are an engine for requests that are all there from the beginning.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

import torch

from luthier.data.placeholders import PLACEHOLDER
from luthier.errors import DataError, QueueFull
from luthier.generation.answers import Answer, Asked
from luthier.generation.choosing import Chooser
from luthier.generation.held import goes_through_pages, tokens_together
from luthier.generation.lanes import BatchLane, Lane
from luthier.generation.paged_lane import PagedLane
from luthier.generation.requests import Completed, FinishReason, Request, reading_of
from luthier.generation.room import Room, room_of
from luthier.generation.rows import Decoder
from luthier.ops.workers import Workers

__all__ = ["Completed", "Engine", "FinishReason", "Progress", "Request", "generate", "stream"]

MAX_ROWS = 128
CACHE_TOKENS = 65_536

Progress = Callable[[int, int], None]
"""Called with the number of answers that have ended and the number of all that were asked for."""


class Engine:
    """Computes answers to requests that may come at any time.

    One thread takes the steps; `submit` and `cancel` may be called from others.

    Args:
        max_rows: most answers computed together.
        cache_tokens: most tokens (prompts and answers) that the key-value cache holds. It is asked for at the first step and
            never grows.
        cache_bytes: most memory that the cache takes, instead; what a token takes is measured (`room.token_bytes`). Adapters
            that do not go through pages, beside others that do, have as much for themselves.
        room: both of these, where they are known already.
        max_waiting: most answers that wait for a row; None: as many as are asked for.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        max_rows: int = MAX_ROWS,
        cache_tokens: int = CACHE_TOKENS,
        cache_bytes: int | None = None,
        room: Room | None = None,
        max_waiting: int | None = 4096,
    ) -> None:
        self.model = model
        self._room = room or room_of(model, cache_tokens, cache_bytes)
        self.max_rows = max_rows
        self._max_waiting = max_waiting
        self._begin()
        self._chooser = Chooser(model)
        self._lock = threading.Lock()

    def _begin(self) -> None:
        """Begin with nothing."""
        self._paged = PagedLane(self.model, self.max_rows, self._room)
        self._batches = BatchLane(self.model, self.max_rows, self._room)
        self._inbox: deque[tuple[Lane, list[Answer]]] = deque()
        self._num_waiting = 0
        self._open: dict[int, Asked] = {}

    @property
    def is_idle(self) -> bool:
        """Whether every answer has ended."""
        return not self._inbox and self._paged.is_idle and self._batches.is_idle

    @property
    def cache_bytes(self) -> int:
        """The memory that keys and values hold; 0 before the first step."""
        return self._paged.bytes_held + self._batches.bytes_held

    @property
    def cache_tokens(self) -> int:
        """How many tokens the cache has room for."""
        return self._room.tokens

    def submit(self, request: Request, *, watched: bool = False) -> Asked:
        """Take a request in; its answers appear in what is given back as they end.

        watched: keep the pieces of text for `pieces` to give out.
        Raises: DataError, if the prompt is empty or leaves no room in the context; ResourceError, if it has no room in the
        cache even alone; QueueFull, if as many answers wait as may.
        """
        placed = _placed(self.model, request)
        asked = Asked(request, placed, _token_budget(self.model, request, placed), watched)
        asked.answers = [None] * request.num_answers
        model = self.model
        answers = [Answer(asked, number, model.stop_ids, model.tokenizer) for number in range(request.num_answers)]
        is_paged = goes_through_pages(model, request.adapter)
        self._lane(is_paged).check_fits(answers[0])
        self._chooser.check(request)
        with self._lock:
            most = self._max_waiting
            if most is not None and self._num_waiting and self._num_waiting + len(answers) > most:
                raise QueueFull(
                    f"{self._num_waiting} answers wait, and {len(answers)} more would pass {most}.",
                    "Ask again when some have ended, or give the engine a larger max_waiting.",
                )
            self._num_waiting += len(answers)
            self._open[id(asked)] = asked
            self._inbox.append((self._lane(is_paged), answers))  # as they are now: a step may have broken off since
        return asked

    def _lane(self, is_paged: bool) -> Lane:
        return self._paged if is_paged else self._batches

    def cancel(self, asked: Asked) -> None:
        """End all answers to a request at the next step, as they are."""
        asked.is_cancelled = True

    def forget(self) -> None:
        """Compute all prompts anew from now on: the weights have changed. Answers on their way go on."""
        self._paged.forget()

    def step(self) -> list[Asked]:
        """Give every live answer one token; the requests of which an answer ended with it, once for each.

        Raises: NotFinite, if the model gives NaN. After any error, and an interruption, all that was asked is cancelled, and
        the engine takes new requests.
        """
        try:
            return self._stepped()
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Cancel everything and begin anew: a step that broke off may have left anything half done."""
        with self._lock:
            for asked in self._open.values():
                asked.answers = [answer or Completed((), "", "cancelled") for answer in asked.answers]
            self._begin()

    def _stepped(self) -> list[Asked]:
        self._take_in()
        done: list[Asked] = []
        for lane in (self._paged, self._batches):
            done += self._cancelled(lane)
            if not lane.is_idle:
                done += self._advance(lane)
        return done

    def pieces(self, asked: Asked) -> Iterator[tuple[int, str]]:
        """The text of a watched request piece by piece, each with the number of its answer, while it is computed."""
        try:
            while not asked.is_done:
                self.step()
                while asked.pieces:
                    yield asked.pieces.popleft()
        finally:
            self.cancel(asked)

    def stream(self, request: Request) -> Generator[str, None, Completed]:
        """The text of a request's only answer piece by piece; the generator's value is the answer."""
        asked = self.submit(request, watched=True)
        for _, piece in self.pieces(asked):
            yield piece
        return asked.completed[0]

    def _take_in(self) -> None:
        with self._lock:
            arrived, self._inbox = self._inbox, deque()
        for lane, answers in arrived:
            lane.waiting.extend(answers)

    def _cancelled(self, lane: Lane) -> list[Asked]:
        """End the answers of a lane that were cancelled."""
        # asked once: another thread may cancel more of them meanwhile
        ended = [answer for answer in [*lane.live, *lane.waiting] if answer.asked.is_cancelled]
        if not ended:
            return []
        leaving = set(map(id, ended))
        for answer in lane.waiting:
            if id(answer) in leaving:
                lane.leave(answer)
        num_waiting = len(lane.waiting)
        lane.waiting = deque(answer for answer in lane.waiting if id(answer) not in leaving)
        with self._lock:
            self._num_waiting -= num_waiting - len(lane.waiting)
        for answer in ended:
            answer.cancel()
        self._release(lane)
        return [self._end(answer) for answer in ended]

    def _advance(self, lane: Lane) -> list[Asked]:
        """One token for every live answer of a lane."""
        num_waiting = len(lane.waiting)
        logits_BV = lane.scores()
        with self._lock:
            self._num_waiting -= num_waiting - len(lane.waiting)
        for answer, token in zip(lane.live, self._chooser.choose(logits_BV, lane.live), strict=True):
            answer.add(token)
        ended = [answer for answer in lane.live if answer.finish_reason is not None]
        if ended:
            self._release(lane)
        return [self._end(answer) for answer in ended]

    def _release(self, lane: Lane) -> None:
        lane.keep([row for row, answer in enumerate(lane.live) if answer.finish_reason is None])

    def _end(self, answer: Answer) -> Asked:
        answer.asked.answers[answer.number] = answer.completed()
        if answer.asked.is_done:
            del self._open[id(answer.asked)]
        return answer.asked


def generate(
    model: Decoder,
    requests: Sequence[Request],
    *,
    max_rows: int = MAX_ROWS,
    max_cache_tokens: int = CACHE_TOKENS,
    cache_bytes: int | None = None,
    progress: Progress | None = None,
) -> list[Completed]:
    """The answers to requests, in their order; several answers to one request side by side.

    Args:
        max_rows: most answers computed together.
        max_cache_tokens: most tokens (prompts, answers and padding) that the caches may come to hold.
        cache_bytes: most memory that the caches may come to take, instead.
        progress: called as answers end.

    Raises: DataError, if a prompt is empty or leaves no room in the context; ResourceError, if one has no room in the
    cache; NotFinite, if the model gives NaN.
    """
    placed = [_placed(model, request) for request in requests]
    budgets = [_token_budget(model, *each) for each in zip(requests, placed, strict=True)]
    told = _Told(sum(request.num_answers for request in requests), progress)
    answers: dict[int, list[Completed]] = {}
    room = room_of(model, max_cache_tokens, cache_bytes)
    paged = [row for row, request in enumerate(requests) if goes_through_pages(model, request.adapter)]
    if paged:
        # the longest first: if memory does not suffice, that shows at once, and rows of like length end up side by side
        paged.sort(key=lambda row: (requests[row].adapter or "", -len(placed[row])))
        together = tokens_together(
            [(len(placed[row]), budgets[row], requests[row].num_answers) for row in paged], max_rows
        )
        engine = Engine(model, max_rows=max_rows, room=room.at_most(together), max_waiting=None)
        answers |= _answered(engine, requests, paged, told, threading.Event())
        del engine  # with its cache
    others = [row for row in range(len(requests)) if row not in answers]
    if others:
        lengths = [len(p) + b for p, b in zip(placed, budgets, strict=True)]
        answers |= _in_batches(model, requests, others, lengths, max_rows, room, told)
    return [answer for row in range(len(requests)) for answer in answers[row]]


class _Told:
    """How many answers have ended, counted from several threads."""

    def __init__(self, num_answers: int, progress: Progress | None) -> None:
        self._num_answers = num_answers
        self._progress = progress
        self._num_ended = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        """One answer more has ended."""
        with self._lock:
            self._num_ended += 1
            if self._progress is not None:
                self._progress(self._num_ended, self._num_answers)


def _answered(
    engine: Engine, requests: Sequence[Request], rows: Sequence[int], told: _Told, is_stopping: threading.Event
) -> dict[int, list[Completed]]:
    """The answers to some requests by one engine."""
    asked = {row: engine.submit(requests[row]) for row in rows}
    while not engine.is_idle and not is_stopping.is_set():
        for _ in engine.step():
            told.add()
    return {row: each.completed for row, each in asked.items()}


def _in_batches(
    model: Decoder,
    requests: Sequence[Request],
    rows: Sequence[int],
    lengths: Sequence[int],
    max_rows: int,
    room: Room,
    told: _Told,
) -> dict[int, list[Completed]]:
    """The answers to requests that need batches of their own: on a CPU several side by side, each by one thread."""
    answers: dict[int, list[Completed]] = {}
    longest = room.of_row(max(lengths[row] for row in rows))
    # where memory is the limit, no more side by side than the longest has room for
    most = len(rows) if room.token_bytes is None else max(1, room.in_batches // longest)
    with Workers(_num_threads(model, min(len(rows), most))) as workers:
        share = math.ceil(min(max_rows, len(rows)) / workers.count)
        own = room.split(workers.count)

        def answer(batch: Sequence[int]) -> None:
            engine = Engine(model, max_rows=max(share, 1), room=own, max_waiting=None)
            answers.update(_answered(engine, requests, batch, told, workers.are_stopping))

        workers.run(
            [
                partial(answer, batch)
                for batch in _plan(requests, rows, [own.of_row(each) for each in lengths], share, own.in_batches)
            ]
        )
    return answers


def _num_threads(model: Decoder, num_requests: int) -> int:
    """On a CPU as many threads as torch would use for one operation, if there is a request for each."""
    return min(torch.get_num_threads(), max(1, num_requests)) if model.device.type == "cpu" else 1


def _plan(
    requests: Sequence[Request], rows: Sequence[int], lengths: Sequence[int], max_rows: int, max_cache_tokens: int
) -> list[list[int]]:
    """Batches of requests that are read alike and of like length, each within the limits (or of one request).

    The longest prompts come first: if memory does not suffice, that shows at once.
    """
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(rows, key=lambda row: (*reading_of(requests[row]), -len(requests[row].prompt))):
        batch = batches[-1] if batches else []
        together = max(longest, lengths[row])
        fits = len(batch) < max_rows and (len(batch) + 1) * together <= max_cache_tokens
        if batch and fits and reading_of(requests[batch[0]]) == reading_of(requests[row]):
            batch.append(row)
            longest = together
        else:
            batches.append([row])
            longest = lengths[row]
    return batches


def stream(model: Decoder, request: Request, cache_bytes: int | None = None) -> Generator[str, None, Completed]:
    """The answer's text piece by piece, as soon as no later token can change it; the generator's value is the answer.

    cache_bytes: as `generate` has it. Pieces are never empty, never split a character, and never hold the beginning of a stop text.
    Raises: as `generate`, at the first piece.
    """
    length = num_tokens(model, request)
    room = room_of(model, length, cache_bytes).for_one(length)
    answer: Completed = yield from Engine(model, max_rows=1, room=room).stream(request)
    return answer


def num_tokens(model: Decoder, request: Request) -> int:
    """The most tokens that a request of one answer comes to. Raises: DataError, as `generate`."""
    placed = _placed(model, request)
    return len(placed) + _token_budget(model, request, placed)


def _placed(model: Decoder, request: Request) -> tuple[int, ...]:
    """The prompt with placeholders for its adapter's virtual tokens before it."""
    if not request.prompt:
        raise DataError("A prompt has no tokens, so there is nothing to go on from.", "Give at least one character.")
    return (PLACEHOLDER,) * model.num_virtual(request.adapter) + request.prompt


def token_budget(model: Decoder, request: Request) -> int:
    """The most new tokens that each answer to a request may get. Raises: DataError, as `generate`."""
    return _token_budget(model, request, _placed(model, request))


def _token_budget(model: Decoder, request: Request, placed: Sequence[int]) -> int:
    """The most new tokens that each answer to the request may get."""
    if model.context_length is None:
        return request.sampling.max_new_tokens
    room = model.context_length - len(placed)
    if model.answer_start is not None:  # source and answer have positions of their own
        opening = model.num_virtual_answer(request.adapter) + 1
        room = model.context_length - opening if room >= 0 else room + 1
    if room < 1:
        num_virtual = model.num_virtual(request.adapter)
        counted = f" ({num_virtual} of them virtual)" if num_virtual else ""
        raise DataError(
            f"A prompt has {len(placed)} tokens{counted}, but the model holds {model.context_length}, answer included.",
            f"Shorten the prompt by at least {1 - room} tokens, or choose a model with a longer context.",
        )
    return min(room, request.sampling.max_new_tokens)
