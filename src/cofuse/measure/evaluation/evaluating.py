"""Evaluating models on a suite: pieces of work for processes, each done once and never again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...canonical import digest
from ...checkpoint import Checkpoint, content_id
from ...errors import CofuseError, SuiteError
from ...progress import SILENT, Bar, Progress
from ...tasks import Task
from ...versions import versions as installed
from ...workers import Workers
from ..outcomes import Outcomes
from .as_is import ALL
from .costs import measuring
from .features import Features
from .identity import files_id
from .protocols import Given, Protocol
from .records import Record, Records
from .suite import Measure, OpenSuite

Opener = Callable[[], Checkpoint]


@dataclass(frozen=True)
class Model:
    """A model to evaluate: what it is called, how a process opens it, and which one it must be then.

    Attributes:
        name: unique in an evaluation.
        open: gives the checkpoint; can be pickled.
        content: content id of its tensors.
        files: hash of its configuration and tokenizer.
        commit: that holds it; empty where none is known.
    """

    name: str
    open: Opener
    content: str
    files: str
    commit: str = ""

    @classmethod
    def of(cls, name: str, opener: Opener, commit: str = "") -> Model:
        """Open a model once to know which one it is."""
        checkpoint = opener()
        return cls(name, opener, content_id(checkpoint), files_id(checkpoint), commit)


@dataclass(frozen=True)
class Failure:
    """A measurement that could not be made, and why."""

    model: str
    task: str
    protocol: str
    seed: int
    error: CofuseError


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation gave.

    Attributes:
        records: by model, of all that is measured, in the order of the suite.
        failures: of what could not be measured.
        made: how many measurements were made now; the others had been made before.
    """

    records: dict[str, tuple[Record, ...]]
    failures: tuple[Failure, ...]
    made: int


@dataclass(frozen=True)
class Measurement:
    """A piece of work: one model on one task by one protocol with one seed. Depends on its arguments alone."""

    model: Model
    old: Model | None
    task: Task
    protocol: str
    settings: Protocol
    seed: int
    threads: int
    cache: Path | None

    def __call__(self) -> tuple[Outcomes, float]:
        """Outcomes, and the seconds that they took."""
        began = time.monotonic()
        given = Given(
            None if self.old is None else opened(self.old),
            None if self.cache is None else Features(self.cache, self.threads),
        )
        found = ALL[self.protocol][1](opened(self.model), self.task, self.settings, self.seed, given)
        return found.outcomes[0], round(time.monotonic() - began, 3)


_OPENED: dict[tuple[str, str], Checkpoint] = {}


def opened(model: Model) -> Checkpoint:
    """The checkpoint of a model; a process keeps the last two.

    Raises:
        SuiteError: it is another one than when the evaluation began.
    """
    key = (model.content, model.files)
    if key not in _OPENED:
        checkpoint = model.open()
        if (content_id(checkpoint, threads=1), files_id(checkpoint)) != key:
            raise SuiteError("the model changed while it was evaluated", where=model.name)
        while len(_OPENED) > 1:
            _OPENED.pop(next(iter(_OPENED)))
        _OPENED[key] = checkpoint
    return _OPENED[key]


@dataclass(frozen=True)
class _Piece:
    """A measurement and the record that it will have."""

    model: Model
    measure: Measure
    old: Model | None
    seed: int

    @property
    def id(self) -> str:
        old = None if self.old is None else [self.old.content, self.old.files]
        said = {"model": [self.model.content, self.model.files], "measure": self.measure.id, "old": old}
        return digest("evaluation", seed=self.seed, **said)

    def record(self, suite: OpenSuite, outcomes: Outcomes, seconds: float) -> Record:
        m = self.measure
        return Record(
            id=self.id,
            content=self.model.content,
            files=self.model.files,
            old=None if self.old is None else self.old.content,
            suite=suite.name,
            suite_hash=suite.hash,
            measure=m.id,
            task=m.task.name,
            task_id=m.task.id,
            protocol=m.protocol,
            settings=m.document()["settings"],
            metric=m.metric,
            seed=self.seed,
            value=outcomes.value,
            tested=len(outcomes),
            outcomes="",
            versions=versions(),
            seconds=seconds,
        )


def evaluate(
    models: Sequence[Model],
    suite: OpenSuite,
    records: Records,
    *,
    old: Model | None = None,
    jobs: int = 1,
    cache: Path | None = None,
    progress: Progress = SILENT,
) -> Evaluated:
    """Measure models on a suite; what has a record is not measured again.

    The results do not depend on `jobs`: each measurement is made by a process of its own kind, with the suite's number
    of threads. A measurement that fails is told, and the others go on.

    Args:
        models: with different names.
        suite: what is measured.
        records: where they are looked for and kept.
        old: what old heads are fitted on.
        jobs: processes.
        cache: a folder for features of frozen bodies; none are kept when None.
        progress: told what is done.

    Raises:
        SuiteError: the suite has old heads and there is no old model, or two models have one name.
        CofuseError: a process died, or a record cannot be written.
    """
    names = [m.name for m in models]
    if len(set(names)) < len(names):
        raise SuiteError("a model stands twice", got=", ".join(sorted({n for n in names if names.count(n) > 1})))
    if old is None and any(m.protocol == "oldhead" for m in suite.measures):
        raise SuiteError("old heads need the old model", where=suite.name, hint="say which: --old MODEL")
    bar = progress.bar(f"evaluating on {suite.name}", sum(_cost(s, suite) for s in suite.measures) * len(models))
    found: dict[str, Record] = {}
    todo: dict[str, _Piece] = {}  # by id: two names may stand for one model
    for piece in _pieces(models, suite, old):
        record = records.get(piece.model.content, suite.name, suite.hash, piece.id)
        if record is None:
            todo[piece.id] = piece
        else:
            found[piece.id] = record
            bar.advance(measuring(piece.measure.settings))
    failures = _work(tuple(todo.values()), found, suite, records, jobs, cache, bar, progress)
    by_model = {m.name: tuple(found[p.id] for p in _pieces([m], suite, old) if p.id in found) for m in models}
    return Evaluated(by_model, tuple(failures), len(todo) - len(failures))


def _pieces(models: Sequence[Model], suite: OpenSuite, old: Model | None) -> list[_Piece]:
    """All there is to measure; seeds outermost, so that what they share is computed by the first of them."""
    return [
        _Piece(model, measure, old if measure.protocol == "oldhead" else None, seed)
        for seed in suite.seeds
        for model in models
        for measure in suite.measures
        if seed in suite.seeds_of(measure)
    ]


def _cost(measure: Measure, suite: OpenSuite) -> float:
    return measuring(measure.settings) * len(suite.seeds_of(measure))


def _work(
    todo: Sequence[_Piece],
    found: dict[str, Record],
    suite: OpenSuite,
    records: Records,
    jobs: int,
    cache: Path | None,
    bar: Bar,
    progress: Progress,
) -> list[Failure]:
    """Have processes measure what is left; `found` grows by what they give."""
    failures: list[Failure] = []
    if not todo:
        return failures
    threads = suite.measures[0].threads
    imports = ("transformers.trainer", "sklearn.linear_model", "cofuse.measure.evaluation.evaluating")
    with Workers(min(jobs, len(todo)), threads, imports=imports, died=SuiteError) as pool:
        pending: dict[Future[tuple[Outcomes, float]], _Piece] = {}
        for piece in todo:
            m = piece.measure
            work = Measurement(piece.model, piece.old, m.task, m.protocol, m.settings, piece.seed, threads, cache)
            pending[pool.submit(work)] = piece
        for future in as_completed(pending):
            piece = pending[future]
            failed = future.exception()
            if not isinstance(failed, Exception) or isinstance(failed, BrokenExecutor):
                outcomes, seconds = pool.wait(future)  # raises where the processes are gone
                found[piece.id] = records.add(piece.record(suite, outcomes, seconds), outcomes)
            else:
                failure = _failure(piece, failed)
                failures.append(failure)
                progress.say(f"{failure.model}, {failure.task}, {failure.protocol}: {failure.error.what}")
            bar.advance(measuring(piece.measure.settings))
    return failures


def _failure(piece: _Piece, error: Exception) -> Failure:
    m = piece.measure
    said = error
    if not isinstance(said, CofuseError):
        said = SuiteError(
            "the measurement failed",
            where=f"{piece.model.name}, {m.task.name}, {m.protocol}",
            got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}",
        )
    return Failure(piece.model.name, m.task.name, m.protocol, piece.seed, said)


@cache
def versions() -> dict[str, str]:
    """What may decide the last bit, or more: packages, and whether the processor computes in bfloat16."""
    from ...tasks.model import has_bf16

    python, *others = installed().items()
    return dict([python, ("bf16", str(has_bf16()).lower()), *others])


def outcomes_of(evaluated: Evaluated, records: Records, model: str) -> list[Outcomes]:
    """What became of each example, of all measurements of a model."""
    return [records.outcomes(record) for record in evaluated.records[model]]
