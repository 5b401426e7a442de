"""Where blocks are computed: one protocol, one file each. Threads come from whoever reads: the writer, the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .cpu import CpuExecutor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..fused import Fused
    from ..methods import Place


class Executor(Protocol):
    """Computes blocks of a fused checkpoint; called from many threads at once."""

    def block(self, fused: Fused, name: str, index: int) -> npt.NDArray[np.uint8]:
        """The stored bytes of one block of a fused tensor."""

    def combine(self, fused: Fused, name: str, start: int, out: npt.NDArray[np.uint8]) -> bool:
        """Write a stretch of a fused tensor into `out` by a way that is quicker than its blocks; False: there is none."""

    def survey(self, fused: Fused, name: str, places: list[Place]) -> object:
        """What the tensor's method must know of all these blocks before it can compute one."""


def executor_for(device: str = "cpu") -> Executor:
    """The executor of a device: `cpu`, or a name of torch's (`cuda`, `cuda:1`).

    Raises:
        FuseError: there is no such device here.

    >>> executor_for("cpu").__class__.__name__
    'CpuExecutor'
    """
    if device == "cpu":
        return CpuExecutor()
    from .torch_device import TorchExecutor  # torch takes seconds to import

    return TorchExecutor(device)


__all__ = ["CpuExecutor", "Executor", "executor_for"]
