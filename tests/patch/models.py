"""Bases and what was tuned from them, of every kind of change."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from checkpoint.models import random_tensor, shapes, tensors
from hypothesis import strategies as st

from cofuse.checkpoint import Checkpoint, Memory


def nudged(tensor: torch.Tensor, seed: int, share: float) -> torch.Tensor:
    """The same bits but for a share of the bytes."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).clone() if tensor.numel() else torch.empty(0)
    if not tensor.numel():
        return tensor
    generator = torch.Generator().manual_seed(seed)
    which = torch.rand(raw.shape, generator=generator) < share
    high = 2 if tensor.dtype == torch.bool else 256
    raw[which] = torch.randint(0, high, raw.shape, generator=generator, dtype=torch.uint8)[which]
    return raw.view(tensor.dtype).reshape(tensor.shape)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Memory, Memory]:
    """Tensors that change a little or wholly, come, go, are retyped, reshaped, tied and untied; files and metadata."""
    names = [f"layer.{i}" for i in range(draw(st.integers(0, 5)))]
    before = {name: draw(tensors) for name in names}
    after = {}
    for name, tensor in before.items():
        kind = draw(st.sampled_from(["same", "nudged", "other", "gone", "tied"]))
        if kind in ("same", "nudged"):
            after[name] = nudged(tensor, draw(st.integers(0, 99)), draw(st.sampled_from([0.0, 0.02, 0.3, 1.0])))
        elif kind == "other":
            after[name] = draw(tensors)
        elif kind == "tied" and after:
            after[name] = next(iter(after.values()))
    if draw(st.booleans()):
        after["new"] = draw(tensors)
    if draw(st.booleans()) and before:
        before["also"] = next(iter(before.values()))
    files = st.dictionaries(st.sampled_from(["config.json", "vocab.txt", "README.md"]), st.binary(max_size=20))
    metadata = st.dictionaries(st.sampled_from(["format", "note"]), st.sampled_from(["pt", "= x"]))
    return (
        Memory(before, files=draw(files), metadata=draw(metadata), where="base"),
        Memory(after, files=draw(files), metadata=draw(metadata), where="tuned"),
    )


def floats(
    seed: int, sizes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    return {name: random_tensor(seed + i, shape, dtype) for i, (name, shape) in enumerate(sizes.items())}


def finetuned(base: Mapping[str, torch.Tensor], seed: int, size: float = 0.01) -> dict[str, torch.Tensor]:
    """Every value of every float a little further."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (t.double() + size * torch.randn(t.shape, generator=generator, dtype=torch.double)).to(t.dtype)
        for name, t in base.items()
    }


def array(checkpoint: Checkpoint, name: str) -> np.ndarray:
    found: np.ndarray = checkpoint.read(name).double().numpy()
    return found


class Folder:
    """A folder for examples of Hypothesis, which take no fixtures that are made anew."""

    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp(prefix="cofuse-patch-"))
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path)


__all__ = ["Folder", "array", "finetuned", "floats", "nudged", "pairs", "shapes", "tensors"]
