"""A hub's API for programs: what the command line and the callback of a training send through. Needs nothing of the server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..credentials import machine
from ..errors import HubError
from ..progress import SILENT, Progress
from ..store.receiving import OnDisk
from ..store.remotes.addresses import HubAddress
from ..store.remotes.http import Http
from ..store.remotes.hub import HubRemote

_SLOWEST = 5.0  # seconds between looks at a contribution
WAITING = ("received",)  # states that a look of the hub's worker ends


class HubClient:
    """A repository on a hub, as its API has it.

    Args:
        http: the hub, and who asks.
        address: the repository.

    Attributes:
        remote: its store.
        url: where people look at it.
    """

    def __init__(self, http: Http, address: HubAddress) -> None:
        self.http = http
        self.remote = HubRemote(http, address)
        self.url = address.url
        self._path = address.path

    @classmethod
    def at(cls, address: HubAddress, token: str | None = None) -> HubClient:
        """The repository of an address, in the name of a token; without one, in that of who has logged in."""
        here = machine()
        return cls(Http(address.hub, token or here.token_for(address.hub), plain=here.plain), address)

    def close(self) -> None:
        """Close its connections."""
        self.http.close()

    def __enter__(self) -> HubClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The repository

    def about(self) -> dict[str, Any]:
        """What the hub says of it."""
        return self._object(self.http.json("GET", self._path))

    def resolve(self, rev: str) -> str:
        """The commit that a revision names there.

        Raises:
            RefError: it names nothing.
        """
        return self.remote.resolve(rev)[0]

    def upload(
        self, path: Path, key: str | None, began: Callable[[str], None], advance: Callable[[float], None]
    ) -> str:
        """Upload a file, from where an earlier attempt was cut short; gives the upload's key.

        Args:
            path: what.
            key: of the earlier attempt.
            began: told of the key of a new one.
            advance: told of bytes that have arrived.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HubError("cannot read the file", where=path, got=error.strerror) from None
        try:
            file = OnDisk(path, fd)
            return self.remote.upload(file, key, began, lambda share: advance(share * file.size))
        finally:
            os.close(fd)

    # Contributions

    def offer(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Offer a contribution; see `contributions.Offer` for what is said. With a nonce it can be sent again safely."""
        return self._object(
            self.http.json("POST", self._contributions(), value=dict(said), again=bool(said.get("nonce")))
        )

    def contributions(
        self, *, state: str | None = None, branch: str | None = None, account: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """All of them, newest first; asked for page by page."""
        query: dict[str, object] = {
            key: value
            for key, value in (("state", state), ("branch", branch), ("account", account))
            if value is not None
        }
        while True:
            page = self._object(self.http.json("GET", self._contributions(), query=query))
            yield from page["contributions"]
            if page["next"] is None:
                return
            query["before"] = page["next"]

    def contribution(self, number: int) -> dict[str, Any]:
        """One, with its checks."""
        return self._object(self.http.json("GET", self._contributions(number)))

    def comments(self, number: int) -> Iterator[dict[str, Any]]:
        """What was said of it, and what happened to it, oldest first."""
        query: dict[str, object] = {}
        while True:
            page = self._object(self.http.json("GET", self._contributions(number, "comments"), query=query))
            yield from page["comments"]
            if page["next"] is None:
                return
            query["after"] = page["next"]

    def comment(self, number: int, body: str) -> dict[str, Any]:
        """Say something of it."""
        return self._do(number, "comments", {"body": body})

    def label(self, number: int, labels: Sequence[str]) -> dict[str, Any]:
        """Give it other labels."""
        return self._object(self.http.json("PATCH", self._contributions(number), value={"labels": list(labels)}))

    def withdraw(self, number: int) -> dict[str, Any]:
        """Take it back."""
        return self._do(number, "withdraw")

    def accept(self, number: int) -> dict[str, Any]:
        """Say that it shall be fused."""
        return self._do(number, "accept")

    def refuse(self, number: int, reason: str) -> dict[str, Any]:
        """Refuse it."""
        return self._do(number, "refuse", {"reason": reason})

    def retry(self, number: int) -> dict[str, Any]:
        """Have it looked at again."""
        return self._do(number, "retry")

    def wait(self, number: int, *, seconds: float = 3600.0, progress: Progress = SILENT) -> dict[str, Any]:
        """Wait until it has been looked at.

        Raises:
            HubError: that takes longer.
        """
        give_up, pause, told = time.monotonic() + seconds, 0.2, 0
        while True:
            found = self.contribution(number)
            for check in found["checks"][told:]:
                progress.say(f"{check['state']:<7}{check['name']}: {check['figure']}")
            told = max(told, len(found["checks"]))
            if found["state"] not in WAITING:
                return found
            if time.monotonic() > give_up:
                raise HubError(
                    "it has not been looked at yet", where=f"{self.url}#{number}", hint="is a worker running?"
                )
            time.sleep(pause)
            pause = min(_SLOWEST, pause * 1.5)

    def page(self, number: int) -> str:
        """Where people look at it."""
        return f"{self.url}/contributions/{number}"

    def _contributions(self, number: int | None = None, what: str = "") -> str:
        parts = [self._path, "contributions", *([] if number is None else [str(number)]), *([what] if what else [])]
        return "/".join(parts)

    def _do(self, number: int, what: str, value: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._object(self.http.json("POST", self._contributions(number, what), value=value))

    def _object(self, said: Any) -> dict[str, Any]:
        if not isinstance(said, dict):
            raise HubError("the hub's answer is not what was asked for", where=self.url, hint="is this a Cofuse hub?")
        return said
