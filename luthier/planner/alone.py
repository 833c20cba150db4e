"""Traces in a thread of their own, so that the buffers of threads which compute hold nothing that pretends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from luthier.errors import LuthierError, Unplannable
from luthier.planner.trace import Trace, trace
from luthier.planner.work import Work

Found = Trace | LuthierError


def trace_all(works: Sequence[Work], *, for_real: bool = False) -> list[Found]:
    """The trace of each work, or the error that it was refused with. for_real: as `trace` takes it."""
    return [_alone(work, for_real) for work in works]


def _alone(work: Work, for_real: bool) -> Found:
    is_stopping = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="luthier-planner") as pool:
        try:
            return pool.submit(trace, work, for_real=for_real, is_stopping=is_stopping.is_set).result()
        except KeyboardInterrupt:
            is_stopping.set()  # the thread would be waited for to its end
            raise
        except LuthierError as error:
            return error
        except Exception as error:  # torch says it in many ways; no run shall end for want of a plan
            return Unplannable(
                f"A step of {work.method.kind} on a {work.config.model_type} cannot be pretended ({' '.join(str(error).split())[:200]}).",
                "Train without a plan: luthier train --no-plan.",
            )
