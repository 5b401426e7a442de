"""Work: score a version on its repository's suite."""

from __future__ import annotations

import time

from sqlalchemy import delete
from sqlalchemy.orm import Session as Transaction

from ...errors import CofuseError
from ..database import Evaluation, Job, Repository
from ..hub import Hub
from ..logs import LOG
from ..suites import opened
from . import queue
from .comparing import judge
from .judging import model_of
from .kind import Answer, Kind, Payload, Workplace


def ask_scores(transaction: Transaction, repository: Repository, commit: str) -> Job | None:
    """Ask for a version's scores; None where the repository has no suite."""
    if not repository.suite.strip():
        return None
    payload = {
        "repository": repository.full_name,
        "commit": commit,
        "suite": repository.suite,
        "suite_hash": repository.suite_hash,
    }
    return queue.ask(transaction, "evaluate", key_of(repository, commit), repository.id, payload)


def key_of(repository: Repository, commit: str) -> str:
    """The key of the job that scores a version: the same commit may be in other repositories too."""
    return f"evaluate:{repository.id}:{commit}:{repository.suite_hash}"


def run(place: Workplace, payload: Payload) -> Answer:
    """Measure what has no record yet; rows as every summary has them."""
    try:
        suite = opened(str(payload["suite"]), place.tasks)
    except CofuseError as error:
        return {"rows": [], "failures": [error.what]}
    from ...measure.evaluation.evaluating import evaluate
    from ...measure.evaluation.records import Records
    from ...report.evaluation import summarize_evaluation

    commit = str(payload["commit"])
    store = place.store(str(payload["repository"]), commit)
    parents = store.load_commit(commit).parents
    before = parents[0] if parents else commit
    store = place.store(str(payload["repository"]), commit, before)
    model, records = model_of(store, "version", commit), Records(place.records)
    found = evaluate(
        [model],
        suite,
        records,
        old=model_of(store, "before", before),
        cache=place.folder / "features",
        progress=place.progress,
    )
    summary = summarize_evaluation([model], suite, found, records)
    rows = [
        {
            "task": r.task,
            "protocol": r.protocol,
            "metric": r.metric,
            "mean": r.mean,
            "low": r.low,
            "high": r.high,
            "n": r.n,
        }
        for r in summary.rows
    ]
    return {"rows": rows, "failures": [f"{f.task}, {f.protocol}: {f.error.what}" for f in found.failures]}


def settle(hub: Hub, transaction: Transaction, job: Job, answer: Answer) -> None:
    """Keep the scores; measured again, they take the place of those before."""
    commit, suite = job.payload["commit"], job.payload["suite_hash"]
    transaction.execute(
        delete(Evaluation).where(
            Evaluation.repository_id == job.repository_id, Evaluation.commit == commit, Evaluation.suite == suite
        )
    )
    for row in answer["rows"]:
        transaction.add(
            Evaluation(repository_id=job.repository_id, commit=commit, suite=suite, created=time.time(), **row)
        )
    judge(transaction, job.repository_id, commit)
    if answer["failures"]:
        LOG.warning("not measured", extra={"commit": commit, "failures": answer["failures"][:5]})


def fail(hub: Hub, transaction: Transaction, job: Job) -> None:
    """Nothing waits for it."""


KIND = Kind(run, settle, fail)
