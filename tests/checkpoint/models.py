"""Random tensors and checkpoints to test with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import strategies as st

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.checkpoint.dtypes import DTYPES

TORCH_DTYPES = [getattr(torch, name) for _, name in DTYPES.values() if name is not None and hasattr(torch, name)]


def random_tensor(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Any bits at all, NaN among them; a float is a number."""
    generator = torch.Generator().manual_seed(seed)
    if dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return torch.randn(shape, generator=generator).to(dtype)
    high = 2 if dtype == torch.bool else 256
    count = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(0, high, (count,), generator=generator, dtype=torch.uint8).view(dtype).reshape(shape)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal dtype, shape and bytes: NaN equals itself, and 0 is not -0."""
    flat = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and (a.numel() == 0 or torch.equal(*flat))


def assert_same(got: Checkpoint, expected: Mapping[str, torch.Tensor]) -> None:
    """A checkpoint holds exactly these tensors, bit for bit, tied names included."""
    assert set(got.names()) | set(got.aliases) == set(expected)
    for name, tensor in expected.items():
        assert same_bits(got.read(name), tensor), name


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.builds(random_tensor, st.integers(0, 1000), shapes, st.sampled_from(TORCH_DTYPES))
names = st.from_regex(r"[a-z]{1,3}(\.[0-9a-z]{1,2}){0,2}", fullmatch=True)


@st.composite
def checkpoints(draw: st.DrawFn) -> Memory:
    """Tensors of any dtype, some of them tied, with files and metadata."""
    held = draw(st.dictionaries(names, tensors, max_size=6))
    for name in list(held):
        if draw(st.integers(0, 4)) == 0:
            held[f"{name}.tied"] = held[name]
    files = draw(st.dictionaries(st.sampled_from(["config.json", "vocab.txt", "README.md"]), st.binary(max_size=20)))
    # A value that is a tensor's name would be read as a tied name: that is how the format writes them.
    metadata = draw(st.dictionaries(st.text("abcé\n", min_size=4, max_size=6), st.text(max_size=5).map("= ".__add__)))
    return Memory(held, files=files, metadata=metadata)
