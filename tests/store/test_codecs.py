"""The laws of codecs: every one of them, from the table, with every dtype, size and pair of chunks."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cofuse.checkpoint import CHUNK, TensorSpec
from cofuse.checkpoint.dtypes import DTYPES
from cofuse.checkpoint.floats import as_floats, as_stored
from cofuse.store.codecs import CODECS, LOW_RANK, PREFIX, RAW, SAME, SPARSE, Beside, lowrank, planes, smallest
from cofuse.store.codecs import zstd as frames

SPECIALS = {  # bit patterns that arithmetic would lose: -0, infinities, quiet and signalling NaNs with payloads
    2: [0x8000, 0x7F80, 0xFF80, 0x7FC1, 0x7F81, 0xFFFF, 0x7C00, 0xFE01, 0x0001, 0x7FFF],
    4: [0x80000000, 0x7F800000, 0xFF800000, 0x7FC00001, 0x7F800001, 0xFFFFFFFF, 0x00000001, 0x7FFFFFFF],
    8: [1 << 63, 0x7FF << 52, 0xFFF << 52, (0x7FF << 52) + 1, 2**64 - 1, 1, 2**63 - 1],
    1: [0x80, 0x7F, 0xFF, 0x01],
}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[bytes, bytes, int]:
    """A chunk, its base, the width of their elements: any bits, from equal to unlike each other."""
    width = draw(st.sampled_from([1, 2, 4, 8]))
    count = draw(st.sampled_from([1, 2, 3, 7, 8, 9, 63, 64, 65, 1000, 4097]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    base = rng.integers(0, 256, count * width, np.uint8).view(f"<u{width}")
    base[rng.random(count) < 0.2] = rng.choice(np.array(SPECIALS[width], f"<u{width}"))
    data = base.copy()
    chosen = rng.random(count) < draw(st.sampled_from([0.0, 0.001, 0.05, 0.3, 1.0]))
    match draw(st.sampled_from(["step", "bits", "special", "zero"])):
        case "step":
            data[chosen] += rng.integers(0, 3, chosen.sum()).astype(data.dtype) - data.dtype.type(1)
        case "bits":
            data[chosen] = rng.integers(0, 256, chosen.sum() * width, np.uint8).view(data.dtype)
        case "special":
            data[chosen] = rng.choice(np.array(SPECIALS[width], data.dtype), chosen.sum())
        case _:
            data[chosen] = 0
    return data.tobytes(), base.tobytes(), width


def usable(number: int, data: bytes, base: bytes) -> bool:
    return number != LOW_RANK and (number != SAME or data == base)


@settings(max_examples=200, deadline=None)
@given(pair=pairs())
@example(pair=(b"\0", b"\0", 1))
def test_every_codec_gives_back_what_it_was_given(pair: tuple[bytes, bytes, int]) -> None:
    data, base, width = pair
    beside = Beside(base)
    for number, codec in CODECS.items():
        if usable(number, data, base):
            stored = codec.encode(data, width, beside)
            assert type(stored) is bytes
            assert bytes(codec.decode(stored, len(data), width, beside)) == data, codec.name


@settings(max_examples=200, deadline=None)
@given(pair=pairs())
def test_what_is_chosen_is_no_longer_than_raw_and_comes_back(pair: tuple[bytes, bytes, int]) -> None:
    data, base, width = pair
    for beside in (None, Beside(base)):
        number, stored = smallest(data, width, beside)
        assert len(stored) <= len(data)
        assert bytes(CODECS[number].decode(stored, len(data), width, beside or Beside())) == data
        assert beside is not None or not CODECS[number].delta


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=400), base=st.binary(max_size=400))
def test_a_prefix_may_be_anything_a_file_is(data: bytes, base: bytes) -> None:
    if data:
        stored = CODECS[PREFIX].encode(data, 1, Beside(base))
        assert CODECS[PREFIX].decode(stored, len(data), 1, Beside(base)) == data


@pytest.mark.parametrize("size", [CHUNK - 4, CHUNK])
@pytest.mark.parametrize("number", [n for n in CODECS if n not in (SAME, LOW_RANK)])
def test_whole_chunks(number: int, size: int) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal(size // 4).astype(np.float32)
    data = base + 1e-3 * rng.standard_normal(size // 4).astype(np.float32)
    beside = Beside(base.tobytes())
    stored = CODECS[number].encode(data.tobytes(), 4, beside)
    assert bytes(CODECS[number].decode(stored, size, 4, beside)) == data.tobytes()


def low_rank(dtype: str, rows: int, columns: int, rank: int, size: float = 0.1) -> tuple[bytes, bytes, TensorSpec]:
    """A matrix with a change of low rank, its base, and what they are."""
    rng = np.random.default_rng(rank)
    base = as_stored(rng.standard_normal((rows, columns)).astype(np.float32), dtype)
    change = size / rank * rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    whole = as_floats(base, dtype, np.float64).reshape(rows, columns) + change
    return as_stored(whole.reshape(-1), dtype).tobytes(), base.tobytes(), TensorSpec(dtype, (rows, columns))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
@pytest.mark.parametrize(("columns", "rank"), [(256, 1), (257, 8), (1000, 20)])
def test_a_change_of_low_rank_is_found_and_kept_without_loss(dtype: str, columns: int, rank: int) -> None:
    data, base, spec = low_rank(dtype, 700, columns, rank)
    width = DTYPES[dtype][0] // 8
    shared = lowrank.shared(data, width, Beside(base, 0, b"", spec))
    assert shared
    size = 3 * 10**5 // 8 * 8  # chunks that end inside rows
    kept = len(shared)
    for at in range(0, len(data), size):
        beside = Beside(base[at : at + size], at, shared, spec)
        piece = data[at : at + size]
        number, stored = smallest(piece, width, beside)
        kept += len(stored)
        assert bytes(CODECS[number].decode(stored, len(piece), width, beside)) == piece
    plain = len(smallest(data, width, Beside(base))[1])
    assert kept < 0.75 * plain


def test_low_rank_is_lossless_beside_values_that_are_not_finite() -> None:
    data, base, spec = low_rank("F32", 300, 256, 4)
    shared = lowrank.shared(data, 4, Beside(base, 0, b"", spec))
    ours, theirs = (np.frombuffer(side, "<u4").copy() for side in (data, base))
    rng = np.random.default_rng(1)
    for side in (ours, theirs):
        side[rng.integers(0, len(side), 500)] = rng.choice(np.array(SPECIALS[4], "<u4"), 500)
    beside = Beside(theirs.tobytes(), 0, shared, spec)
    stored = lowrank.encode(ours.tobytes(), 4, beside)
    assert bytes(lowrank.decode(stored, len(data), 4, beside)) == ours.tobytes()


@pytest.mark.parametrize("what", ["dense", "sparse", "vector", "integers", "infinite"])
def test_no_rank_is_seen_where_there_is_none(what: str) -> None:
    data, base, spec = low_rank("F32", 300, 256, 4)
    rng = np.random.default_rng(2)
    floats = np.frombuffer(base, "<f4")
    if what == "dense":
        data = (floats + 0.01 * rng.standard_normal(len(floats)).astype("<f4")).tobytes()
    elif what == "sparse":
        data = np.where(rng.random(len(floats)) < 0.001, floats * 2, floats).astype("<f4").tobytes()
    elif what == "vector":
        spec = TensorSpec("F32", (300 * 256,))
    elif what == "integers":
        spec = TensorSpec("I32", (300, 256))
    else:
        data = np.full(300 * 256, np.inf, "<f4").tobytes()
    assert lowrank.shared(data, 4, Beside(base, 0, b"", spec)) == b""


# What a codec does with bytes that it never wrote.

SIZE, WIDTH = 4096, 4
BASE = np.random.default_rng(3).integers(0, 256, SIZE, np.uint8).tobytes()
LOW = low_rank("F32", 64, 64, 2)
HUGE = 1 << 40


def hostile() -> Iterator[bytes]:
    rng = np.random.default_rng(4)
    yield from (b"", b"\0", b"\1", b"\2", b"\0" * 40, b"\xff" * 40, b"\1" + b"\xff" * 40)
    # magic, a descriptor with an 8-byte content size and a single segment, the size
    bomb = b"\x28\xb5\x2f\xfd" + b"\xe0" + HUGE.to_bytes(8, "little") + b"\x01\x00\x00"
    assert zstandard.get_frame_parameters(bomb).content_size == HUGE
    lengths = [len(bomb).to_bytes(4, "little")]
    yield from (bomb, b"\0" + bomb, *(n + bomb + bomb for n in lengths), *(b"\1" + n + bomb + bomb for n in lengths))
    gaps = frames.encode(np.full(100, 0xFFFFFFFF, "<u4").tobytes())
    yield len(gaps).to_bytes(4, "little") + gaps + frames.encode(bytes(400))
    many = frames.encode(bytes(4 * 10**6))
    yield len(many).to_bytes(4, "little") + many + frames.encode(bytes(10**6))
    yield from (rng.integers(0, 256, n, np.uint8).tobytes() for n in (1, 5, 9, 100, 4000))


def beside_of(number: int, data: bytes) -> Beside:
    if number == LOW_RANK:
        return Beside(LOW[1][:SIZE], 0, lowrank.shared(*LOW[:1], 4, Beside(LOW[1], 0, b"", LOW[2])), LOW[2])
    return Beside(data if number == SAME else BASE)


@pytest.mark.parametrize("number", CODECS)
def test_hostile_bytes_are_refused_or_give_the_right_number_of_bytes(number: int) -> None:
    data = bytes(range(256)) * (SIZE // 256)
    beside = beside_of(number, data)
    good = CODECS[number].encode(data, WIDTH, beside)
    rng = np.random.default_rng(5)
    cut = [good[:n] for n in range(0, len(good), 1 + len(good) // 50)] + [good + b"\0"]
    flipped = []
    for at in range(0, len(good), 1 + len(good) // 300):
        harmed = bytearray(good)
        harmed[at] ^= 1 << int(rng.integers(8))
        flipped.append(bytes(harmed))
    tracemalloc.start()
    try:
        for bad in (*hostile(), *cut, *flipped):
            try:
                got = CODECS[number].decode(bad, SIZE, WIDTH, beside)
            except ValueError:
                continue
            assert len(got) == SIZE
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("number", [n for n in CODECS if n not in (SAME,)])
def test_truncated_bytes_are_refused(number: int) -> None:
    data = bytes(range(256)) * (SIZE // 256)
    beside = beside_of(number, data)
    stored = CODECS[number].encode(data, WIDTH, beside)
    for bad in (b"", stored[:-1]):
        with pytest.raises(ValueError, match=r"."):
            CODECS[number].decode(bad, SIZE, WIDTH, beside)


@pytest.mark.parametrize(
    ("shared", "spec"),
    [
        (b"", TensorSpec("F32", (64, 64))),
        (b"\0\0\0\0", TensorSpec("F32", (64, 64))),
        (b"\xff\xff\xff\xff", TensorSpec("F32", (64, 64))),
        (b"\1\0\0\0" + frames.encode(bytes(4 * 10**6)), TensorSpec("F32", (1, 1 << 40))),
        (b"\1\0\0\0" + frames.encode(bytes(256)), TensorSpec("I32", (64, 64))),
        (b"\1\0\0\0" + frames.encode(bytes(256)), TensorSpec("F32", (64, 64, 1))),
        (b"\1\0\0\0" + frames.encode(bytes(256)), TensorSpec("F32", (0, 0))),
        (b"\1\0\0\0" + frames.encode(bytes(256)), None),
    ],
)
def test_a_hostile_factor_is_refused(shared: bytes, spec: TensorSpec | None) -> None:
    with pytest.raises(ValueError, match=r"."):
        lowrank.decode(b"\0" * 40, SIZE, WIDTH, Beside(BASE, 0, shared, spec))


def test_numbers_of_codecs_never_change() -> None:
    names = "raw, zstd, planes+zstd, same, xor+planes+zstd, ordered, sparse, prefix, low rank"
    assert {n: c.name for n, c in CODECS.items()} == dict(enumerate(names.split(", ")))
    frame = bytes.fromhex("28b52ffd206445000010000001003f012c")  # a hundred zeros, as zstd 1.5 wrote them
    assert CODECS[1].decode(frame, 100, 1, Beside()) == bytes(100)


GOLDEN = {
    4: "28b52ffd609000c500006000000001ff000500ff00ff000410003f0aff84391c5311",
    5: "011300000028b52ffd200d5500002018002000010005c00228b52ffd200c61000002010a000000000000000000",
    6: "1500000028b52ffd200c61000003005500000000000000000028b52ffd200c61000002010a000000000000000000",
    7: "28b52ffd609000cd0000400100803fffff7f05060000007800dc4b5a51016836dc0402",
}


def test_golden_bytes_of_deltas() -> None:
    """What a store holds today has to be read for ever: steps of 1, -1 and 5 beside a hundred ones."""
    base = np.ones(100, "<f4")
    data = base.view("<u4").copy()
    data[[3, 4, 90]] += np.array([1, 2**32 - 1, 5], "<u4")
    for number, stored in GOLDEN.items():
        assert bytes(CODECS[number].decode(bytes.fromhex(stored), 400, 4, Beside(base.tobytes()))) == data.tobytes()


def test_a_few_changes_are_kept_as_a_few() -> None:
    base = np.random.default_rng(6).standard_normal(CHUNK // 4).astype("<f4")
    data = base.copy()
    data[::1000] *= 1.001
    number, stored = smallest(data.tobytes(), 4, Beside(base.tobytes()))
    assert number == SPARSE
    assert len(stored) < 5 * len(data[::1000])


def test_noise_is_kept_raw() -> None:
    data = np.random.default_rng(7).integers(0, 256, CHUNK, np.uint8).tobytes()
    assert smallest(data, 4)[0] == RAW
    other = np.random.default_rng(8).integers(0, 256, CHUNK, np.uint8).tobytes()
    assert smallest(data, 4, Beside(other))[0] == RAW


@given(values=st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_planes_are_the_bytes_of_each_place(values: list[int]) -> None:
    array = np.array(values, "<u4")
    raw = frames.decode(planes.pack(array), 4 * len(values))
    assert raw == b"".join(array.tobytes()[k::4] for k in range(4))
