"""The reads that are answered beside the framework: as the framework answers them, in every byte."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cofuse.hub.access.roles import Role
from cofuse.hub.access.tokens import make_account, make_token
from cofuse.hub.access.visitor import Visitor
from cofuse.hub.app import PREFIX, make_app
from cofuse.hub.database import Check, Contribution
from cofuse.hub.direct import READS, Direct
from cofuse.hub.hub import Hub
from cofuse.hub.repositories import make
from cofuse.hub.settings import Limits, Settings

from .postgres import postgres

OPEN = f"{PREFIX}/repositories/ann/open"


@dataclass
class Answer:
    """What came back, and which figures went up."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    counted: dict[Any, float] = field(default_factory=dict)


class Village:
    """A hub with a repository of Ann's that everybody sees and one that nobody else does; asked with `Direct` and without."""

    def __init__(self, folder: Path, database: str | None = None, **limits: int) -> None:
        self.hub = Hub(Settings(data=folder, database=database, limits=Limits(**limits)))
        self.hub.database.migrate()
        self.tokens: dict[str, str] = {"wrong": "cofuse_" + "x" * 43, "malformed": "\u00e9 \u00ff"}
        with self.hub.database.writing() as change:
            for name in ("ann", "bob"):
                account = make_account(change, name, Role.MAINTAIN)
                token, self.tokens[name] = make_token(change, account, Role.MAINTAIN)
                if name == "bob":
                    late, self.tokens["late"] = make_token(change, account, Role.READ)
                    late.revoked = time.time()
                else:
                    ann = Visitor(account.id, "ann", Role.MAINTAIN, Role.MAINTAIN, token.id)
            for name in ("open", "closed"):
                repository = make(change, ann, self.hub.repositories, name, private=name == "closed")
                for number in (1, 2):
                    offered = contribution(repository.id, ann.known(), number)
                    change.add(offered)
                    change.flush()
                    for place, check in enumerate(("format", "finite")[:number]):
                        about = {"contribution_id": offered.id, "name": check, "place": place, "state": "warn"}
                        change.add(Check(**about, figure="cos < 0, caf\u00e9", detail={"layers": [1, 0.5]}))
        self.direct, self.framework = make_app(self.hub), make_app(self.hub)
        self.framework.user_middleware = [one for one in self.framework.user_middleware if one.cls is not Direct]
        assert len(self.framework.user_middleware) == len(self.direct.user_middleware) - 1

    def ask(self, app: ASGIApp, path: str, token: str | None = None, **more: Any) -> Answer:
        """What an application answers; `more` is what there is beside in an ASGI scope."""
        headers = [] if token is None else [(b"authorization", f"Bearer {self.tokens[token]}".encode("latin-1"))]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
                 "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
                 "client": ("10.0.0.1", 1), "server": ("hub", 80), "state": {}} | more  # fmt: skip
        found, before = Answer(), self.counted()

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                found.status, found.headers = message["status"], list(message["headers"])
            else:
                found.body += message.get("body", b"")

        asyncio.run(app(scope, receive, send))
        found.counted = {key: value - before.get(key, 0) for key, value in self.counted().items()}
        found.counted = {key: value for key, value in found.counted.items() if value}
        return found

    def both(self, path: str, token: str | None = None, **more: Any) -> Answer:
        """What both answer."""
        first, second = (self.ask(app, path, token, **more) for app in (self.direct, self.framework))
        assert first == second, (path, token, more)
        assert first.status < 500
        return first

    def counted(self) -> Mapping[Any, float]:
        """How many requests there were, by what they are counted by."""
        families = (family for counter in self._counters() for family in counter.collect())
        return {
            (one.name, *sorted(one.labels.items())): one.value
            for family in families
            for one in family.samples
            if one.name.endswith(("_total", "_count"))
        }

    def _counters(self) -> tuple[Any, ...]:
        return self.hub.metrics.requests, self.hub.metrics.seconds, self.hub.metrics.received


def contribution(repository: int, account: int, number: int) -> Contribution:
    return Contribution(
        repository_id=repository,
        account_id=account,
        number=number,
        branch="main",
        base="a" * 64,
        source="patch",
        sent={"patch": "x" * 32},
        nonce=f"{number}",
        state="open",
        title=f"caf\u00e9 {number} </script>",
        examples=number - 1 or None,
        metrics={"accuracy": 81.2},
        labels=["questions"] * number,
        created=1.5,
        updated=2.0,
    )


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def village(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Village]:
    folder = tmp_path_factory.mktemp("direct")
    if request.param == "sqlite":
        made = Village(folder, requests=10**9, failures=10**9)
        yield made
        made.hub.close()
    else:
        with postgres() as url:
            made = Village(folder, url, requests=10**9, failures=10**9)
            yield made
            made.hub.close()


ROUTES = st.sampled_from([PREFIX + path for _, path, _ in READS])
NAMES = st.sampled_from(
    ["open", "closed", "absent", "OPEN", "open.git", "%6fpen", "open%2f", "open%0a", "..", "caf\u00e9", " open", ""]
)
OWNERS = st.sampled_from(["ann", "ann", "ann", "bob", "nobody", "ANN", "%61nn", "", "."])
NUMBERS = st.one_of(
    st.sampled_from(["1", "2", "3", "0", "-1", "+1", "01", "1.0", "1e0", " 1", "1\n", "1_0", "\u0661", "x", "", "2147483648", "9" * 40]),
    st.integers(0, 2**33).map(str),
)  # fmt: skip
TOKENS = st.sampled_from([None, "ann", "bob", "wrong", "late", "malformed"])
ODD = st.fixed_dictionaries(
    {},
    optional={
        "query_string": st.sampled_from([b"number=2", b"x=1&x=2", b"%ff%zz=&&", b"owner=bob", b"a" * 500]),
        "method": st.sampled_from(["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "get", "BREW"]),
        "root_path": st.sampled_from(["/hub", "/api", "/nowhere"]),  # a proxy's, which the path may begin with
        "client": st.none(),
    },
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ROUTES, OWNERS, NAMES, NUMBERS, st.sampled_from(["", "", "", "/", "//", "/x", "\n"]), TOKENS, ODD)
def test_answers_are_those_of_the_framework(
    village: Village, route: str, owner: str, name: str, number: str, end: str, token: str | None, odd: dict[str, Any]
) -> None:
    """Status, headers, body and figures, for good tokens, wrong ones, revoked ones and none."""
    path = unquote(route.format(owner=owner, name=name, number=number) + end)
    if odd.get("root_path") == "/hub":
        path = odd["root_path"] + path
    answer = village.both(path, token, **odd)
    assert sum(value for key, value in answer.counted.items() if key[0] == "cofuse_requests_total") == 1


@pytest.mark.parametrize("said", [
    [(b"authorization", b"Basic YTpi")],
    [(b"authorization", b"Basic \xff")],
    [(b"authorization", b"Bearer")],
    [(b"authorization", b"bearer   {ann}  ")],
    [(b"authorization", b"Bearer {ann}"), (b"authorization", b"Bearer {wrong}")],
    [(b"authorization", b"Bearer {wrong}"), (b"authorization", b"Bearer {ann}")],
    [(b"accept", b"text/html"), (b"authorization", b"Bearer {bob}")],
    [(b"accept", b"application/xml"), (b"if-none-match", b"*"), (b"range", b"bytes=0-1")],
    [(b"cookie", b"session=x"), (b"origin", b"https://elsewhere.test")],
    [(b"x-forwarded-for", b"1.2.3.4"), (b"accept-encoding", b"gzip"), (b"x-http-method-override", b"DELETE")],
], ids=range(10))  # fmt: skip
@pytest.mark.parametrize("path", [OPEN, f"{OPEN}/contributions/2", f"{PREFIX}/repositories/ann/closed"])
def test_headers_mean_the_same_to_both(village: Village, path: str, said: list[tuple[bytes, bytes]]) -> None:
    def written(value: bytes) -> bytes:
        for name in ("ann", "bob", "wrong"):
            value = value.replace(b"{%s}" % name.encode(), village.tokens[name].encode())
        return value

    village.both(path, headers=[(key, written(value)) for key, value in said])


def test_a_plain_read_never_reaches_the_framework_and_all_else_does(village: Village) -> None:
    reached: list[str] = []

    async def framework(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["path"])

    table = Direct(framework, village.hub, PREFIX)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await table(scope | {"app": village.direct}, receive, send)

    for path in (OPEN, f"{OPEN}/contributions/2"):
        answer = village.ask(app, path, "ann")
        assert (answer.status, reached) == (200, [])
        assert json.loads(answer.body)
    others = [
        f"{OPEN}/",
        f"{OPEN}/contributions",
        f"{OPEN}/contributions/01",
        f"{OPEN}/contributions/2/comments",
        "/ann/open",
    ]
    for path in others:
        village.ask(app, path, "ann")
    village.ask(app, OPEN, "ann", method="HEAD")
    assert reached == [*others, OPEN]


def test_a_change_is_seen_at_once_by_who_made_it(tmp_path: Path) -> None:
    """A description, a role, a revocation: what was read just before is not remembered."""
    village = Village(tmp_path)
    hub, path = village.hub, f"{OPEN}/contributions/1"
    for k in range(3):
        assert village.both(path, "ann").status == village.both(OPEN, "bob").status == 200
        with hub.database.writing() as change:
            found = change.get_one(Contribution, 1)
            found.title, found.repository.description = f"title {k}", f"description {k}"
        assert json.loads(village.both(path, "ann").body)["title"] == f"title {k}"
        assert json.loads(village.both(OPEN, "bob").body)["description"] == f"description {k}"
    with hub.database.writing() as change:
        change.get_one(Contribution, 1).repository.private = True
    assert village.both(path, "bob").status == village.both(OPEN, "bob").status == 404
    assert village.both(path, "ann").status == 200
    with hub.database.writing() as change:
        change.get_one(Contribution, 1).account.disabled = True
    assert village.both(path, "ann").status == village.both(OPEN, "ann").status == 401
    hub.close()


@pytest.mark.parametrize("token", ["ann", None, "wrong"])
def test_one_rate_holds_for_both(tmp_path: Path, token: str | None) -> None:
    """So many requests of a token or an address, and so many wrong tokens, however they are divided between the two."""
    village = Village(tmp_path, requests=10, failures=10)
    apps = [village.direct, village.framework, village.direct] * 5
    answers = [village.ask(app, f"{OPEN}/contributions/{1 + k % 2}", token) for k, app in enumerate(apps)]
    village.hub.close()
    codes = [answer.status for answer in answers]
    assert codes[:10] == [401 if token == "wrong" else 200] * 10
    assert codes[11:] == [429] * 4  # the eleventh may come when there is one again
    assert answers[-1].headers == answers[-2].headers
