"""Every codec of the store on finetuned models and on noise: bytes, and speed on one core.

    python benchmarks/codecs.py [BASE TUNED]...
    python benchmarks/codecs.py --chains

BASE and TUNED are safetensors files with tensors of the same names. Ratios are bytes kept over bytes; speeds are GB of
original a CPU second. `--chains` commits 21 versions of a matrix with chains of deltas of various lengths. `chosen` is what a commit keeps: chunk by chunk what the probe takes for the smallest.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cofuse.checkpoint import SafetensorsFile, TensorSpec, chunks
from cofuse.checkpoint.dtypes import bits
from cofuse.checkpoint.floats import as_floats, as_stored
from cofuse.store import Store
from cofuse.store.codecs import CODECS, LOW_RANK, RAW, SAME, Beside, Bytes, lowrank, smallest
from cofuse.store.envelope import Head
from cofuse.store.writing import writing

NOISE = 4096  # rows and columns of a synthetic matrix
TRIES = 3
VERSION, VERSIONS = 4 << 20, 21  # elements of a version, and how many of them


class Chunk(NamedTuple):
    """A chunk, and what it is kept beside; `first` is that of its tensor."""

    data: Bytes
    width: int
    beside: Beside
    first: int


def finetuned(base: Path, tuned: Path) -> list[Chunk]:
    """The chunks of what two files have in common."""
    a, b = SafetensorsFile(base), SafetensorsFile(tuned)
    found: list[Chunk] = []
    for name in b.names():
        spec = b.spec(name)
        if name in a and a.spec(name) == spec:
            pairs = ((b.read_bytes(name, i, j), a.read_bytes(name, i, j), i) for i, j in chunks(spec.nbytes))
            found += _chunks(pairs, spec, len(found))
    return found


def noise(dtype: str, change: str) -> list[Chunk]:
    """Gaussian weights; a Gaussian change of the given size of all, of 0.5 % of them, or of rank 8."""
    rng = np.random.default_rng(0)
    spec = TensorSpec(dtype, (NOISE, NOISE))
    weights = rng.standard_normal(NOISE * NOISE, np.float32)
    base = as_stored(weights, dtype)
    found = as_floats(base, dtype, np.float32).copy()
    if change == "0.5 %":
        found[rng.random(found.size) < 0.005] *= 1.01
    elif change == "rank 8":
        product = rng.standard_normal((NOISE, 8), np.float32) @ rng.standard_normal((8, NOISE), np.float32)
        found += 0.01 / np.sqrt(8) * product.reshape(-1)
    else:
        found += float(change) * rng.standard_normal(found.size, np.float32)
    sides = [memoryview(side).cast("B") for side in (as_stored(found, dtype), base)]
    return list(_chunks(((sides[0][i:j], sides[1][i:j], i) for i, j in chunks(spec.nbytes)), spec, 0))


def _chunks(pairs: Iterator[tuple[Bytes, Bytes, int]], spec: TensorSpec, first: int) -> Iterator[Chunk]:
    for data, base, at in pairs:
        yield Chunk(data, max(1, bits(spec.dtype) // 8), Beside(base, at, b"", spec), first)


def spent(work: Callable[[], object]) -> tuple[float, object]:
    """CPU seconds of the quickest of several tries, and the result."""
    times = []
    for _ in range(TRIES):
        started = time.process_time()
        result = work()
        times.append(time.process_time() - started)
    return min(times), result


def rows(what: str, sample: list[Chunk]) -> Iterator[str]:
    total = sum(len(chunk.data) for chunk in sample)
    shared: dict[int, bytes] = {}
    for k, chunk in enumerate(sample):
        if chunk.first == k and bytes(chunk.data) != bytes(chunk.beside.data):
            shared[k] = lowrank.shared(chunk.data, chunk.width, chunk.beside)
    low = {k: found for k, found in shared.items() if found}
    for number in [n for n in CODECS if n not in (RAW, SAME)] + [-1]:
        kept, encoding, decoding = sum(map(len, low.values())) if number in (LOW_RANK, -1) else 0, 0.0, 0.0
        if number == LOW_RANK and len(low) < len({chunk.first for chunk in sample}):
            continue
        for chunk in sample:
            beside = (
                chunk.beside._replace(shared=low.get(chunk.first, b"")) if number in (LOW_RANK, -1) else chunk.beside
            )

            def encode(chunk: Chunk = chunk, beside: Beside = beside, number: int = number) -> tuple[int, bytes]:
                if number < 0:
                    return smallest(chunk.data, chunk.width, beside)
                return number, CODECS[number].encode(chunk.data, chunk.width, beside)

            seconds, made = spent(encode)
            used, stored = made  # type: ignore[misc]
            encoding += seconds
            seconds, back = spent(
                lambda used=used, stored=stored, chunk=chunk, beside=beside: CODECS[used].decode(  # type: ignore[misc]
                    stored, len(chunk.data), chunk.width, beside
                )
            )
            decoding += seconds
            kept += len(stored)
            assert bytes(back) == bytes(chunk.data)  # type: ignore[call-overload]
        name = "**chosen**" if number < 0 else CODECS[number].name
        speeds = " / ".join(f"{total / max(seconds, 1e-9) / 1e9:.2f}" for seconds in (encoding, decoding))
        yield f"| {what} | {name} | {100 * kept / total:.3f} % | {speeds} |"


def chains(dtype: str, bound: int) -> str:
    """Versions of a tensor, each a Gaussian step of 0.2 % from the one before, with at most so many deltas in a row."""
    rng = np.random.default_rng(0)
    weights = 0.03 * rng.standard_normal(VERSION)
    head = Head.tensor(TensorSpec(dtype, (VERSION,)))
    kept = 0
    speeds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        objects = Store.init(folder).objects
        ids: list[str] = []
        with writing(objects, 1) as pen:
            for _ in range(VERSIONS):
                data = memoryview(as_stored(weights.astype(np.float32), dtype)).cast("B")
                pieces = ((k, data[i:j], None) for k, (i, j) in enumerate(chunks(len(data))))
                with pen.draft(head) as draft:
                    envelope, shared = pen.fill(draft, head, pieces, ids[-1:], bound)
                    draft.publish(envelope, objects.path(envelope.id), shared)
                ids.append(envelope.id)
                weights += 0.03 * 2e-3 * rng.standard_normal(VERSION)
        for object_id in ids:
            kept += objects.stored_bytes(object_id)
            speeds.append(head.size / spent(lambda object_id=object_id: objects.read(object_id))[0] / 1e9)  # type: ignore[misc]
    share = 100 * kept / (VERSIONS * head.size)
    return f"| {dtype} | {bound} | {share:.1f} % | {len(speeds) / sum(1 / s for s in speeds):.2f} / {min(speeds):.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="BASE TUNED")
    parser.add_argument("--chains", action="store_true", help="how long chains of deltas may be")
    given = parser.parse_args()
    files = given.files
    if given.chains:
        print("| dtype | at most | kept | mean / worst GB/s |\n|---|---|---|---|")
        for dtype in ("F32", "BF16"):
            for bound in (1, 2, 4, 8, 16):
                print(chains(dtype, bound), flush=True)
        return
    print("| pair | codec | kept | encode / decode, GB/s |\n|---|---|---|---|")
    for base, tuned in zip(files[::2], files[1::2], strict=True):
        for row in rows(f"{base.parent.name} → {tuned.parent.name}", finetuned(base, tuned)):
            print(row, flush=True)
    for dtype in ("BF16", "F32"):
        for change in ("1e-4", "1e-3", "1e-2", "0.5 %", "rank 8"):
            for row in rows(f"noise, {dtype}, {change}", noise(dtype, change)):
                print(row, flush=True)


if __name__ == "__main__":
    main()
