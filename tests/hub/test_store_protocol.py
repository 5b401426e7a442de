"""What a hub takes into a store, from whom, and what it gives: spoken without our client."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from blake3 import blake3
from sqlalchemy import select

from cofuse.hub.database import Account, Repository
from cofuse.hub.repositories import store_folder
from cofuse.store import Store
from cofuse.store.canonical import canonical
from cofuse.store.commits import put_commit
from cofuse.store.envelope import Head, Row
from cofuse.store.rewriting import rewrite
from cofuse.store.trees import Weights, load_tree
from cofuse.store.writing import writing

from .serving import HubServer

FRAME = struct.Struct("<32sQ")
names = (f"s{n}" for n in range(1000))


def frames(store: Store, *ids: str) -> bytes:
    files = [(i, store.objects.path(i).read_bytes()) for i in ids]
    return b"".join(FRAME.pack(bytes.fromhex(i), len(data)) + data for i, data in files)


class There:
    """A repository, its files on the hub's disk, and a client of its owner."""

    def __init__(self, server: HubServer, secret: str, name: str) -> None:
        self.server, self.name = server, name
        self.client = server.client(secret)
        self.url = f"/api/v1/repositories/{name}/store"

    @property
    def row(self) -> Repository:
        with self.server.hub.database.reading() as look:
            return look.scalars(select(Repository).where(Repository.name == self.name.partition("/")[2])).one()

    @property
    def folder(self) -> Path:
        return store_folder(self.server.hub.repositories, self.row.key)

    def objects(self) -> set[str]:
        return {path.parent.name + path.name for path in (self.folder / "objects").glob("??/*")}

    def put(self, body: bytes, client: httpx.Client | None = None) -> httpx.Response:
        return (client or self.client).post(f"{self.url}/objects", content=body)

    def move(self, ref: str, new: str, expect: str | None, client: httpx.Client | None = None) -> httpx.Response:
        moves = [{"ref": ref, "new": new, "expect": expect}]
        return (client or self.client).post(f"{self.url}/refs", json={"moves": moves})

    def is_counted(self) -> bool:
        """Whether the hub's figure is what lies on its disk."""
        sizes = sum(path.stat().st_size for path in (self.folder / "objects").glob("??/*"))
        assert list((self.folder / "tmp").glob("*")) == []
        return self.row.bytes == sizes


@pytest.fixture
def there(hub_server: HubServer) -> Iterator[There]:
    secret = hub_server.token("ann", "maintain")
    made = There(hub_server, secret, hub_server.repository(secret, next(names)))
    yield made
    made.client.close()


@pytest.fixture
def home(tmp_path: Path) -> Store:
    return Store.init(tmp_path / "home")


def model(folder: Path, tensors: dict[str, bytes]) -> Path:
    from cofuse.checkpoint import TensorSpec, build_header

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    header = build_header({name: TensorSpec("U8", (len(data),)) for name, data in tensors.items()}, {})
    (folder / "model.safetensors").write_bytes(header.raw + b"".join(tensors[name] for name in header.entries))
    return folder


def parts(store: Store, commit: str) -> tuple[list[str], str]:
    """Ids of what the commit's tree is made of, and of the tree."""
    tree = store.load_commit(commit).tree
    return load_tree(store.objects, tree).objects(), tree


def test_everything_comes_after_what_it_needs(there: There, home: Store, tmp_path: Path) -> None:
    first = home.commit(model(tmp_path / "m", {"a": b"x" * 100, "b": b"y" * 200}), message="1")
    second = home.commit(model(tmp_path / "m", {"a": b"z" * 100, "b": b"y" * 200}), message="2")
    needed, tree = parts(home, first.id)
    later, next_tree = parts(home, second.id)
    for early in (tree, first.id, second.id):
        answer = there.put(frames(home, early))
        assert answer.status_code == 422, answer.text
    for missing in needed:
        assert there.put(frames(home, *(i for i in needed if i != missing), tree)).status_code == 422
        assert tree not in there.objects()
        assert there.is_counted()
        for path in (there.folder / "objects").glob("??/*"):
            there.server.hub.store(there.row)  # the store stays one
            path.unlink()
        with there.server.hub.database.writing() as change:
            change.get_one(Repository, there.row.id).bytes = 0
    assert there.put(frames(home, *needed, tree, first.id)).json() == {
        "objects": len(needed) + 2,
        "new": len(needed) + 2,
    }
    assert there.put(frames(home, *later, next_tree, second.id)).status_code == 200
    assert there.is_counted()
    assert there.move("refs/heads/main", second.id, None).status_code == 200
    assert Store.open(there.folder).fsck().ok
    assert there.put(frames(home, *later)).json() == {"objects": len(later), "new": 0}
    assert there.is_counted()


def test_what_is_damaged_or_another_thing_is_not_kept(there: There, home: Store, tmp_path: Path) -> None:
    commit = home.commit(model(tmp_path / "m", {"a": random.Random(1).randbytes(5000)}), message="1")
    needed, tree = parts(home, commit.id)
    assert there.put(frames(home, *needed, tree, commit.id)).status_code == 200
    before = there.objects()
    other = home.commit(model(tmp_path / "m", {"a": random.Random(2).randbytes(5000)}), message="2")
    fresh = [*parts(home, other.id)[0], parts(home, other.id)[1], other.id]
    source = random.Random(3)
    for object_id in fresh:
        if object_id in before:
            continue
        good = home.objects.path(object_id).read_bytes()
        for _ in range(30):
            bad = bytearray(good)
            how = source.randrange(4)
            if how == 0:
                bad[source.randrange(len(bad))] ^= 1 << source.randrange(8)
            elif how == 1:
                del bad[source.randrange(1, len(bad)) :]
            elif how == 2:
                bad += source.randbytes(source.randrange(1, 50))
            else:
                bad[:] = source.randbytes(source.randrange(1, 200))
            answer = there.put(FRAME.pack(bytes.fromhex(object_id), len(bad)) + bad)
            assert answer.status_code in (400, 422), (how, answer.status_code, answer.text)
            assert there.objects() == before
    for body in (b"x", FRAME.pack(bytes(32), 10) + b"x", FRAME.pack(bytes(32), 0), FRAME.pack(bytes(32), 1 << 60)):
        assert there.put(body).status_code == 422
    assert there.objects() == before
    assert there.is_counted()


def test_a_delta_needs_its_base_there(there: There, home: Store, tmp_path: Path) -> None:
    data = bytearray(random.Random(1).randbytes(100_000))
    old = home.commit(model(tmp_path / "m", {"w": bytes(data)}), message="old")
    data[-1] ^= 1
    new = home.commit(model(tmp_path / "m", {"w": bytes(data)}), message="new")
    a, b = (
        entry.tensors[0]
        for commit in (old, new)
        if isinstance(entry := load_tree(home.objects, commit.tree).files["model.safetensors"], Weights)
    )
    rewrite(home.objects, b, None)
    rewrite(home.objects, a, b)
    refused = there.put(frames(home, a))
    assert refused.status_code == 422
    assert b in refused.text
    assert there.put(frames(home, b, a)).status_code == 200
    assert there.is_counted()


def test_a_tree_whose_parts_do_not_fit_is_refused(there: There, home: Store) -> None:
    with writing(home.objects) as pen:
        content = pen.put_bytes(Head("file", 4), b"evil")
        trees = [
            pen.put_bytes(Head("tree", len(raw)), raw)
            for path, size in (("../evil", 4), ("/etc/evil", 4), (".git/hooks/x", 4), ("fine", 5))
            for raw in [canonical({"content": None, "files": {path: {"id": content, "size": size}}}, "tree")]
        ]
        as_commit = put_commit(
            pen, home.objects, tree=content, content=None, parents=[], message="", author="", record={}
        )
    for tree in trees:
        assert there.put(frames(home, content, tree)).status_code == 422
        assert tree not in there.objects()
    assert there.put(frames(home, content, as_commit.id)).status_code == 422  # its tree is a file
    assert there.move("refs/heads/main", content, None).status_code == 422
    assert there.move("refs/heads/main", "0" * 64, None).status_code == 422


def test_who_may_what(hub_server: HubServer, there: There, home: Store, tmp_path: Path) -> None:
    commit = home.commit(model(tmp_path / "m", {"a": b"x" * 100}), message="1")
    needed, tree = parts(home, commit.id)
    body = frames(home, *needed, tree, commit.id)
    clients = {role: hub_server.client(hub_server.token(f"{role}er", role)) for role in ("read", "contribute")}
    clients["nobody"] = hub_server.client()
    for role, status in (("nobody", 401), ("read", 403), ("contribute", 200)):
        assert there.put(body, clients[role]).status_code == status, role
    for role, status in (("nobody", 401), ("read", 403), ("contribute", 403)):
        assert there.move("refs/heads/main", commit.id, None, clients[role]).status_code == status
        head = clients[role].put(f"{there.url}/head", json={"ref": "refs/heads/x"})
        assert head.status_code == status
    for ref in ("refs/pr/1", "refs/remotes/origin/main", "HEAD", "main", "refs/heads/../../x", "refs/heads/", "../x"):
        assert there.move(ref, commit.id, None).status_code in (400, 409), ref
    assert there.move("refs/heads/main", commit.id, None).status_code == 200
    for client in clients.values():  # it is public
        assert client.get(there.url).json()["refs"] == {"refs/heads/main": commit.id}
        assert client.get(f"{there.url}/objects/{tree}").content == home.objects.path(tree).read_bytes()
        client.close()


def test_a_private_store_is_not_there(hub_server: HubServer, home: Store, tmp_path: Path) -> None:
    secret = hub_server.token("ann", "maintain")
    there = There(hub_server, secret, hub_server.repository(secret, next(names), private=True))
    commit = home.commit(model(tmp_path / "m", {"a": b"x" * 100}), message="1")
    needed, tree = parts(home, commit.id)
    assert there.put(frames(home, *needed, tree, commit.id)).status_code == 200
    with hub_server.client(hub_server.token("bob", "maintain")) as bob, hub_server.client() as nobody:
        for client in (bob, nobody):
            for method, path, value in (
                ("GET", "", None),
                ("GET", "/revision", None),
                ("GET", f"/objects/{tree}", None),
                ("POST", "/has", {"ids": [tree]}),
                ("POST", "/objects", None),
                ("POST", f"/objects/{tree}", {"upload": "0" * 32}),
                ("POST", "/refs", {"moves": []}),
                ("PUT", "/head", {"ref": "refs/heads/x"}),
            ):
                assert client.request(method, there.url + path, json=value).status_code == 404, (method, path)
    there.client.close()


def test_refs_are_compared_and_swapped_and_tags_stay(there: There, home: Store, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", {"a": b"x" * 100})
    commits = [home.commit(folder, message=str(n)).id for n in range(9)]
    needed, tree = parts(home, commits[0])
    assert there.put(frames(home, *needed, tree, *commits)).status_code == 200
    assert there.client.get(there.url).json()["head"] == "refs/heads/main"
    assert there.move("refs/heads/trunk", commits[0], None).status_code == 200
    assert there.client.get(there.url).json()["head"] == "refs/heads/trunk"  # the first branch there is
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda c: there.move("refs/heads/trunk", c, commits[0]).status_code, commits[1:]))
    assert sorted(said) == [200] + [409] * 7
    assert there.client.get(there.url).json()["refs"]["refs/heads/trunk"] == commits[1 + said.index(200)]
    assert there.move("refs/tags/v1", commits[0], None).status_code == 200
    assert there.move("refs/tags/v1", commits[1], commits[0]).status_code == 409
    assert there.move("refs/tags/v1", commits[1], None).status_code == 409
    assert there.move("refs/tags/v1", commits[0], None).status_code == 200
    found = there.client.get(f"{there.url}/revision", params={"rev": "v1"}).json()
    assert found == {"commit": commits[0], "tree": tree}
    for rev in ("nothing", "main~9", "x" * 2000, "../v1", "v1\0", ""):
        assert there.client.get(f"{there.url}/revision", params={"rev": rev}).status_code in (404, 422), rev


def test_objects_are_given_whole_and_in_ranges(there: There, home: Store, tmp_path: Path) -> None:
    commit = home.commit(model(tmp_path / "m", {"a": random.Random(1).randbytes(3_000_000)}), message="1")
    needed, _ = parts(home, commit.id)
    assert there.put(frames(home, *needed)).status_code == 200
    for object_id in needed:
        data = home.objects.path(object_id).read_bytes()
        url = f"{there.url}/objects/{object_id}"
        assert there.client.get(url).content == data
        half = there.client.get(url, headers={"Range": f"bytes=10-{len(data) - 5}"})
        assert (half.status_code, half.content) == (206, data[10:-4])
        assert there.client.get(url, headers={"Range": f"bytes={len(data)}-"}).status_code == 416
    asked = there.client.post(f"{there.url}/has", json={"ids": [*needed, "0" * 64]}).json()["ids"]
    assert asked == needed
    for wrong in ("0" * 63, "A" * 64, "..%2fformat", "../format", "%2e%2e/format", f"{needed[0]}%00", "ａ" * 64):
        assert there.client.get(f"{there.url}/objects/{wrong}").status_code in (404, 422), wrong
    assert there.client.get(f"{there.url}/objects/{'0' * 64}").status_code == 404
    assert there.client.post(f"{there.url}/has", json={"ids": ["../format"]}).status_code == 422


def test_quotas_are_exact_whoever_delivers_at_once(start_hub: Callable[..., HubServer], home: Store) -> None:
    server = start_hub({"limits.requests": 100_000})
    secret = server.token("ann", "maintain")
    there = There(server, secret, server.repository(secret, "m"))
    with writing(home.objects) as pen:
        ids = [pen.put_bytes(Head("file", 1000), random.Random(n).randbytes(1000)) for n in range(32)]
    size = home.objects.stored_bytes(ids[0])
    with server.hub.database.writing() as change:
        change.scalars(select(Account).where(Account.name == "ann")).one().quota = 10 * size + size // 2

    def put(n: int) -> int:  # each object is sent by two
        return there.put(frames(home, ids[n // 2])).status_code

    with ThreadPoolExecutor(64) as pool:
        said = list(pool.map(put, range(64)))
    assert set(said) == {200, 507}
    assert len(there.objects()) <= 10
    assert there.is_counted()
    for n in range(64):
        put(n)
    assert len(there.objects()) == 10
    assert there.is_counted()
    there.client.close()


def test_what_a_kill_has_left_counted_is_counted_anew(start_hub: Callable[..., HubServer], home: Store) -> None:
    server = start_hub()
    secret = server.token("ann", "maintain")
    there = There(server, secret, server.repository(secret, "m"))
    with writing(home.objects) as pen:
        object_id = pen.put_bytes(Head("file", 1000), bytes(1000))
    assert there.put(frames(home, object_id)).status_code == 200
    with server.hub.database.writing() as change:
        change.get_one(Repository, there.row.id).bytes += 10**9  # as far as a delivery gets that is killed at once
    server.kill()
    server.start()
    assert there.is_counted()
    there.client.close()


def test_the_same_by_64_at_once_is_kept_once(there: There, home: Store, tmp_path: Path) -> None:
    commit = home.commit(model(tmp_path / "m", {f"t{n}": bytes([n]) * 5000 for n in range(20)}), message="1")
    needed, tree = parts(home, commit.id)
    body = frames(home, *needed, tree, commit.id)
    with ThreadPoolExecutor(64) as pool:
        said = list(pool.map(lambda _: there.put(body), range(64)))
    assert {answer.status_code for answer in said} == {200}
    assert sum(answer.json()["new"] for answer in said) == len(needed) + 2
    assert there.is_counted()


def test_a_large_object_comes_as_an_upload(there: There, home: Store) -> None:
    data = random.Random(1).randbytes(9_000_000)
    with writing(home.objects) as pen:
        object_id = pen.put_bytes(Head("file", len(data)), data)
    raw = home.objects.path(object_id).read_bytes()
    key = there.client.post(f"/api/v1/repositories/{there.name}/uploads", json={"size": len(raw)}).json()["key"]
    assert (
        there.client.post(f"{there.url}/objects/{object_id}", json={"upload": key}).status_code == 409
    )  # not finished
    sent = there.client.patch(f"/api/v1/uploads/{key}", content=raw, headers={"Upload-Offset": "0"})
    assert sent.json()["done"]
    assert there.client.post(f"{there.url}/objects/{object_id}", json={"upload": key}).json() == {
        "objects": 1,
        "new": 1,
    }
    assert there.folder.joinpath("objects", object_id[:2], object_id[2:]).read_bytes() == raw
    assert there.client.get(f"/api/v1/uploads/{key}").status_code == 404
    assert list(there.server.hub.uploads.glob(f"{key}*")) == []
    assert there.is_counted()


def test_a_head_that_says_more_than_a_file_may_have_is_refused(start_hub: Callable[..., HubServer]) -> None:
    """A few kilobytes that stand for terabytes of zeros are not unpacked."""
    from cofuse.checkpoint import CHUNK
    from cofuse.store.codecs import CODECS
    from cofuse.store.envelope import Envelope

    server = start_hub({"limits.file": 10_000_000})
    secret = server.token("ann", "maintain")
    there = There(server, secret, server.repository(secret, "m"))
    codec = next(number for number, codec in CODECS.items() if codec.name == "zstd")
    import zstandard

    stored = zstandard.compress(bytes(CHUNK))
    head = Head("file", 100 * CHUNK)
    envelope = Envelope.of(head, [Row.of(blake3(bytes(CHUNK)).digest(), codec, stored)] * head.chunks)
    raw = envelope.encode() + stored * head.chunks
    refused = there.put(FRAME.pack(bytes.fromhex(envelope.id), len(raw)) + raw)
    assert refused.status_code == 413, refused.text
    assert there.objects() == set()
    assert there.is_counted()
    there.client.close()


def test_a_full_disk_keeps_nothing_of_what_cannot_be_kept_whole(
    start_hub: Callable[..., HubServer], home: Store, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a disk of its own needs root")
    try:
        server = start_hub(data=disk / "hub")
        secret = server.token("ann", "maintain")
        there = There(server, secret, server.repository(secret, "m"))
        with writing(home.objects) as pen:
            ids = [pen.put_bytes(Head("file", 3_000_000), random.Random(n).randbytes(3_000_000)) for n in range(10)]
        said = [there.put(frames(home, object_id)).status_code for object_id in ids]
        assert said[0] == 200
        assert said[-1] == 507
        assert len(there.objects()) == said.count(200)
        subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
        assert {there.put(frames(home, object_id)).status_code for object_id in ids} == {200}
        assert there.is_counted()
        there.client.close()
        server.stop()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
