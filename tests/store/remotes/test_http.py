"""Asking a hub over connections that break, answer late, or answer nonsense; and what is never sent or shown."""

from __future__ import annotations

import json
import pickle
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3

from cofuse.credentials import Credentials, Machine
from cofuse.errors import AddressError, HubError, StoreError
from cofuse.store.remotes import open_remote
from cofuse.store.remotes.addresses import parse
from cofuse.store.remotes.http import Answered, Http, Unreachable, check_url

SECRET = "cofuse_hunter2hunter2hunter2"


def answer(status: str, body: bytes = b"{}", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *more, "", ""]
    return "\r\n".join(lines).encode() + body


class Scripted:
    """A server that answers each request by the next line of its script; None resets the connection."""

    def __init__(self, script: list[bytes | None], wrap: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self._script, self._wrap = iter(script), wrap
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' if wrap else ''}://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            try:
                if self._wrap is not None:
                    connection = self._wrap.wrap_socket(connection, server_side=True)
                self._converse(connection)
            except (OSError, StopIteration):
                pass
            connection.close()

    def _converse(self, connection: socket.socket) -> None:
        raw = b""
        while True:
            while b"\r\n\r\n" not in raw:
                if not (more := connection.recv(65536)):
                    return
                raw += more
            head, _, raw = raw.partition(b"\r\n\r\n")
            length = next(
                (int(row[15:]) for row in head.lower().split(b"\r\n") if row.startswith(b"content-length:")), 0
            )
            while len(raw) < length:
                raw += connection.recv(65536)
            self.requests.append(head + b"\r\n\r\n" + raw[:length])
            raw = raw[length:]
            said = next(self._script)
            if said is None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return
            connection.sendall(said)

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def make(*script: bytes | None, wrap: ssl.SSLContext | None = None) -> Scripted:
        made.append(Scripted(list(script), wrap))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_what_may_be_asked_twice_is_asked_again(scripted: Callable[..., Scripted]) -> None:
    server = scripted(
        None, answer("503 Busy"), answer("502 Bad Gateway", b"<html>"), None, answer("200 OK", b'{"a": 1}')
    )
    assert Http(server.url, patience=20).json("GET", "/x") == {"a": 1}
    assert len(server.requests) == 5


def test_what_may_not_be_asked_twice_is_not(scripted: Callable[..., Scripted]) -> None:
    server = scripted(None, answer("200 OK"))
    with pytest.raises(Unreachable, match="cannot be reached"):
        Http(server.url, patience=20).ask("POST", "/x", value={})
    assert len(server.requests) == 1
    assert Http(server.url, patience=20).json("POST", "/x", value={}, again=True) == {}


def test_a_body_is_made_anew_for_each_attempt(scripted: Callable[..., Scripted]) -> None:
    server = scripted(None, answer("429 Often", b"{}", "Retry-After: 1"), answer("200 OK"))
    began = time.monotonic()
    Http(server.url, patience=20).ask("PUT", "/x", body=lambda: iter([b"abc", b"def"]), headers={"Content-Length": "6"})
    assert time.monotonic() - began >= 1
    assert [request.partition(b"\r\n\r\n")[2] for request in server.requests] == [b"abcdef"] * 3


def test_patience_ends(scripted: Callable[..., Scripted]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        began = time.monotonic()
        with pytest.raises(Unreachable, match="cannot be reached") as caught:
            Http(f"http://127.0.0.1:{taken.getsockname()[1]}", SECRET, patience=1).ask("GET", "/x")
        assert 0.5 < time.monotonic() - began < 10
    assert "same command goes on" in str(caught.value)
    server = scripted(answer("503 Busy", b"{}", "Retry-After: 3600"))
    with pytest.raises(Answered) as refused:  # an hour is longer than anybody waits
        Http(server.url, patience=2).ask("GET", "/x")
    assert refused.value.status == 503


def test_a_hubs_error_is_told_in_its_words_and_nothing_else_of_a_hostile_one(scripted: Callable[..., Scripted]) -> None:
    told = {"error": "not allowed", "got": "ann: read", "expected": "contribute", "hint": "ask\x1b[31m", "where": "a/m"}
    server = scripted(
        answer("403 Forbidden", json.dumps(told).encode()),
        answer("500 Oops", b"<html>" + SECRET.encode()),
        answer("404 Not Found", b"[" * 100_000),
        answer("404 Not Found", b'{"error": {"a": [1]}, "got": 7}'),
        answer("302 Found", b"", f"Location: https://elsewhere.example/{SECRET}"),
        answer("200 OK", b"not json"),
        answer("401 Unauthorized", b'{"error": "a token is needed"}'),
    )
    http = Http(server.url, SECRET, patience=5)
    with pytest.raises(Answered) as caught:
        http.ask("GET", "/x")
    error = caught.value
    assert (error.status, error.what, error.got, error.expected) == (403, "not allowed", "ann: read", "contribute")
    assert "\x1b" not in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.status, str(copy)) == (403, str(error))
    for _ in range(4):
        with pytest.raises(Answered) as other:
            http.ask("GET", "/x")
        assert SECRET not in str(other.value)
    with pytest.raises(HubError, match="not JSON"):
        http.json("GET", "/x")
    http.close()
    with pytest.raises(Answered) as unknown:
        Http(server.url, patience=5).ask("GET", "/x")
    assert f"cofuse login {server.url}" in str(unknown.value)
    assert SECRET not in repr(http) + repr(vars(error))


def test_an_answer_that_ends_early_is_not_taken_for_whole(scripted: Callable[..., Scripted]) -> None:
    server = scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 50, None)
    http = Http(server.url, patience=1)
    http._pool.timeout = urllib3.Timeout(1.0)
    with pytest.raises(Unreachable), http.streaming("GET", "/x") as (found, read):  # noqa: PT012
        assert found.status == 200
        while read(30):
            pass


def test_the_token_goes_nowhere_unencrypted() -> None:
    for url in ("http://hub.example.org", "http://10.0.0.1:8080/x", "http://localhost.example.org"):
        with pytest.raises(HubError, match="not be encrypted") as caught:
            Http(url, SECRET)
        assert SECRET not in str(caught.value)
        assert check_url(url, plain=True) == url
        with pytest.raises(StoreError, match="not be encrypted"):
            open_remote(f"{url}/ann/m")
    for url in ("http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1", "https://hub.example.org/prefix"):
        assert check_url(url) == url
    for url in (
        "",
        "hub.example.org",
        "ftp://x",
        "https://",
        "https://x:y",
        "https://x/?a=b",
        "https://[",
        "https://x#y",
    ):
        with pytest.raises(HubError, match="not a hub"):
            check_url(url)
    for bad in ("two words", "line\nbreak", "gr\u00fcn"):
        with pytest.raises(HubError, match="not a token"):
            Http("https://hub.example.org", bad)


def test_a_certificate_that_nobody_vouches_for_is_refused(scripted: Callable[..., Scripted], tmp_path: Path) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "crt")]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    server = scripted(answer("200 OK", b'{"a": 1}'), wrap=context)
    began = time.monotonic()
    with pytest.raises(Unreachable, match="certificate is not good"):
        Http(server.url, SECRET, patience=20).ask("GET", "/x")
    assert time.monotonic() - began < 10  # waiting does not mend it
    assert server.requests == []


@contextmanager
def refused(*secrets: str) -> Iterator[None]:
    with pytest.raises((AddressError, StoreError)) as caught:
        yield
    assert not any(secret in str(caught.value) + repr(caught.value) for secret in secrets)


def test_addresses_on_a_hub() -> None:
    assert parse("https://h.example/ann/tiny")[1:] == ("ann", "tiny", None)
    assert parse("https://h.example:8443/some/prefix/ann/tiny@runs/a~2") == (
        "https://h.example:8443/some/prefix",
        "ann",
        "tiny",
        "runs/a~2",
    )
    assert parse("https://h.example/ann/tiny@refs/pr/7").path == "/api/v1/repositories/ann/tiny"
    for wrong in (
        "https://h.example",
        "https://h.example/ann",
        "https://h.example/ann/",
        "https://h.example/../tiny",
        "https://h.example/ann/%2e%2e",
        "https://h.example/ann/tiny@",
        "https://h.example/ann/tiny?x=y",
        "https://h.example/ann/tiny#x",
        "https:///ann/tiny",
        "https://h:port/ann/tiny",
    ):
        with refused():
            parse(wrong)
    with refused("hunter2"):
        parse("https://ann:hunter2@h.example/ann/tiny")
    with refused("hunter2"):
        open_remote("https://ann:hunter2@h.example/ann/tiny")
    with refused():
        open_remote("https://h.example/ann/tiny@main")


def test_tokens_are_kept_for_their_hub_alone_and_for_no_other_user(tmp_path: Path) -> None:
    known = Credentials(tmp_path / "config" / "credentials")
    assert known.get("https://h.example") is None
    known.set("https://h.example/", SECRET)
    assert known.path.stat().st_mode & 0o777 == 0o600
    assert known.get("https://H.example:443/prefix") == SECRET
    for other in ("http://h.example", "https://h.example:8443", "https://h.example.org", "https://h"):
        assert known.get(other) is None
    known.set("https://other.example", "cofuse_other")
    assert known.remove("https://h.example")
    assert not known.remove("https://h.example")
    assert known.get("https://other.example") == "cofuse_other"
    assert [path.name for path in known.path.parent.iterdir()] == ["credentials"]
    known.path.write_text(f"[{SECRET}")
    with pytest.raises(HubError, match="cannot read the tokens") as caught:
        known.get("https://h.example")
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(Machine(token=SECRET))
