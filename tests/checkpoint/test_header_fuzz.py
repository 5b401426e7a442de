"""Mutated files: whatever comes out is a header or a HeaderError, soon, and in little memory.

`pytest -m slow tests/checkpoint/test_header_fuzz.py` tries at least 10,000 new ones each time.
"""

from __future__ import annotations

import contextlib
import gc
import json
import random
import re
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from cofuse.checkpoint import Header, SafetensorsFile, parse_header
from cofuse.errors import HeaderError

from .hostile import COSTLY, prefixed

DTYPES = ["F32", "BF16", "I64", "BOOL", "F8_E4M3", "U8"]
WIDTHS = {"F32": 4, "BF16": 2, "I64": 8, "BOOL": 1, "F8_E4M3": 1, "U8": 1}
NUMBERS = [
    b"-1",
    b"0",
    b"1",
    b"9",
    b"1.0",
    b"1e3",
    b"00",
    b"4294967296",
    b"18446744073709551615",
    b"9" * 30,
    b"null",
    b"[]",
]
NESTS = [b'{"a":' * 5, b"[" * 400, b"[[", b"{", b"}", b"]", b'"', b"\\", b",", b":", b"\\ud800", b"\0", b"\xff"]


@st.composite
def valid_files(draw: st.DrawFn) -> bytes:
    names = draw(st.lists(st.from_regex(r"[a-z]{1,3}(\.[0-9]{1,2}){0,2}", fullmatch=True), max_size=5, unique=True))
    header: dict[str, object] = {}
    if draw(st.booleans()):
        header["__metadata__"] = draw(
            st.dictionaries(st.text(max_size=4), st.sampled_from([*names, "pt", "é"]), max_size=3)
        )
    at = 0
    for name in names:
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        size = WIDTHS[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, None, 1])))
    return prefixed(text.encode("utf-8", "replace")) + bytes(at)


def flip(data: bytes, r: random.Random) -> bytes:
    at = r.randrange(min(len(data), 8 + max(1, int.from_bytes(data[:8], "little"))))
    return data[:at] + bytes([data[at] ^ (1 << r.randrange(8))]) + data[at + 1 :]


def splice(data: bytes, r: random.Random) -> bytes:
    a, b, c = (r.randrange(len(data) + 1) for _ in range(3))
    return data[:c] + data[min(a, b) : max(a, b)] + data[c:]


def delete(data: bytes, r: random.Random) -> bytes:
    a = r.randrange(len(data) + 1)
    return data[:a] + data[a + r.choice([1, 1, 2, 5, 50]) :]


def number(data: bytes, r: random.Random) -> bytes:
    found = list(re.finditer(rb"[0-9]+", data))
    if not found:
        return data
    at = r.choice(found)
    return data[: at.start()] + r.choice(NUMBERS) + data[at.end() :]


def nest(data: bytes, r: random.Random) -> bytes:
    a = r.randrange(len(data) + 1)
    return data[:a] + r.choice(NESTS) + data[a:]


def twice(data: bytes, r: random.Random) -> bytes:
    """One tensor's or metadata's entry again, so that its key stands twice."""
    found = list(re.finditer(rb'"[^"]*": ?\{[^{}]*\}', data))
    if not found:
        return data
    at = r.choice(found)
    return data[: at.end()] + b"," + at.group() + data[at.end() :]


def rename(data: bytes, r: random.Random) -> bytes:
    found = list(re.finditer(rb'"[^"]*"', data))
    if not found:
        return data
    at = r.choice(found)
    name = r.choice([b'"dtype"', b'"shape"', b'"__metadata__"', b'"../x"', b'""', b'"\\u0061"', b'"F32"', b'"a"', b"1"])
    return data[: at.start()] + name + data[at.end() :]


def length(data: bytes, r: random.Random) -> bytes:
    n = int.from_bytes(data[:8], "little")
    new = r.choice([0, 1, n - 1, n + 1, len(data), len(data) - 8, 2**24, 2**24 + 1, 2**63, 2**64 - 1])
    return (max(0, new) % 2**64).to_bytes(8, "little") + data[8:]


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [flip, splice, delete, number, nest, twice, rename, length]


def mutate(data: bytes, seed: int, steps: int) -> bytes:
    r = random.Random(seed)
    before = int.from_bytes(data[:8], "little")
    prefix = True
    for _ in range(steps):
        mutation = r.choice(MUTATIONS)
        prefix = prefix and mutation is not length
        new = mutation(data, r)
        # Most changes of size keep the length prefix honest, or nothing behind it would ever be looked at.
        if prefix and len(new) >= 8 and r.random() < 0.9:
            before = max(0, before + len(new) - len(data))
            new = before.to_bytes(8, "little") + new[8:]
        data = new or data
    return data


def check(path: Path, data: bytes, seen: Counter[str]) -> None:
    path.write_bytes(data)
    started = time.process_time()
    try:
        header = SafetensorsFile(path).header
    except HeaderError as error:
        seen[error.what] += 1
    else:
        seen["accepted"] += 1
        check_accepted(path, header)
    finally:
        elapsed = time.process_time() - started
    assert elapsed < 0.5, "a small file took that long"


def check_accepted(path: Path, header: Header) -> None:
    """What we accept, safetensors accepts, and reads as the same tensors."""
    with safe_open(path, "np") as theirs:
        assert set(theirs.keys()) == set(header.entries)
        assert (theirs.metadata() or {}) == header.metadata
        for name, e in header.entries.items():
            assert (theirs.get_slice(name).get_dtype(), tuple(theirs.get_slice(name).get_shape())) == (e.dtype, e.shape)


mutated = st.builds(mutate, valid_files(), st.integers(0, 2**32), st.integers(1, 5))


@settings(max_examples=300)
@given(data=mutated)
def test_a_mutated_file_is_read_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    check(tmp_path_factory.getbasetemp() / "fuzz.safetensors", data, Counter())


@pytest.mark.slow
def test_ten_thousand_mutated_files_are_read_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: Counter[str] = Counter()
    started = time.perf_counter()

    # Written out rather than left to Hypothesis' own number, which counts what it generates, repeats among it.
    @settings(max_examples=12_000, derandomize=False, database=None, phases=[Phase.generate, Phase.shrink],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(data=mutated)
    def run(data: bytes) -> None:
        check(tmp_path / "fuzz.safetensors", data, seen)

    run()
    tried = sum(seen.values())
    with capsys.disabled():
        print(f"\n{tried} mutated files in {time.perf_counter() - started:.0f} s, {seen['accepted']} accepted:")
        for what, count in seen.most_common():
            print(f"  {count:6} {what}")
    assert tried >= 10_000
    assert 100 < seen["accepted"] < tried / 2, "mutations that break all or nothing test little"
    assert len(seen) > 20


def parse(raw: bytes) -> None:
    with contextlib.suppress(HeaderError):
        parse_header(raw, data_bytes=0, where="here")


def seconds(raw: bytes, tries: int = 5) -> float:
    """The best of several: what else the machine does only ever adds."""
    best = float("inf")
    gc.disable()
    try:
        for _ in range(tries):
            started = time.process_time()
            parse(raw)
            best = min(best, time.process_time() - started)
    finally:
        gc.enable()
    return best


def peak(raw: bytes) -> float:
    """Peak memory of the validator as a multiple of the header."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        parse(raw)
        return (tracemalloc.get_traced_memory()[1] - before) / len(raw)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", COSTLY)
def test_memory_is_a_small_multiple_of_the_header(shape: str) -> None:
    raw = COSTLY[shape](200_000)
    assert len(raw) > 150_000
    assert peak(raw) < 30


@pytest.mark.slow
@pytest.mark.parametrize("shape", COSTLY)
def test_time_is_under_100_ms_below_1_mib_and_linear_above(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = COSTLY[shape](2**20 - 1000)
    large = COSTLY[shape](2**22)
    assert len(small) < 2**20 < len(large)
    fast, slow, memory = seconds(small), seconds(large, tries=3), peak(small)
    per_byte = (slow / len(large)) / (fast / len(small))
    with capsys.disabled():
        print(
            f"\n  {shape:20} {len(small) / 2**20:5.2f} MiB {fast * 1e3:6.1f} ms, "
            f"{len(large) / 2**20:5.2f} MiB {slow * 1e3:6.1f} ms, peak {memory:4.1f} x header",
            end="",
        )
    assert fast < 0.1
    # Twice for what a larger heap costs; a quadratic reader would show four times.
    assert per_byte < 2.5 or slow < 0.02
    assert memory < 30
