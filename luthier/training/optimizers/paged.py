"""AdamW whose moments live outside of the memory that the run counts on: the system brings in what a step touches.

Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 3, "paged optimizers", keep the moments where the driver
can move them off a GPU that runs short. Here, on a processor, they are files mapped into memory: a step goes through them
stretch by stretch, and the system writes out and drops what it has no room for, so that a state beyond the memory slows
the run down and does not end it. On a GPU they are memory that the driver moves between the two sides by pages, where
bitsandbytes is there to ask for it; else page-locked memory of the processor's side, of which one stretch is brought over
while the one before it is computed.

The numbers are those of AdamW, or of AdamW with moments in eight bits, bit for bit.
"""

from __future__ import annotations

import math
import secrets
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

import torch
from torch import Tensor

from luthier.errors import DiskFull
from luthier.store.files import remove_file, reserve_file
from luthier.training.optimizers.adamw import Adam
from luthier.training.optimizers.adamw_8bit import BLOCK, Adam8bit
from luthier.training.optimizers.contract import Allocate, Rule, State

_AT_ONCE = BLOCK * 2**12
"""Numbers that are updated at a time: their moments are 8 MiB, or 2."""


class PagedAdamW(Adam):
    """AdamW with its moments in files: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.14314"
    is_paged: ClassVar[bool] = True

    kind: Literal["paged-adamw"] = "paged-adamw"

    def rule(self, name: str, tensor: Tensor, is_table: bool) -> Rule:
        """That of AdamW."""
        return StretchedRule(self.moments())

    def state_bytes(self, shape: tuple[int, ...], is_table: bool) -> int:
        """Two numbers in fp32 for each."""
        return 8 * math.prod(shape)


class PagedAdamW8bit(Adam8bit):
    """AdamW with moments in eight bits, in files: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314."""

    is_paged: ClassVar[bool] = True

    kind: Literal["paged-adamw-8bit"] = "paged-adamw-8bit"

    def rule(self, name: str, tensor: Tensor, is_table: bool) -> Rule:
        """That of AdamW with moments in eight bits."""
        return StretchedRule(self.packed(tensor, is_table))


class MappedFiles:
    """Tensors of zeros in files of a folder. A file has no name once it is mapped: it is gone with the process.

    Raises DiskFull where there is no room for one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of that shape; `Allocate` says the rest."""
        count = torch.Size(shape).numel()
        if count == 0:
            return torch.zeros(shape, dtype=dtype)
        path = self.folder / f"state-{secrets.token_hex(8)}"
        try:
            reserve_file(path, count * dtype.itemsize)
            mapped = torch.from_file(str(path), shared=True, size=count, dtype=dtype)
        except DiskFull as error:
            raise DiskFull(
                error.found.replace(str(path), f"The optimizer's {name} in {self.folder}"),
                "Free some room, write to another disk with --out, or set training.optimizer.kind to adamw-8bit, whose state is "
                "in memory.",
                field="training.optimizer.kind",
            ) from error
        finally:
            remove_file(path)
        return mapped.view(shape)


class UnifiedMemory:
    """Tensors of zeros on a GPU whose pages the driver moves off it when it runs short, from bitsandbytes.

    The library has no call that gives them back: they go with the process.
    """

    def __init__(self, library: ModuleType, device: torch.device) -> None:
        self.library = library
        self.device = device

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of that shape; `Allocate` says the rest."""
        if math.prod(shape) == 0:
            return torch.zeros(shape, dtype=dtype, device=self.device)
        held = self.library.functional.get_paged(*shape, dtype=dtype, device=self.device)
        return torch.as_tensor(_SeenOnDevice(held), device=self.device).zero_()


class _SeenOnDevice:
    """The same memory for the device: both sides have it at one address, by the protocol of CUDA's arrays."""

    def __init__(self, held: Tensor) -> None:
        self.held = held
        self.__cuda_array_interface__ = {
            "shape": tuple(held.shape),
            "typestr": held.numpy().dtype.str,
            "data": (held.data_ptr(), False),
            "version": 3,
        }


class PinnedMemory:
    """Tensors of zeros in page-locked memory of the processor's side."""

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of that shape; `Allocate` says the rest."""
        return torch.zeros(shape, dtype=dtype, pin_memory=True)


class StretchedRule(Rule):
    """A rule for single numbers, carried out stretch by stretch; the state is brought to the tensor's device and back."""

    def __init__(self, inner: Rule) -> None:
        self.inner = inner

    def fresh(self, tensor: Tensor, allocate: Allocate) -> State:
        """The inner rule's."""
        return self.inner.fresh(tensor, allocate)

    def update(self, tensor: Tensor, gradient: Tensor, state: State, step: int, lr: float, decay: float) -> None:
        """One step of the inner rule on each stretch; on a GPU the next one's state is on its way meanwhile."""
        flat, flat_gradient = tensor.view(-1), gradient.view(-1)
        ways = _Ways(state, len(flat), tensor.device)
        stretches = [slice(start, min(start + _AT_ONCE, len(flat))) for start in range(0, len(flat), _AT_ONCE)]
        coming = ways.bring(stretches[0])
        for stretch, following in zip(stretches, [*stretches[1:], None], strict=True):
            here = ways.arrived(coming)
            coming = {} if following is None else ways.bring(following)
            self.inner.update(flat[stretch], flat_gradient[stretch], here, step, lr, decay)
            ways.send_back(stretch, here)


class _Ways:
    """The ways of a state's stretches to a device and back; on the state's own device there is nothing to carry."""

    def __init__(self, state: State, count: int, device: torch.device) -> None:
        self.flat = {part: held.view(-1) for part, held in state.items()}
        self.count = count
        self.device = device
        is_elsewhere = any(held.device != device for held in state.values())
        self.ahead = torch.cuda.Stream(device) if is_elsewhere else None

    def bring(self, stretch: slice) -> State:
        """Set a stretch of the state on its way."""
        own = self._of(stretch)
        if self.ahead is None:
            return own
        self.ahead.wait_stream(torch.cuda.current_stream(self.device))  # what was sent back is there first
        with torch.cuda.stream(self.ahead):
            return {part: held.to(self.device, non_blocking=True) for part, held in own.items()}

    def arrived(self, coming: State) -> State:
        """The same, there."""
        if self.ahead is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.ahead)
        return coming

    def send_back(self, stretch: slice, moved: State) -> None:
        """Put a stretch back where it came from."""
        if self.ahead is not None:
            for part, held in self._of(stretch).items():
                held.copy_(moved[part], non_blocking=True)

    def _of(self, stretch: slice) -> State:
        """The stretch's part of each tensor of the state: of one for each number, or for each block of them."""
        found = {}
        for part, held in self.flat.items():
            size = 1 if len(held) == self.count else BLOCK
            found[part] = held[stretch.start // size : -(-stretch.stop // size)]
        return found
