"""How much an engine comes to hold of keys and values for requests, from their lengths alone."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.generation.cache import held_length
from luthier.generation.room import COPIES, PAGE_SIZE, Room, token_bytes, whole_pages
from luthier.generation.rows import Decoder

Lengths = tuple[int, int, int]
"""Of a request: tokens of its prompt, most new tokens of an answer, answers."""


def keys_bytes(model: Decoder, adapter: str | None, asked: Sequence[Lengths], max_rows: int, room: Room) -> int:
    """The most bytes that keys and values of all layers take while requests are answered that are there from the beginning.

    All that goes through pages is asked for at the first step: on a GPU it is held from then on, on a CPU as answers fill it. Padded
    batches hold what they have, and as much again while they grow.
    """
    each = token_bytes(model)
    if goes_through_pages(model, adapter):
        return whole_pages(room.at_most(tokens_together(asked, max_rows)).tokens) * each
    longest = max(num_prompt + num_new for num_prompt, num_new, _ in asked)
    fitting = max(1, room.in_batches // room.of_row(longest))
    rows = min(sum(num_answers for _, _, num_answers in asked), max_rows, fitting)
    needed = COPIES * rows * held_length(longest) * each
    return needed if room.num_bytes is None else min(needed, room.num_bytes)


def goes_through_pages(model: Decoder, adapter: str | None) -> bool:
    """Whether answers under an adapter share pages; else they are computed in padded batches."""
    return model.layout == "packed" and model.answer_start is None and model.keeps_pages(adapter)


def tokens_together(asked: Sequence[Lengths], max_rows: int) -> int:
    """The most tokens that the pages of so many answers hold at once.

    The answers to one request share the pages of its prompt.
    """
    of_answers: list[int] = []
    of_prompts: list[int] = []
    for num_prompt, budget, num_answers in asked:
        own, shared = (num_prompt + budget, 0) if num_answers == 1 else (budget, num_prompt)
        of_answers += [whole_pages(own) + (PAGE_SIZE if num_answers == 1 else 0)] * num_answers
        of_prompts += [whole_pages(shared) + PAGE_SIZE] if shared else []
    return sum(sum(sorted(each)[-max_rows:]) for each in (of_answers, of_prompts))
