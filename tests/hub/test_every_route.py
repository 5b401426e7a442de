"""Every role against every route of the API, and no 500 from any of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI

from cofuse.hub.access.roles import Role
from cofuse.hub.access.tokens import make_account, make_token
from cofuse.hub.app import API, OTHERS, make_app
from cofuse.hub.hub import Hub
from cofuse.hub.repositories import make
from cofuse.hub.settings import Limits, Settings

from .serving import HubServer

# The least role that each route asks for: a route that is not here fails a test, so that somebody thinks about it.
# `none`: everybody; `own`: everybody, for what is in the path is a secret or their own.
LEAST = """
none GET /healthz
none GET /readyz
none GET /metrics
none GET /api/v1/repositories
none GET /api/v1/repositories/{owner}/{name}
none GET /api/v1/repositories/{owner}/{name}/contributions
none GET /api/v1/repositories/{owner}/{name}/contributions/{number}
none GET /api/v1/repositories/{owner}/{name}/contributions/{number}/comments
none GET /api/v1/repositories/{owner}/{name}/store
none GET /api/v1/repositories/{owner}/{name}/store/revision
none POST /api/v1/repositories/{owner}/{name}/store/has
none GET /api/v1/repositories/{owner}/{name}/store/objects/{object_id}
none GET /api/v1/repositories/{owner}/{name}/policies
none GET /api/v1/repositories/{owner}/{name}/policies/{branch:path}
none GET /api/v1/repositories/{owner}/{name}/suite
none GET /api/v1/repositories/{owner}/{name}/rounds
none GET /api/v1/repositories/{owner}/{name}/rounds/{round_id}
none GET /api/v1/repositories/{owner}/{name}/releases
none GET /api/v1/repositories/{owner}/{name}/releases/{version}
none GET /api/models
none GET /api/models/{name}
none GET /api/models/{owner}/{name}
none GET /api/models/{owner}/{name}/revision/{rest:path}
none GET /api/models/{owner}/{name}/tree/{rest:path}
none POST /api/models/{owner}/{name}/paths-info/{rest:path}
none GET /api/models/{owner}/{name}/refs
none GET /api/models/{owner}/{name}/commits/{rest:path}
none GET /api/models/{owner}/{name}/auth-check
none GET /api/models/{owner}/{name}/discussions
none GET /api/models/{owner}/{name}/discussions/{number}
none GET /api/spaces/{rest:path}
none GET /api/datasets/{rest:path}
none GET /{owner}/{name}/resolve/{rest:path}
none HEAD /{owner}/{name}/resolve/{rest:path}
none GET /{name}/resolve/{rest:path}
none HEAD /{name}/resolve/{rest:path}
none POST /api/validate-yaml
own PUT /api/v1/uploads/{key}
own PUT /lfs/{key}/{part}
own POST /lfs/{key}
own POST /lfs/{key}/verify
read GET /api/v1/me
read GET /api/whoami-v2
read GET /api/v1/tokens
read DELETE /api/v1/tokens/{token_id}
read GET /api/v1/uploads/{key}
read HEAD /api/v1/uploads/{key}
read PATCH /api/v1/uploads/{key}
read DELETE /api/v1/uploads/{key}
read POST /api/v1/repositories/{owner}/{name}/contributions/{number}/comments
read POST /api/models/{owner}/{name}/discussions/{number}/comment
contribute POST /api/v1/tokens
contribute POST /api/v1/repositories/{owner}/{name}/contributions
contribute PATCH /api/v1/repositories/{owner}/{name}/contributions/{number}
contribute POST /api/v1/repositories/{owner}/{name}/contributions/{number}/withdraw
contribute POST /api/v1/repositories/{owner}/{name}/contributions/{number}/retry
contribute POST /api/v1/repositories/{owner}/{name}/store/objects
contribute POST /api/v1/repositories/{owner}/{name}/store/objects/{object_id}
contribute POST /api/v1/repositories/{owner}/{name}/uploads
contribute POST /api/models/{owner}/{name}/preupload/{rest:path}
contribute POST /{owner}/{name}.git/info/lfs/objects/batch
contribute GET /api/models/{owner}/{name}/xet-write-token/{rest:path}
maintain POST /api/v1/repositories/{owner}/{name}/contributions/{number}/accept
maintain POST /api/v1/repositories/{owner}/{name}/contributions/{number}/refuse
maintain PATCH /api/v1/repositories/{owner}/{name}
maintain PUT /api/v1/repositories/{owner}/{name}/grants/{account}
maintain GET /api/v1/repositories/{owner}/{name}/grants
maintain DELETE /api/v1/repositories/{owner}/{name}/grants/{account}
maintain POST /api/v1/repositories/{owner}/{name}/store/refs
maintain PUT /api/v1/repositories/{owner}/{name}/store/head
maintain PUT /api/v1/repositories/{owner}/{name}/policies/{branch:path}
maintain DELETE /api/v1/repositories/{owner}/{name}/policies/{branch:path}
maintain PUT /api/v1/repositories/{owner}/{name}/suite
maintain POST /api/v1/repositories/{owner}/{name}/rounds
maintain POST /api/v1/repositories/{owner}/{name}/rounds/{round_id}/decision
maintain POST /api/v1/repositories/{owner}/{name}/revocations
maintain POST /api/v1/repositories/{owner}/{name}/rollbacks
maintain GET /api/v1/repositories/{owner}/{name}/jobs
maintain POST /api/v1/repositories/{owner}/{name}/jobs/{job}/retry
maintain PUT /api/models/{owner}/{name}/settings
maintain POST /api/models/{owner}/{name}/branch/{rest:path}
maintain DELETE /api/models/{owner}/{name}/branch/{rest:path}
maintain POST /api/models/{owner}/{name}/tag/{rest:path}
maintain DELETE /api/models/{owner}/{name}/tag/{rest:path}
admin GET /api/v1/accounts
admin POST /api/v1/accounts
admin PATCH /api/v1/accounts/{name}
admin GET /api/v1/audit
admin POST /api/v1/work/claim
admin POST /api/v1/work/{job}/beat
admin POST /api/v1/work/{job}/finish
admin POST /api/v1/work/{job}/fail
admin POST /api/v1/work/{job}/return
admin GET /api/v1/work/uploads/{key}
"""
# What they ask for depends on what is in the body, or on what is there: other tests look at these.
ELSEWHERE = """
POST /api/v1/repositories
POST /api/repos/create
DELETE /api/repos/delete
POST /api/models/{owner}/{name}/commit/{rest:path}
POST /api/models/{owner}/{name}/discussions
POST /api/models/{owner}/{name}/discussions/{number}/status
POST /api/models/{owner}/{name}/discussions/{number}/merge
GET /api/models/{owner}/{name}/auth-check/write
POST /xet/{session}/{owner}/{name}/v1/xorbs/{prefix}/{xorb}
POST /xet/{session}/{owner}/{name}/v1/shards
"""
ROWS = [tuple(line.split(" ", 2)) for line in LEAST.split("\n") if line]
KNOWN = {f"{method} {path}" for _, method, path in ROWS} | set(ELSEWHERE.split("\n"))
WORDS = {"owner": "ann", "number": "1", "token_id": "99999", "account": "ann", "job": "1", "round_id": "1", "part": "1"}
HOSTILE = ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e", "a\0b", "%00", "a%0d%0ab", "．．/x", "x" * 5000, "-1",
           "9" * 40, "'; DROP TABLE tokens; --", "{{7*7}}", "..\\..\\x", "%", "#", "?", "café", "\u202e"]  # fmt: skip
DOTS = [
    "..",
    "../../../../../../../../etc/passwd",
    "..%2f..%2fhub.sqlite",
    "%2e%2e/../hub.sqlite",
    "/etc/passwd",
    "..%5c..",
]


def routes() -> Iterator[tuple[str, str]]:
    for prefix, group in (("/api/v1", API), ("", OTHERS[:-1])):  # the last are the pages, which have tests of their own
        for router in group:
            for route in router.routes:
                for method in getattr(route, "methods", ()):
                    yield method, prefix + getattr(route, "path", "")


class Village:
    """A hub with a repository of Ann's that everybody sees and one that nobody else does, and a token of each role."""

    def __init__(self, folder: Path, failures: int = 10**9) -> None:
        self.hub = Hub(Settings(data=folder, limits=Limits(requests=10**9, failures=failures)))
        self.hub.database.migrate()
        self.tokens: dict[Role, str | None] = {Role.NONE: None}
        with self.hub.database.writing() as change:
            ann = make_account(change, "ann", Role.MAINTAIN)
            _, anns = make_token(change, ann, Role.MAINTAIN)
            for role in list(Role)[1:]:
                account = make_account(change, f"with-{role.word}", role)
                self.tokens[role] = make_token(change, account, role)[1]
        visitor = self.hub.visitors.token(anns)
        assert visitor is not None
        with self.hub.database.writing() as change:
            make(change, visitor, self.hub.repositories, "open")
            make(change, visitor, self.hub.repositories, "closed", private=True)
        self.app: FastAPI = make_app(self.hub)

    def ask(self, wanted: list[tuple[str, str, Role]]) -> list[httpx.Response]:
        """Answers to (method, path, role of the token), in turn."""

        async def all_of_them() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://hub") as client:
                found = []
                for method, path, role in wanted:
                    token = self.tokens[role]
                    headers = {"Upload-Offset": "0"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
                    sent = {"body": "hello"} if "/comments" in path else {}
                    body = sent if method in ("POST", "PUT", "PATCH") else None
                    found.append(await client.request(method, path, headers=headers, json=body))
                return found

        return asyncio.run(all_of_them())


@pytest.fixture(scope="module")
def village(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Village]:
    made = Village(tmp_path_factory.mktemp("hub"))
    yield made
    made.hub.close()


def filled(path: str, repository: str, value: str | None = None, *, everywhere: bool = False) -> str:
    """A route's path with something in each of its places; `value` in all, or in all but those of the repository."""
    words = {**WORDS, "name": repository}

    def word(match: re.Match[str]) -> str:
        key = match[1].partition(":")[0]
        if value is not None and (everywhere or not (key in ("owner", "name") and "{owner}" in path)):
            return quote(value, safe="%/.\\")
        return words.get(key, "main" if ":path" in match[1] else "f" * 64)

    return re.sub(r"\{([^}]*)\}", word, path)


def test_every_route_is_in_the_table() -> None:
    there = {f"{method} {path}" for method, path in routes()}
    assert there - KNOWN == set(), "say what role it asks for"
    assert KNOWN - there - {""} == set(), "there is no such route any more"


def test_a_role_below_is_refused_and_no_other(village: Village) -> None:
    asked = [(least, method, path, role) for least, method, path in ROWS for role in Role]
    answers = village.ask([(method, filled(path, "open"), role) for _, method, path, role in asked])
    for (least, method, path, role), answer in zip(asked, answers, strict=True):
        where = f"{method} {path} as {role.word}: {answer.status_code} {answer.text[:200]}"
        assert answer.status_code < 500, where
        needed = Role.NONE if least in ("none", "own") else Role.of(least)
        if role < needed:
            assert answer.status_code == (401 if role == Role.NONE else 403), where
        elif least != "own":
            assert answer.status_code not in (401, 403), where


def test_what_is_private_is_not_there_for_others(village: Village) -> None:
    """Answers about a private repository are those about none."""
    asked = [
        (method, path, role)
        for _, method, path in ROWS
        if "{owner}" in path
        for role in (Role.NONE, Role.READ, Role.CONTRIBUTE, Role.MAINTAIN)
    ]
    closed = village.ask([(method, filled(path, "closed"), role) for method, path, role in asked])
    absent = village.ask([(method, filled(path, "absent"), role) for method, path, role in asked])
    for (method, path, role), there, none in zip(asked, closed, absent, strict=True):
        where = f"{method} {path} as {role.word}: {there.status_code} {there.text[:200]}"
        assert there.status_code in (401, 404), where
        assert there.status_code == none.status_code, where
        assert there.text.replace("closed", "absent") == none.text, where


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_paths_are_refused_and_write_nothing_outside(village: Village, value: str) -> None:
    outside = set(village.hub.settings.data.parent.iterdir())
    places = [(method, path) for _, method, path in ROWS if "{" in path]
    wanted = [
        (method, filled(path, "open", value, everywhere=everywhere), Role.ADMIN)
        for method, path in places
        for everywhere in (False, True)
    ]
    for (method, path, _), answer in zip(wanted, village.ask(wanted), strict=True):
        assert answer.status_code < 500, f"{method} {path}: {answer.text[:300]}"
        assert b"root:" not in answer.content
    assert set(village.hub.settings.data.parent.iterdir()) == outside


def test_dots_in_a_path_are_no_way_out(hub_server: HubServer) -> None:
    """As they come from a client that does not tidy paths up; most do."""
    secret = hub_server.token("ann", "admin")
    hub_server.repository(secret, "open")
    outside = set(hub_server.data.parent.iterdir())
    routers = [getattr(part, "original_router", OTHERS[-1]) for part in OTHERS[-1].routes]  # as FastAPI keeps them now
    pages = {("GET", str(getattr(route, "path", "/"))) for router in routers for route in router.routes}
    assert ("GET", "/{owner}/{name}/download/{rest:path}") in pages, pages
    with hub_server.client(secret) as client:
        for method, path in [*((method, path) for _, method, path in ROWS), *sorted(pages)]:
            for value in DOTS:
                for everywhere in (False, True):
                    target = filled(path, "open", value, everywhere=everywhere).encode()
                    answer = client.request(method, "/", extensions={"target": target})
                    where = f"{method} {target!r}: {answer.status_code} {answer.text[:300]}"
                    assert answer.status_code < 500, where
                    assert not answer.content.startswith((b"SQLite format", b"root:")), where
    assert set(hub_server.data.parent.iterdir()) == outside
    assert secret not in hub_server.said()


def test_no_token_is_in_an_answer_or_a_log(village: Village, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    # Xet's protocol has the server hand out a token to upload with: the sender gets their own back.
    rows = [(method, path) for _, method, path in ROWS if "xet-write-token" not in path]
    wanted = [(method, filled(path, "open"), role) for method, path in rows for role in Role]
    said = [answer.text + str(answer.headers) for answer in village.ask(wanted)]
    for token in village.tokens.values():
        if token is not None:
            assert not [text for text in said if token in text]
            assert token not in caplog.text


def test_who_guesses_tokens_has_to_wait(tmp_path: Path) -> None:
    made = Village(tmp_path, failures=5)
    made.tokens[Role.NONE] = "cofuse_" + "x" * 43
    answers = made.ask([("GET", "/api/v1/me", Role.NONE)] * 20)
    made.hub.close()
    codes = [answer.status_code for answer in answers]
    assert codes[:5] == [401] * 5
    assert set(codes[6:]) == {429}  # the sixth may come when there is one again
    assert int(answers[-1].headers["Retry-After"]) > 0
