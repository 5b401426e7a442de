"""Whether torch failed for want of memory, which another way of computing the same would not mend."""

from __future__ import annotations

import torch


def exhausted(error: BaseException) -> bool:
    """Torch raises a class of its own on a GPU, and a plain RuntimeError on a processor.

    >>> exhausted(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
