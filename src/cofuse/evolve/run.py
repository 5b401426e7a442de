"""A study, run in a folder: the rounds of every seed, the baselines beside them, everything measured.

Rounds of a seed follow one another; the contributors of a round, seeds, baselines and measurements run side by side in
worker processes. Every finished piece of work has a record, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint import Checkpoint, content_id, open_local
from ..errors import StudyError
from ..measure.statistics.record import open_statistics
from ..progress import SILENT, Progress
from ..store import Store
from ..tasks.pretrain import Pretraining
from ..versions import versions
from . import costs
from .baselines import alone, multitask
from .measuring import Measuring
from .pool import Workers, default_workers
from .records import BegunRecord, Journal, ModelRecord, job_id, writable
from .rounds import rounds
from .study import OpenStudy
from .work import Pretrain
from .workshop import Workshop, finish

Chain = Callable[[Workshop, Measuring, ModelRecord, int], None]


def evolve(
    opened: OpenStudy,
    folder: Path,
    base: Checkpoint | None,
    *,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> None:
    """Run a study, or what is left of it.

    Args:
        opened: what to do.
        folder: of the run; made when it is not there, gone on with when it is.
        base: the opened base, where the study names one rather than pretraining its own.
        workers: processes; what cores and memory allow when None. The results do not depend on it.
        progress: told what is done.

    Raises:
        StudyError: another run has the folder, the folder belongs to another study, a worker died, or no contribution
            of a round could be fused.
        CofuseError: the base, the tasks, the statistics or the disk cannot be used.
    """
    study = opened.study
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _owned(folder), Journal(folder / "records.jsonl") as journal:
        size = 0 if base is None else sum(base.spec(n).nbytes for n in base.names())
        count = workers or default_workers(study.threads, size)
        with Workers(count, study.threads) as pool:
            if journal.get("begun") is None:
                pool.start()  # they import for seconds; what is gone on with may turn out to be done
            _begin(opened, folder, base, journal)
            bar = progress.bar(f"evolving {study.name}", costs.whole(study))
            store = Store.init(folder / ".cofuse")
            shop = Workshop(opened, folder, journal, store, pool, bar, progress)
            start = _start(shop, base)
            if opened.peers is not None:
                open_statistics(opened.peers.fisher, "fisher", model=start.content)
            _run(shop, start)
            shop.forget(shop.weights())


def _run(shop: Workshop, start: ModelRecord) -> None:
    study = shop.study
    wanted: list[Chain] = [rounds]
    if study.baselines.wants_alone:
        wanted.append(alone)
    if study.together is not None:
        wanted.append(multitask)
    chains = [(chain, seed) for seed in study.seeds for chain in wanted]
    measuring = Measuring(shop)
    with ThreadPoolExecutor(len(chains)) as threads:
        try:
            for seed in study.seeds:
                measuring.measure(start.model_copy(update={"seed": seed}), old=start)
            finish([threads.submit(chain, shop, measuring, start, seed) for chain, seed in chains])
            measuring.finish()
        except BaseException:
            # Chains and measurements wait for workers: without those they end.
            shop.workers.kill()
            raise
        finally:
            measuring.stop()


def _start(shop: Workshop, base: Checkpoint | None) -> ModelRecord:
    """The base: as it was handed in, or pretrained here."""
    settings = shop.study.base
    if base is not None:
        given = base
        record_id = job_id("base", content=content_id(given))
        return shop.kept(
            record_id, lambda: given, name="pretrained", seed=0, branch="base", message="the base", record={}
        )
    assert isinstance(settings, Pretraining)  # an address would have been opened
    said = settings.model_dump(mode="json")
    work = Pretrain(settings, shop.weights("base"))
    kept = shop.kept(
        job_id("base", settings=said),
        lambda: open_local(shop.trained(work, job_id("pretrain", settings=said), "pretraining")),
        name="pretrained",
        seed=0,
        branch="base",
        message="pretrained here",
        record={"pretraining": said},
        cost=costs.training(settings, None),
    )
    shop.forget(work.folder)
    return kept


def _begin(opened: OpenStudy, folder: Path, base: Checkpoint | None, journal: Journal) -> None:
    """Refuse a folder that was begun with another study."""
    said = opened.study.model_dump(mode="json", exclude={"tasks", "keep_contributions"})
    said["task_ids"] = {t.name: t.id for t in (*opened.seen, *opened.unseen)}
    if base is not None:
        said["base_content"] = content_id(base)
    if opened.peers is None:
        del said["screen"]  # as runs say that were begun before there was one
    else:
        said["screen"]["fisher"] = opened.peers.content
    said = json.loads(json.dumps(said))  # as it will be read back
    before: BegunRecord | None = journal.get("begun")
    if before is not None and before.study != said:
        differing = sorted(k for k in {*said, *before.study} if said.get(k) != before.study.get(k))
        raise StudyError(
            "the folder belongs to another study",
            where=folder,
            got=f"a difference in {', '.join(differing)}",
            hint="give this study a folder of its own (--out), or go back to the old settings",
        )
    journal.add(BegunRecord(id="begun", study=said, versions=versions()))


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold a run's folder; the lock goes with the process, however it ends.

    Raises:
        StudyError: another process runs in it.
    """
    import fcntl

    with writable(folder):
        file = open(folder / ".lock", "w", encoding="ascii")  # noqa: SIM115 - closed below
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(
                "another run has the folder", where=folder, hint="wait for it, or choose another --out"
            ) from None
        yield
