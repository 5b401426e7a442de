"""A portable change to a checkpoint: exact, sparse under a mask, or of low rank; never imports torch."""

from .algebra import compose, invert
from .applied import Applied, apply
from .described import describe
from .making import Way, make
from .manifest import Change, Manifest
from .patch import Patch
from .products import Product
from .ways import LowRank, Sparse

__all__ = [
    "Applied",
    "Change",
    "LowRank",
    "Manifest",
    "Patch",
    "Product",
    "Sparse",
    "Way",
    "apply",
    "compose",
    "describe",
    "invert",
    "make",
]
