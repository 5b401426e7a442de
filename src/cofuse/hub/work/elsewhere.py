"""Work on another machine: jobs are asked for over HTTP, and weights are fetched into stores that are kept for the next."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import HubError
from ...progress import Progress
from ...store import Store
from ...store.remotes import deliver, receive
from ...store.remotes.addresses import parse, quoted
from ...store.remotes.http import Answered, Http
from ...store.remotes.hub import HubRemote
from ..faults import Conflict
from .kind import Answer, Workplace
from .queue import Claimed

_PIECE = 1 << 20  # bytes


class AwayWork:
    """A hub's jobs for a worker elsewhere; see `worker.Source`.

    Args:
        http: the hub, with an administrator's token.
        folder: where stores, records and uploads are kept.
        tasks: folder of the tasks that suites name.
        kinds: of work that is done here; all when None.
    """

    def __init__(self, http: Http, folder: Path, tasks: Path | None = None, kinds: list[str] | None = None) -> None:
        self._http, self._folder, self._tasks, self._kinds = http, folder, tasks, kinds
        self.name = f"{platform.node()[:40]} {os.getpid()} {secrets.token_hex(4)}"
        for part in ("stores", "records", "work"):
            (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)

    def claim(self) -> Claimed | None:
        """The next job."""
        # Asked again where no answer came: a job that is claimed for nobody is free again when its lease ends.
        found = self._http.json(
            "POST", "/api/v1/work/claim", value={"worker": self.name, "kinds": self._kinds}, again=True
        )["job"]
        return None if found is None else Claimed(**found)

    def beat(self, job: Claimed, progress: str) -> None:
        """Go on holding it."""
        self._tell(job, "beat", progress=progress[:500])

    def finish(self, job: Claimed, answer: Answer) -> None:
        """Hand in what it gave."""
        self._tell(job, "finish", answer=answer)

    def fail(self, job: Claimed, error: str, *, final: bool) -> None:
        """Say that it could not be done; where things are on this machine is nobody's business."""
        self._tell(job, "fail", error=error.replace(str(self._folder), "worker")[:2000], final=final)

    def give_back(self, job: Claimed) -> None:
        """Give it back undone."""
        self._tell(job, "return")

    @contextlib.contextmanager
    def place(self, job: Claimed, progress: Progress) -> Iterator[Workplace]:
        """The workplace of a job."""
        folder = self._folder / "work" / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        try:
            yield AwayPlace(self._http, self._folder, self._tasks, progress, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def _tell(self, job: Claimed, what: str, **said: object) -> None:
        try:
            # Saying it twice does no harm: the fence says whose answer it is.
            self._http.ask("POST", f"/api/v1/work/{job.id}/{what}", value={"fence": job.fence, **said}, again=True)
        except Answered as error:
            if error.status == 409:
                raise Conflict(error.what, where=error.where, got=error.got, hint=error.hint) from None
            raise


@dataclass(frozen=True)
class AwayPlace:
    """A workplace away from the hub; see `Workplace`."""

    http: Http
    kept: Path
    tasks: Path | None
    progress: Progress
    folder: Path

    @property
    def records(self) -> Path:
        """This machine's own."""
        return self.kept / "records"

    def store(self, repository: str, *needs: str) -> Store:
        """A copy of the repository's store, to which what is missing is fetched."""
        remote = self._remote(repository)
        # Stores of another hub are not mixed with this one's, and names do not become paths.
        store = Store.init(self.kept / "stores" / f"{_hash(self.http.url, repository)}.cofuse")
        missing = [need for need in dict.fromkeys(needs) if need not in store.objects]
        if missing:
            receive(store, remote, missing, progress=self.progress)
        return store

    def upload(self, key: str) -> Path:
        """Its bytes, fetched for this job."""
        path = self.folder / f"upload-{_hash('', key)}"
        if not path.exists():
            part = path.with_suffix(".part")
            with (
                self.http.streaming("GET", f"/api/v1/work/uploads/{quoted(key)}") as (_, read),
                open(part, "wb") as file,
            ):
                while piece := read(_PIECE):
                    file.write(piece)
            part.rename(path)
        return path

    def deliver(self, repository: str, commits: Sequence[str], beside: Sequence[str]) -> int:
        """Bring them to the hub's store, which counts what it takes."""
        deliver(self.store(repository), self._remote(repository), commits, progress=self.progress)
        return 0

    def _remote(self, repository: str) -> HubRemote:
        return HubRemote(self.http, parse(f"{self.http.url}/{repository}"))


def _hash(*parts: str) -> str:
    from hashlib import sha256

    return sha256("\n".join(parts).encode()).hexdigest()[:32]


def check_hub(http: Http) -> None:
    """Refuse a hub that is none, or a token that may not work there.

    Raises:
        HubError: it is so.
    """
    said = http.json("GET", "/api/v1/me")
    if not isinstance(said, dict) or said.get("role") != "admin":
        raise HubError(
            "a worker needs an administrator's token",
            where=http.url,
            got=said.get("role") if isinstance(said, dict) else None,
            hint="cofuse login URL; or COFUSE_TOKEN",
        )
