"""Format: safetensors, a patch, or a commit that holds safetensors. Nothing else is even opened."""

from __future__ import annotations

from ...checkpoint import Checkpoint, SafetensorsFile, Source, View
from ...errors import CheckpointError
from ...patch import Patch
from ..states import Checked
from .case import Case, Found


def look(case: Case) -> Found:
    """Open it; its headers are checked, no weights are read."""
    files = case.files()
    if case.source == "commit":
        case.sent = case.store.checkpoint(case.payload["sent"]["commit"])
        return Found(Checked.PASS, f"a commit: {len(case.sent.names())} tensors", {"tensors": len(case.sent.names())})
    if case.source == "patch":
        (path,) = files.values()
        case.patch = Patch(path)
        changed, size = len(case.patch.manifest.tensors), case.patch.nbytes
        detail = {"bytes": size, "tensors": changed, "made": case.patch.manifest.made[:200]}
        return Found(Checked.PASS, f"a patch: {size:,} bytes, {changed} tensors changed", detail)
    case.sent = joined({name: SafetensorsFile(path) for name, path in files.items()})
    total = sum(path.stat().st_size for path in files.values())
    count = len(case.sent.names())
    return Found(Checked.PASS, f"safetensors: {total:,} bytes, {count} tensors", {"bytes": total, "tensors": count})


def joined(files: dict[str, SafetensorsFile]) -> Checkpoint:
    """The tensors of several files as one checkpoint.

    Raises:
        CheckpointError: two have one name.
    """
    sources: dict[str, Source] = {}
    for name, file in files.items():
        for tensor in file.names():
            if tensor in sources:
                raise CheckpointError("two files have a tensor of one name", where=name, got=tensor)
            sources[tensor] = Source(file, tensor)
    aliases = {alias: kept for file in files.values() for alias, kept in file.aliases.items() if alias not in sources}
    return View(sources, aliases=aliases, where=next(iter(files), "weights") if len(files) == 1 else "weights")
