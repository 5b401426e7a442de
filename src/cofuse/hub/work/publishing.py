"""Work: make a release's commit, with its card; settled, it is the branch's tip."""

from __future__ import annotations

from sqlalchemy.orm import Session as Transaction

from ..database import Job
from ..hub import Hub
from ..quotas import count
from ..rounds import course, stages
from ..rounds.making import make
from ..rounds.releasing import make_release
from ..states import Stage
from .fusing import recorded
from .kind import Answer, Kind, Payload, Workplace


def run(place: Workplace, payload: Payload) -> Answer:
    """Make the commit; no ref is moved yet."""
    repository = str(payload["repository"])
    if payload.get("record") is not None:  # a rollback, for which there was nothing to fuse
        what = recorded(payload)
        store = place.store(repository, *what.needs)
        of = make(store, what, progress=place.progress)
    else:
        store = place.store(repository, str(payload["commit"]))
        of = store.load_commit(str(payload["commit"]))
    made = make_release(store, of, payload["release"])
    return {
        "bytes": place.deliver(repository, [made.id], [of.id]),
        "commit": made.id,
        "content": made.content,
    }


def settle(hub: Hub, transaction: Transaction, job: Job, answer: Answer) -> None:
    """Publish it."""
    round_ = stages.at(transaction, job, Stage.PUBLISHING)
    if round_ is not None:
        count(transaction, round_.repository, answer["bytes"])
        course.after_publish(hub, transaction, round_, answer)


def fail(hub: Hub, transaction: Transaction, job: Job) -> None:
    """The round has failed."""
    course.fail(transaction, job, Stage.PUBLISHING)


KIND = Kind(run, settle, fail)
