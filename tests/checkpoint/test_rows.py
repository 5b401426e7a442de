"""Tensors gathered row by row hold what their rows say, over any range and in any dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cofuse.checkpoint import Memory, Source
from cofuse.checkpoint.rows import FILL, MEAN, ZERO, Gathered, Rows
from cofuse.errors import CheckpointError

from .models import random_tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@st.composite
def gathered(draw: st.DrawFn) -> tuple[Gathered, torch.Tensor]:
    """A gathered tensor, and the same made one row at a time."""
    count, width = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heights = [draw(st.integers(1, 6)) for _ in range(count)]
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in range(count)]
    held = [random_tensor(i, (n, width), d) for i, (n, d) in enumerate(zip(heights, dtypes, strict=True))]
    models = [Memory({"e": t}) for t in held]
    rows = draw(st.integers(1, 12))
    which = [draw(st.sampled_from([*range(count), ZERO, MEAN, FILL])) for _ in range(rows)]
    filled = next((i for i, kind in enumerate(which) if kind == FILL), rows)
    which = which[:filled] + [FILL] * (rows - filled)
    row, means, expected = [], [], []
    own = dtypes[0]
    for kind in which:
        if kind >= 0:
            row.append(draw(st.integers(0, heights[kind] - 1)))
            expected.append(held[kind][row[-1]].to(own))
        elif kind == MEAN:
            pairs = draw(st.lists(st.integers(0, count - 1).flatmap(
                lambda s: st.tuples(st.just(s), st.integers(0, heights[s] - 1))), min_size=1, max_size=3))  # fmt: skip
            row.append(len(means))
            means.append(tuple(pairs))
            expected.append(torch.stack([held[s][r].double() for s, r in pairs]).mean(0).to(own))
        else:
            row.append(0)
            before = torch.stack(expected[:filled]).double().mean(0) if kind == FILL and filled else torch.zeros(width)
            expected.append(before.to(own))
    plan = Rows(tuple(Source(m, "e") for m in models), np.array(which, np.int32), np.array(row), tuple(means), filled)
    return Gathered(models[0], {"e": plan}), torch.stack(expected)


@settings(max_examples=150, deadline=None)
@given(gathered(), st.data())
def test_rows_are_those_that_were_asked_for(case: tuple[Gathered, torch.Tensor], data: st.DataObject) -> None:
    view, expected = case
    got = view.read("e")
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=2e-3 if got.dtype.itemsize == 2 else 1e-6, atol=1e-6)
    whole = bytes(view.read_bytes("e"))
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert bytes(view.read_bytes("e", start, stop)) == whole[start:stop]
    assert b"".join(bytes(view.read_bytes("e", *block)) for block in view.blocks("e", 8)) == whole


def test_a_copied_row_keeps_every_bit() -> None:
    odd = torch.tensor([[float("nan"), -0.0], [1.0, 2.0]], dtype=torch.bfloat16)
    model = Memory({"e": odd, "other": odd.clone()})
    view = Gathered(model, {"e": Rows((Source(model, "e"),), np.array([0, 0], np.int32), np.array([1, 0]))})
    assert torch.equal(view.read("e").view(torch.int16), odd.flip(0).view(torch.int16))
    assert torch.equal(view.read("other").view(torch.int16), odd.view(torch.int16))


def test_a_bias_of_one_row_is_gathered_by_column() -> None:
    model = Memory({"b": torch.tensor([[1.0, 2.0, 3.0]])})
    view = Gathered(model, {"b": Rows((Source(model, "b"),), np.array([0, ZERO], np.int32), np.array([2, 0]), axis=1)})
    assert view.read("b").tolist() == [[3.0, 0.0]]


def test_rows_of_another_size_are_refused() -> None:
    a, b = Memory({"e": torch.zeros(2, 2)}), Memory({"e": torch.zeros(2, 3)})
    with pytest.raises(CheckpointError, match="rows have another size"):
        Gathered(a, {"e": Rows((Source(a, "e"), Source(b, "e")), np.zeros(2, np.int32), np.arange(2))})


def test_rows_of_dtypes_that_cannot_be_mixed_are_refused() -> None:
    a, b = Memory({"e": torch.zeros(2, 2)}), Memory({"e": torch.zeros(2, 2, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match="cannot be mixed"):
        Gathered(a, {"e": Rows((Source(a, "e"), Source(b, "e")), np.zeros(2, np.int32), np.arange(2))})
