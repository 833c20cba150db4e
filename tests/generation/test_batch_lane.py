"""The engine over padded batches: a full queue, and requests that are cancelled while they wait and while they are computed."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from luthier.errors import QueueFull
from luthier.generation.answers import Asked
from luthier.generation.engine import Engine, Request, generate
from luthier.generation.settings import Sampling

LONG = Sampling(max_new_tokens=12)


def finish(engine: Engine) -> None:
    while not engine.is_idle:
        engine.step()


def submitted(engine: Engine, *prompts: tuple[int, ...], num_answers: int = 1) -> list[Asked]:
    return [engine.submit(Request(prompt, LONG, num_answers=num_answers)) for prompt in prompts]


@pytest.fixture
def model(tiny_decoder: Any) -> Any:
    """A decoder whose answers go through batches and end by their length alone."""
    return tiny_decoder(stop_ids=())


def test_a_full_queue_refuses_and_takes_again_once_a_batch_has_begun(model: Any) -> None:
    engine = Engine(model, max_rows=2, max_waiting=3)
    submitted(engine, (1,), (2,), (3,))
    with pytest.raises(QueueFull, match="3 answers wait, and 1 more would pass 3") as refused:
        submitted(engine, (4,))
    assert "max_waiting" in refused.value.mend
    engine.step()  # two of the three are computed now
    fourth, fifth = submitted(engine, (4,), (5,))
    with pytest.raises(QueueFull):
        submitted(engine, (6,))
    finish(engine)
    assert [each.completed for each in (fourth, fifth)] == [generate(model, [each.request]) for each in (fourth, fifth)]
    assert not engine.cache_bytes


def test_a_request_of_more_answers_than_may_wait_is_taken_where_none_wait(model: Any) -> None:
    engine = Engine(model, max_rows=2, max_waiting=3)
    (many,) = submitted(engine, (1, 2), num_answers=5)
    finish(engine)
    assert len(many.completed) == 5


def test_whoever_is_cancelled_in_the_queue_gives_its_place_back_and_is_never_computed(model: Any) -> None:
    engine = Engine(model, max_rows=1, max_waiting=2)
    staying, leaving = submitted(engine, (1, 2), (3, 4))
    engine.cancel(leaving)
    with pytest.raises(QueueFull):
        submitted(engine, (5,))
    engine.step()
    assert leaving.completed[0].finish_reason == "cancelled"
    assert leaving.completed[0].tokens == ()
    later = submitted(engine, (5,), (6,))
    finish(engine)
    assert [shape for shape in model.shapes if shape[1] > 1] == [(1, 2)]
    assert all(each.completed == generate(model, [each.request]) for each in (staying, *later))


def test_rows_that_are_cancelled_leave_their_batch_and_the_others_go_on_to_the_same_answers(model: Any) -> None:
    engine = Engine(model, max_rows=4)
    asked = submitted(engine, (1, 2, 3), (4,), (5, 6), (7, 8, 9, 10))
    for _ in range(3):
        engine.step()
    for each in asked[::2]:
        engine.cancel(each)
    ended = engine.step()
    assert ended == asked[::2]
    assert [len(each.completed[0].tokens) for each in asked[::2]] == [3, 3]
    assert model.shapes[-1] == (2, 1)
    finish(engine)
    assert [each.completed[0].finish_reason for each in asked] == ["cancelled", "length"] * 2
    for each in asked:
        (alone,) = generate(model, [each.request])
        (found,) = each.completed
        assert found.tokens == alone.tokens[: len(found.tokens)]


def test_where_a_whole_batch_is_cancelled_the_next_one_begins_at_once(model: Any) -> None:
    engine = Engine(model, max_rows=2)
    first, second, third = submitted(engine, (1, 2), (3,), (4, 5, 6))
    engine.step()
    for each in (first, second):
        engine.cancel(each)
    model.shapes.clear()
    assert engine.step() == [first, second]
    assert model.shapes == [(1, 3)]
    engine.cancel(first)  # it has ended: nothing is left to cancel
    finish(engine)
    assert third.completed == generate(model, [third.request])
    assert [each.completed[0].finish_reason for each in (first, second)] == ["cancelled"] * 2


def test_other_threads_may_ask_and_cancel_between_any_two_steps(model: Any) -> None:
    engine = Engine(model, max_rows=3, max_waiting=None)
    asked: list[Asked] = []

    def ask() -> None:
        for token in range(20):
            asked.extend(submitted(engine, (token, token + 1)))
            if token % 4 == 3:
                engine.cancel(asked[-1])

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive() or not engine.is_idle:
        engine.step()
    thread.join()
    assert len(asked) == 20
    assert all(each.is_done for each in asked)
    whole = [each for at, each in enumerate(asked) if at % 4 < 3]
    assert [each.completed for each in whole] == [generate(model, [each.request]) for each in whole]
