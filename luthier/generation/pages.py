"""Which pages of a key-value cache are in use, by numbers alone: taking, sharing, promising, and keeping for later prompts.

A page in use has readers. One without is free, or kept: it holds the beginning of a prompt that may come again, and is given
up, the longest unused first, when a page is needed. Pages are promised to a row before they are taken, so that a row that
was let in never waits for room.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence

_Key = tuple[int, tuple[int, ...]]  # the number of what stands before a page, and the page's tokens
_LOOSE = 4  # pages that the used ones may be spread over beyond a quarter more than they are


class Pages:
    """Pages 0 … count − 1 of `size` tokens each."""

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self._num_readers = [0] * count
        self._free = list(range(count))  # a heap: the lowest first, so that pages in use lie together
        self._num_used = 0
        self._num_promised = 0
        self._kept: OrderedDict[int, None] = OrderedDict()  # pages without readers, the longest unused first
        self._page_of: dict[_Key, int] = {}
        self._key_of: dict[int, _Key] = {}
        self._number_of: dict[int, int] = {}  # of what a page and all before it hold
        self._roots: dict[str | None, int] = {}
        self._last_number = 0

    @property
    def num_available(self) -> int:
        """How many pages can be promised: those that are neither in use nor promised."""
        return self.count - self._num_used - self._num_promised

    @property
    def num_used(self) -> int:
        """How many pages have readers."""
        return self._num_used

    def pages_for(self, num_tokens: int) -> int:
        """How many pages so many tokens fill."""
        return -(-num_tokens // self.size)

    def num_unread(self, pages: Sequence[int]) -> int:
        """How many of these have no reader, so that reading them takes from what is available."""
        return sum(self._num_readers[page] == 0 for page in pages)

    def promise(self, count: int) -> None:
        """Set so many aside; fewer than nothing gives them back."""
        self._num_promised += count
        assert 0 <= self._num_promised <= self.count - self._num_used

    def take(self) -> int:
        """A page for one reader, of those promised."""
        self._num_promised -= 1
        if not self._free:
            page, _ = self._kept.popitem(last=False)
            self._forget(page)
            heapq.heappush(self._free, page)
        page = heapq.heappop(self._free)
        self._num_readers[page] = 1
        self._num_used += 1
        return page

    def share(self, pages: Sequence[int]) -> None:
        """One reader more for each."""
        for page in pages:
            if self._num_readers[page] == 0:
                del self._kept[page]
                self._num_used += 1
            self._num_readers[page] += 1

    def drop(self, pages: Sequence[int]) -> None:
        """One reader less for each of a row's pages, given in the row's order."""
        for page in reversed(pages):  # a kept page is given up after those that can only be found through it
            self._num_readers[page] -= 1
            if self._num_readers[page] == 0:
                self._num_used -= 1
                if page in self._key_of:
                    self._kept[page] = None
                else:
                    heapq.heappush(self._free, page)

    def find(self, adapter: str | None, tokens: Sequence[int]) -> list[int]:
        """The pages that hold the longest beginning of a prompt, whole pages and not all of the prompt."""
        found: list[int] = []
        number = self._roots.get(adapter)
        for start in range(0, len(tokens) - self.size, self.size):
            page = None if number is None else self._page_of.get((number, tuple(tokens[start : start + self.size])))
            if page is None:
                break
            found.append(page)
            number = self._number_of[page]
        return found

    def keep(self, adapter: str | None, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Let the pages that a prompt fills be found by later ones; those that hold the same as known ones stay unknown."""
        number = self._roots.setdefault(adapter, self._next_number())
        for index in range(len(tokens) // self.size):
            key = (number, tuple(tokens[index * self.size : (index + 1) * self.size]))
            page = pages[index]
            if self._page_of.setdefault(key, page) != page:
                return
            if page not in self._key_of:
                self._key_of[page], self._number_of[page] = key, self._next_number()
            number = self._number_of[page]

    def forget(self) -> None:
        """From now on no prompt begins with what is held: the weights that made it have changed."""
        for page in list(self._key_of):
            self._forget(page)
        for page in self._kept:
            heapq.heappush(self._free, page)
        self._kept.clear()
        self._roots.clear()

    def _forget(self, page: int) -> None:
        del self._page_of[self._key_of.pop(page)]
        del self._number_of[page]

    def _next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def closed_up(self) -> dict[int, int]:
        """Where pages are to move, by where they are, so that those in use lie together; empty where they nearly do.

        The moves are exchanges. What is noted here follows them; the caller moves what the pages hold.
        """
        used = [page for page, readers in enumerate(self._num_readers) if readers]
        if not used or used[-1] + 1 <= len(used) + len(used) // 4 + _LOOSE:
            return {}
        beyond = [page for page in used if page >= len(used)]
        holes = [page for page in range(len(used)) if not self._num_readers[page]]
        moves = dict(zip([*beyond, *holes], [*holes, *beyond], strict=True))
        self._num_readers = [self._num_readers[moves.get(page, page)] for page in range(self.count)]
        self._free = [moves.get(page, page) for page in self._free]
        heapq.heapify(self._free)
        self._kept = OrderedDict((moves.get(page, page), None) for page in self._kept)
        self._key_of = {moves.get(page, page): key for page, key in self._key_of.items()}
        self._number_of = {moves.get(page, page): number for page, number in self._number_of.items()}
        self._page_of = {key: page for page, key in self._key_of.items()}
        return moves
