"""Features of frozen bodies, kept in a folder: a probe that differs in its head, or an old head, needs no forward pass."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...canonical import digest
from ...checkpoint import Checkpoint, SafetensorsFile, build_header
from ...errors import CofuseError
from ...tasks import Task
from ...tasks.model import uses_bf16
from ...tasks.probe import Probing, features
from ...tasks.task import Split
from .identity import measured_id

_NAME = "features"


@dataclass(frozen=True, slots=True)
class Features:
    """A folder of pooled vectors, each file under a hash of all that decides its values; it may be deleted at any time.

    The rows are part of the hash: a vector's last bits depend on the examples that shared its batch.

    Attributes:
        folder: made when it is first written to; one that cannot be written to keeps nothing.
        threads: that compute: sums depend on them.
    """

    folder: Path
    threads: int = 1

    def of(
        self, body: Checkpoint, task: Task, split: Split, rows: npt.NDArray[np.int64], settings: Probing
    ) -> npt.NDArray[np.float32]:
        """Pooled vectors [n, width] of some rows of a split, found or computed."""
        place = self.folder / f"{self._key(body, task, split, rows, settings)}.safetensors"
        found = _read(place, len(rows))
        if found is None:
            found = features(body, task, task.examples(split).take(rows), settings)
            _write(place, found)
        return found

    def _key(self, body: Checkpoint, task: Task, split: Split, rows: npt.NDArray[np.int64], settings: Probing) -> str:
        import torch
        import transformers

        return digest(
            "features",
            model=measured_id(body),
            task=task.id,
            split=split,
            rows=rows.tolist(),
            max_length=settings.max_length,
            pooling=settings.pooling,
            bf16=uses_bf16(settings.precision),
            threads=self.threads,
            versions=[torch.__version__, transformers.__version__],
        )


def _read(place: Path, count: int) -> npt.NDArray[np.float32] | None:
    """Vectors that were kept; None for what is not there, or not whole."""
    try:
        file = SafetensorsFile(place)
    except (OSError, CofuseError):
        return None
    with contextlib.closing(file):
        spec: Any = file.spec(_NAME) if _NAME in file.names() else None
        if spec is None or spec.dtype != "F32" or len(spec.shape) != 2 or spec.shape[0] != count:
            return None
        return np.frombuffer(file.read_bytes(_NAME), np.dtype("<f4")).reshape(spec.shape)


def _write(place: Path, vectors: npt.NDArray[np.float32]) -> None:
    """Keep vectors: a file appears whole or not at all. It is not fsynced, since it can be computed again."""
    header = build_header({_NAME: ("F32", vectors.shape)}, {})
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):  # a cache that cannot be written to
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(header.raw)
                file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
