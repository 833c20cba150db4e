"""bitsandbytes on a CUDA device: kernels and memory that this package asks it for where it is installed."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch


@cache
def cuda_library() -> ModuleType | None:
    """bitsandbytes, if it is installed, has a build for this torch's CUDA, and there is a device; else None."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return None
    try:
        import bitsandbytes
        import bitsandbytes.cextension
        import bitsandbytes.functional
    except (ImportError, OSError):  # OSError: a library of its own that this system cannot load
        return None
    found: ModuleType = bitsandbytes
    return found if bitsandbytes.cextension.lib.compiled_with_cuda else None
