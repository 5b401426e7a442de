"""Kinds of task: how rows become a model's inputs, and outputs a loss and predictions. One file and one row each."""

from .image import IMAGE_CLASSIFICATION
from .kind import Encoded, Kind
from .text import CLASSIFICATION, PAIR_CLASSIFICATION, REGRESSION

KINDS: dict[str, Kind] = {
    "classification": CLASSIFICATION,
    "pair_classification": PAIR_CLASSIFICATION,
    "regression": REGRESSION,
    "image_classification": IMAGE_CLASSIFICATION,
}

__all__ = ["KINDS", "Encoded", "Kind"]
