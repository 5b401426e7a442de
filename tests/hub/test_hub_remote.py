"""Stores and a hub, by its command line: clone, push, pull, fetch, open; kills and cuts on the way; keys never shown."""

from __future__ import annotations

import os
import random
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

import cofuse
from cofuse.checkpoint import TensorSpec, build_header
from cofuse.credentials import Credentials, Machine, use
from cofuse.errors import AddressError, RefError, StoreError
from cofuse.hub.database import Repository
from cofuse.store import Store
from cofuse.store.refs import PULLS
from cofuse.store.remotes import Push, deliver, open_remote, push, receive

from .serving import HubServer

MAIN = "import sys; from cofuse.cli import main; sys.argv[0] = 'cofuse'; main()"
names = (f"r{n}" for n in range(1000))


def noise(folder: Path, tensors: dict[str, int], seed: int = 0) -> Path:
    """A folder whose tensors have so many bytes, which cannot be compressed."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    header = build_header({name: TensorSpec("U8", (size,)) for name, size in tensors.items()}, {})
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header.raw)
        for name in header.entries:
            file.write(random.Random(f"{seed} {name}").randbytes(tensors[name]))
    return folder


class Person:
    """Somebody with a home of their own, who types commands."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        home.mkdir(exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "COFUSE_"))}
        self.environment = {**kept, "HOME": str(home), **environment}

    def start(self, *words: str, cwd: Path | None = None, text: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *words],
            cwd=cwd or self.home,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, *words: str, cwd: Path | None = None, text: str = "", fails: bool = False) -> str:
        process = self.start(*words, cwd=cwd, text=text)
        out, error = process.communicate(timeout=120)
        assert (process.returncode != 0) == fails, out + error
        assert "Traceback" not in out + error
        return out + error


@pytest.fixture
def as_ann(hub_server: HubServer, tmp_path: Path) -> Iterator[str]:
    """This process is ann's."""
    secret = hub_server.token("ann", "maintain")
    Credentials(tmp_path / "credentials").set(hub_server.url, secret)
    use(Machine(credentials=tmp_path / "credentials", cache=tmp_path / "cache"))
    yield secret
    use(Machine())


@pytest.fixture
def home(tmp_path: Path) -> Store:
    return Store.init(tmp_path / "home")


def test_two_people_and_a_hub(hub_server: HubServer, tmp_path: Path) -> None:
    """What the documentation shows, as it is typed."""
    secrets = {name: hub_server.token(name, "maintain") for name in ("amy", "ben")}
    amy, ben = Person(tmp_path / "amy"), Person(tmp_path / "ben")
    said = [
        amy.run("login", hub_server.url, text=secrets["amy"] + "\n"),
        ben.run("login", hub_server.url, text=secrets["ben"] + "\n"),
    ]
    assert "amy, may maintain" in said[0]
    assert (amy.home / ".config" / "cofuse" / "credentials").stat().st_mode & 0o777 == 0o600
    work = amy.home / "work"
    noise(work, {"w": 100_000})
    said.append(amy.run("init", cwd=work))
    said.append(amy.run("commit", "model.safetensors", "-m", "first", cwd=work))
    address = f"{hub_server.url}/amy/tiny"
    said.append(amy.run("remote", "add", "origin", address, cwd=work))
    said.append(amy.run("push", cwd=work))
    # Made by a push, it is nobody else's yet.
    said.append(ben.run("clone", address, fails=True))
    assert "there is no store" in said[-1]
    with hub_server.client(secrets["amy"]) as client:
        assert client.patch("/api/v1/repositories/amy/tiny", json={"private": False}).status_code == 200
    said.append(ben.run("clone", address))
    there = Store.open(ben.home / "tiny")
    assert there.fsck().ok
    assert there.resolve("main") == Store.open(work).resolve("main")
    noise(work, {"w": 100_000}, seed=1)
    said.append(amy.run("commit", "model.safetensors", "-m", "second", cwd=work))
    said.append(amy.run("push", cwd=work))
    said.append(ben.run("pull", cwd=ben.home / "tiny"))
    assert [c.message for c in there.log()] == ["second", "first"]
    said.append(ben.run("show", f"{address}@main~1"))
    assert "100,000" in said[-1] or "100000" in said[-1]
    said.append(ben.run("show", f"{address}@nothing", fails=True))
    said.append(ben.run("push", cwd=ben.home / "tiny"))  # there is nothing new
    (there.path / "refs" / "heads" / "main").write_text(there.resolve("main~1") + "\n")
    said.append(ben.run("logout", hub_server.url))
    said.append(ben.run("push", "--force", cwd=ben.home / "tiny", fails=True))
    assert "cofuse login" in said[-1]
    kept = "".join(p.read_text() for p in tmp_path.rglob("remotes") if p.is_file())
    assert address in kept
    for secret in secrets.values():
        assert secret not in "".join(said) + kept + hub_server.said()


def test_a_token_of_the_environment_goes_first_and_plain_http_has_to_be_allowed(
    hub_server: HubServer, tmp_path: Path
) -> None:
    secret = hub_server.token("cas", "maintain")
    hub_server.repository(secret, "mine", private=True)
    cas = Person(tmp_path / "cas", COFUSE_TOKEN=secret)
    noise(cas.home, {"w": 1000})
    cas.run("init")
    cas.run("commit", "model.safetensors", "-m", "x")
    cas.run("remote", "add", "origin", f"{hub_server.url}/cas/mine")
    assert "new" in cas.run("push")
    cas.run("clone", f"{hub_server.url}/cas/mine", "copy")
    refused = cas.run("clone", "http://hub.invalid/cas/mine", fails=True)
    assert "would not be encrypted" in refused
    assert secret not in refused
    wrong = Person(tmp_path / "cas", COFUSE_TOKEN="cofuse_wrong").run("fetch", fails=True)
    assert "the token is not good" in wrong
    for login in (cas.run("login", hub_server.url, text="\n", fails=True), wrong):
        assert "cofuse_wrong" not in login


def test_an_address_is_opened_and_nothing_is_fetched_twice(
    hub_server: HubServer, as_ann: str, home: Store, tmp_path: Path
) -> None:
    name = next(names)
    address = f"{hub_server.url}/ann/{name}"
    first = home.commit(noise(tmp_path / "m", {"a": 200_000, "b": 300_000}), message="1")
    second = home.commit(noise(tmp_path / "m", {"a": 200_000, "b": 300_001}), message="2")
    home.tag("v1", first.id)
    push(home, open_remote(address), [Push("refs/heads/main", second.id), Push("refs/tags/v1", first.id)])
    for rev, own in (("", "main"), ("@v1", "v1"), ("@main~1", "main~1"), (f"@{first.id}", first.id)):
        found = cofuse.open(address + rev)
        mine = home.checkpoint(own)
        assert list(found.names()) == list(mine.names())
        assert all(found.read(n).tolist() == mine.read(n).tolist() for n in mine.names())
    (cache,) = (tmp_path / "cache" / "hubs").iterdir()
    kept = {path: path.stat().st_ino for path in (cache / "objects").rglob("*") if path.is_file()}
    cofuse.open(address)
    assert {path: path.stat().st_ino for path in (cache / "objects").rglob("*") if path.is_file()} == kept
    for wrong in ("@nothing", "@" + "0" * 64, "@refs/pr/9"):
        with pytest.raises(AddressError):
            cofuse.open(address + wrong)
    with pytest.raises(AddressError, match="no such repository"):
        cofuse.open(f"{hub_server.url}/ann/nothing")


def test_a_commit_is_delivered_without_a_branch_and_fetched_by_its_id(
    hub_server: HubServer, as_ann: str, home: Store, tmp_path: Path
) -> None:
    """How contributions travel: by somebody who may not push."""
    address = f"{hub_server.url}/ann/{next(names)}"
    base = home.commit(noise(tmp_path / "m", {"a": 100_000}), message="base")
    push(home, open_remote(address), [Push("refs/heads/main", base.id)])
    with hub_server.client(as_ann) as client:
        client.patch(f"/api/v1/repositories/{address.removeprefix(hub_server.url + '/')}", json={"private": False})
    Credentials(tmp_path / "credentials").set(hub_server.url, hub_server.token("dan", "contribute"))
    offered = home.commit(
        noise(tmp_path / "m", {"a": 100_000}, seed=1), message="offered", branch="mine", parents=["main"]
    )
    deliver(home, open_remote(address), [offered.id])
    with pytest.raises(StoreError, match="not allowed"):
        push(home, open_remote(address), [Push("refs/heads/main", offered.id)])
    assert open_remote(address).refs() == {"refs/heads/main": base.id}
    elsewhere = Store.init(tmp_path / "elsewhere")
    receive(elsewhere, open_remote(address), [offered.id])
    assert [c.message for c in elsewhere.log(offered.id)] == ["offered", "base"]
    with hub_server.hub.database.reading() as look:
        row = look.scalars(select(Repository).where(Repository.name == address.rpartition("/")[2])).one()
    # The hub keeps it by a ref of its own.
    hub_server.hub.store(row).refs.update(f"{PULLS}1", offered.id, expect=None)
    assert cofuse.open(f"{address}@refs/pr/1").read("a").tolist() == home.checkpoint("mine").read("a").tolist()
    assert "refs/pr/1" not in open_remote(address).refs()


def test_a_hub_with_a_certificate(start_hub: Callable[..., HubServer], tmp_path: Path) -> None:
    """It speaks TLS alone; who does not know its certificate sends it nothing."""
    key, known = tmp_path / "key", tmp_path / "crt"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(known)]
    subprocess.run(made, check=True, capture_output=True)
    server = start_hub({"server.certificate": known, "server.key": key})
    assert server.url.startswith("https://")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{server.port}/healthz", timeout=5)
    secret = server.token("amy", "maintain")
    knowing = ssl.create_default_context(cafile=str(known))
    with httpx.Client(base_url=server.url, verify=knowing) as client:
        page = client.get("/signin")
        assert all("secure" in cookie.lower() for cookie in page.headers.get_list("set-cookie"))
        assert page.headers.get_list("set-cookie")
    stranger = Person(tmp_path / "stranger", COFUSE_TOKEN=secret)
    amy = Person(tmp_path / "amy", COFUSE_TOKEN=secret, SSL_CERT_FILE=str(known))
    for person in (stranger, amy):
        noise(person.home, {"w": 100_000})
        person.run("init")
        person.run("commit", "model.safetensors", "-m", "first")
        person.run("remote", "add", "origin", f"{server.url}/amy/tiny")
    assert "certificate is not good" in stranger.run("push", fails=True)
    amy.run("push")
    amy.run("clone", f"{server.url}/amy/tiny", "again")
    assert Store.open(amy.home / "again").fsck().ok


@pytest.mark.slow
def test_a_push_outlives_kills_of_the_hub_and_of_itself(start_hub: Callable[..., HubServer], tmp_path: Path) -> None:
    """A large object, and many small ones: the hub is killed while they arrive, then the one who pushes."""
    server = start_hub()
    secret = server.token("eve", "maintain")
    eve = Person(tmp_path / "eve", COFUSE_TOKEN=secret)
    noise(eve.home, {"large": 80_000_000, **{f"w{n}": 500_000 for n in range(20)}})
    eve.run("init")
    eve.run("commit", "model.safetensors", "-m", "x")
    eve.run("remote", "add", "origin", f"{server.url}/eve/big")
    store = Store.open(eve.home)

    def arrived() -> int:
        return sum(path.stat().st_size for path in server.data.rglob("*") if path.is_file())

    for who in ("hub", "self", "hub", "none"):
        before = arrived()
        pushing = eve.start("push")
        give_up = time.monotonic() + 60
        while who != "none" and pushing.poll() is None and arrived() < before + 10_000_000:
            assert time.monotonic() < give_up
            time.sleep(0.005)
        if who == "hub":
            server.kill()
            server.start()
        elif who == "self":
            pushing.send_signal(signal.SIGKILL)
        out, error = pushing.communicate(timeout=120)
        if who != "self":
            assert pushing.returncode == 0, out + error
            assert "Traceback" not in error
        if who == "hub":
            store.commit(noise(eve.home, {"large": 80_000_000}, seed=len(out)), message=who)
    remote = open_remote_as(secret, f"{server.url}/eve/big", tmp_path)
    assert remote.refs()["refs/heads/main"] == store.resolve("main")
    (folder,) = (server.data / "repositories").glob("*/*.cofuse")
    assert Store.open(folder).fsck().ok
    assert list((server.data / "uploads").iterdir()) == []
    assert list((store.path / "sending").iterdir()) == []


@pytest.mark.slow
def test_a_large_object_goes_on_where_it_was(start_hub: Callable[..., HubServer], home: Store, tmp_path: Path) -> None:
    server = start_hub()
    secret = server.token("eve", "maintain")
    server.repository(secret, "big")
    remote = open_remote_as(secret, f"{server.url}/eve/big", tmp_path)
    commit = home.commit(noise(tmp_path / "m", {"large": 120_000_000}), message="x")
    cofuse_push = Person(tmp_path / "eve", COFUSE_TOKEN=secret)
    cofuse_push.run("remote", "add", "origin", f"{server.url}/eve/big", cwd=home.path.parent)
    pushing = cofuse_push.start("push", cwd=home.path.parent)
    uploads = server.data / "uploads"
    give_up = time.monotonic() + 60
    while not any(path.stat().st_size > 40_000_000 for path in uploads.iterdir()):
        assert time.monotonic() < give_up
        assert pushing.poll() is None, pushing.communicate()
        time.sleep(0.002)
    pushing.send_signal(signal.SIGKILL)
    pushing.communicate()
    with server.client(secret) as client:
        give_up = time.monotonic() + 60
        while (before := received(client)) < 40_000_000:  # counted when what was left of the connection has ended
            assert time.monotonic() < give_up
            time.sleep(0.1)
        push(home, remote, [Push("refs/heads/main", commit.id)])
        assert received(client) - before < 85_000_000
    assert remote.refs() == {"refs/heads/main": commit.id}
    use(Machine())


def received(client: httpx.Client) -> float:
    """Bytes of bodies that the hub has received."""
    return float(client.get("/metrics").text.split("\ncofuse_received_bytes_total ")[1].split()[0])


def open_remote_as(secret: str, address: str, folder: Path):  # type: ignore[no-untyped-def]
    use(Machine(credentials=folder / "none", cache=folder / "cache", token=secret))
    return open_remote(address)


def test_who_goes_where_there_is_nothing_is_told_so(hub_server: HubServer, as_ann: str, home: Store) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        receive_all(home, f"{hub_server.url}/ann/nothing")
    with pytest.raises((StoreError, RefError), match=r"cannot be made in this name|not allowed"):
        push(home, open_remote(f"{hub_server.url}/somebody/else"), [])


def receive_all(store: Store, address: str) -> None:
    from cofuse.store.remotes import fetch

    fetch(store, open_remote(address), "origin")
