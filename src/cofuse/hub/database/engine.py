"""Opening the database, and transactions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, PoolProxiedConnection, Row, Select, create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool

from ...errors import HubError
from .prepared import Prepared

BUSY_SECONDS = 30  # that a writer waits for another, in SQLite


class Database:
    """A hub's database: SQLite, or PostgreSQL.

    Args:
        url: an SQLAlchemy URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        try:
            if self.is_sqlite:
                self.engine = create_engine(
                    self.url, connect_args={"timeout": BUSY_SECONDS}, pool_size=16, max_overflow=48
                )
                _as_a_ledger(self.engine)
            else:
                self.engine = create_engine(self.url, pool_size=16, max_overflow=48, pool_pre_ping=True)
        except (SQLAlchemyError, ImportError) as error:
            raise HubError("not a database", got=_said(error), expected="sqlite:///FILE or postgresql://...") from None
        self.changes = 0  # that this process has made, or tried to
        self._kept: PoolProxiedConnection | None = None
        self._prepared: dict[Select[Any], Prepared] = {}
        self._reading = sessionmaker(self.engine, expire_on_commit=False)
        self._writing = sessionmaker(self.engine, expire_on_commit=False)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file."""
        return self.url.startswith("sqlite")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """Look; nothing is written."""
        with self._reading() as session:
            yield session

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """Change something: all of the block or nothing of it, on the disk once it ends.

        SQLite has one writer; it takes its turn at the start of the block, so that what the block read is still so when it
        writes. In PostgreSQL a block that decides by what it read locks those rows (`with_for_update`).
        """
        try:
            with self._writing() as session, session.begin():
                if self.is_sqlite:
                    session.connection(execution_options={"cofuse_immediate": True})
                yield session
        finally:
            self.changes += 1

    async def quick(self, statement: Select[Any], **values: Any) -> Sequence[Any]:
        """A few rows found by an index, for a route that runs in the event loop: many times cheaper than a session.

        In SQLite readers never wait and a few rows take some 20 us, less than handing the work to a thread does; so it is
        done at once. A server of its own is asked from a thread.

        Args:
            statement: a constant, which is made ready once; see `Prepared`.
            values: its parameters.
        """
        if self.is_sqlite:
            return self._rows_here(statement, values)
        return await run_in_threadpool(self._rows, statement, values)

    def _rows(self, statement: Select[Any], values: Mapping[str, Any]) -> Sequence[Row[Any]]:
        # Without transactions: each statement sees what is there when it runs.
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            return connection.execute(statement, values).all()

    def _rows_here(self, statement: Select[Any], values: Mapping[str, Any]) -> Sequence[Any]:
        """The same on a connection that is kept, for the one thread of the event loop."""
        if self._kept is None:
            self._kept = self.engine.raw_connection()
        prepared = self._prepared.get(statement)
        if prepared is None:
            prepared = self._prepared[statement] = Prepared(statement, self.engine.dialect)
        return prepared.rows(self._kept, values)

    def migrate(self) -> None:
        """Bring the tables to this version of the hub; what is there stays.

        Raises:
            HubError: the database cannot be reached, or a later version of the hub has used it.
        """
        from .migrations import migrate

        migrate(self)

    def close(self) -> None:
        """Give connections back."""
        if self._kept is not None:
            self._kept.close()
        self.engine.dispose()


def _as_a_ledger(engine: Engine) -> None:
    """What is acknowledged lasts through a power cut; readers and the writer do not wait for each other."""

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions of its own, and late
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-16384"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") == "AUTOCOMMIT":
            return
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("cofuse_immediate") else "BEGIN")


def _said(error: BaseException) -> str:
    return str(error).splitlines()[0][:200]  # never the URL, which may have a password
