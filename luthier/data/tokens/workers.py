"""Several processes that make examples, each a run of records at a time.

A worker is a fresh Python, which reads its job and its runs from its standard input and answers on its standard output, so that
it ends with the process that began it, however that ends. It never runs the caller's program again, as the processes of
`multiprocessing` do, whose callers must be written for that.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any

from luthier.data.tokens.columns import Packed, pack
from luthier.data.tokens.making import Job, Summary, make
from luthier.errors import LuthierError, ResourceError
from luthier.types import Origin, Record

Run = Sequence[tuple[Record, Origin]]

_AHEAD = 3  # runs that wait for each worker, so that none is idle
_BEGIN = "import sys; sys.path[:] = {path!r}; from luthier.data.tokens.workers import serve; serve()"


def packed(run: Run, job: Job) -> tuple[Packed, Summary]:
    """What a run of records becomes, in columns."""
    made = make(run, job)
    return pack(made), made.summary


def packed_runs(runs: Iterable[Run], job: Job, num_processes: int) -> Iterator[tuple[Packed, Summary]]:
    """Each run packed, in order; by so many other processes, or by this one for 1.

    Raises: ResourceError, where a process ends before its work does.
    """
    if num_processes == 1:
        for run in runs:
            yield packed(run, job)
        return
    workers = [_Worker(job) for _ in range(num_processes)]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def asked(run: Run) -> tuple[Packed, Summary]:
        worker = idle.get()
        try:
            return worker.ask(run)
        finally:
            idle.put(worker)

    waiting: deque[Future[tuple[Packed, Summary]]] = deque()
    try:
        with ThreadPoolExecutor(num_processes, thread_name_prefix="luthier-tokens") as pool:
            try:
                for run in runs:
                    waiting.append(pool.submit(asked, run))
                    if len(waiting) > _AHEAD * num_processes:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        for worker in workers:
            worker.close()


class _Worker:
    """A process that was given a job."""

    def __init__(self, job: Job) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN.format(path=sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._job: Job | None = job

    def ask(self, run: Run) -> tuple[Packed, Summary]:
        """What it makes of a run. Raises: what making it raised; ResourceError, where the process has ended."""
        given, answers = self._process.stdin, self._process.stdout
        assert given is not None
        assert answers is not None
        try:
            if self._job is not None:
                _send(given, self._job)
                self._job = None
            _send(given, run)
            answer = pickle.load(answers)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise ResourceError(
                f"A process that makes tokens ended on its way (exit code {self._process.poll()}).",
                "Memory may have run out: set data.processes to 1, or free some.",
                field="data.processes",
            ) from error
        if isinstance(answer, LuthierError):
            raise answer
        result: tuple[Packed, Summary] = answer
        return result

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):  # it has ended already
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def serve() -> None:
    """Answer runs until there are no more: what a worker does."""
    given, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no answer
    try:
        job: Job = pickle.load(given)
        while True:
            run: Run = pickle.load(given)
            try:
                answer: Any = packed(run, job)
            except LuthierError as error:
                answer = error
            _send(answers, answer)
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return


def _send(stream: IO[bytes], what: Any) -> None:
    pickle.dump(what, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()
