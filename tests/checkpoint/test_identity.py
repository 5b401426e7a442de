"""Ids: written down, and changed by anything that a tensor is, by nothing of how it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint import (
    CHUNK,
    Memory,
    TensorSpec,
    chunks,
    content_id,
    content_id_of,
    open_local,
    renamed,
    save,
    tensor_id,
    tensor_id_of,
)

from .models import checkpoints, random_tensor

# Golden: written down in docs/formats. An id that changes breaks every patch, store and record that names it.
GOLDEN = {
    "a": "5b0b452ab26da52d1283f3bfd114f3c992a93a7aa19aaf809103cb3cbb61918b",
    "b": "b6beb9fd87e09301acbad003f875359ee2ebe5cea1c466abac4a3a7b6b1d9b9a",
    "scalar": "36e4b8ada5ce679a6650aa89c2cfe9ec849379382e78328a965a4b1c03cb1894",
    "empty": "436e8fe8c50fbf9c13ea355469dffd0273fe92cecd9567dc71465c11437a532e",
}
GOLDEN_CONTENT = "b9aa0ed13046d72a3973645c1ed9df602e21ef3a0d05fa635082de88f44bed09"


def golden() -> Memory:
    return Memory(
        {
            "b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
            "a": torch.tensor([1.0, -0.0, 2.5]),
            "scalar": torch.tensor(7, dtype=torch.int64),
            "empty": torch.empty((0, 3), dtype=torch.uint8),
        }
    )


def test_golden_ids() -> None:
    assert {name: tensor_id(golden(), name) for name in GOLDEN} == GOLDEN
    assert content_id(golden()) == GOLDEN_CONTENT


def test_the_ids_are_what_the_document_says() -> None:
    data = golden().read_bytes("a")
    spelled = blake3(b"cofuse tensor 1\nF32\n[3]\n" + blake3(data).digest()).hexdigest()
    assert spelled == GOLDEN["a"]
    lines = "".join(f"{name}\n{GOLDEN[name]}\n" for name in sorted(GOLDEN))
    assert blake3(f"cofuse content 1\n{lines}".encode()).hexdigest() == GOLDEN_CONTENT
    assert tensor_id_of(TensorSpec("U8", (0, 3)), []) == GOLDEN["empty"]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_chunks_cover_everything_once(size: int) -> None:
    ranges = list(chunks(size))
    assert [a for a, _ in ranges] == list(range(0, size, CHUNK))
    assert sum(b - a for a, b in ranges) == size


def test_a_tensor_of_several_chunks() -> None:
    big = Memory({"x": random_tensor(0, (CHUNK // 4 + 5,))})
    data = bytes(big.read_bytes("x"))
    digests = blake3(data[:CHUNK]).digest() + blake3(data[CHUNK:]).digest()
    assert tensor_id(big, "x") == blake3(f"cofuse tensor 1\nF32\n[{CHUNK // 4 + 5}]\n".encode() + digests).hexdigest()


@given(checkpoint=checkpoints(), threads=st.integers(1, 4))
def test_the_content_id_does_not_depend_on_order_or_threads(checkpoint: Memory, threads: int) -> None:
    held = {name: checkpoint.read(name) for name in reversed(checkpoint.names())}
    assert content_id(Memory(held), threads=threads) == content_id(checkpoint)


def test_the_content_id_does_not_depend_on_format_or_shards(tmp_path: Path) -> None:
    held = {f"t{i}": random_tensor(i, (5, i)) for i in range(6)}
    expected = content_id(Memory(held))
    save(Memory(held), tmp_path / "one")
    save(Memory(held), tmp_path / "many", max_shard_bytes=100)
    torch.save(held, tmp_path / "a.bin")
    for path in ("one", "many", "a.bin"):
        assert content_id(open_local(tmp_path / path)) == expected
    assert content_id(Memory(held, files={"config.json": b"{}"}, metadata={"a": "b"})) == expected


def test_the_content_id_changes_with_every_bit() -> None:
    plain = bytes(golden().read_bytes("a"))
    seen = {tensor_id_of(TensorSpec("F32", (3,)), [blake3(plain).digest()])}
    for bit in range(8 * len(plain)):
        changed = bytearray(plain)
        changed[bit // 8] ^= 1 << bit % 8
        held = {name: golden().read(name) for name in golden().names()}
        held["a"] = torch.frombuffer(changed, dtype=torch.float32)
        seen.add(content_id(Memory(held)))
    assert len(seen) == 8 * len(plain) + 1


def test_the_content_id_changes_with_dtype_shape_and_name() -> None:
    zeros = torch.zeros(4)
    variants = [
        {"x": zeros},
        {"y": zeros},
        {"x": zeros.view(torch.int32)},
        {"x": zeros.reshape(2, 2)},
        {"x": zeros.reshape(4, 1)},
        {"x": zeros[:0]},
        {"x": zeros[:3]},
        {"x": zeros, "y": torch.zeros(4)},
        {},
    ]
    assert len({content_id(Memory(held)) for held in variants}) == len(variants)


def test_swapping_two_tensors_changes_the_content_id() -> None:
    checkpoint = Memory({"x": torch.ones(2), "y": torch.zeros(2)})
    swapped = renamed(checkpoint, {"x": "y", "y": "x"}.__getitem__)
    assert content_id(swapped) != content_id(checkpoint)


def test_a_checkpoint_that_knows_its_ids_is_not_read() -> None:
    class Known(Memory):
        def tensor_ids(self) -> dict[str, str]:
            return {"x": "00"}

        def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
            raise AssertionError("read")

    assert content_id(Known({"x": torch.ones(1)})) == content_id_of({"x": "00"})
