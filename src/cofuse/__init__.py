"""Cofuse: build machine-learning models the way open source builds software.

A checkpoint is a lazy mapping from tensor names to tensors; everything here is a function from checkpoints to a
checkpoint, or from checkpoints to numbers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .address import open  # noqa: A004
    from .checkpoint import Checkpoint, body
    from .errors import CofuseError
    from .fuse import fuse
    from .patch import Patch, apply
    from .store import Store

__all__ = ["Checkpoint", "CofuseError", "Patch", "Store", "__version__", "apply", "body", "fuse", "open"]

_HOMES = {
    "Checkpoint": "checkpoint",
    "CofuseError": "errors",
    "Patch": "patch",
    "Store": "store",
    "apply": "patch",
    "body": "checkpoint",
    "fuse": "fuse",
    "open": "address",
}


def __getattr__(name: str) -> Any:
    # Rooms load when they are first used, so that `import cofuse` costs nothing.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cofuse' has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
