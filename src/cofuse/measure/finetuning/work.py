"""A folder in which a training is kept until its end: whose it is, and what may be removed of it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from ...checkpoint import replace_file
from ...checkpoint.durable import sweep
from ...errors import TaskError
from ...tasks import Examples

TRAINER, FISHER = "trainer", "fisher"  # what is kept
_WORK = "work.json"  # what the work is
_MARK = "cofuse finetune"  # a key that stands in no other work.json


def examples_id(examples: Examples) -> str:
    """A hash of all inputs and labels."""
    seen = blake3()
    for name, column in sorted({**examples.inputs, "": examples.labels}.items()):
        if isinstance(column, np.ndarray) and not column.dtype.hasobject:
            kind, data = f"{column.dtype} {column.shape}", column.tobytes()
        else:
            kind, data = "list", json.dumps(list(column)).encode()
        seen.update(f"{name} {kind} {len(data)}\n".encode() + data)
    return seen.hexdigest()


def keep_apart(folder: Path, record: Mapping[str, Any]) -> None:
    """Make a folder the place of a work; other work in it is removed, as it would lead elsewhere.

    Args:
        folder: a new or empty one, or one of earlier work.
        record: what decides where the work ends.

    Raises:
        TaskError: the folder holds other things; they stay.
        CheckpointError: it cannot be written.
    """
    said = {_MARK: record}
    if folder.is_dir():
        sweep(folder)
    if _work_in(folder) == said:
        return
    discard(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise TaskError(
            "the place of the training's work holds other things",
            where=folder,
            expected="a new or empty folder, or one of an interrupted training",
            hint="move it away, or write elsewhere",
        )
    replace_file(folder / _WORK, json.dumps(said, sort_keys=True).encode())


def _work_in(folder: Path) -> Any:
    """What a folder says that its work is; None where there is none."""
    try:
        said = json.loads((folder / _WORK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and _MARK in said else None


def discard(folder: Path) -> None:
    """Remove what was kept in a folder of work, and the folder where nothing else is in it; folders of others stay."""
    if _work_in(folder) is None:
        return
    sweep(folder)
    for name in (TRAINER, FISHER):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / _WORK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody put something there, or it is a link
        folder.rmdir()
