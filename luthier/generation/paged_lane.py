"""Answers over pages: each step is one packed row of the next tokens of all rows and of the prompts that are let in.

An answer is let in as soon as a row is free and all pages that it may come to need can be promised to it, so that none is
ever put out again. The answers to one request share the pages of its prompt, which is computed once; so do prompts that
begin alike, whole pages at a time, now or while the pages are still kept.

Shapes: T tokens of the packed row, B answers that get a token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from luthier.generation.answers import Answer, Asked
from luthier.generation.lanes import Lane
from luthier.generation.paged_keys import PagedKeys, PagedStep
from luthier.generation.pages import Pages
from luthier.generation.room import PAGE_SIZE, Room
from luthier.generation.rows import Decoder
from luthier.models.call import Run
from luthier.ops.paged_attention import PagePlan, Pasts, PromptPart

PROMPT_TOKENS = 1024  # most prompt tokens of one step, if one prompt alone does not have more


@dataclass
class _Past:
    """What stands before a row's next token: its pages, how much of each is filled, and how many it may still take."""

    pages: list[int]
    fills: list[int]
    promised: int
    grows: bool = True  # whether the last page is the row's own

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return sum(self.fills)


@dataclass
class _Prompt:
    """A prompt that is computed or was: its pages, and how many of its answers still need them.

    first_V: the scores of the first token, kept while answers to it wait.
    """

    past: _Past
    num_open: int
    first_V: Tensor | None = None


@dataclass(frozen=True)
class _Opening:
    """A prompt to be computed in this step, but for its first tokens, which pages hold."""

    prompt: _Prompt
    adapter: str | None
    tokens: tuple[int, ...]
    num_found: int
    causal: bool


@dataclass
class _Row:
    """The packed row of a step as it is put together; `sources`: which of its tokens gives the scores of which item."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    singles: list[int] = field(default_factory=list)
    single_pasts: list[_Past] = field(default_factory=list)
    parts: list[PromptPart] = field(default_factory=list)
    lasts: list[int] = field(default_factory=list)
    items: list[int] = field(default_factory=list)


class PagedLane(Lane):
    """Answers over a fixed number of pages."""

    def __init__(self, model: Decoder, max_rows: int, room: Room, page_size: int = PAGE_SIZE) -> None:
        super().__init__(max_rows)
        self._model = model
        self._room = room
        self._pages = Pages(-(-room.tokens // page_size), page_size)
        self._keys = PagedKeys(self._pages.count, page_size)
        self._pasts: list[_Past] = []
        self._prompts: dict[int, _Prompt] = {}

    @property
    def bytes_held(self) -> int:
        """The memory of the pages."""
        return self._keys.bytes_held

    def forget(self) -> None:
        """Let no prompt begin with what was computed before."""
        self._pages.forget()

    def check_fits(self, answer: Answer) -> None:
        """Raise ResourceError if its pages are more than there are."""
        needed = sum(self._need(answer.asked, 0))
        if needed > self._pages.count:
            asked = answer.asked
            raise self._room.too_small(len(asked.prompt), asked.budget, needed * self._pages.size)

    def _need(self, asked: Asked, num_found: int) -> tuple[int, int]:
        """How many pages the prompt takes beside those found, and how many one of its answers."""
        pages, num_prompt, num_new = self._pages, len(asked.prompt), asked.budget - 1  # the last token is not held
        if asked.request.num_answers == 1:
            return pages.pages_for(num_prompt + num_new) - num_found, 0
        return pages.pages_for(num_prompt) - num_found, pages.pages_for(num_new)

    # ── letting in ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _let_in(self) -> tuple[list[_Opening], list[Answer]]:
        """The prompts to compute, and the answers that begin, in order: as many as have rows and room."""
        openings: list[_Opening] = []
        begun: list[Answer] = []
        num_tokens = 0
        while self.waiting and len(self.live) + len(begun) < self.max_rows:
            answer = self.waiting[0]
            asked = answer.asked
            if id(asked) not in self._prompts:
                opening = self._open(asked, PROMPT_TOKENS - num_tokens if openings else None)
                if opening is None:
                    break
                openings.append(opening)
                num_tokens += len(opening.tokens) - opening.num_found
            elif self._need(asked, 0)[1] > self._pages.num_available:
                break
            self._begin(asked)
            begun.append(self.waiting.popleft())
        return openings, begun

    def _open(self, asked: Asked, most_tokens: int | None) -> _Opening | None:
        """Give a prompt its pages; None if there is no room now, or if it has more than so many tokens to compute."""
        adapter, tokens, pages = asked.request.adapter, asked.prompt, self._pages
        # of a prompt that sees itself whole, no beginning is like that of another
        shares = asked.request.causal and self._model.shares_tokens(adapter)
        found = pages.find(adapter, tokens) if shares else []
        num_found = len(found) * pages.size
        of_prompt, of_answer = self._need(asked, len(found))
        if most_tokens is not None and len(tokens) - num_found > most_tokens:
            return None
        if of_prompt + of_answer + pages.num_unread(found) > pages.num_available:
            return None
        pages.share(found)
        pages.promise(of_prompt)
        own = [pages.take() for _ in range(pages.pages_for(len(tokens)) - len(found))]
        held = [*found, *own]
        if shares:
            pages.keep(adapter, tokens, held)
        fills = [pages.size] * (len(held) - 1) + [len(tokens) - (len(held) - 1) * pages.size]
        prompt = _Prompt(_Past(held, fills, of_prompt - len(own)), asked.request.num_answers)
        self._prompts[id(asked)] = prompt
        return _Opening(prompt, adapter, tokens, num_found, asked.request.causal)

    def _begin(self, asked: Asked) -> None:
        """Give an answer its past: the prompt's own if it is the only one, else one that shares the prompt's pages."""
        prompt = self._prompts[id(asked)]
        if asked.request.num_answers == 1:
            self._pasts.append(prompt.past)
            return
        of_answer = self._need(asked, 0)[1]
        self._pages.promise(of_answer)
        self._pages.share(prompt.past.pages)
        self._pasts.append(_Past(list(prompt.past.pages), list(prompt.past.fills), of_answer, grows=False))

    # ── computing ───────────────────────────────────────────────────────────────────────────────────────────────────

    @torch.inference_mode()
    def scores(self) -> Tensor:
        """Those of the live answers, and of the answers that were let in after them."""
        self._close_up()
        num_before = len(self.live)
        for past in self._pasts:
            self._grow(past)
        openings, begun = self._let_in()
        singles = list(zip(self.live, self._pasts[:num_before], strict=True))
        row = self._packed(singles, openings)
        item_BV = self._computed(row) if row.tokens else None
        self.live += begun
        return self._by_answer(item_BV, row, openings, num_before, begun)

    def _grow(self, past: _Past) -> None:
        """Make room for one token more."""
        if past.grows and past.fills[-1] < self._pages.size:
            past.fills[-1] += 1
            return
        past.pages.append(self._pages.take())
        past.fills.append(1)
        past.promised -= 1
        past.grows = True

    def _packed(self, singles: Sequence[tuple[Answer, _Past]], openings: Sequence[_Opening]) -> _Row:
        """One token of each row that goes on, and the tokens of the prompts, those of one adapter side by side."""
        row, size = _Row(), self._pages.size
        adapters = [answer.asked.request.adapter for answer, _ in singles] + [opening.adapter for opening in openings]
        order = sorted(range(len(adapters)), key=lambda item: adapters[item] or "")
        for adapter, items in groupby(order, key=lambda item: adapters[item]):
            start = len(row.tokens)
            for item in items:
                if item < len(singles):
                    answer, past = singles[item]
                    row.singles.append(len(row.tokens))
                    row.single_pasts.append(past)
                    row.tokens.append(answer.tokens[-1])
                    row.positions.append(len(answer.asked.prompt) + len(answer.tokens) - 1)
                    row.places.append(past.pages[-1] * size + past.fills[-1] - 1)
                    row.prompts.append(0)
                else:
                    self._put(row, openings[item - len(singles)])
                row.lasts.append(len(row.tokens) - 1)
                row.items.append(item)
            row.runs.append(Run(start, len(row.tokens), adapter))
        return row

    def _put(self, row: _Row, opening: _Opening) -> None:
        """Put the tokens of a prompt into the packed row, but for those that are found."""
        past, size, found = opening.prompt.past, self._pages.size, opening.num_found
        places = np.concatenate(
            [np.arange(page * size, page * size + fill) for page, fill in zip(past.pages, past.fills, strict=True)]
        )
        start = len(row.tokens)
        row.tokens += opening.tokens[found:]
        row.positions += range(found, len(opening.tokens))
        row.places += places[found:].tolist()
        row.prompts += [len(opening.tokens)] * (len(opening.tokens) - found)
        past_C = torch.from_numpy(places[:found]).to(self._model.device) if found else None
        row.parts.append(PromptPart(start, len(row.tokens), past_C, opening.causal))

    def _computed(self, row: _Row) -> Tensor:
        """The scores of the packed row's items, in the order of `row.items`."""
        device = self._model.device
        tokens_T, positions_T, places_T, prompts_T, last_B = (
            torch.tensor(numbers, device=device)
            for numbers in (row.tokens, row.positions, row.places, row.prompts, row.lasts)
        )
        plan = PagePlan(_pasts(row.single_pasts), self._pages.size, device) if row.singles else None
        single_N = torch.tensor(row.singles, dtype=torch.long, device=device)
        step = PagedStep(self._keys, places_T, single_N, plan, row.parts)
        return self._model.read(tokens_T[None], positions_T[None], tuple(row.runs), prompts_T, last_B, step)

    def _by_answer(
        self,
        item_BV: Tensor | None,
        row: _Row,
        openings: Sequence[_Opening],
        num_singles: int,
        begun: Sequence[Answer],
    ) -> Tensor:
        """The scores of each live answer, of those of its item."""
        place_of = {item: place for place, item in enumerate(row.items)}
        opened = {id(opening.prompt): num_singles + index for index, opening in enumerate(openings)}
        begun_prompts = [self._prompts[id(answer.asked)] for answer in begun]
        stored = {id(prompt): prompt.first_V for prompt in begun_prompts if prompt.first_V is not None}
        of_items = [place_of[item] for item in range(num_singles)]
        offset = len(place_of)
        numbers = {key: offset + index for index, key in enumerate(stored)}
        of_begun = [
            place_of[opened[id(prompt)]] if id(prompt) in opened else numbers[id(prompt)] for prompt in begun_prompts
        ]
        chosen = [*of_items, *of_begun]
        rows = [] if item_BV is None else [item_BV]
        rows += [first_V[None] for first_V in stored.values() if first_V is not None]
        all_BV = torch.cat(rows) if len(rows) > 1 else rows[0]
        if item_BV is not None:
            self._keep_first(item_BV, place_of, openings, num_singles)
        if chosen == list(range(len(all_BV))):
            return all_BV
        return all_BV[torch.tensor(chosen, device=all_BV.device)]

    def _keep_first(
        self, item_BV: Tensor, place_of: dict[int, int], openings: Sequence[_Opening], num_singles: int
    ) -> None:
        """Keep the first scores of prompts of which answers still wait."""
        waiting = {id(answer.asked) for answer in self.waiting}
        for asked, prompt in self._prompts.items():
            for index, opening in enumerate(openings):
                if opening.prompt is prompt and asked in waiting:
                    prompt.first_V = item_BV[place_of[num_singles + index]].clone()

    # ── letting go ──────────────────────────────────────────────────────────────────────────────────────────────────

    def keep(self, rows: Sequence[int]) -> None:
        """Let go of the others, and of prompts that nobody needs any more."""
        kept = set(rows)
        for index, (answer, past) in enumerate(zip(self.live, self._pasts, strict=True)):
            if index not in kept:
                self._pages.drop(past.pages)
                self._pages.promise(-past.promised)
                self._close(answer)
        self.live = [self.live[row] for row in rows]
        self._pasts = [self._pasts[row] for row in rows]

    def leave(self, answer: Answer) -> None:
        """An answer that waited will not be computed: its prompt is held for one less."""
        if id(answer.asked) in self._prompts:
            self._close(answer)

    def _close(self, answer: Answer) -> None:
        prompt = self._prompts[id(answer.asked)]
        prompt.num_open -= 1
        if prompt.num_open == 0:
            del self._prompts[id(answer.asked)]
            if answer.asked.request.num_answers > 1:  # else the row has let go of the pages already
                self._pages.drop(prompt.past.pages)
                self._pages.promise(-prompt.past.promised)

    def _close_up(self) -> None:
        """Bring the pages in use together, if holes among them have become many."""
        moves = self._pages.closed_up()
        if not moves:
            return
        self._keys.move(moves)
        pasts = {id(past): past for past in [*self._pasts, *(prompt.past for prompt in self._prompts.values())]}
        for past in pasts.values():
            past.pages = [moves.get(page, page) for page in past.pages]


def _pasts(pasts: Sequence[_Past]) -> Pasts:
    """The pages of several rows as pairs of row and page."""
    counts = [len(past.pages) for past in pasts]
    fill = np.array([fill for past in pasts for fill in past.fills])
    ends = np.cumsum(fill)
    row = np.repeat(np.arange(len(pasts)), counts)
    length_N = np.array([past.length for past in pasts])
    first = ends - fill - np.repeat(np.cumsum(length_N) - length_N, counts)
    return Pasts(row, np.array([page for past in pasts for page in past.pages]), first, fill, length_N)
