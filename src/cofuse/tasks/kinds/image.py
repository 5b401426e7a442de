"""Classification of images: arrays as they are, or pictures brought to the model's size."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import TaskError
from .kind import Encoded, Kind, cross_entropy, most_likely

if TYPE_CHECKING:
    import torch

    from ...checkpoint import Checkpoint
    from ..examples import Examples


def encode(examples: Examples, model: Checkpoint, max_length: int) -> Encoded:
    """Pixels [channel, height, width] of each image; `max_length` does not matter."""
    images = examples.inputs["image"]
    if not isinstance(images, np.ndarray):
        images = [_pixels(image, model) for image in images]
    rows = [{"pixel_values": np.asarray(image, dtype=np.float32)} for image in images]
    return Encoded(rows, examples.labels, np.ones(len(rows), dtype=np.int64))


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack to pixel_values [batch, channel, height, width]."""
    import torch

    return {"pixel_values": torch.from_numpy(np.stack([row["pixel_values"] for row in rows]))}


def _pixels(image: Any, model: Checkpoint) -> npt.NDArray[np.float32]:
    """A picture as the model's processor would give it: resized, scaled to 0..1, normalised."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(image, dict):
        image = image.get("bytes")
    if isinstance(image, bytes):
        try:
            image = Image.open(io.BytesIO(image))
        except UnidentifiedImageError:
            raise TaskError("not an image", got=f"{len(image)} bytes") from None
    if not isinstance(image, Image.Image):
        raise TaskError("not an image", got=type(image).__name__, expected="an array, encoded bytes or a PIL image")
    settings = json.loads(model.files.get("preprocessor_config.json", b"{}"))
    size, channels = int(model.config.get("image_size", 224)), int(model.config.get("num_channels", 3))
    picture = image.convert("L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, dtype=np.float32).reshape(size, size, channels) / 255.0
    mean, std = settings.get("image_mean", 0.5), settings.get("image_std", 0.5)
    normalised = (pixels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


IMAGE_CLASSIFICATION = Kind(("image",), encode, collate, cross_entropy, most_likely, "accuracy")
