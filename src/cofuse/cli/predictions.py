"""What `show` says of a change and a Fisher: which tensors change the model's output most."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import address
from ..errors import AddressError, PatchError
from .caches import cache_folder
from .progress import shown

if TYPE_CHECKING:
    from ..measure.compat import Predicted
    from ..measure.statistics.record import StatisticsRecord

_SHOWN = 12  # tensors that do most
_NAMED = 6  # of those without a prediction


def foretell(what: str, fisher: str | None, base: str | None, *, threads: int | None, as_json: bool) -> None:
    """Print how much a patch, or a tuned model, is predicted to change the output of its base.

    Args:
        what: a patch, or the address of a model.
        fisher: address of the statistics of the base.
        base: its address.
        threads: the processor's number when None.
        as_json: print JSON.

    Raises:
        PatchError: the base or the Fisher is not given, or belongs to something else.
    """
    from ..checkpoint.remembered import Remembered
    from ..measure.compat import predict
    from ..measure.statistics.record import read_record
    from ..patch import Patch, apply, describe
    from .patches import summary

    path = Path(os.path.expanduser(what))
    patch = Patch.load(path) if what.endswith(".patch") and path.is_file() else None
    if fisher is None:
        raise AddressError(
            "a base is needed for a prediction alone", where="--base", hint="name statistics: --fisher F"
        )
    if base is None:
        raise PatchError(
            "how far a change goes cannot be told without the model that it starts from",
            where=what,
            hint="--base MODEL" + ("" if patch is None else f", the one with content id {patch.base}"),
        )
    memory = Remembered(cache_folder() / "ids")
    before = memory.watch(address.open(base))
    statistics = address.open(fisher)
    changed = address.open(what, base=before) if patch is None else apply(before, patch)
    with shown() as progress:
        found = predict(before, changed, statistics, threads=threads, progress=progress)
    memory.keep()
    said: dict[str, Any] = {"address": what} if patch is None else describe(patch)
    if as_json:
        print(json.dumps({**said, "predicted": _data(found, fisher)}))
    else:
        print(*([] if patch is None else summary(patch, said)), *_lines(found, read_record(statistics)), sep="\n")


def _data(found: Predicted, fisher: str) -> dict[str, Any]:
    return {
        "fisher": fisher,
        "unit": "nats an example",
        "total": found.total,
        "tensors": dict(found.tensors),
        "missing": list(found.missing),
        "unlike": list(found.unlike),
    }


def _lines(found: Predicted, record: StatisticsRecord) -> list[str]:
    total = found.total
    data = f" of {record.task}" if record.task else ""
    lines = [
        f"predicted KL: {total:.4g} nats an example by the diagonal alone: what training changed does far more",
        f"({record.estimator} Fisher of {record.examples} examples{data})",
        f"{'KL':>10} {'share':>7}  tensor",
    ]
    for name, value in list(found.tensors.items())[:_SHOWN]:
        lines.append(f"{value:>10.3g} {value / total if total else 0:>7.1%}  {name}")
    if len(found.tensors) > _SHOWN:
        lines.append(f"and {len(found.tensors) - _SHOWN} more that do less (--json has them all)")
    for names, why in ((found.missing, "no statistics"), (found.unlike, "no small change of floats")):
        if names:
            rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            lines.append(f"not in it ({why}): {', '.join(names[:_NAMED])}{rest}")
    return lines
