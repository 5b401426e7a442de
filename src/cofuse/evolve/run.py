"""ColD Fusion here: rounds of simulated contributors, fused into the next base, measured beside its baselines.

Each seed's rounds follow one another; contributors of a round, seeds, baselines and measurements run side by side in
worker processes. Every finished piece of work has a record, so a run that was killed goes on where it was.

Source: ColD Fusion, arXiv 2212.01378, sec. 3.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from ..checkpoint import Checkpoint, content_id, open_local
from ..errors import StudyError
from ..fuse import fuse
from ..measure.protocols import Evaluation, FinetuneProtocol, Protocol
from ..progress import SILENT, Progress
from ..store import Store
from ..tasks import Task
from ..tasks.finetune import Finetuning
from ..tasks.pretrain import Pretraining
from .pool import Workers, default_workers
from .records import (
    BegunRecord,
    ContributionRecord,
    Journal,
    ModelRecord,
    RoundRecord,
    ScoreRecord,
    job_id,
)
from .screen import Offer, open_contribution, screen
from .study import OpenStudy
from .work import Contribute, Evaluate, Multitask, Pretrain, Work, seed_of

SuiteName = Literal["seen", "unseen"]


class Evolution:
    """One run of a study in a folder.

    Args:
        study: what to do.
        folder: of the run; made when it is not there, gone on with when it is.
        base: the opened base, where the study names one rather than pretraining its own.
        workers: processes; what cores and memory allow when None. The results do not depend on it.
        progress: told what is done.
    """

    def __init__(
        self,
        study: OpenStudy,
        folder: Path,
        base: Checkpoint | None,
        *,
        workers: int | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.opened = study
        self.study = study.study
        self.folder = folder
        self.base = base
        self.workers_wanted = workers
        self.progress = progress
        self._measurements: list[Future[None]] = []
        self._stopping = False

    def run(self) -> None:
        """Do what is left to do.

        Raises:
            StudyError: another run has the folder, the folder belongs to another study, or no contribution of a round
                could be fused.
            CofuseError: the base, the tasks or the disk cannot be used.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _owned(self.folder):
            self.journal = Journal(self.folder / "records.jsonl")
            try:
                self._begin()
                self.store = Store.open(self._store) if self._store.exists() else Store.init(self._store)
                size = 0 if self.base is None else sum(self.base.spec(n).nbytes for n in self.base.names())
                count = self.workers_wanted or default_workers(self.study.threads, size)
                self.bar = self.progress.bar(f"evolving {self.study.name}", self._cost())
                with Workers(count, self.study.threads) as self.workers:
                    self._all()
            finally:
                self.journal.close()

    # Parts, in the order they are done

    @property
    def _store(self) -> Path:
        return self.folder / ".cofuse"

    def _begin(self) -> None:
        said = self.study.model_dump(mode="json", exclude={"tasks", "keep_contributions"})
        said["task_ids"] = {t.name: t.id for t in (*self.opened.seen, *self.opened.unseen)}
        if self.base is not None:
            said["base_content"] = content_id(self.base)
        before = self.journal.get("begun")
        if before is not None and before.study != said:
            differing = sorted(k for k in {*said, *before.study} if said.get(k) != before.study.get(k))
            raise StudyError(
                "the folder belongs to another study",
                where=self.folder,
                got=f"a difference in {', '.join(differing)}",
                hint="give this study a folder of its own (--out), or go back to the old settings",
            )
        self.journal.add(BegunRecord(id="begun", study=said, versions=_versions()))

    def _all(self) -> None:
        start = self._start()
        chains: list[tuple[Callable[[ModelRecord, int], None], int]] = []
        for seed in self.study.seeds:
            chains.append((self._rounds, seed))
            if self.study.baselines.intertrain or self.study.baselines.fuse_once:
                chains.append((self._alone, seed))
            if self.study.baselines.multitask is not None:
                chains.append((self._multitask, seed))
        # A thread a chain waits for its workers; so does one a measurement.
        with ThreadPoolExecutor(len(chains)) as chain_threads, ThreadPoolExecutor(64) as self._threads:
            try:
                for seed in self.study.seeds:
                    self._measure(start.model_copy(update={"seed": seed}), old=start)
                running = [chain_threads.submit(chain, start, seed) for chain, seed in chains]
                self._finish(running)
                self._finish(self._measurements)
            except BaseException:
                self._stopping = True
                self.workers.kill()
                raise

    def _finish(self, futures: Sequence[Future[None]]) -> None:
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()

    def _start(self) -> ModelRecord:
        """The base, pretrained here or as it was handed in."""
        if self.base is not None:
            record_id = job_id("base", content=content_id(self.base))
            return self._keep(record_id, "pretrained", 0, lambda: self.base, "base", (), "the base", {})
        assert not isinstance(self.study.base, str)
        settings = self.study.base.model_dump(mode="json")
        work = Pretrain(self.study.base, self._folder("base"))

        def make() -> Checkpoint:
            self._contribution(
                work,
                job_id("pretrain", settings=settings),
                "base",
                3.0 * work.settings.steps * work.settings.batch_size,
            )
            return open_local(work.folder)

        kept = self._keep(
            job_id("base", settings=settings),
            "pretrained",
            0,
            make,
            "base",
            (),
            "pretrained here",
            {"pretraining": settings},
        )
        self._forget(work.folder)
        return kept

    def _rounds(self, start: ModelRecord, seed: int) -> None:
        """The rounds of one seed, each a commit on the branch `seed-N`."""
        base = start
        for number in range(1, self.study.rounds + 1):
            old, base = base, self._round(base, seed, number)
            self._measure(base, old=old, number=number)

    def _round(self, base: ModelRecord, seed: int, number: int) -> ModelRecord:
        record_id = job_id("round", base=base.content, seed=seed, number=number, study=self._round_settings())
        done: RoundRecord | None = self.journal.get(record_id)
        work = {
            f"{task.name}-{person}": self._contribute(
                base,
                task,
                seed,
                number,
                (seed, person, number if self.study.fresh else 0),
                self.study.finetune,
                self._folder(f"seed-{seed}", f"round-{number}", f"{task.name}-{person}"),
            )
            for person, task in self._people(seed, number)
        }
        if done is None:
            self._together(
                [
                    lambda w=w: self._contribution(w, self._contribution_id(w), w.task.name, self._training_cost(w))  # type: ignore[misc]
                    for w in work.values()
                ]
            )
            offers = [Offer(who, w.folder) for who, w in work.items()]
            offers += [Offer(f"offer {path.name}", self._offered(path)) for path in self.study.offers.get(number, ())]
            done = self._fuse_round(record_id, base, seed, number, offers)
        else:
            self.bar.advance(sum(self._training_cost(w) for w in work.values()))
        for w in work.values():
            self._forget(w.folder)
        return ModelRecord(
            id=job_id("model", round=record_id),
            name=f"round {number}",
            seed=seed,
            commit=done.commit,
            tree=done.tree,
            content=done.content,
        )

    def _fuse_round(
        self, record_id: str, base: ModelRecord, seed: int, number: int, offers: Sequence[Offer]
    ) -> RoundRecord:
        before = self.store.checkpoint(base.tree)
        screened = screen(offers, before)
        for refused in screened.refused:
            self.progress.say(f"seed {seed}, round {number}: refused {refused.who}: {refused.reason}")
        if not screened.bodies:
            raise StudyError(
                "no contribution could be fused",
                where=f"seed {seed}, round {number}",
                got="; ".join(f"{r.who}: {r.reason}" for r in screened.refused[:3]),
            )
        commit = self.store.commit(
            self._fused(screened.bodies, before),
            message=f"round {number}: {self.study.fuse.method} of {len(screened.bodies)} contributions",
            branch=f"seed-{seed}",
            parents=[base.commit],
            record={
                "recipe": self.study.fuse.model_dump(mode="json"),
                "base": base.content,
                "inputs": [a.model_dump(mode="json") for a in screened.accepted],
                "refused": [r.who for r in screened.refused],
                "seed": seed,
                "round": number,
            },
        )
        assert commit.content is not None  # a fuse has weights
        record = RoundRecord(
            id=record_id,
            seed=seed,
            number=number,
            commit=commit.id,
            tree=commit.tree,
            content=commit.content,
            accepted=screened.accepted,
            refused=screened.refused,
        )
        self.journal.add(record)
        return record

    def _alone(self, start: ModelRecord, seed: int) -> None:
        """Every seen task's model trained alone: intertraining baselines, and all of them fused once."""
        settings = self._alone_settings
        work = [
            self._contribute(
                start, task, seed, 0, (seed, i, 0), settings, self._folder(f"seed-{seed}", "alone", task.name)
            )
            for i, task in enumerate(self.opened.seen)
        ]
        models: list[ModelRecord | None] = [None] * len(work)

        def make(i: int) -> None:
            w = work[i]

            def trained() -> Checkpoint:
                self._contribution(w, self._contribution_id(w), w.task.name, self._training_cost(w))
                return open_contribution(w.folder, self.store.checkpoint(start.tree))

            models[i] = self._keep(
                job_id("alone", contribution=self._contribution_id(w)),
                f"intertrain:{w.task.name}",
                seed,
                trained,
                f"intertrain-{w.task.name}-seed-{seed}",
                (start.commit,),
                f"intertrained on {w.task.name}",
                {"task": w.task.name, "seed": seed},
            )
            self._forget(w.folder)
            if self.study.baselines.intertrain:
                self._measure(models[i], old=start, only=self.study.baselines.intertrain)

        self._together([lambda i=i: make(i) for i in range(len(work))])  # type: ignore[misc]
        if self.study.baselines.fuse_once:
            parts = [m for m in models if m is not None]
            bodies = [self.store.checkpoint(m.tree) for m in parts]
            base = self.store.checkpoint(start.tree)
            fused = self._keep(
                job_id(
                    "fuse once",
                    inputs=[m.content for m in parts],
                    recipe=self.study.fuse.model_dump(mode="json"),
                    seed=seed,
                ),
                "fuse once",
                seed,
                lambda: self._fused(bodies, base),
                f"fuse-once-seed-{seed}",
                (start.commit,),
                f"{len(parts)} models fused once",
                {"recipe": self.study.fuse.model_dump(mode="json"), "inputs": [m.content for m in parts], "seed": seed},
            )
            self._measure(fused, old=start)

    def _multitask(self, start: ModelRecord, seed: int) -> None:
        """All seen tasks in one place: one body, one head a task."""
        settings = self.study.finetune.model_copy(update={"steps": self.study.baselines.multitask, "epochs": None})
        work = Multitask(
            self._store,
            start.tree,
            self.opened.seen,
            self.study.examples,
            tuple((seed, i, 0) for i in range(len(self.opened.seen))),
            settings,
            seed_of("multitask", seed),
            self._folder(f"seed-{seed}", "multitask"),
        )
        record_id = job_id(
            "multitask",
            base=start.content,
            tasks=[t.id for t in work.tasks],
            examples=work.examples,
            settings=settings.model_dump(mode="json"),
            seed=seed,
            threads=self.study.threads,
        )

        def trained() -> Checkpoint:
            self._contribution(work, record_id, "multitask", 3.0 * settings.total_steps(1) * settings.batch_size)
            return open_contribution(work.folder, self.store.checkpoint(start.tree))

        model = self._keep(
            job_id("multitask model", contribution=record_id),
            "multitask",
            seed,
            trained,
            f"multitask-seed-{seed}",
            (start.commit,),
            "finetuned on all tasks at once",
            {"tasks": [t.name for t in work.tasks], "seed": seed},
        )
        self._forget(work.folder)
        self._measure(model, old=start)

    # Pieces that the parts share

    def _people(self, seed: int, number: int) -> list[tuple[int, Task]]:
        """The contributors of a round, in their own order, each with its task."""
        everybody = np.arange(self.study.people)
        if self.study.per_round is not None:
            random = np.random.default_rng([seed, number, self.study.people])
            everybody = np.sort(random.choice(everybody, self.study.per_round, replace=False))
        return [(int(i), self.opened.seen[int(i) % len(self.opened.seen)]) for i in everybody]

    def _contribute(
        self,
        base: ModelRecord,
        task: Task,
        seed: int,
        number: int,
        sample: tuple[int, ...],
        settings: Finetuning,
        folder: Path,
    ) -> Contribute:
        training_seed = seed_of("contribution", task.name, number, *sample)
        return Contribute(self._store, base.tree, task, self.study.examples, sample, settings, training_seed, folder)

    def _contribution_id(self, work: Contribute) -> str:
        return job_id(
            "contribution",
            base=work.base,
            task=work.task.id,
            examples=work.examples,
            sample=work.sample,
            settings=work.settings.model_dump(mode="json"),
            seed=work.seed,
            threads=self.study.threads,
        )

    def _contribution(self, work: Contribute | Multitask | Pretrain, record_id: str, task: str, cost: float) -> None:
        """Train, unless that is done and its weights are still there."""
        if self.journal.get(record_id) is None or not work.folder.is_dir():
            result = self._do(work)
            self.journal.add(
                ContributionRecord(id=record_id, folder=str(work.folder.relative_to(self.folder)), task=task, **result)
            )
        self.bar.advance(cost)

    def _keep(
        self,
        record_id: str,
        name: str,
        seed: int,
        make: Callable[[], Checkpoint | None],
        branch: str,
        parents: Sequence[str],
        message: str,
        record: dict[str, Any],
    ) -> ModelRecord:
        """Commit a model, unless that is done."""
        done: ModelRecord | None = self.journal.get(record_id)
        if done is not None:
            return done
        source = make()
        assert source is not None
        commit = self.store.commit(source, message=message, branch=branch, parents=list(parents), record=record)
        if commit.content is None:
            raise StudyError("the base holds no weights", where=source.where)
        kept = ModelRecord(
            id=record_id, name=name, seed=seed, commit=commit.id, tree=commit.tree, content=commit.content
        )
        self.journal.add(kept)
        return kept

    def _fused(self, bodies: Sequence[Checkpoint], base: Checkpoint) -> Checkpoint:
        return fuse(self.study.fuse.method, bodies, base=base, **cast("dict[str, Any]", self.study.fuse.parameters))

    def _measure(
        self, model: ModelRecord | None, *, old: ModelRecord, number: int | None = None, only: tuple[str, ...] = ()
    ) -> None:
        """Hand out the measurements of a model; they are waited for at the end.

        With `only`, none but these protocols on the unseen tasks: there are as many intertrained models as seen tasks,
        and what they do on each other's tasks is not the question.
        """
        assert model is not None
        self.journal.add(model.model_copy(update={"id": job_id("model", name=model.name, seed=model.seed)}))
        for suite, task, name, settings in self._planned(number, only):
            self._measurements.append(self._threads.submit(self._score, model, old, suite, task, name, settings))

    def _planned(
        self, number: int | None, only: tuple[str, ...] = ()
    ) -> Iterator[tuple[SuiteName, Task, str, Protocol]]:
        suites: tuple[tuple[SuiteName, tuple[Task, ...], Evaluation], ...] = (
            ("unseen", self.opened.unseen, self.study.evaluate_unseen),
            ("seen", self.opened.seen, self.study.evaluate_seen),
        )
        for suite, tasks, evaluation in suites:
            for name, settings in evaluation.chosen().items():
                if only and (name not in only or suite == "seen"):
                    continue
                if number is None or settings.due(number, self.study.rounds):
                    for task in tasks:
                        yield suite, task, name, settings

    def _score(
        self, model: ModelRecord, old: ModelRecord, suite: SuiteName, task: Task, name: str, settings: Protocol
    ) -> None:
        against = old if name == "oldhead" else None
        record_id = job_id(
            "score",
            content=model.content,
            old=against.content if against else None,
            task=task.id,
            protocol=name,
            settings=settings.model_dump(mode="json", exclude={"every"}),
            seed=model.seed,
            threads=self.study.threads,
        )
        if self.journal.get(record_id) is None and not self._stopping:
            work = Evaluate(
                self._store, model.tree, against.tree if against else None, task, name, settings, model.seed
            )
            result = self._do(work)
            self.journal.add(
                ScoreRecord(
                    id=record_id,
                    content=model.content,
                    seed=model.seed,
                    suite=suite,
                    task=task.name,
                    protocol=name,
                    metric=task.score_name,
                    **result,
                )
            )
        self.bar.advance(_measuring_cost(settings))

    def _do(self, work: Work) -> dict[str, Any]:
        return self.workers.result(self.workers.submit(work))

    def _together(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Run jobs in threads that wait for workers; the first failure is raised."""
        with ThreadPoolExecutor(max(1, len(jobs))) as threads:
            self._finish([threads.submit(job) for job in jobs])

    def _folder(self, *parts: str) -> Path:
        return self.folder.joinpath("contributions", *parts)

    def _forget(self, folder: Path) -> None:
        """Drop weights that a commit has fused or holds."""
        if not self.study.keep_contributions:
            shutil.rmtree(folder, ignore_errors=True)

    def _offered(self, path: Path) -> Path:
        return path if path.is_absolute() else self.opened.folder / path

    # Costs, in examples that go forward through the body once, for the time left

    @property
    def _alone_settings(self) -> Finetuning:
        steps = self.study.alone_steps
        return (
            self.study.finetune
            if steps is None
            else self.study.finetune.model_copy(update={"steps": steps, "epochs": None})
        )

    def _round_settings(self) -> dict[str, Any]:
        wanted = {"finetune", "fuse", "examples", "fresh", "contributors", "per_round", "threads"}
        settings = self.study.model_dump(mode="json", include=wanted)
        settings["offers"] = sorted(map(str, self.study.offers))
        settings["tasks"] = [t.id for t in self.opened.seen]
        return settings

    def _training_cost(self, work: Contribute) -> float:
        return 3.0 * work.settings.total_steps(work.examples or 1000) * work.settings.batch_size

    def _cost(self) -> float:
        study = self.study
        round_cost = 3.0 * study.finetune.total_steps(study.examples or 1000) * study.finetune.batch_size
        total = round_cost * (study.per_round or study.people) * study.rounds * len(study.seeds)
        if isinstance(study.base, Pretraining):
            total += 3.0 * study.base.steps * study.base.batch_size
        models = 1
        if study.baselines.intertrain or study.baselines.fuse_once:
            alone = 3.0 * self._alone_settings.total_steps(study.examples or 1000) * study.finetune.batch_size
            total += alone * len(study.seen) * len(study.seeds)
            models += int(study.baselines.fuse_once)
        if study.baselines.multitask is not None:
            total += 3.0 * study.baselines.multitask * study.finetune.batch_size * len(study.seeds)
            models += 1
        measured = models * sum(_measuring_cost(p) for *_, p in self._planned(None))
        measured += sum(_measuring_cost(p) for n in range(1, study.rounds + 1) for *_, p in self._planned(n))
        if study.baselines.intertrain:
            each = sum(_measuring_cost(p) for *_, p in self._planned(None, study.baselines.intertrain))
            measured += len(study.seen) * each
        return total + measured * len(study.seeds)


def _measuring_cost(protocol: Protocol) -> float:
    tested, trained = float(protocol.test or 1000), protocol.examples or 1000
    if isinstance(protocol, FinetuneProtocol):
        steps = protocol.finetuning.total_steps(trained)
        return protocol.draws * (3.0 * steps * protocol.finetuning.batch_size + tested)
    return protocol.draws * trained + tested


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("cofuse", "torch", "transformers", "scikit-learn", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold a run's folder; the lock goes with the process, however it ends.

    Raises:
        StudyError: another process runs in it.
    """
    import fcntl

    with open(folder / ".lock", "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(
                "another run has the folder", where=folder, hint="wait for it, or choose another --out"
            ) from None
        yield
