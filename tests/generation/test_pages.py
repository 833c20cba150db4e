"""Pages by numbers: none is lost, none has two owners, and beginnings are found again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.generation.pages import Pages


def taken(pages: Pages, count: int) -> list[int]:
    """So many pages, promised and taken."""
    pages.promise(count)
    return [pages.take() for _ in range(count)]


def test_a_prompt_begins_with_the_whole_pages_that_an_earlier_one_filled() -> None:
    pages = Pages(8, 4)
    first = tuple(range(10))
    held = taken(pages, 3)
    pages.keep("a", first, held)
    assert pages.find("a", (*range(10), 99)) == held[:2]
    assert pages.find("a", range(8)) == held[:1]  # the last token is computed anew: its scores are asked for
    assert pages.find("a", (*range(4), 9, 9, 9, 9, 9)) == held[:1]
    assert pages.find(None, range(10)) == []
    pages.forget()
    assert pages.find("a", range(10)) == []


def test_pages_are_kept_after_their_readers_and_given_up_when_needed() -> None:
    pages = Pages(4, 2)
    held = taken(pages, 2)
    pages.keep(None, range(4), held)
    pages.drop(held)
    assert pages.num_available == 4
    assert pages.find(None, range(5)) == held
    taken(pages, 3)  # the second page of the beginning goes before the first
    assert pages.find(None, range(5)) == held[:1]


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["open", "close", "close_up"]), st.integers(0, 5)), max_size=40))
def test_pages_in_use_hold_what_was_put_there_whatever_moves(steps: list[tuple[str, int]]) -> None:
    pages = Pages(12, 2)
    content: dict[int, tuple[int, ...]] = {}
    rows: list[tuple[tuple[int, ...], list[int]]] = []
    for step, number in steps:
        if step == "open":
            tokens = (0, 0, number % 2, number, 9)
            found = pages.find(None, tokens)
            if 3 - len(found) + pages.num_unread(found) > pages.num_available:
                continue
            pages.share(found)
            held = [*found, *taken(pages, 3 - len(found))]
            for index in range(len(found), 3):
                content[held[index]] = tokens[2 * index : 2 * index + 2]
            pages.keep(None, tokens, held)
            rows.append((tokens, held))
        elif step == "close" and rows:
            pages.drop(rows.pop(number % len(rows))[1])
        elif step == "close_up":
            moves = pages.closed_up()
            content = {moves.get(page, page): tokens for page, tokens in content.items()}
            rows = [(tokens, [moves.get(page, page) for page in held]) for tokens, held in rows]
        for tokens, held in rows:
            assert tuple(token for page in held for token in content[page]) == tokens
        assert pages.num_used == len({page for _, held in rows for page in held})
        assert pages.num_available == 12 - pages.num_used


def test_pages_in_use_come_to_lie_together() -> None:
    pages = Pages(40, 1)
    held = taken(pages, 40)
    pages.drop(held[:30])
    moves = pages.closed_up()
    assert sorted(moves.get(page, page) for page in held[30:]) == list(range(10))
    assert pages.closed_up() == {}
