"""Fisher: what came with it is finite, not negative, of these weights; and no louder than anybody's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np

from ...checkpoint import CHUNK, Checkpoint, SafetensorsFile, TensorSpec, View
from ...checkpoint.floats import FLOATS
from ...errors import CheckpointError
from ...measure.statistics.record import RECORD, open_statistics
from ..states import Checked
from .case import Case, Found
from .form import joined
from .geometry import floats

MOST = 1e4  # times the mean that one value may be
_MAX_RECORD = 1 << 20


def look(case: Case) -> Found:
    """Check it, and scale it so that its mean is 1 and no value is above `MOST`: a Fisher times a billion is the same."""
    given = _opened(case)
    if given is None:
        return Found(Checked.SKIP, "none came with it")
    if case.body is None:
        raise TypeError("there is no body")
    open_statistics(given, "fisher", model=case.content)
    for name in given.names():
        spec = case.body.spec(name) if name in case.body else None
        if spec is None or given.spec(name).shape != spec.shape or given.spec(name).dtype not in FLOATS:
            raise CheckpointError("the Fisher does not fit the weights", where=f"Fisher: {name}", got=given.spec(name))
    total, count = 0.0, 0
    for name in given.names():
        for start, stop in _stretches(given.spec(name)):
            total += _sum(given, name, start, stop)
        count += given.spec(name).numel
    mean = total / count if count else 0.0
    if not mean > 0 or not math.isfinite(mean):
        raise CheckpointError("the Fisher says nothing", where="Fisher", got=f"a mean of {mean:g}")
    case.fisher = Normalised(given, 1 / mean)
    detail = {"mean": mean, "values": count, "cap": MOST}
    return Found(Checked.PASS, f"{count:,} values of mean {mean:.3g}, scaled to mean 1 and capped at {MOST:g}", detail)


class Normalised(Checkpoint):
    """A Fisher, scaled and capped as it is read; float32."""

    def __init__(self, given: Checkpoint, scale: float) -> None:
        self._given, self._scale = given, scale
        record = json.loads(given.files[RECORD])
        record["settings"] = {**record.get("settings", {}), "scaled": f"to mean 1, at most {MOST:g}"}
        self._files = {RECORD: json.dumps(record, sort_keys=True, indent=2).encode() + b"\n"}
        self._aliases = given.aliases
        self._where = given.where

    def names(self) -> tuple[str, ...]:
        return self._given.names()

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec("F32", self._given.spec(name).shape)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray | memoryview:
        start, stop = self.check_range(name, start, stop)
        first, last = start // 4, -(-stop // 4)
        with np.errstate(over="ignore"):
            values = floats(self._given, name, first, last).astype(np.float64) * self._scale
        data: bytes = np.minimum(values, MOST).astype("<f4").tobytes()
        return data[start - 4 * first : stop - 4 * first]


def _opened(case: Case) -> Checkpoint | None:
    commit = case.payload["sent"].get("fisher_commit")
    if commit:
        return case.store.checkpoint(commit)
    files = case.files("fisher")
    if not files:
        return None
    record = files.pop(RECORD)
    if record.stat().st_size > _MAX_RECORD:
        raise CheckpointError("the record is too large", where=RECORD)
    weights = joined({name: SafetensorsFile(path) for name, path in files.items()})
    if not isinstance(weights, View):
        raise TypeError("not a view")
    return View(weights.sources, files={RECORD: record.read_bytes()}, aliases=weights.aliases, where="Fisher")


def _stretches(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    step = CHUNK // 4
    for start in range(0, spec.numel, step):
        yield start, min(start + step, spec.numel)


def _sum(given: Checkpoint, name: str, start: int, stop: int) -> float:
    values = floats(given, name, start, stop)
    bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if len(bad):
        at = int(bad[0])
        raise CheckpointError(
            "a Fisher is finite and not negative", where=f"Fisher: {name}", got=f"{values[at]} at element {start + at}"
        )
    return float(values.sum(dtype=np.float64))
