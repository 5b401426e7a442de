"""What all parts of a run share: its folder, journal, store and workers; and the two things done with them.

`trained` has a worker finetune and write weights; `kept` commits a model. Both are done once: a record says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from ..checkpoint import Checkpoint, content_id, open_local
from ..errors import CofuseError, StudyError
from ..fuse import fuse
from ..progress import Bar, Progress
from ..store import Store
from . import costs
from .pool import Workers
from .records import ContributionRecord, Journal, ModelRecord
from .study import OpenStudy, Study
from .work import Contribute, Multitask, Pretrain, Work

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workshop:
    """A run while it is going on."""

    opened: OpenStudy
    folder: Path
    journal: Journal
    store: Store
    workers: Workers
    bar: Bar
    progress: Progress

    @property
    def study(self) -> Study:
        """The study that is run."""
        return self.opened.study

    def weights(self, *parts: str) -> Path:
        """Where weights lie until a commit holds them."""
        return self.folder.joinpath("contributions", *parts)

    def do(self, work: Work) -> dict[str, Any]:
        """Have a worker do something, and wait for it."""
        return self.workers.do(work)

    def trained(self, work: Contribute | Multitask | Pretrain, record_id: str, what: str) -> Path:
        """The folder with the weights of a training run, which is done unless it is done already.

        Weights that an earlier process left are not fsynced and may be damaged: those are made again.
        """
        record: ContributionRecord | None = self.journal.get(record_id)
        if record is None or not _holds(work.folder, record.content):
            shutil.rmtree(work.folder, ignore_errors=True)  # what is no checkpoint any more would not be replaced
            result = self.do(work)
            place = str(work.folder.relative_to(self.folder))
            self.journal.add(ContributionRecord(id=record_id, folder=place, task=what, **result))
        self.bar.advance(costs.training(work.settings, self.study.examples))
        return work.folder

    def kept(
        self,
        record_id: str,
        make: Callable[[], Checkpoint],
        *,
        name: str,
        seed: int,
        branch: str,
        parents: Sequence[str] = (),
        message: str,
        record: dict[str, Any],
        cost: float = 0.0,
    ) -> ModelRecord:
        """The commit of a model, which is made unless it is there already; `cost` is what making it tells the bar."""
        done: ModelRecord | None = self.journal.get(record_id)
        if done is not None:
            self.bar.advance(cost)
            return done
        source = make()
        commit = self.store.commit(source, message=message, branch=branch, parents=list(parents), record=record)
        if commit.content is None:
            raise StudyError("the model holds no weights", where=source.where)
        kept = ModelRecord(
            id=record_id, name=name, seed=seed, commit=commit.id, tree=commit.tree, content=commit.content
        )
        self.journal.add(kept)
        return kept

    def fused(self, bodies: Sequence[Checkpoint], base: Checkpoint) -> Checkpoint:
        """Bodies made one as the study says."""
        parameters = cast("dict[str, Any]", self.study.fuse.parameters)
        return fuse(self.study.fuse.method, bodies, base=base, **parameters)

    def forget(self, folder: Path) -> None:
        """Drop weights that a commit holds or has fused."""
        if not self.study.keep_contributions:
            shutil.rmtree(folder, ignore_errors=True)


def _holds(folder: Path, content: str | None) -> bool:
    """Whether a folder has the weights that it should."""
    try:
        return content_id(open_local(folder), threads=1) == content
    except CofuseError:
        return False


def together(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run jobs in threads, each of which waits for workers; what they give, or the first failure, which is raised."""
    with ThreadPoolExecutor(max(1, len(jobs))) as threads:
        return finish([threads.submit(job) for job in jobs])


def finish(futures: Sequence[Future[T]]) -> list[T]:
    """Wait for all and give their results; or for the first failure, and raise that."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    return [future.result() for future in futures]
