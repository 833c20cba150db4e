"""Threads that compute micro-batches side by side over shared weights.

On a CPU one thread for each core, each computing on its own, beats one computation spread over all cores: small
operations gain nothing from being split. The interpreter lock is free while an operation runs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import torch

Result = TypeVar("Result")

_MOST = 8


def worker_count(asked: int | str, device: torch.device) -> int:
    """How many work: as asked, or one for each core, and one alone beside a GPU."""
    if isinstance(asked, int):
        return asked
    return 1 if device.type == "cuda" else min(os.cpu_count() or 1, _MOST)


class Workers:
    """A fixed number of worker threads. As a context it restores the process's thread count at its end.

    A job that does many things looks at `are_stopping` between them, so that a stop need not wait for all of them.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.intra_op_threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(count, thread_name_prefix="luthier-worker") if count > 1 else None
        self.are_stopping = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.are_stopping.set()
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self.intra_op_threads)

    def alone(self, job: Callable[[], Result]) -> Result:
        """The result of one job, which has all cores for its operations, whatever ran before."""
        return self.run([job])[0]

    def run(self, jobs: Sequence[Callable[[], Result]]) -> list[Result]:
        """The jobs' results in order. One job alone has all cores; several have one core each.

        An error in a job is raised here after the others have ended.
        """
        if self.pool is None or len(jobs) == 1:
            torch.set_num_threads(self.intra_op_threads)
            return [job() for job in jobs]
        torch.set_num_threads(1)  # the matrix library's own count is one for the process
        futures = [self.pool.submit(_on_one_core, job) for job in jobs]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        return [future.result() for future in futures]


def _on_one_core(job: Callable[[], Result]) -> Result:
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    return job()
