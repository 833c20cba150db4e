"""Every byte that tensors hold, as it comes and goes: what is held, the most that was, and of what kinds that was.

Works on real tensors and on those that only pretend (torch's fake tensors): what counts is each storage, once, from the
operation that makes it to the moment when nothing refers to it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_DEVICE = torch.ops.prim.device.default
_CAST = torch.ops.aten._to_copy.default


@dataclass(frozen=True)
class Peak:
    """The most that was held: how much, of which kinds, and in which phase."""

    num_bytes: int
    parts: Mapping[str, int]
    phase: str


class Tracker(TorchDispatchMode):
    """Within, notes the storage of every tensor that an operation makes.

    part: what is being made now, by the name that the bytes are counted under. phase: what is being done. peaks: the most that
    was held in each phase.
    """

    def __init__(self, gathers: Collection[str] = (), is_stopping: Callable[[], bool] = lambda: False) -> None:
        """gathers: parts whose tensors are counted in no other number format: ranks gather these in the one that they compute in.

        is_stopping: asked before each operation; from when it says so, each raises CancelledError.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._gathers, self._is_stopping = gathers, is_stopping
        self.part = "other"
        self.phase = "loading"
        self.held: Counter[str] = Counter()
        self.peaks: dict[str, Peak] = {}
        self._known: dict[int, str] = {}

    @property
    def num_bytes(self) -> int:
        """What is held now."""
        return sum(self.held.values())

    def note(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors that were there before, or count them as another part from now on."""
        for tensor in tensors:
            self._count(tensor, part, is_named=True)

    def begin_anew(self) -> None:
        """Forget the peaks of all phases."""
        self.peaks = {}

    @contextmanager
    def doing(self, phase: str, part: str) -> Iterator[None]:
        """Within, what is made belongs to a part, in a phase."""
        before = self.phase, self.part
        self.phase, self.part = phase, part
        try:
            yield
        finally:
            self.phase, self.part = before

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Carry out an operation and note what it gives. Raises: CancelledError, when it is to stop."""
        if self._is_stopping():
            raise CancelledError
        if func is _DEVICE and isinstance(args[0], FakeTensor):  # asked for more often than anything is computed
            return args[0].fake_device
        result = _computed(func, args, kwargs or {})
        is_gathered = func is _CAST and self._known.get(args[0].untyped_storage()._cdata) in self._gathers
        for tensor in _tensors_in(result):
            self._count(tensor, self.part, is_free=is_gathered)
        return result

    def _count(self, tensor: Tensor, part: str, *, is_named: bool = False, is_free: bool = False) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, 0 if is_free else storage.nbytes()
        known = self._known.get(key)
        if known is not None and not is_named:
            return
        if known is None:
            weakref.finalize(storage, self._forget, key, size)
        else:
            self.held[known] -= size
        self._known[key] = part
        self.held[part] += size
        self.pass_through(0)

    def pass_through(self, num_bytes: int) -> None:
        """Count a height that is reached for a moment: so many bytes of the part at hand beyond what is held."""
        most, before = self.num_bytes + num_bytes, self.peaks.get(self.phase)
        if before is None or most > before.num_bytes:
            parts = {name: count for name, count in self.held.items() if count}
            parts[self.part] = parts.get(self.part, 0) + num_bytes
            self.peaks[self.phase] = Peak(most, parts, self.phase)

    def _forget(self, key: int, size: int) -> None:
        part = self._known.pop(key, None)
        if part is not None:
            self.held[part] -= size


def storages(tensors: Iterable[Tensor]) -> int:
    """The bytes of the storages of tensors, each once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def all_tensors(module: torch.nn.Module) -> list[Tensor]:
    """A module's parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def _computed(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What an operation gives; of real tensors alone it is real, so that what a batch's masks and indices say can be asked."""
    given = [*_tensors_in(args), *_tensors_in(list(kwargs.values()))]
    if not given or any(isinstance(each, FakeTensor) for each in given):
        return func(*args, **kwargs)
    with _disable_current_modes():
        return func(*args, **kwargs)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors among an operation's arguments or results, which come in lists and tuples at most."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors_in(each)
