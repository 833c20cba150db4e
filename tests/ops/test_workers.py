"""Worker threads: results in order, errors after the others, the process's thread count as it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from luthier.ops.workers import Workers


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """A process that computes with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_jobs_not_of_their_ends() -> None:
    def job(number: int) -> Callable[[], int]:
        def run() -> int:
            time.sleep(0.02 * (3 - number))
            return number

        return run

    with Workers(3) as workers:
        assert workers.run([job(number) for number in range(3)]) == [0, 1, 2]


def test_several_jobs_run_side_by_side_on_one_core_each_and_one_job_alone_on_all() -> None:
    together = threading.Barrier(2, timeout=20)  # broken if one job waits for the other to end

    def job() -> tuple[int, str]:
        together.wait()
        return torch.get_num_threads(), threading.current_thread().name

    with Workers(2) as workers:
        results = workers.run([job, job])
        assert [threads for threads, _ in results] == [1, 1]
        assert len({name for _, name in results}) == 2
        assert workers.run([torch.get_num_threads]) == [2]
        assert workers.run([threading.current_thread]) == [threading.current_thread()]


def test_the_threads_of_the_process_are_given_back_even_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), Workers(2) as workers:
        workers.run([lambda: 1, lambda: 1 // 0])
    assert torch.get_num_threads() == 2


def test_an_error_is_raised_after_the_other_jobs_have_ended() -> None:
    ended: list[int] = []

    def fails() -> None:
        raise ValueError("the first job's")

    def slow() -> None:
        time.sleep(0.1)
        ended.append(1)

    with Workers(2) as workers:
        with pytest.raises(ValueError, match="the first job's"):
            workers.run([fails, slow])
        assert ended == [1]
        assert workers.run([lambda: 1, lambda: 2]) == [1, 2], "the workers go on"


def test_one_worker_computes_in_the_callers_own_thread() -> None:
    with Workers(1) as workers:
        assert workers.run([threading.current_thread] * 3) == [threading.current_thread()] * 3


def test_no_jobs_give_no_results() -> None:
    for count in (1, 2):
        with Workers(count) as workers:
            assert workers.run([]) == []


def test_every_workers_gradients_are_its_own_and_the_sum_is_that_of_one_thread() -> None:
    weight = torch.randn(8, 8, requires_grad=True)
    inputs = [torch.randn(4, 8) for _ in range(4)]

    def job(x: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: torch.autograd.grad((x @ weight).square().sum(), weight)[0]

    with Workers(2) as workers:
        results = [workers.run([job(x) for x in inputs]) for _ in range(3)]
    expected = [job(x)() for x in inputs]
    for result in results:
        assert all(torch.equal(one, other) for one, other in zip(result, expected, strict=True))
