"""What a patch says of itself, as data for people and machines."""

from __future__ import annotations

import math
from typing import Any

from ..checkpoint.bitcode import width_of
from .patch import Patch


def describe(patch: Patch) -> dict[str, Any]:
    """A patch as data: its ids, errors and bytes, and of every tensor what changes.

    All of the file is read. `error` is ||tuned - result|| over ||tuned - base|| (Frobenius norms), null where the latter is not
    known; `position_entropy_bytes` is what places would take if each tensor's were drawn at random.
    """
    said = patch.manifest
    sizes = {name: rest for name, *rest in patch.sizes()}
    tensors: dict[str, Any] = {}
    for name, change in said.tensors.items():
        values, positions, bytes_ = sizes.get(name, (None, 0, patch.factor_bytes(name) if change.rank else 0))
        tensors[name] = {
            "dtype": change.dtype,
            "shape": list(change.shape),
            "values": values,
            "bytes": positions + bytes_,
            "change": change.norm / change.base if change.norm is not None and change.base else None,
            "error": change.left / change.norm if change.norm else (None if change.left else 0.0),
            "most": change.most,
            "how": change.how,
            "rank": change.rank,
        }
    elements = {name: said.tensors[name].spec.nbytes // width_of(said.tensors[name].dtype) for name in sizes}
    chosen = {name: (n, elements[name]) for name, (n, at, _) in sizes.items() if at and n < elements[name]}
    changes = said.tensors.values()
    left = math.sqrt(math.fsum(change.left**2 for change in changes))
    norms = math.sqrt(math.fsum((change.norm or 0.0) ** 2 for change in changes))
    known = all(change.norm is not None for change in changes if change.left)
    return {
        "patch": str(patch.path),
        "made": said.made,
        "bytes": patch.nbytes,
        "base": said.base,
        "tuned": said.tuned,
        "result": said.result,
        "exact": said.exact,
        "left": left,
        "error": left / norms if norms and known else (None if left else 0.0),
        "most": max((change.most for change in changes), default=0.0),
        "values": sum(n for n, _, _ in sizes.values()),
        "elements": sum(elements.values()),
        "position_bytes": sum(at for _, at, _ in sizes.values()),
        "position_entropy_bytes": sum(total * entropy(n / total) / 8 for n, total in chosen.values()),
        "value_bytes": sum(rest for _, _, rest in sizes.values()),
        "tensors": tensors,
        "removed": list(said.removed),
        "files": list(said.files),
        "removed_files": list(said.removed_files),
    }


def entropy(p: float) -> float:
    """Bits that it takes to say of each element whether it is one of a share p, chosen at random.

    >>> round(entropy(0.005) / 0.005, 2)
    9.08
    """
    return 0.0 if p in (0, 1) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)
