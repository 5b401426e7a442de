"""How much two tensors differ: sums over their elements, in float64, by blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..checkpoint import CHUNK, Checkpoint, TensorSpec, map_each
from ..checkpoint.dtypes import bits
from ..progress import Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating[Any]]

_BLOCK = 256 * 1024  # elements whose numbers are worked out at a time: a few arrays of these fit the processor's cache
_INTEGERS = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "u2",
    "I16": "i2",
    "U32": "u4",
    "I32": "i4",
    "U64": "u8",
    "I64": "i8",
}


class Sums(NamedTuple):
    """What adds up over the elements of a tensor."""

    aa: float = 0.0  # ||a||^2
    dd: float = 0.0  # ||b - a||^2
    cc: float = 0.0  # ||c - a||^2
    dc: float = 0.0  # <b - a, c - a>
    elements: int = 0
    differ: int = 0
    largest: float = 0.0
    strange: int = 0

    @classmethod
    def of(cls, parts: Iterable[Sums]) -> Sums:
        rows = list(zip(*parts, strict=True)) or [()] * 8
        aa, dd, cc, dc = (math.fsum(row) for row in rows[:4])
        return cls(aa, dd, cc, dc, sum(rows[4]), sum(rows[5]), max(rows[6], default=0.0), sum(rows[7]))

    def numbers(self, like: bool) -> dict[str, Any]:
        relative = math.sqrt(self.dd / self.aa) if self.aa else math.inf if self.dd else 0.0
        length = math.sqrt(self.dd) * math.sqrt(self.cc)
        finite = math.isfinite(self.aa) and math.isfinite(self.dd)  # squares of huge float64 are not
        return {
            "relative": relative if finite else None,
            "fraction": self.differ / self.elements if self.elements else 0.0,
            "largest": self.largest,
            "strange": self.strange,
            "cosine": max(-1.0, min(1.0, self.dc / length)) if like and 0 < length < math.inf else None,
        }


class _Job(NamedTuple):
    """Some elements of a tensor."""

    name: str
    start: int
    stop: int


def measured(
    before: Checkpoint,
    after: Checkpoint,
    like: Checkpoint | None,
    names: Sequence[str],
    threads: int,
    progress: Progress,
) -> dict[str, Sums]:
    """The sums of each tensor; what has no elements to subtract (4-bit floats) is compared byte by byte."""
    bar = progress.bar("comparing", sum(after.spec(name).nbytes for name in names), "B")
    jobs: list[_Job] = []
    for name in names:
        a, b = before.spec(name), after.spec(name)
        opaque = not (_numbers(a) and _numbers(b))
        # By whole chunks, so that each is unpacked once.
        step = CHUNK // max(1, bits(a.dtype) // 8, bits(b.dtype) // 8)
        total = a.nbytes if opaque else a.numel
        jobs += [_Job(name, at, min(at + step, total)) for at in range(0, total, step)]

    def work(job: _Job) -> Sums:
        a, b = before.spec(job.name), after.spec(job.name)
        if not (_numbers(a) and _numbers(b)):
            same = before.read_bytes(job.name, job.start, job.stop) == after.read_bytes(job.name, job.start, job.stop)
            bar.advance(job.stop - job.start)
            return Sums(differ=not same)
        third = like if like is not None and job.name in like and like.spec(job.name).shape == a.shape else None
        third = third if third is not None and _numbers(third.spec(job.name)) else None
        blocks = []
        for start in range(job.start, job.stop, _BLOCK):
            stop = min(start + _BLOCK, job.stop)
            blocks.append(_block(before, after, third, _Job(job.name, start, stop)))
            bar.advance((stop - start) * bits(b.dtype) // 8)
        return Sums.of(blocks)

    found: dict[str, list[Sums]] = {name: [] for name in names}
    for job, one in zip(jobs, map_each(work, jobs, threads), strict=True):
        found[job.name].append(one)
    return {name: Sums.of(parts) for name, parts in found.items()}


def _block(before: Checkpoint, after: Checkpoint, like: Checkpoint | None, job: _Job) -> Sums:
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):  # a NaN of any kind, and what overflows, are counted below
        raw_a, a = _read(before, job)
        raw_b, b = _read(after, job)
        same_dtype = before.spec(job.name).dtype == after.spec(job.name).dtype
        differ = raw_a != raw_b if same_dtype else ~((a == b) | (np.isnan(a) & np.isnan(b)))
        finite = np.isfinite(a) & np.isfinite(b)
        strange = len(a) - int(np.count_nonzero(finite))
        if strange:
            a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
        d = b - a
        sums = Sums(
            aa=_dot(a, a),
            dd=_dot(d, d),
            elements=len(a),
            differ=int(np.count_nonzero(differ)),
            largest=float(np.abs(d).max(initial=0.0)),
            strange=strange,
        )
        if like is None:
            return sums
        e = _read(like, job)[1] - a
        e[~(finite & np.isfinite(e))] = 0.0
        return sums._replace(cc=_dot(e, e), dc=_dot(d, e))


def _dot(a: Floats, b: Floats) -> float:
    import numpy as np

    return float(np.einsum("i,i->", a, b))  # unlike BLAS, the same sum however many threads there are


def _numbers(spec: TensorSpec) -> bool:
    from ..checkpoint.floats import FLOATS

    return spec.dtype in FLOATS or spec.dtype in _INTEGERS


def _read(checkpoint: Checkpoint, job: _Job) -> tuple[npt.NDArray[Any], Floats]:
    """Elements as they are kept, and as float64."""
    import numpy as np

    from ..checkpoint.floats import FLOATS, as_floats

    code = checkpoint.spec(job.name).dtype
    width = bits(code) // 8
    raw = np.empty((job.stop - job.start) * width, np.uint8)
    if len(raw):
        checkpoint.read_into(job.name, job.start * width, raw.data)
    bare = raw.view(f"u{width}")
    if code in FLOATS:
        return bare, as_floats(raw, code, np.float64)
    return bare, raw.view(_INTEGERS[code]).astype(np.float64)
