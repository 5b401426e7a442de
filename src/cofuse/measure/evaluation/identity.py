"""What of a model decides its scores: its tensors, its configuration, its tokenizer."""

from __future__ import annotations

from pathlib import PurePosixPath

from blake3 import blake3

from ...canonical import digest
from ...checkpoint import Checkpoint, content_id

# Files beside the weights that say nothing to a forward pass: what made the model, and what it is called.
_SILENT = frozenset({"cofuse.json", "modules.json", "generation_config.json"})
_SPEAKING = frozenset({".json", ".txt", ".model", ".tiktoken"})


def files_id(checkpoint: Checkpoint) -> str:
    """A hash of the configuration and the tokenizer: the same weights behind another tokenizer score otherwise."""
    names = [n for n in checkpoint.files if PurePosixPath(n).suffix in _SPEAKING and n not in _SILENT]
    return digest("files", files={name: blake3(checkpoint.files[name]).hexdigest() for name in sorted(names)})


def measured_id(checkpoint: Checkpoint) -> str:
    """A hash of all that decides what a model computes."""
    return digest("model", content=content_id(checkpoint, threads=1), files=files_id(checkpoint))
