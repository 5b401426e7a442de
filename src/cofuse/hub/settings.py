"""What a hub is told: one YAML file, or the environment as the command line hands it on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..document import Document

MIB = 1024 * 1024
GIB = 1024 * MIB
Count = Annotated[int, Field(ge=1)]


class Limits(Document):
    """How much anybody may ask for; what is beyond is answered 413, 429 or 507.

    Attributes:
        file: bytes of one file.
        repository: bytes of the objects of a repository whose owner has no quota of its own.
        account: bytes of uploads that an account may have unfinished at once.
        uploads: unfinished uploads of an account.
        body: bytes of a JSON request.
        requests: a minute, of one token or, without one, of one address.
        failures: wrong tokens a minute from one address, after which it has to wait.
        contributions: open ones of an account in a repository.
        cache: bytes of files that are kept whole beside the stores, so that downloads are quick.
    """

    file: Count = 50 * GIB
    repository: Count = 200 * GIB
    account: Count = 100 * GIB
    uploads: Count = 256
    body: Count = 8 * MIB
    requests: Count = 6000
    failures: Count = 20
    contributions: Count = 20
    cache: Count = 20 * GIB


class Server(Document):
    """Where the hub listens.

    Attributes:
        host: an address of this machine.
        port: 0 takes a free one.
        url: how others reach it, where that differs from host and port: behind a proxy.
        certificate, key: PEM files for TLS.
        processes: that answer requests.
        workers: processes that do the hub's work on this machine; others may be started elsewhere (`cofuse work`).
        drain: seconds that running requests get when the hub is stopped.
        proxies: whether X-Forwarded-For and X-Forwarded-Proto are believed: only behind a proxy that sets them.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    url: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    processes: Count = 1
    workers: Annotated[int, Field(ge=0)] = 1
    drain: Count = 30
    proxies: bool = False


class Storage(Document):
    """A bucket in which repositories are kept, so that the folder may be lost; see `storage.Storage`.

    Attributes:
        url: `s3://bucket/prefix`; repositories are in the hub's folder alone when None.
        endpoint: of the server; Amazon's when None.
        region: as the server knows it.
        key, secret, token: who asks; the command line takes them from AWS_ACCESS_KEY_ID and the like.
        anonymous: ask without keys.
        patience: seconds after which a server that does not answer is given up.
    """

    url: Annotated[str, Field(pattern="^s3://")] | None = None
    endpoint: str | None = None
    region: str | None = None
    key: Annotated[str | None, Field(repr=False)] = None
    secret: Annotated[str | None, Field(repr=False)] = None
    token: Annotated[str | None, Field(repr=False)] = None
    anonymous: bool = False
    patience: Annotated[float, Field(gt=0)] = 15.0


class Settings(Document):
    """A hub's settings; all have defaults, so that a folder is a hub.

    Attributes:
        data: the hub's folder: repositories, unfinished uploads, the SQLite database.
        database: an SQLAlchemy URL; SQLite in the folder by default.
        tasks: folder of the tasks that suites name.
        lease: seconds that a worker's claim lasts unless it says that it goes on.
        logs: how log lines look.
    """

    data: Path = Path("hub")
    database: str | None = None
    tasks: Path | None = None
    lease: Annotated[float, Field(gt=0)] = 30.0
    logs: Literal["json", "text"] = "json"
    server: Server = Server()
    limits: Limits = Limits()
    storage: Storage = Storage()

    @property
    def database_url(self) -> str:
        """Where the database is."""
        return self.database or f"sqlite:///{self.data.absolute() / 'hub.sqlite'}"
