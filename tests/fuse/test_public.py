"""What `import cofuse` offers, as DESIGN's first example uses it."""

import importlib

import pytest
import torch

import cofuse as cf
from cofuse.checkpoint import Memory


@pytest.mark.parametrize("before", [(), ("cofuse.fuse",), ("cofuse.fuse.methods", "cofuse.patch")])
def test_a_room_that_was_imported_is_no_longer_the_function_but_is_called_like_it(before: tuple[str, ...]) -> None:
    for name in before:
        importlib.import_module(name)
    models = [Memory({"x": torch.full((2,), float(i))}) for i in range(2)]
    for _ in range(2):
        assert cf.fuse("linear", models).read("x").tolist() == [0.5, 0.5]
