"""`.bin` and `.pt` files, through `torch.load(weights_only=True)` and nothing else: no code of theirs ever runs."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import CheckpointError
from .checkpoint import Checkpoint, Memory


def open_pickled(paths: Sequence[Path], *, files: Mapping[str, bytes]) -> Checkpoint:
    """Open pickled weights; those in torch's zip format are mapped, not read.

    Raises:
        CheckpointError: the file is damaged, holds anything but tensors, or wants code to be run.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    where = ", ".join(str(p) for p in paths)
    for path in paths:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                "refused: the file holds more than tensors",
                where=path,
                got=str(error).splitlines()[0][:160],
                expected="a state dict that weights_only=True can load",
                hint="save the weights as safetensors",
            ) from None
        except Exception as error:  # a damaged file makes torch's reader raise whatever it trips over
            raise CheckpointError(
                "cannot read the pickled weights",
                where=path,
                got=(str(error).splitlines() or [type(error).__name__])[0][:160],
            ) from None
        if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
            loaded = loaded["state_dict"]
        if not isinstance(loaded, dict):
            raise CheckpointError("not a state dict", where=path, got=type(loaded).__name__)
        for name, value in loaded.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                raise CheckpointError(
                    "not a state dict", where=f"{path}: {str(name)[:80]}", got=type(value).__name__, expected="tensors"
                )
            tensors[name] = value
    return Memory(tensors, files=files, where=where)
