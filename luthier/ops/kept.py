"""Small tensors that are made once and kept, such as masks and code books; what only pretends is kept apart.

They are made outside of inference mode, whoever asks first: a backward pass may need what an evaluation had made.
Where steps are pretended (`luthier.planner`), what functions make are fake tensors, which no real step may find later.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_APART: ContextVar[dict[Hashable, Any] | None] = ContextVar("apart", default=None)


@contextmanager
def kept_apart() -> Iterator[None]:
    """Within, functions marked `kept` make everything anew, and forget it at the end."""
    token = _APART.set({})
    try:
        yield
    finally:
        _APART.reset(token)


def kept(most: int | None = None) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Mark a function of hashable arguments: its latest `most` results are kept, or all."""

    def mark(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @wraps(function)
        def make(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            with torch.inference_mode(False):
                return function(*args, **kwargs)

        keeping = cast("Callable[Arguments, Result]", lru_cache(maxsize=most)(make))

        @wraps(function)
        def marked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            apart = _APART.get()
            if apart is None:
                return keeping(*args, **kwargs)
            key = (function, args, tuple(sorted(kwargs.items())))
            if key not in apart:
                apart[key] = make(*args, **kwargs)
            return cast(Result, apart[key])

        return marked

    return mark
