"""A shortage of memory, as torch and Python report it, is told from other failures and gets its mend."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import ResourceError
from luthier.ops.shortage import shortage_told


def ask_for_too_much() -> None:
    torch.empty(2**60)


def raising(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("fail", "asked"),
    [
        (ask_for_too_much, "4611686018427387904 bytes"),
        (
            lambda: raising(
                torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 79 GiB.")
            ),
            "2.50 GiB",
        ),
        (lambda: raising(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")), ""),
        (lambda: raising(MemoryError()), ""),
    ],
    ids=["torch on a CPU", "torch on a GPU", "a matrix library", "Python"],
)
def test_a_shortage_of_memory_is_a_resource_error_with_the_mend(fail, asked: str):
    with pytest.raises(ResourceError, match="not enough memory") as told, shortage_told("Use less."):
        fail()
    assert asked in told.value.found
    assert told.value.mend == "Use less."
    assert told.value.exit_code == 6


def test_other_failures_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shape"), shortage_told("Use less."):
        torch.zeros(3).reshape(2, 2)
