"""Signing in, cookies, and forms that somebody else sends."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import select

from cofuse.hub.access.sessions import DAYS, named
from cofuse.hub.access.tokens import digest
from cofuse.hub.database import Session, Token

from ..serving import HubServer
from .conftest import HTML, Place, field, sign_in_with


def flags(answer: httpx.Response, name: str) -> set[str]:
    found = next(line for line in answer.headers.get_list("set-cookie") if line.startswith(f"{name}="))
    return {
        part.strip().lower().partition("=")[0] if "max-age" in part.lower() else part.strip().lower()
        for part in found.split(";")[1:]
    }


def test_a_cookie_is_for_the_server_alone(place: Place) -> None:
    with place.visitor() as client:
        answer = sign_in_with(client, place.village.tokens["ada"])
        assert {"httponly", "samesite=lax", "path=/", "max-age"} <= flags(answer, "cofuse")
        assert "secure" not in flags(answer, "cofuse")  # there is no TLS here


def test_behind_tls_it_is_bound_to_the_host(start_hub: Callable[..., HubServer]) -> None:
    server = start_hub({"server.url": "https://hub.example", "server.proxies": "true"})
    with httpx.Client(base_url=server.url, headers=HTML) as client:
        page = client.get("/signin")
        assert {"secure", "httponly", "samesite=lax", "path=/"} <= flags(page, "__Host-cofuse-form")
        form = page.headers["set-cookie"].partition("=")[2].partition(";")[0]
        answer = client.post(
            "/signin",
            data={"token": server.token("ada"), "form": field(page.text, "form")},
            headers={"Cookie": f"__Host-cofuse-form={form}", "Origin": "https://hub.example"},
        )
        assert answer.status_code == 303, answer.text
        assert {"secure", "httponly", "samesite=lax", "path=/"} <= flags(answer, "__Host-cofuse")


def test_only_a_hash_of_the_session_is_kept(place: Place) -> None:
    with place.visitor("ada") as client:
        cookie = client.cookies["cofuse"]
        with place.server.hub.database.reading() as look:
            found = look.get(Session, digest(named(cookie)))
            assert found is not None
            assert found.expires < time.time() + (DAYS + 0.1) * 86400
            assert cookie not in {found.hash, found.csrf}
        # It is good for nothing else.
        assert client.get("/api/v1/me", headers={"Accept": "*/*"}).status_code == 401
        assert client.get("/api/v1/me", headers={"Authorization": f"Bearer {cookie}"}).status_code == 401


def test_a_token_is_no_cookie(place: Place) -> None:
    with place.visitor() as client:
        client.cookies.set("cofuse", place.village.tokens["ada"])
        assert "Sign in" in client.get("/").text
        answer = client.get("/settings")
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/signin?")


def test_signing_in_makes_a_new_session_and_ends_the_one_before(place: Place) -> None:
    with place.visitor("ada") as client:
        before = client.cookies["cofuse"]
        assert sign_in_with(client, place.village.tokens["grace"]).status_code == 303
        assert client.cookies["cofuse"] != before
        with place.server.hub.database.reading() as look:
            assert look.get(Session, digest(named(before))) is None


def test_signing_out_ends_the_session_on_the_server(place: Place) -> None:
    with place.visitor("ada") as client:
        cookie = client.cookies["cofuse"]
        csrf = field(client.get("/settings").text, "csrf")
        assert client.post("/signout", data={"csrf": csrf}).status_code == 303
        client.cookies.set("cofuse", cookie)
        assert client.get("/settings").status_code == 303


def test_a_session_ends_with_its_token(place: Place) -> None:
    secret = place.server.token("shortly", "contribute")
    with place.visitor() as client:
        assert sign_in_with(client, secret).status_code == 303
        assert client.get("/settings").status_code == 200
        with place.server.hub.database.writing() as change:
            change.scalars(select(Token).where(Token.hash == digest(secret))).one().revoked = time.time()
        time.sleep(0.6)  # as long as another process may go by what it knew
        answer = client.get("/settings")
        assert answer.status_code == 303
        assert client.get("/").status_code == 200  # nobody's, not an error


def test_a_session_expires(place: Place) -> None:
    with place.visitor("ada") as client:
        with place.server.hub.database.writing() as change:
            change.get_one(Session, digest(named(client.cookies["cofuse"]))).expires = time.time() - 1
        time.sleep(0.6)
        answer = client.get("/settings")
        assert answer.status_code == 303
        assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "to",
    [
        "https://elsewhere.example/",
        "//elsewhere.example",
        "/\\elsewhere.example",
        "/\t/x",
        "javascript:alert(1)",
        "/\r\nSet-Cookie: a=b",
    ],
)
def test_no_way_leads_elsewhere(place: Place, to: str) -> None:
    with place.visitor() as client:
        answer = sign_in_with(client, place.village.tokens["ada"], to=to)
        assert answer.status_code == 303
        assert answer.headers["location"] == "/"
        assert "a" not in client.cookies


# Forms

FORMS = (
    "/settings/tokens",
    "/signout",
    "/open-lab/minilm-evolving/contributions/39/comment",
    "/open-lab/minilm-evolving/contributions/39/accept",
    "/open-lab/minilm-evolving/rounds",
    "/open-lab/minilm-evolving/rounds/main/9",
    "/open-lab/minilm-evolving/settings",
    "/open-lab/minilm-evolving/settings/policy",
    "/open-lab/minilm-evolving/settings/suite",
    "/open-lab/minilm-evolving/settings/grants",
    "/open-lab/minilm-evolving/settings/revoke",
    "/open-lab/minilm-evolving/settings/rollback",
)
CSRF: dict[str, dict[str, str]] = {
    "missing": {},
    "empty": {"csrf": ""},
    "wrong": {"csrf": "x" * 43},
    "odd": {"csrf": "é\u2028"},
}


@pytest.mark.parametrize("path", FORMS)
def test_a_form_that_the_session_did_not_give_out_is_refused(place: Place, path: str) -> None:
    with place.visitor("ada") as client, place.visitor("grace") as other:
        theirs = {"theirs": {"csrf": field(other.get("/settings").text, "csrf")}}
        for name, csrf in {**CSRF, **theirs}.items():
            answer = client.post(
                path, data={"body": "x", "scope": "read", "decision": "publish", "confirm": "on", **csrf}
            )
            assert answer.status_code == 403, (name, answer.text)


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
def test_a_form_that_another_site_sends_is_refused(place: Place, headers: dict[str, str]) -> None:
    with place.visitor("ada") as client:
        csrf = field(client.get("/settings").text, "csrf")
        assert client.post("/settings/tokens", data={"scope": "read", "csrf": csrf}, headers=headers).status_code == 403
        form = field(client.get("/signin").text, "form")
        answer = client.post("/signin", data={"token": place.village.tokens["ada"], "form": form}, headers=headers)
        assert answer.status_code == 403


def test_nobody_is_signed_in_by_another_sites_form(place: Place) -> None:
    """The attacker knows a form's word of their own, but not the cookie that goes with the victim's."""
    with place.visitor() as attacker, place.visitor() as victim:
        known = field(attacker.get("/signin").text, "form")
        victim.get("/signin")
        answer = victim.post("/signin", data={"token": place.village.tokens["grace"], "form": known})
        assert answer.status_code == 403
        assert "cofuse" not in victim.cookies


def test_guessing_tokens_has_to_wait(start_hub: Callable[..., HubServer]) -> None:
    server = start_hub({"limits.failures": 5})
    with httpx.Client(base_url=server.url, headers=HTML) as client:
        said = [sign_in_with(client, f"cofuse_{i:043d}").status_code for i in range(8)]
        assert said[:5] == [403] * 5
        assert set(said[5:]) == {429}
        answer = sign_in_with(client, f"cofuse_{9:043d}")
        assert answer.headers["retry-after"]
        assert "text/html" in answer.headers["content-type"]


def test_what_is_not_a_form_is_refused(place: Place) -> None:
    with place.visitor("ada") as client:
        csrf = field(client.get("/settings").text, "csrf")
        assert client.post("/settings/tokens", json={"csrf": csrf, "scope": "read"}).status_code == 400
        assert client.post("/settings/tokens", data={"csrf": csrf}, files={"scope": b"read"}).status_code == 400
        many = client.post("/settings/tokens", data={f"f{i}": "x" for i in range(2000)})
        assert many.status_code in (400, 403)
