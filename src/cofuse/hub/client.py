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

    def ask(self, method: str, path: str = "", value: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Ask the repository's API; an answer without a body is an empty object.

        Args:
            method: of HTTP.
            path: below the repository's own: `/rounds`.
            value: sent as JSON.
            **more: see `Http.ask`.
        """
        answer = self.http.ask(method, self._path + path, value=value, **more)
        said = answer.json() if answer.data else {}
        if not isinstance(said, dict):
            raise self._not_a_hub()
        return said

    def pages(self, path: str, name: str, cursor: str, query: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        """All rows of a list, asked for page by page.

        Args:
            path: of the list.
            name: of its rows.
            cursor: the argument that says where a page begins: `before` or `after`.
            query: of the first page.
        """
        asked = dict(query)
        while True:
            page = self.ask("GET", path, query=asked)
            if not isinstance(page.get(name), list):
                raise self._not_a_hub()
            yield from page[name]
            if page.get("next") is None:
                return
            asked[cursor] = page["next"]

    # The repository

    def about(self) -> dict[str, Any]:
        """What the hub says of it."""
        return self.ask("GET")

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
        return self.ask("POST", "/contributions", dict(said), again=bool(said.get("nonce")))

    def contributions(
        self, *, state: str | None = None, branch: str | None = None, account: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """All of them, newest first; asked for page by page."""
        asked = {"state": state, "branch": branch, "account": account}
        query = {key: value for key, value in asked.items() if value is not None}
        return self.pages("/contributions", "contributions", "before", query)

    def contribution(self, number: int) -> dict[str, Any]:
        """One, with its checks."""
        return self.ask("GET", f"/contributions/{number}")

    def comments(self, number: int) -> Iterator[dict[str, Any]]:
        """What was said of it, and what happened to it, oldest first."""
        return self.pages(f"/contributions/{number}/comments", "comments", "after", {})

    def comment(self, number: int, body: str) -> dict[str, Any]:
        """Say something of it."""
        return self.ask("POST", f"/contributions/{number}/comments", {"body": body})

    def label(self, number: int, labels: Sequence[str]) -> dict[str, Any]:
        """Give it other labels."""
        return self.ask("PATCH", f"/contributions/{number}", {"labels": list(labels)})

    def withdraw(self, number: int) -> dict[str, Any]:
        """Take it back."""
        return self.ask("POST", f"/contributions/{number}/withdraw")

    def accept(self, number: int) -> dict[str, Any]:
        """Say that it shall be fused."""
        return self.ask("POST", f"/contributions/{number}/accept")

    def refuse(self, number: int, reason: str) -> dict[str, Any]:
        """Refuse it."""
        return self.ask("POST", f"/contributions/{number}/refuse", {"reason": reason})

    def retry(self, number: int) -> dict[str, Any]:
        """Have it looked at again."""
        return self.ask("POST", f"/contributions/{number}/retry")

    def wait(self, number: int, *, seconds: float = 3600.0, progress: Progress = SILENT) -> dict[str, Any]:
        """Wait until it has been looked at.

        Raises:
            HubError: that takes longer.
        """
        give_up, pause, told = time.monotonic() + seconds, 0.2, set[str]()
        while True:
            found = self.contribution(number)
            for check in found["checks"]:  # in the order that they are shown, which is not that they are made in
                if check["name"] not in told:
                    progress.say(f"{check['state']:<7}{check['name']}: {check['figure']}")
                    told.add(check["name"])
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

    def _not_a_hub(self) -> HubError:
        return HubError("the hub's answer is not what was asked for", where=self.url, hint="is this a Cofuse hub?")
