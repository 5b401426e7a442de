"""The one idea: laws that hold of every checkpoint, and of tensors in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint import Checkpoint, Memory, tensor_bytes
from cofuse.checkpoint.dtypes import DTYPES, bits, code_of, torch_dtype
from cofuse.errors import CheckpointError, HeaderError

from .models import TORCH_DTYPES, checkpoints, random_tensor, same_bits, tensors


@given(tensor=tensors, start=st.integers(-7, 7), stop=st.integers(-7, 7))
def test_some_rows_are_a_slice_of_the_whole(tensor: torch.Tensor, start: int, stop: int) -> None:
    checkpoint = Memory({"x": tensor})
    if tensor.dim() == 0:
        with pytest.raises(CheckpointError, match="rows"):
            checkpoint.read("x", slice(start, stop))
        return
    assert same_bits(checkpoint.read("x", slice(start, stop)), tensor[slice(start, stop)])
    assert same_bits(checkpoint.read("x", slice(None)), tensor)
    assert same_bits(checkpoint.read("x", slice(start, None)), tensor[start:])


@given(tensor=tensors, size=st.integers(1, 64))
def test_the_blocks_are_the_whole(tensor: torch.Tensor, size: int) -> None:
    checkpoint = Memory({"x": tensor})
    blocks = list(checkpoint.blocks("x", size))
    assert b"".join(bytes(checkpoint.read_bytes("x", a, b)) for a, b in blocks) == bytes(checkpoint.read_bytes("x"))
    width = tensor.dtype.itemsize
    assert all(a % width == 0 and b % width == 0 and b - a <= max(8, size) for a, b in blocks)
    flat = [checkpoint.read_flat("x", a // width, b // width) for a, b in blocks]
    assert same_bits(torch.cat(flat) if flat else tensor.new_empty(0), tensor.reshape(-1))


@given(checkpoint=checkpoints())
def test_names_aliases_and_membership_agree(checkpoint: Memory) -> None:
    assert len(set(checkpoint.names())) == len(checkpoint.names())
    assert not set(checkpoint.names()) & set(checkpoint.aliases)
    for alias, kept in checkpoint.aliases.items():
        assert kept in checkpoint.names()
        assert checkpoint.spec(alias) == checkpoint.spec(kept)
        assert checkpoint.read_bytes(alias) == checkpoint.read_bytes(kept)
    assert all(name in checkpoint for name in [*checkpoint.names(), *checkpoint.aliases])
    assert "not there" not in checkpoint
    assert Checkpoint.__contains__(checkpoint, "not there") is False


def test_what_is_read_is_memory_of_its_own() -> None:
    tensor = torch.ones(3)
    checkpoint = Memory({"x": tensor})
    checkpoint.read("x").zero_()
    assert tensor.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype_goes_to_bytes_and_back(dtype: torch.dtype) -> None:
    code = code_of(dtype)
    assert torch_dtype(code) == dtype
    assert bits(code) == 8 * dtype.itemsize
    for shape in ((), (0,), (3, 0), (2, 3)):
        tensor = random_tensor(1, shape, dtype)
        checkpoint = Memory({"x": tensor})
        assert checkpoint.spec("x") == (code, shape)
        assert checkpoint.spec("x").numel == tensor.numel()
        assert len(tensor_bytes(tensor)) == checkpoint.spec("x").nbytes
        assert same_bits(checkpoint.read("x"), tensor)


def test_the_table_of_dtypes_misses_none_that_torch_and_safetensors_share() -> None:
    from safetensors.torch import _SIZE

    known = {name for _, name in DTYPES.values() if name}
    # Two elements in a byte: kept and moved as bytes, not yet read as a tensor.
    assert {str(dtype).removeprefix("torch.") for dtype in _SIZE} - known <= {"float4_e2m1fn_x2"}


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 13), (13, 13), (-4, None)])
def test_a_range_outside_the_tensor_is_refused(start: int, stop: int | None) -> None:
    with pytest.raises(CheckpointError, match="outside the tensor") as caught:
        Memory({"x": torch.ones(3)}).read_bytes("x", start, stop)
    assert caught.value.where == "memory: x"


@pytest.mark.parametrize("rows", [slice(0, 2, 2), slice(2, 0, -1)])
def test_rows_with_a_step_are_refused(rows: slice) -> None:
    with pytest.raises(CheckpointError, match="step 1"):
        Memory({"x": torch.ones(3)}).read("x", rows)


def test_a_missing_tensor_is_named_with_a_suggestion() -> None:
    with pytest.raises(CheckpointError, match="no such tensor") as caught:
        Memory({"encoder.weight": torch.ones(1)}).read("encoder.wieght")
    assert caught.value.hint == 'did you mean "encoder.weight"?'
    with pytest.raises(CheckpointError, match="empty"):
        Memory({}).spec("x")


def test_only_what_is_the_same_values_is_tied() -> None:
    w = torch.arange(12, dtype=torch.float32)
    c = torch.tensor([1 + 2j, 3 - 1j])
    held = {
        "w": w,
        "same": w,
        "detached": w.detach(),
        "shape": w.view(3, 4),
        "dtype": w.view(torch.int32),
        "offset": w[:6],
        "rest": w[6:],
        "stride": w.view(3, 4).T,
        "square": w[:9].view(3, 3),
        "turned": w[:9].view(3, 3).T,
        "c": c,
        "conjugate": c.conj(),
        "negative": c.conj().imag,
        "imaginary": c.imag,
        "empty": w[:0],
        "empty too": w[:0],
    }
    checkpoint = Memory(held)
    assert dict(checkpoint.aliases) == {"same": "w", "detached": "w"}
    for name, tensor in held.items():
        assert same_bits(checkpoint.read(name), tensor.resolve_conj().resolve_neg()), name


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.ones(2, 2).to_sparse(), "not a dense tensor"),
        (torch.ones(2, device="meta"), "not a dense tensor"),
        (torch.ones(2, dtype=torch.complex128), "no such dtype"),
    ],
)
def test_a_tensor_that_the_format_cannot_hold_is_refused(tensor: torch.Tensor, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        Memory({"x": tensor})
    assert caught.value.where == "memory: x"


def test_a_name_outside_the_alphabet_is_refused() -> None:
    with pytest.raises(HeaderError, match="not allowed"):
        Memory({"../x": torch.ones(1)})


@pytest.mark.parametrize(
    ("raw", "says"), [(b"{", "not JSON"), (b"[1]", "not an object"), (b"\xff", "not JSON"), (b"[" * 100_000, "not")]
)
def test_a_bad_config_is_a_typed_error(raw: bytes, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        _ = Memory({}, files={"config.json": raw}).config


def test_a_checkpoint_without_config_has_an_empty_one() -> None:
    config: dict[str, Any] = Memory({}).config
    assert config == {}
    assert Memory({}, files={"config.json": b'{"a": 1}'}).config == {"a": 1}
