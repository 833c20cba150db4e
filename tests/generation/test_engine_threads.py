"""One thread takes the engine's steps, and others ask it for answers and cancel them: whatever is asked comes to an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from models.tiny import tiny_model

from luthier.generation.answers import Answer, Asked
from luthier.generation.choosing import Chooser
from luthier.generation.engine import Engine, Request, generate
from luthier.generation.paged_lane import PagedLane
from luthier.generation.settings import Sampling
from luthier.models.language_model import LanguageModel

SHORT = Sampling(max_new_tokens=3)
NUM_ASKERS, NUM_EACH = 4, 12


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model("llama")


def finish(engine: Engine) -> None:
    while not engine.is_idle:
        engine.step()


class Broken(Exception):
    """A step ended in the middle."""


def breaking(every: int) -> Callable[..., Any]:
    """`LanguageModel.read`, but that each of so many calls fails."""
    read, count = LanguageModel.read, 0

    def broken(self: LanguageModel, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count % every == 0:
            raise Broken
        return read(self, *args)

    return broken


def asking(engine: Engine, number: int, asked: list[Asked], errors: list[BaseException]) -> threading.Thread:
    """A thread that asks for answers, waits for every other one, and cancels every third."""

    def ask() -> None:
        try:
            for count in range(NUM_EACH):
                asked.append(engine.submit(Request((3 + number, 4 + count), SHORT, num_answers=1 + count % 2)))
                if count % 3 == 2:
                    engine.cancel(asked[-1])
                if count % 2 == 0:
                    wait_for(asked[-1])
        except BaseException as error:
            errors.append(error)

    return threading.Thread(target=ask)


def wait_for(asked: Asked, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not asked.is_done:
        if time.monotonic() > ends:
            raise TimeoutError("an answer did not come")
        time.sleep(0.001)


@pytest.mark.parametrize("breaks", [False, True], ids=["all steps end", "some break off"])
def test_whatever_other_threads_ask_and_cancel_comes_to_an_end(
    breaks: bool, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, max_rows=4, cache_tokens=2048)
    asked: list[list[Asked]] = [[] for _ in range(NUM_ASKERS)]
    errors: list[BaseException] = []
    num_broken = 0
    with monkeypatch.context() as patched:
        if breaks:
            patched.setattr(LanguageModel, "read", breaking(5))
        threads = [asking(engine, number, own, errors) for number, own in enumerate(asked)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or not engine.is_idle:
            try:
                engine.step()
            except Broken:
                num_broken += 1
        for thread in threads:
            thread.join()
    assert not errors
    assert (num_broken > 0) == breaks
    every = [(count, each) for own in asked for count, each in enumerate(own)]
    assert len(every) == NUM_ASKERS * NUM_EACH
    assert all(each.is_done for _, each in every)
    is_whole = [all(answer.finish_reason != "cancelled" for answer in each.completed) for _, each in every]
    if not breaks:
        assert all(whole for (count, _), whole in zip(every, is_whole, strict=True) if count % 3 < 2)
    whole = [each for (_, each), is_own in zip(every, is_whole, strict=True) if is_own]
    assert whole
    for each in whole[::7]:
        assert each.completed == generate(model, [each.request])


def test_one_that_is_cancelled_while_another_leaves_the_queue_ends_too(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, max_rows=1, cache_tokens=512)
    staying, first, second = (engine.submit(Request((token,), SHORT)) for token in (5, 6, 7))
    engine.step()
    engine.cancel(first)
    leave = PagedLane.leave

    def left(self: PagedLane, answer: Answer) -> None:
        engine.cancel(second)  # as another thread may at this moment
        leave(self, answer)

    monkeypatch.setattr(PagedLane, "leave", left)
    finish(engine)
    assert [each.is_done for each in (staying, first, second)] == [True] * 3
    assert [each.completed[0].finish_reason for each in (first, second)] == ["cancelled"] * 2


def test_what_is_asked_while_a_step_breaks_off_is_answered_by_the_next_ones(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, cache_tokens=512)
    lost = engine.submit(Request((5,), SHORT))
    check = Chooser.check

    def checked(self: Chooser, request: Request) -> None:
        check(self, request)
        with pytest.raises(Broken):  # as the thread that takes steps may meet at this moment
            engine.step()

    with monkeypatch.context() as patched:
        patched.setattr(Chooser, "check", checked)
        patched.setattr(LanguageModel, "read", breaking(1))
        asked = engine.submit(Request((6,), SHORT))
    assert lost.completed[0].finish_reason == "cancelled"
    finish(engine)
    assert asked.completed == generate(model, [asked.request])


def test_an_answer_that_is_asked_for_by_a_thread_while_others_are_computed_is_what_it_is_alone(
    model: LanguageModel,
) -> None:
    engine = Engine(model, max_rows=2, cache_tokens=512)
    first = engine.submit(Request((5, 9), Sampling(max_new_tokens=12)))
    engine.step()
    later: list[Asked] = []
    thread = threading.Thread(target=lambda: later.append(engine.submit(Request((7, 8, 9), SHORT))))
    thread.start()
    thread.join()
    finish(engine)
    for each in (first, *later):
        assert each.completed == generate(model, [each.request])
