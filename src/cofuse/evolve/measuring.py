"""Handing out the measurements of models to workers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from ..measure.evaluation.protocols import Evaluation, Protocol
from ..tasks import Task
from . import costs
from .records import ModelRecord, ScoreRecord, job_id
from .work import Evaluate
from .workshop import Workshop, finish

SuiteName = Literal["seen", "unseen"]

# Threads that wait for a measurement; more would only wait for a worker.
_WAITING = 64


class Measuring:
    """Measurements run beside the rounds, and are waited for at the end."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self._threads = ThreadPoolExecutor(_WAITING)
        self._running: list[Future[None]] = []

    def measure(
        self, model: ModelRecord, *, old: ModelRecord, number: int | None = None, only: tuple[str, ...] | None = None
    ) -> None:
        """Hand out the measurements of a model.

        Args:
            model: what to measure.
            old: the model whose heads are run on it.
            number: its round, which decides what is due; all protocols are when None.
            only: these protocols, on the unseen tasks. There are as many intertrained models as seen tasks, and what
                they do on each other's tasks is not the question.
        """
        shop = self.shop
        shop.journal.add(model.model_copy(update={"id": job_id("model", name=model.name, seed=model.seed)}))
        for suite, task, name, settings in self._due(number):
            if only is None or (suite == "unseen" and name in only):
                self._running.append(self._threads.submit(self._score, model, old, suite, task, name, settings))

    def finish(self) -> None:
        """Wait for every measurement."""
        finish(self._running)

    def stop(self) -> None:
        """Give up what has not begun."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _due(self, number: int | None) -> Iterator[tuple[SuiteName, Task, str, Protocol]]:
        study, opened = self.shop.study, self.shop.opened
        suites: tuple[tuple[SuiteName, tuple[Task, ...], Evaluation], ...] = (
            ("unseen", opened.unseen, study.evaluate_unseen),
            ("seen", opened.seen, study.evaluate_seen),
        )
        for suite, tasks, evaluation in suites:
            for name, settings in evaluation.chosen().items():
                if number is None or settings.due(number, study.rounds):
                    for task in tasks:
                        yield suite, task, name, settings

    def _score(
        self, model: ModelRecord, old: ModelRecord, suite: SuiteName, task: Task, name: str, settings: Protocol
    ) -> None:
        shop = self.shop
        against = old if name == "oldhead" else None
        record_id = job_id(
            "score",
            content=model.content,
            old=against.content if against else None,
            task=task.id,
            protocol=name,
            settings=settings.model_dump(mode="json", exclude={"every"}),
            seed=model.seed,
            threads=shop.study.threads,
        )
        if shop.journal.get(record_id) is None:
            tree = against.tree if against else None
            result = shop.do(Evaluate(shop.store.path, model.tree, tree, task, name, settings, model.seed))
            shop.journal.add(
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
        shop.bar.advance(costs.measuring(settings))
