"""Figures for Prometheus. Labels are routes, never paths: a path may hold a secret, and there are too many."""

from __future__ import annotations

import functools

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from .database import Contribution, Database, Job

# What else a sender writes is "other", so that nobody fills the memory with figures.
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Metrics:
    """What is counted, of one hub.

    Args:
        database: where jobs and contributions are counted when somebody asks.
    """

    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cofuse_requests", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "cofuse_request_seconds", "Until the last byte was sent", ["route"], registry=self.registry
        )
        self.received = Counter("cofuse_received_bytes", "Bytes of bodies", registry=self.registry)
        self.registry.register(_Rows(database))
        # Finding figures by their labels costs more than counting.
        self._of = functools.cache(
            lambda method, route, status: (self.requests.labels(method, route, status), self.seconds.labels(route))
        )

    def answered(self, method: str, route: str, status: int, *, seconds: float, received: int) -> None:
        """Count a request.

        Args:
            method: its.
            route: as it is declared, never its path.
            status: of the answer.
            seconds: until the last byte was sent.
            received: bytes of its body.
        """
        requests, taken = self._of(method if method in METHODS else "other", route, status)
        requests.inc()
        taken.observe(seconds)
        if received:
            self.received.inc(received)


class _Rows(Collector):
    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # or the registry would count rows when it is made

    def collect(self) -> list[GaugeMetricFamily]:
        found = []
        with self._database.reading() as transaction:
            for table, name in ((Job, "cofuse_jobs"), (Contribution, "cofuse_contributions")):
                family = GaugeMetricFamily(name, "By state", labels=["state"])
                for state, count in transaction.execute(select(table.state, func.count()).group_by(table.state)):
                    family.add_metric([state], count)
                found.append(family)
        return found
