"""A change of low rank: the product of two thin matrices, and what it misses by.

    chunk = round(base + A V) + difference        A [rows of the chunk, rank] in the chunk, V [rank, columns] shared

A LoRA adapter that was merged into its base leaves such a change, and nothing in the result says so. It is found by a
singular value decomposition of some rows, and kept without loss: base + A V is computed one product and one sum at a
time in float64, which gives the same bits everywhere, and what is left, mostly nothing or one step of the last bit, is
kept as `ordered` or `sparse` keep it. Reading needs no BLAS, and no other chunk.

    shared   4 bytes of rank, planes of V (float32)
    chunk    4 bytes of length, planes of A (float32), 1 byte: 0 ordered, 1 sparse, then the difference
"""

from __future__ import annotations

from typing import Any

from ...checkpoint import CHUNK, ONE_BLAS_THREAD
from . import ordered, planes, sparse
from .codec import NOTHING, Beside, Bytes

DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
MAX_RANK = 64
GLANCE, LOOK = 128, 256  # rows and columns of the parts that are looked at first, and then
STEEP = 4.0  # times the median: a singular value that is no noise
LEFT = 0.05  # of the change's energy may be left by the rank
WEIGHED = 1 << 17  # bytes on which that is found out
GAIN = 0.7  # of the bytes it would take otherwise: worth the time that reading takes
_BLOCK = 1 << 15  # elements computed at a time, so that they stay in the cache
_INNER = (ordered, sparse)


def encode(data: Bytes, width: int, beside: Beside = NOTHING) -> bytes:
    """A, fitted to this chunk alone, and the difference."""
    import numpy as np

    v = _factor(beside)
    rows, first = _rows(len(data) // width, width, beside)
    delta = _floats(data, beside) - _floats(beside.data, beside)
    columns, whole = v.shape[1], slice(-(-first // v.shape[1]), (first + len(delta)) // v.shape[1])
    a = np.zeros((rows, len(v)))
    with np.errstate(all="ignore"), ONE_BLAS_THREAD:
        delta[~np.isfinite(delta)] = 0
        at = whole.start * columns - first
        if whole.stop > whole.start:
            a[whole] = delta[at : at + (whole.stop - whole.start) * columns].reshape(-1, columns) @ v.T
        for row in {0, rows - 1} - set(range(whole.start, whole.stop)):  # cut by the chunk's ends
            start, stop = max(0, row * columns - first), min(len(delta), (row + 1) * columns - first)
            part = slice(start + first - row * columns, stop + first - row * columns)
            a[row] = np.linalg.lstsq(v[:, part].T, delta[start:stop], rcond=1e-6)[0]
        kept = a.astype("<f4")
    predicted = _predicted(kept, v, first, width, beside)
    inner = int(planes.changed(data, predicted, width) <= sparse.FEW)
    packed = planes.pack(kept.reshape(-1).view("<u4"))
    rest: bytes = _INNER[inner].encode(data, width, Beside(predicted))
    return len(packed).to_bytes(4, "little") + packed + bytes([inner]) + rest


def decode(stored: bytes, size: int, width: int, beside: Beside = NOTHING) -> memoryview:
    """The prediction, with the difference added."""
    v = _factor(beside)
    rows, first = _rows(size // width, width, beside)
    view = memoryview(stored)
    rest_at = 4 + int.from_bytes(view[:4], "little")
    a = planes.unpack(view[4:rest_at], rows * len(v), 4).view("<f4").reshape(rows, len(v))
    if stored[rest_at : rest_at + 1] not in (b"\0", b"\1"):
        raise ValueError("no difference")
    predicted = Beside(_predicted(a, v, first, width, beside))
    data: memoryview = _INNER[stored[rest_at]].decode(stored[rest_at + 1 :], size, width, predicted)
    return data


def shared(data: Bytes, width: int, beside: Beside) -> bytes:
    """What all chunks would share if the object's change, of which this chunk is a part, is of low rank; else nothing.

    Quick to say no: most of a small part has to lie in few directions, and the spectrum of a larger one to end in a cliff.

    Source: the randomised range finder with power iterations of Halko, Martinsson and Tropp, arXiv 0909.4061, alg. 4.4.
    """
    import numpy as np

    spec = beside.spec
    if spec is None or spec.dtype not in DTYPES or len(spec.shape) != 2:
        return b""
    columns, first = spec.shape[1], beside.at // width
    skipped = -first % columns if columns else 0
    rows = (len(data) // width - skipped) // columns if columns else 0
    if min(rows, columns) < 32:
        return b""
    taken = slice(skipped * width, (skipped + rows * columns) * width)
    with np.errstate(all="ignore"):
        delta = _floats(memoryview(data)[taken], beside) - _floats(memoryview(beside.data)[taken], beside)
        delta = delta.reshape(rows, columns)
        if not np.isfinite(delta.sum()):
            return b""
        try:
            if not _may_be_low(_part(delta, GLANCE)):
                return b""
            with ONE_BLAS_THREAD:
                part = _part(delta, LOOK)
                rank = _cliff(np.linalg.eigvalsh(part @ part.T)[::-1])
                if not 0 < rank <= MAX_RANK or columns < 4 * rank or 4 * rank * columns > CHUNK:
                    return b""
                v = _right_vectors(delta, rank)
        except np.linalg.LinAlgError:
            return b""
    found = rank.to_bytes(4, "little") + planes.pack(np.ascontiguousarray(v, "<f4").reshape(-1).view("<u4"))
    return found if _pays(memoryview(data)[taken], width, beside._replace(shared=found), taken.start) else b""


def _pays(rows: memoryview, width: int, beside: Beside, start: int) -> bool:
    """Whether some whole rows, and their part of what is shared, take enough fewer bytes than without."""
    row = width * (beside.spec.shape[1] if beside.spec is not None else 1)
    at = len(rows) // row // 2 * row
    part = slice(start + at, start + min(len(rows), at + -(-WEIGHED // row) * row))
    some = rows[at : at + part.stop - part.start]
    beside = beside._replace(data=memoryview(beside.data)[part], at=beside.at + part.start)
    plain = min(len(codec.encode(some, width, beside)) for codec in (*_INNER, planes))
    return len(beside.shared) * len(some) / len(rows) + len(encode(some, width, beside)) < GAIN * plain


def _part(delta: Any, most: int) -> Any:
    """Every so many rows and columns."""
    rows, columns = delta.shape
    return delta[:: -(-rows // most), :: -(-columns // most)]


def _may_be_low(part: Any) -> bool:
    """Whether the energy lies in half as many directions as there could be: columns taken out, the largest first.

    Without BLAS, whose threads, woken for every tensor, would wait for more in busy loops: three times the work of a
    commit.
    """
    import numpy as np

    left = part.copy()
    norms = (left**2).sum(0)
    enough = LEFT * norms.sum()
    for _ in range(min(part.shape) // 2):
        column = left[:, norms.argmax()].copy()
        column /= np.sqrt((column**2).sum()) or 1.0
        left -= column[:, None] * (column[:, None] * left).sum(0)
        norms = (left**2).sum(0)
        if norms.sum() <= enough:
            return True
    return False


def _cliff(energy: Any) -> int:
    """How many squared singular values stand above the noise; 0 when they leave much, or nearly all do."""
    import numpy as np

    noise = max(np.median(energy), np.finfo(np.float64).eps * len(energy) * energy[0])  # what eigenvalues are exact to
    rank = int(np.count_nonzero(energy > STEEP**2 * noise))
    return rank if rank <= len(energy) // 4 and energy[rank:].sum() <= LEFT * energy.sum() else 0


def _right_vectors(delta: Any, rank: int) -> Any:
    """Leading right singular vectors [rank, columns], near enough: their span is what counts."""
    import numpy as np

    found = np.random.default_rng(0).standard_normal((delta.shape[1], rank + 8))
    found = np.linalg.qr(delta.T @ (delta @ found))[0]  # one power iteration: behind a cliff it is enough
    turned = np.linalg.svd(delta @ found, full_matrices=False)[2]
    return turned[:rank] @ found.T


def _factor(beside: Beside) -> Any:
    """V [rank, columns] as float64."""
    import numpy as np

    spec, rank = beside.spec, int.from_bytes(beside.shared[:4], "little")
    if spec is None or spec.dtype not in DTYPES or len(spec.shape) != 2:
        raise ValueError("low rank, but no matrix of floats")
    columns = spec.shape[1]
    if not 0 < rank <= MAX_RANK or columns < 4 * rank or 4 * rank * columns > CHUNK:
        raise ValueError(f"rank {rank} for {columns} columns")
    v = planes.unpack(memoryview(beside.shared)[4:], rank * columns, 4)
    return v.view("<f4").reshape(rank, columns).astype(np.float64)


def _rows(count: int, width: int, beside: Beside) -> tuple[int, int]:
    """How many rows a chunk of `count` elements touches, and how many elements of the first lie before it."""
    columns = beside.spec.shape[1] if beside.spec is not None else 1
    first = beside.at // width % columns
    return -(-(first + count) // columns), first


def _predicted(a: Any, v: Any, first: int, width: int, beside: Beside) -> memoryview:
    """round(base + A V) in the dtype; the base's own bits where that is not finite."""
    import numpy as np

    from ...checkpoint.floats import as_stored

    base = planes.elements(beside.data, width)
    out = base.copy()
    columns = v.shape[1]
    step = max(1, _BLOCK // columns)
    dtype = beside.spec.dtype if beside.spec is not None else ""
    with np.errstate(all="ignore"):
        for row in range(0, len(a), step):
            part = a[row : row + step].astype(np.float64)
            total = np.zeros((len(part), columns))
            product = np.empty_like(total)
            for k in range(len(v)):  # in this order; a product and a sum, never fused
                np.multiply(part[:, k, None], v[k], out=product)
                total += product
            start, stop = max(0, row * columns - first), min(len(base), (row + len(part)) * columns - first)
            sums = total.reshape(-1)[start + first - row * columns : stop + first - row * columns]
            sums += _floats(base[start:stop].data.cast("B"), beside)
            rounded = planes.elements(planes.as_bytes(as_stored(sums, dtype)), width)
            np.copyto(out[start:stop], rounded, where=np.isfinite(sums))
    return planes.as_bytes(out)


def _floats(data: Bytes, beside: Beside) -> Any:
    import numpy as np

    from ...checkpoint.floats import as_floats

    dtype = beside.spec.dtype if beside.spec is not None else ""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        found = as_floats(np.frombuffer(data, np.uint8), dtype, np.float64)
    return found.copy() if dtype == "F64" else found
