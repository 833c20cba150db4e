"""Where answers wait and are computed: a lane for all that goes through pages, and one for what needs batches of its own.

Shapes: B answers that get a token, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.generation.answers import Answer
from luthier.generation.requests import reading_of
from luthier.generation.room import COPIES, Room
from luthier.generation.rows import Decoder, PromptRows, Rows, SourceRows


class Lane(ABC):
    """Answers that wait, and answers that are computed together."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.waiting: deque[Answer] = deque()
        self.live: list[Answer] = []

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.live and not self.waiting

    @abstractmethod
    def check_fits(self, answer: Answer) -> None:
        """Raise ResourceError for an answer that has no room even alone."""

    @abstractmethod
    def scores(self) -> Tensor:
        """The scores of the next token of each live answer, (B, V), after those that have room were let in."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Let go of all live answers but these, by their places among them."""

    @abstractmethod
    def leave(self, answer: Answer) -> None:
        """Note that an answer leaves the queue without having been computed."""


class BatchLane(Lane):
    """Batches over a left-padded cache: each is of requests that are read alike, and none joins it later.

    It computes what pages do not: architectures whose batches are padded, encoder-decoders, networks beside the model, and
    prefixes with gates.
    """

    def __init__(self, model: Decoder, max_rows: int, room: Room) -> None:
        super().__init__(max_rows)
        self._model = model
        self._room = room
        self._rows: Rows | None = None

    @property
    def bytes_held(self) -> int:
        """The memory of the batch's keys and values."""
        return 0 if self._rows is None else self._rows.bytes_held

    def check_fits(self, answer: Answer) -> None:
        """Where memory is the limit, raise ResourceError for an answer that has no room; else any is computed alone if need be."""
        asked = answer.asked
        needed = self._room.of_row(len(asked.prompt) + asked.budget)
        if self._room.token_bytes is not None and needed > self._room.in_batches:
            raise self._room.too_small(len(asked.prompt), asked.budget, needed, COPIES)

    def scores(self) -> Tensor:
        """Those of the batch; once it is over, of the next one."""
        if not self.live:
            self._begin()
            assert self._rows is not None
            return self._rows.first_scores()
        assert self._rows is not None
        token_B = torch.tensor([answer.tokens[-1] for answer in self.live], device=self._model.device)
        return self._rows.next_scores(token_B)

    def _begin(self) -> None:
        """Take as many of the answers that wait as are read as the first one is and have room together."""
        first = self.waiting[0].asked.request
        longest = 0
        chosen: list[Answer] = []
        for answer in self.waiting:
            together = max(longest, self._room.of_row(len(answer.asked.prompt) + answer.asked.budget))
            if len(chosen) == self.max_rows or (chosen and (len(chosen) + 1) * together > self._room.in_batches):
                break
            if reading_of(answer.asked.request) == reading_of(first):
                chosen.append(answer)
                longest = together
        taken = set(map(id, chosen))
        self.waiting = deque(answer for answer in self.waiting if id(answer) not in taken)
        self.live = chosen
        prompts = [answer.asked.prompt for answer in chosen]
        if self._model.answer_start is None:
            self._rows = PromptRows(self._model, prompts, first.adapter, causal=first.causal)
        else:
            self._rows = SourceRows(self._model, prompts, first.adapter)

    def keep(self, rows: Sequence[int]) -> None:
        """Let go of the others."""
        self.live = [self.live[row] for row in rows]
        if self.live and self._rows is not None:
            self._rows.keep(torch.tensor(rows, device=self._model.device))
        else:
            self._rows = None

    def leave(self, answer: Answer) -> None:
        """Nothing is held for an answer that waits."""
