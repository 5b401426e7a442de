"""How kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from numba import njit

Kernel: TypeAlias = Callable[..., Any]


def compiled(function: Kernel) -> Kernel:
    """Compiled when first called, and kept on disk; runs without the interpreter's lock, with IEEE arithmetic as written."""
    kernel: Kernel
    try:
        kernel = njit(function, nogil=True, cache=True, error_model="numpy")
    except RuntimeError:  # neither the package's folder nor the user's cache can be written: compiled anew each time
        kernel = njit(function, nogil=True, error_model="numpy")
    return kernel
