"""Uploads over real connections: whatever is cut, killed, raced or mistaken, nothing acknowledged is lost, nothing wrong kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select, update

from cofuse.hub import uploads
from cofuse.hub.arriving import arriving
from cofuse.hub.database import Account, Repository, Upload

from .serving import HubServer

Start = Callable[..., HubServer]
names = (f"m{n}" for n in range(1000))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def begin(client: httpx.Client, repository: str, data: bytes, announced: str | None = None) -> str:
    wanted = {"size": len(data), "sha256": announced or sha256(data)}
    answer = client.post(f"/api/v1/repositories/{repository}/uploads", json=wanted)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["key"])


def offset(client: httpx.Client, key: str) -> int:
    answer = client.head(f"/api/v1/uploads/{key}")
    assert answer.status_code == 200
    return int(answer.headers["Upload-Offset"])


def patch(client: httpx.Client, key: str, at: int, data: bytes) -> httpx.Response:
    return client.patch(f"/api/v1/uploads/{key}", content=data, headers={"Upload-Offset": str(at)})


def cut(server: HubServer, secret: str, key: str, at: int, data: bytes, after: int) -> None:
    """Announce all of the data, send a part of it, and reset the connection."""
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", server.port)) as raw:
        head = (
            f"PATCH /api/v1/uploads/{key} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
            f"Upload-Offset: {at}\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        raw.sendall(head.encode() + data[:after])
        if after % 2:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an orderly end


def finished(server: HubServer, key: str) -> bytes:
    """What the hub would hand to whoever uses the upload."""
    with server.hub.database.reading() as look:
        row = look.get_one(Upload, key)
        assert row.done
    return (server.hub.uploads / key).read_bytes()


@pytest.fixture
def mine(hub_server: HubServer) -> Iterator[tuple[httpx.Client, str]]:
    secret = hub_server.token("ann", "maintain")
    repository = hub_server.repository(secret, next(names))
    with hub_server.client(secret) as client:
        yield client, repository


def test_in_pieces_of_any_size(hub_server: HubServer, mine: tuple[httpx.Client, str]) -> None:
    client, repository = mine
    source = random.Random(1)
    data = source.randbytes(300_000)
    for announced in (sha256(data), None):
        wanted = {"size": len(data)} | ({"sha256": announced} if announced else {})
        key = client.post(f"/api/v1/repositories/{repository}/uploads", json=wanted).json()["key"]
        at = 0
        while at < len(data):
            piece = data[at : at + source.choice([0, 1, 7, 1000, 65536, 100_000])]
            answer = patch(client, key, at, piece)
            assert answer.status_code == 200, answer.text
            at += len(piece)
            assert int(answer.headers["Upload-Offset"]) == at == offset(client, key)
        assert answer.json()["done"]
        assert answer.json()["sha256"] == sha256(data)
        assert finished(hub_server, key) == data
        assert patch(client, key, at, b"").json()["done"]  # the answer may have got lost


def test_nothing_is_an_upload_too(hub_server: HubServer, mine: tuple[httpx.Client, str]) -> None:
    client, repository = mine
    key = begin(client, repository, b"")
    assert patch(client, key, 0, b"").json()["done"]
    assert finished(hub_server, key) == b""


def test_an_offset_that_is_not_where_it_is_changes_nothing(mine: tuple[httpx.Client, str]) -> None:
    client, repository = mine
    data = b"x" * 1000
    key = begin(client, repository, data)
    assert patch(client, key, 0, data[:400]).status_code == 200
    for wrong in (0, 399, 401, 1000, 1 << 40):
        assert patch(client, key, wrong, data[:100]).status_code == 409
        assert offset(client, key) == 400
    for malformed in ("-1", "x", "", "4e2", str(1 << 64)):
        answer = client.patch(f"/api/v1/uploads/{key}", content=b"y", headers={"Upload-Offset": malformed})
        assert answer.status_code == 422, malformed
    assert client.patch(f"/api/v1/uploads/{key}", content=b"y").status_code == 422
    assert patch(client, key, 400, data).status_code == 413  # more than was announced
    assert offset(client, key) == 400
    assert patch(client, key, 400, data[400:]).json()["done"]
    assert patch(client, key, 400, data[400:]).status_code == 409
    assert offset(client, key) == 1000


def test_bytes_that_are_not_those_announced_are_not_kept(hub_server: HubServer, mine: tuple[httpx.Client, str]) -> None:
    client, repository = mine
    data = random.Random(2).randbytes(100_000)
    key = begin(client, repository, data)
    assert patch(client, key, 0, data[:50_000]).status_code == 200
    answer = patch(client, key, 50_000, b"y" * 50_000)
    assert answer.status_code == 422
    assert sha256(data) in answer.text
    assert offset(client, key) == 0
    assert (hub_server.hub.uploads / key).stat().st_size == 0
    assert patch(client, key, 0, data).json()["done"]
    assert finished(hub_server, key) == data


def test_whole_by_its_key_alone(hub_server: HubServer, mine: tuple[httpx.Client, str]) -> None:
    client, repository = mine
    data = random.Random(3).randbytes(200_000)
    key = begin(client, repository, data)
    with hub_server.client() as nobody:
        assert nobody.put(f"/api/v1/uploads/{key}", content=data[:-1] + b"x").status_code in (200, 422)
        assert nobody.put(f"/api/v1/uploads/{key}", content=data[:-1]).status_code == 408
        assert nobody.put(f"/api/v1/uploads/{key}", content=data + b"x").status_code == 413
        assert offset(client, key) == 0
        assert nobody.put(f"/api/v1/uploads/{key}", content=data).json()["done"]
        assert nobody.put(f"/api/v1/uploads/{key}", content=b"z" * len(data)).json()["done"]  # it is done already
        assert finished(hub_server, key) == data
        for method in ("GET", "HEAD", "PATCH", "DELETE"):
            assert nobody.request(method, f"/api/v1/uploads/{key}", headers={"Upload-Offset": "0"}).status_code == 401


@pytest.mark.parametrize("concurrent", [64])
def test_many_at_once_with_cut_connections(hub_server: HubServer, concurrent: int) -> None:
    """Each sends in a handful of requests, of which one in ten is cut at a random byte; then it asks, and goes on."""
    secret = hub_server.token("ann", "maintain")
    repository = hub_server.repository(secret, next(names))
    cuts = 0

    def upload(n: int) -> tuple[str, bytes]:
        nonlocal cuts
        source = random.Random(n)
        data = source.randbytes(2_000_000 + n)
        with hub_server.client(secret) as client:
            key, at = begin(client, repository, data), 0
            while at < len(data):
                piece = data[at : at + source.randrange(1, 700_000)]
                if source.random() < 0.1:
                    cuts += 1
                    cut(hub_server, secret, key, at, piece, source.randrange(len(piece)))
                    at = settled(client, key, at)
                else:
                    try:
                        answer = patch(client, key, at, piece)
                    except httpx.RemoteProtocolError:  # an early answer, with the body unread, ends the connection
                        at = settled(client, key, at)
                        continue
                    if answer.status_code == 409:  # what was cut off was still on its way
                        at = settled(client, key, at)
                        continue
                    assert answer.status_code == 200, answer.text
                    at = int(answer.headers["Upload-Offset"])
        return key, data

    with ThreadPoolExecutor(concurrent) as pool:
        done = list(pool.map(upload, range(concurrent)))
    assert cuts > concurrent / 4
    for key, data in done:
        assert finished(hub_server, key) == data


def settled(client: httpx.Client, key: str, at: int) -> int:
    """Where an upload is; never before what was acknowledged."""
    try:
        found = offset(client, key)
    except httpx.RemoteProtocolError:  # a connection that the server had ended; a new one is asked once more
        found = offset(client, key)
    assert found >= at
    return found


def test_two_who_send_the_same_upload_do_not_mix(hub_server: HubServer, mine: tuple[httpx.Client, str]) -> None:
    client, repository = mine
    data = random.Random(4).randbytes(3_000_000)
    for _ in range(5):
        key = begin(client, repository, data)
        start = threading.Barrier(4)

        def send(key: str = key, start: threading.Barrier = start) -> int:
            start.wait()
            with httpx.Client(base_url=hub_server.url, headers=client.headers, timeout=60) as own:
                return patch(own, key, 0, data).status_code

        with ThreadPoolExecutor(4) as pool:
            answers = [future.result() for future in [pool.submit(send) for _ in range(4)]]
        assert sorted(answers) == [200, 409, 409, 409]
        assert finished(hub_server, key) == data


def test_a_finished_upload_is_not_begun_anew_by_who_came_late(
    hub_server: HubServer, mine: tuple[httpx.Client, str]
) -> None:
    client, repository = mine
    data = random.Random(8).randbytes(3_000_000)
    for _ in range(5):
        key = begin(client, repository, data)
        start = threading.Barrier(4)

        def send(n: int, key: str = key, start: threading.Barrier = start) -> int:
            start.wait()
            body = data if n else data[:-1]  # one of them is cut short
            return client.put(f"/api/v1/uploads/{key}", content=body).status_code

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(send, range(4)))
        assert answers[1:] == [200, 200, 200]
        assert answers[0] in (200, 408)
        assert finished(hub_server, key) == data


def test_killed_in_the_middle_it_goes_on_and_reads_nothing_again(start_hub: Start) -> None:
    server = start_hub()
    secret = server.token("ann", "maintain")
    repository = server.repository(secret, "m")
    data = random.Random(5).randbytes(30_000_000)
    with server.client(secret) as client:
        key, at = begin(client, repository, data), 0
        for n in range(3):
            acknowledged = at
            answer = patch(client, key, at, data[at : at + 2_000_000])
            acknowledged = at = int(answer.headers["Upload-Offset"])
            sender = threading.Thread(target=cut, args=(server, secret, key, at, data[at:], 9_000_000 + n))
            sender.start()
            path = server.data / "uploads" / key
            give_up = time.monotonic() + 20
            while path.stat().st_size < at + 1_000_000 and time.monotonic() < give_up:
                time.sleep(0.001)
            server.kill()
            sender.join()
            server.start()
            at = offset(client, key)
            assert at > acknowledged
        # The hash goes on from where it was noted: whoever has changed bytes before that is not noticed by reading them.
        with arriving(server.data / "uploads" / key) as file:
            assert 6_000_000 <= file.hashed <= file.size
        answer = patch(client, key, at, data[at:])
        assert answer.json()["done"], answer.text
        assert answer.json()["sha256"] == sha256(data)
    assert finished(server, key) == data


def test_a_hash_that_goes_on_is_that_of_all_bytes(tmp_path: Path) -> None:
    source = random.Random(6)
    data = source.randbytes(1_000_000)
    at = 0
    while at < len(data):
        with arriving(tmp_path / "u") as file:
            assert file.hashed == file.size == at
            piece = data[at : at + source.randrange(1, 200_000)]
            file.append([piece[:100], piece[100:]])
            file.settle()
            at += len(piece)
            assert file.sha256() == sha256(data[:at])
    for damage in (b"", b"nonsense" * 20):
        (tmp_path / "u.sha256").write_bytes(damage)
        with arriving(tmp_path / "u") as file:
            assert file.sha256() == sha256(data)
            file.settle()
    with open(tmp_path / "u", "r+b") as short:  # bytes that never reached the disk, though the note did
        short.truncate(1000)
    with arriving(tmp_path / "u") as file:
        file.append([b"other bytes"])
        assert file.sha256() == sha256(data[:1000] + b"other bytes")


def test_quotas_are_exact_whoever_asks_at_once(start_hub: Start) -> None:
    server = start_hub({"limits.account": 1000, "limits.uploads": 1000, "limits.requests": 100_000})
    secret = server.token("ann", "maintain")
    repository = server.repository(secret, "m")
    other = server.repository(secret, "n")
    client = server.client(secret)

    def ask(n: int) -> int:
        where = (repository, other)[n % 2]
        return client.post(f"/api/v1/repositories/{where}/uploads", json={"size": 100}).status_code

    with ThreadPoolExecutor(64) as pool:
        assert sorted(pool.map(ask, range(64))) == [201] * 10 + [507] * 54
    with server.hub.database.writing() as change:
        change.execute(update(Upload).values(done=True))
        change.scalars(select(Account).where(Account.name == "ann")).one().quota = 1700
    with ThreadPoolExecutor(64) as pool:  # now the owner's quota of all repositories counts: 1000 are there
        assert sorted(pool.map(ask, range(64))) == [201] * 7 + [507] * 57
    client.close()


def test_limits_of_a_file_and_of_unfinished_uploads(start_hub: Start) -> None:
    server = start_hub({"limits.file": 1000, "limits.uploads": 3})
    secret = server.token("ann", "maintain")
    repository = server.repository(secret, "m")
    with server.client(secret) as client:
        where = f"/api/v1/repositories/{repository}/uploads"
        assert client.post(where, json={"size": 1001}).status_code == 413
        keys = [client.post(where, json={"size": 1000}).json()["key"] for _ in range(3)]
        refused = client.post(where, json={"size": 1})
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        assert client.delete(f"/api/v1/uploads/{keys[0]}").status_code == 204
        assert client.post(where, json={"size": 1}).status_code == 201
        for wrong in ({"size": -1}, {"size": "x"}, {"size": 1, "sha256": "ab"}, {"size": 1 << 70}, {"more": 1}, []):
            assert client.post(where, json=wrong).status_code == 422


def test_other_peoples_uploads_are_not_there(hub_server: HubServer, mine: tuple[httpx.Client, str]) -> None:
    client, repository = mine
    key = begin(client, repository, b"secret")
    assert patch(client, key, 0, b"sec").status_code == 200
    with hub_server.client(hub_server.token("bob", "maintain")) as bob:
        for method in ("GET", "HEAD", "PATCH", "DELETE"):
            answer = bob.request(method, f"/api/v1/uploads/{key}", headers={"Upload-Offset": "3"}, content=b"x")
            assert answer.status_code == 404
    assert offset(client, key) == 3
    with hub_server.client(hub_server.token("reader", "read")) as reader:
        refused = reader.post(f"/api/v1/repositories/{repository}/uploads", json={"size": 1})
        assert refused.status_code == 403


@pytest.mark.parametrize(
    "key",
    ["../hub.sqlite", "..%2fhub.sqlite", "%2e%2e%2fhub.sqlite", "a" * 31, "A" * 32, "a" * 33, "a%00", "ａ" * 32, "."],
)
def test_what_is_no_key_is_no_upload(hub_server: HubServer, mine: tuple[httpx.Client, str], key: str) -> None:
    client, _ = mine
    before = sorted(path.name for path in hub_server.data.rglob("*") if "sqlite" not in path.name)
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        answer = client.request(method, f"/api/v1/uploads/{key}", headers={"Upload-Offset": "0"}, content=b"x")
        assert answer.status_code in (404, 405), (method, answer.status_code)
    assert sorted(path.name for path in hub_server.data.rglob("*") if "sqlite" not in path.name) == before


def test_expired_uploads_are_gone_and_swept(hub_server: HubServer, mine: tuple[httpx.Client, str]) -> None:
    client, repository = mine
    old, young = begin(client, repository, b"old"), begin(client, repository, b"young")
    for key in (old, young):
        assert patch(client, key, 0, b"x").status_code == 200
    with hub_server.hub.database.writing() as change:
        change.execute(update(Upload).where(Upload.key == old).values(expires=time.time() - 1))
    assert client.get(f"/api/v1/uploads/{old}").status_code == 404
    assert patch(client, old, 1, b"ld").status_code == 404
    begin(client, repository, b"another")
    there = {path.name for path in hub_server.hub.uploads.iterdir()}
    assert young in there
    assert not any(name.startswith(old) for name in there)


def test_files_that_no_row_tells_of_are_swept_when_they_are_old(start_hub: Start) -> None:
    server = start_hub()
    secret = server.token("ann", "maintain")
    repository = server.repository(secret, "m")
    stray, young = server.data / "uploads" / ("0" * 32), server.data / "uploads" / ("1" * 32)
    stray.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(stray, (time.time() - 2 * uploads.STRAY,) * 2)
    with server.client(secret) as client:
        begin(client, repository, b"x")
    assert not stray.exists()
    assert young.exists()


def test_a_hash_finds_a_finished_upload_in_its_own_repository_alone(
    hub_server: HubServer, mine: tuple[httpx.Client, str]
) -> None:
    client, repository = mine
    data = os.urandom(1000)
    key = begin(client, repository, data)
    with hub_server.hub.database.reading() as look:
        own = look.get_one(Upload, key).repository_id
        others = look.scalars(select(Repository.id).where(Repository.id != own)).all()
    assert uploads.blob(hub_server.hub, own, sha256(data)) is None
    assert patch(client, key, 0, data).json()["done"]
    found = uploads.blob(hub_server.hub, own, sha256(data))
    assert found is not None
    assert found.read_bytes() == data
    assert [uploads.blob(hub_server.hub, other, sha256(data)) for other in others] == [None] * len(others)
    assert client.delete(f"/api/v1/uploads/{key}").status_code == 204
    assert uploads.blob(hub_server.hub, own, sha256(data)) is None
    assert not found.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a disk of its own needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_keeps_nothing_of_the_request(start_hub: Start, small_disk: Path) -> None:
    server = start_hub()
    (server.data / "uploads").rmdir()
    (server.data / "uploads").symlink_to(small_disk)
    secret = server.token("ann", "maintain")
    repository = server.repository(secret, "m")
    data = random.Random(7).randbytes(12_000_000)
    with server.client(secret) as client:
        refused = client.post(f"/api/v1/repositories/{repository}/uploads", json={"size": len(data)})
        assert refused.status_code == 507  # seen at once
        subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
        key = begin(client, repository, data)
        assert patch(client, key, 0, data[:2_000_000]).status_code == 200
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
        answer = patch(client, key, 2_000_000, data[2_000_000:])
        assert answer.status_code == 507, answer.text
        assert "full" in answer.json()["error"]
        assert offset(client, key) == 2_000_000
        assert (small_disk / key).stat().st_size == 2_000_000
        subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
        assert patch(client, key, 2_000_000, data[2_000_000:]).json()["done"]
    assert finished(server, key) == data


def test_private_repositories_are_not_there(hub_server: HubServer) -> None:
    ann, bob = hub_server.token("ann", "maintain"), hub_server.token("bob", "maintain")
    repository = hub_server.repository(ann, next(names), private=True)
    for secret in (None, bob):
        with hub_server.client(secret) as client:
            answer = client.post(f"/api/v1/repositories/{repository}/uploads", json={"size": 1})
            nothing = client.post("/api/v1/repositories/ann/nothing/uploads", json={"size": 1})
            assert (answer.status_code, nothing.status_code) == (404, 404)
            assert re.sub(r"ann/\w+", "", answer.text) == re.sub(r"ann/\w+", "", nothing.text)
