"""Work: make a round's commit out of its contributions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.orm import Session as Transaction

from ...fuse.record import versions
from ...progress import Progress
from ...store import Store
from ...store.differences import differences
from ..database import Job
from ..hub import Hub
from ..quotas import count
from ..rounds import course, stages
from ..rounds.making import Recorded, make
from ..states import Stage
from .kind import Answer, Kind, Payload, Workplace

_MOST = 5000  # tensors whose change is told one by one


def run(place: Workplace, payload: Payload) -> Answer:
    """Fuse, streaming, into a commit; then see how far it is from its base."""
    what = recorded(payload)
    repository = str(payload["repository"])
    store = place.store(repository, *what.needs)
    made = make(store, what, progress=place.progress)
    return {
        "bytes": place.deliver(repository, [made.id], what.needs),
        "commit": made.id,
        "content": made.content,
        "before": store.load_commit(what.base).content,
        "figures": figures(store, what.base, made.id, place.progress),
    }


def recorded(payload: Mapping[str, Any]) -> Recorded:
    """What is to be made, with the versions of what makes it here."""
    what = Recorded(payload["base"], payload["message"], payload["record"])
    return replace(what, record={**what.record, "versions": versions()})


def figures(store: Store, before: str, after: str, progress: Progress) -> dict[str, Any]:
    """How far a version is from another: the relative norm of the change, over all and tensor by tensor."""
    found = differences(store.checkpoint(before), store.checkpoint(after), progress=progress)
    return {
        "relative": _number(found.relative),
        "changed": len(found.tensors),
        "same": found.same,
        "tensors": {one.name: _number(one.relative) for one in found.tensors[:_MOST]},
    }


def _number(value: float | None) -> float | None:
    return round(value, 8) if value is not None and math.isfinite(value) else None


def settle(hub: Hub, transaction: Transaction, job: Job, answer: Answer) -> None:
    """Have the commit judged."""
    round_ = stages.at(transaction, job, Stage.FUSING)
    if round_ is not None:
        count(transaction, round_.repository, answer["bytes"])
        course.after_fuse(hub, transaction, round_, job.payload, answer)


def fail(hub: Hub, transaction: Transaction, job: Job) -> None:
    """The round has failed."""
    course.fail(transaction, job, Stage.FUSING)


KIND = Kind(run, settle, fail)
