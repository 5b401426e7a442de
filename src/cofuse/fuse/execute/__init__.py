"""Where blocks are computed: one protocol, one file each. Threads come from whoever reads: the writer, the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .cpu import CpuExecutor

if TYPE_CHECKING:
    from ..fused import Fused


class Executor(Protocol):
    """Computes blocks of a fused checkpoint; called from many threads at once."""

    def block(self, fused: Fused, name: str, start: int, stop: int) -> bytes | bytearray:
        """Elements `start` to `stop` of a fused tensor, as bytes of its output dtype."""


__all__ = ["CpuExecutor", "Executor"]
