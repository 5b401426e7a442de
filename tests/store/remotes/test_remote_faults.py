"""Whatever happens to a push, a fetch or a remote: both stores stay whole, and the same command goes on."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub.swift import KEY, USER, Swift
from odd_folders import digests
from remote_places import Place, bucket, key, noise, until
from test_remote_laws import main

from cofuse.checkpoint import file_id
from cofuse.errors import CofuseError, CorruptError, RefError, StoreError
from cofuse.store import Store
from cofuse.store.canonical import canonical
from cofuse.store.commits import put_commit
from cofuse.store.envelope import Head
from cofuse.store.receiving import PIECE, InFolder, ObjectFile, Receiving
from cofuse.store.remotes import Account, Push, fetch, open_remote, push
from cofuse.store.trees import Plain, Weights, load_tree
from cofuse.store.writing import Writing, writing

# Pushes or clones in a process of its own, which can be killed.
WORK = """
import sys
from pathlib import Path
from cofuse.store import Store
from cofuse.store.remotes import Account, Named, Push, clone, open_remote, push
what, store, address, endpoint, user, secret = sys.argv[1:]
remote = open_remote(address, Account(endpoint=endpoint or None, key=user, secret=secret, patience=20))
print("ready", flush=True)
if what == "push":
    here = Store.open(store)
    push(here, remote, [Push("refs/heads/main", here.resolve("main"))], name="origin")
else:
    clone(remote, Path(store), Named(address, {"endpoint": endpoint} if endpoint else {}))
print("done", flush=True)
"""


def start(what: str, store: Path, place: Place) -> subprocess.Popen[str]:
    endpoint = place.server.endpoint if place.server else ""
    child = subprocess.Popen(
        [sys.executable, "-c", WORK, what, str(store), place.address, endpoint, USER, KEY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def end(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = child.communicate(timeout=60)
    return child.returncode, out, error


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.communicate()


@pytest.mark.parametrize("what", ["push", "clone"])
def test_killed_at_random_moments_the_same_command_finishes(
    store: Store, place: Place, tmp_path: Path, what: str
) -> None:
    for n in range(3):
        store.commit(noise(tmp_path / "m", {f"w{k}": 200_000 for k in range(20)}, seed=n), message=str(n))
    if what == "clone":
        push(store, place.remote(), [main(store.resolve("main"))])
    source = random.Random(what)
    target = store.path if what == "push" else tmp_path / "clone"
    for n in range(3 if place.server else 6):
        child = start(what, target, place)
        time.sleep(source.random() * 0.12)
        kill(child)
        if what == "push" and (place.server is None or n == 2):
            assert not place.remote().exists() or place.is_whole(tmp_path / f"seen{n}")
        if what == "clone" and (target / ".cofuse" / "format").exists():
            assert Store.open(target).fsck().ok
    if what == "clone" and target.exists() and Store.open(target).branches():
        assert Store.open(target).resolve("main") == store.resolve("main")  # it was done before it was killed
    else:
        code, out, error = end(start(what, target, place))
        assert (code, out) == (0, "done\n"), error
    made = Store.open(target) if what == "clone" else place.clone(tmp_path / "whole")
    assert [c.id for c in made.log()] == [c.id for c in store.log()]
    assert made.fsck().ok
    made.checkout("main", tmp_path / "out")
    assert digests(tmp_path / "out") == digests(tmp_path / "m")
    for folder in [store.path, *([place.root] if place.server is None else [])]:
        assert [p for p in (folder / "tmp").iterdir() if (p / "lock").exists()] == []


RACE = """
import sys, time
from cofuse.errors import RefError
from cofuse.store.remotes import Account, open_remote
from cofuse.store.remotes.remote import Move
me, address, endpoint, user, secret, races = sys.argv[1:]
remote = open_remote(address, Account(endpoint=endpoint or None, key=user, secret=secret))
remote.refs()
for race in range(int(races)):
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        remote.update([Move(f"refs/heads/race{race}", me, None)])
        print("won", flush=True)
    except RefError as error:
        print(error.what, flush=True)
"""


def test_of_two_who_move_a_ref_at_once_one_wins(store: Store, place: Place, model: Path) -> None:
    races = 4 if place.server else 30
    ids = [store.commit(model, message=str(n)).id for n in range(2)]
    push(store, place.remote(), [main(ids[1])])
    endpoint = place.server.endpoint if place.server else ""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, me, place.address, endpoint, USER, KEY, str(races)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for me in ids
    ]
    said: list[list[str]] = []
    for _ in range(races):
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("\n")
            racer.stdin.flush()
        said.append([racer.stdout.readline().strip() for racer in racers if racer.stdout is not None])
    for racer in racers:
        racer.communicate()
    refs = place.remote().refs()
    for race, answers in enumerate(said):
        assert sorted(answers) == ["the ref has moved", "won"]
        assert refs[f"refs/heads/race{race}"] == ids[answers.index("won")]


def harm(place: Place, object_id: str, how: str) -> bytes:
    """Damage an object of the remote; gives what it was."""
    name = key(object_id)
    before = place.get(name)
    damaged = bytearray(before)
    if how == "flip":
        damaged[-1] ^= 0x10
    elif how == "truncate":
        del damaged[-3:]
    elif how == "empty":
        damaged.clear()
    if how == "remove":
        place.delete(name)
    else:
        place.put(name, bytes(damaged))
    return before


@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "remove"])
def test_damage_is_refused_and_named_and_once_mended_the_fetch_goes_on(
    store: Store, a_folder: Place, model: Path, tmp_path: Path, how: str
) -> None:
    refuses_damage(store, a_folder, model, tmp_path, how)


@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_damage_in_a_bucket_too(store: Store, a_bucket: Place, model: Path, tmp_path: Path, how: str) -> None:
    refuses_damage(store, a_bucket, model, tmp_path, how)


def refuses_damage(store: Store, place: Place, model: Path, tmp_path: Path, how: str) -> None:
    commit = store.commit(model, message="x")
    push(store, place.remote(), [main(commit)])
    tree = load_tree(store.objects, commit.tree)
    weights = tree.files["model.safetensors"]
    assert isinstance(weights, Weights)
    mine = Store.init(tmp_path / "mine")
    for victim in (commit.id, commit.tree, weights.header, weights.tensors[5]):
        before = harm(place, victim, how)
        with pytest.raises(CorruptError) as caught:
            fetch(mine, place.remote(), "origin")
        assert victim in str(caught.value)
        assert place.remote().name in str(caught.value)
        assert victim not in mine.objects
        assert mine.refs.names("refs/") == []
        place.put(key(victim), before)
    fetch(mine, place.remote(), "origin")
    assert mine.resolve("origin/main") == commit.id
    assert mine.fsck().ok


def test_another_object_in_its_place_is_refused(store: Store, place: Place, model: Path, tmp_path: Path) -> None:
    commit = store.commit(model, message="x")
    push(store, place.remote(), [main(commit)])
    weights = load_tree(store.objects, commit.tree).files["model.safetensors"]
    assert isinstance(weights, Weights)
    place.put(key(weights.tensors[0]), place.get(key(weights.tensors[1])))
    with pytest.raises(CorruptError, match="damaged") as caught:
        place.clone(tmp_path / "mine")
    assert weights.tensors[0] in str(caught.value)


def test_damage_here_is_not_pushed(store: Store, place: Place, model: Path) -> None:
    commit = store.commit(model, message="x")
    config = load_tree(store.objects, commit.tree).files["config.json"]
    assert isinstance(config, Plain)
    path = store.objects.path(config.id)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(CorruptError) as caught:
        push(store, place.remote(), [main(commit)])
    assert config.id[2:] in str(caught.value)
    assert place.remote().refs() == {}
    assert key(config.id) not in place.objects()


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", ".git/hooks/post-checkout", "a\\..\\b"])
def test_a_tree_that_would_leave_its_folder_is_refused(
    store: Store, a_folder: Place, tmp_path: Path, path: str
) -> None:
    with writing(store.objects) as pen:
        content = pen.put_bytes(Head("file", 4), b"evil")
        raw = canonical({"content": None, "files": {path: {"id": content, "size": 4}}}, "tree")
        tree = pen.put_bytes(Head("tree", len(raw)), raw)
        commit = put_commit(pen, store.objects, tree=tree, content=None, parents=[], message="x", author="", record={})
    shutil.copytree(store.path, Path(a_folder.address) / ".cofuse")
    a_folder.point("refs/heads/main", commit.id)
    with pytest.raises(CorruptError, match="a path that cannot be kept"):
        a_folder.clone(tmp_path / "mine")
    assert tree not in Store.open(tmp_path / "mine").objects


@pytest.mark.parametrize("name", ["-x", "a..b", "x.lock", "a b", "x\x1b[31m", "@{-1}"])
def test_a_ref_whose_name_is_not_allowed_is_refused(
    store: Store, place: Place, model: Path, tmp_path: Path, name: str
) -> None:
    if place.server and not name.isprintable():
        pytest.skip("clients of S3 do not put such a name")
    commit = store.commit(model, message="x")
    place.remote().make("refs/heads/main")
    place.point(f"refs/heads/{name}", commit.id)
    with pytest.raises(RefError, match=r"not a name for a ref|not a ref") as caught:
        place.clone(tmp_path / "mine")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"main\n", b"../../etc/passwd\n", b"0" * 10_000, b"0" * 64])
def test_a_damaged_ref_is_refused(place: Place, tmp_path: Path, content: bytes) -> None:
    place.remote().make("refs/heads/main")
    place.put("refs/heads/main/.0000000001" if place.server else "refs/heads/main", content)
    with pytest.raises(RefError, match="the ref is damaged"):
        place.clone(tmp_path / "mine")


def test_deltas_in_a_circle_are_refused(store: Store, a_folder: Place, tmp_path: Path) -> None:
    """Two stores, each with one of a pair as a delta against the other; together in one place they mean nothing."""
    from cofuse.store.rewriting import rewrite

    noise(tmp_path / "m", {"w": 50_000})
    first = store.commit(tmp_path / "m", message="1")
    data = bytearray((tmp_path / "m" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "m" / "model.safetensors").write_bytes(data)
    second = store.commit(tmp_path / "m", message="2")
    a, b = (
        entry.tensors[0]
        for commit in (first, second)
        if isinstance(entry := load_tree(store.objects, commit.tree).files["model.safetensors"], Weights)
    )
    rewrite(store.objects, a, None)
    rewrite(store.objects, b, None)
    push(store, a_folder.remote(), [main(second)])
    rewrite(store.objects, a, b)
    as_delta = store.objects.path(a).read_bytes()
    rewrite(store.objects, a, None)
    rewrite(store.objects, b, a)
    a_folder.put(key(a), as_delta)
    a_folder.put(key(b), store.objects.path(b).read_bytes())
    mine = Store.init(tmp_path / "mine")
    with pytest.raises(CorruptError, match="deltas against each other"):
        fetch(mine, a_folder.remote(), "origin")
    assert a not in mine.objects
    assert b not in mine.objects


class Counted:
    """A source that counts the bytes asked of it."""

    def __init__(self, source: InFolder, stop_after: int) -> None:
        self.source, self.left, self.bytes = source, stop_after, 0
        self.name = source.name

    @contextmanager
    def open(self, object_id: str) -> Iterator[ObjectFile]:
        with self.source.open(object_id) as file:
            outer = self

            class File:
                size = file.size

                def read(self, start: int, stop: int) -> bytes:
                    outer.left -= stop - start
                    if outer.left < 0:
                        raise StoreError("the server cannot be reached")
                    outer.bytes += stop - start
                    return file.read(start, stop)

            yield File()


def test_a_large_object_goes_on_where_it_was(store: Store, tmp_path: Path) -> None:
    commit = store.commit(noise(tmp_path / "m", {"w": 90_000_000}), message="x")
    entry = load_tree(store.objects, commit.tree).files["model.safetensors"]
    assert isinstance(entry, Weights)
    (large,) = entry.tensors
    size = store.objects.stored_bytes(large)
    mine = Store.init(tmp_path / "mine")

    def receive(source: Counted) -> None:
        with mine.objects.places.staged() as folder:
            Receiving(mine.objects, Writing(mine.objects, folder), folder, source).receive([large], threads=2)

    cut = Counted(InFolder(store.objects), 60_000_000)
    with pytest.raises(StoreError, match="cannot be reached"):
        receive(cut)
    assert large not in mine.objects
    rest = Counted(InFolder(store.objects), 1 << 40)
    receive(rest)
    assert cut.bytes + rest.bytes <= size + 2 * PIECE
    assert rest.bytes < size / 2
    assert mine.objects.read(large) == store.objects.read(large)
    assert list((mine.path / "arriving").iterdir()) == []
    # what was left is not what the source has: all of it comes anew
    mine.objects.path(large).unlink()
    (mine.path / "arriving" / large).write_bytes(bytes(50_000_000))
    receive(Counted(InFolder(store.objects), 1 << 40))
    assert mine.objects.read(large) == store.objects.read(large)


def test_a_large_object_in_a_bucket_goes_on_where_it_was(store: Store, a_bucket: Place, tmp_path: Path) -> None:
    store.commit(noise(tmp_path / "m", {"w": 90_000_000}), message="x")
    child = start("push", store.path, a_bucket)
    for _ in until(lambda: sum("/part-" in name for name in a_bucket.files()) >= 3):
        pass
    kill(child)
    before = {name: what for name, what in a_bucket.objects().items() if "/part-" in name}
    assert 3 <= len(before) < 11
    push(store, a_bucket.remote(), [main(store.resolve("main"))])
    after = a_bucket.objects()
    assert sum("/part-" in name for name in after) == 11
    assert {name: after[name] for name in before} == before
    made = a_bucket.clone(tmp_path / "mine")
    made.checkout("main", tmp_path / "out")
    assert digests(tmp_path / "out") == digests(tmp_path / "m")
    # one part with a flipped bit
    part = max(before)
    data = bytearray(a_bucket.get(part))
    data[1000] ^= 1
    a_bucket.put(part, bytes(data))
    with pytest.raises(CorruptError, match="is damaged"):
        a_bucket.clone(tmp_path / "other")


@pytest.fixture
def own_swift(tmp_path: Path) -> Iterator[Swift]:
    (tmp_path / "swift").mkdir()
    server = Swift(tmp_path / "swift")
    yield server
    server.stop()


def test_a_server_that_goes_away(store: Store, own_swift: Swift, tmp_path: Path) -> None:
    place = bucket(own_swift, "models")
    commit = store.commit(noise(tmp_path / "m", {f"w{n}": 300_000 for n in range(60)}), message="x")
    child = start("push", store.path, place)
    for _ in until(lambda: len(place.objects()) > 5):
        pass
    own_swift.stop()
    time.sleep(1)
    own_swift.start()
    code, out, error = end(child)
    assert (code, out) == (0, "done\n"), error
    assert place.remote().refs() == {"refs/heads/main": commit.id}
    own_swift.stop()
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        fetch(store, place.remote(patience=1), "origin")
    assert "the same command goes on" in str(caught.value)
    own_swift.start()
    fetch(store, place.remote(), "origin")
    assert store.resolve("origin/main") == commit.id


def test_wrong_keys_and_buckets_are_said_without_the_keys(store: Store, swift: Swift, a_bucket: Place) -> None:
    hidden = "hunter2hunter2"
    for account, address, what in (
        (Account(swift.endpoint, key=USER, secret=hidden), a_bucket.address, "refuses access"),
        (Account(swift.endpoint, key=hidden, secret=KEY), a_bucket.address, "refuses access"),
        (Account(swift.endpoint, key=USER, secret=KEY), "s3://nothere", "no such bucket"),
        (Account("http://127.0.0.1:9", key=USER, secret=hidden, patience=0.5), a_bucket.address, "cannot be reached"),
    ):
        remote = open_remote(address, account)
        with pytest.raises(StoreError, match=what) as caught:
            remote.refs()
        assert hidden not in str(caught.value) + repr(caught.value) + repr(remote) + repr(account)
        with pytest.raises(StoreError, match=what):
            remote.exists()
    for address in (f"s3://{USER}:{hidden}@bucket/x", f"https://{hidden}@host/x", f"s3://x:{hidden}@y"):
        with pytest.raises(CofuseError) as refused:
            open_remote(address)
        assert hidden not in str(refused.value)


def test_gc_spares_what_an_unfinished_push_has_brought(store: Store, a_folder: Place, model: Path) -> None:
    commit = store.commit(model, message="x")
    there = Store.init(a_folder.address)
    remote = a_folder.remote()
    parts = load_tree(store.objects, commit.tree).objects()
    with remote.delivering() as delivery:
        delivery.put(store.objects, parts, threads=2, sizes={}, advance=lambda _: None)
        delivery.sync()
        there.gc(grace_days=0)
        assert set(there.objects) == set(parts)
    there.gc()  # it was killed, but only just now
    assert set(there.objects) == set(parts)
    before = a_folder.objects()
    push(store, a_folder.remote(), [main(commit)])
    assert a_folder.objects().items() > before.items()
    there.gc(grace_days=0)
    assert there.fsck().ok


def test_a_full_disk(store: Store, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("a disk of its own needs root")
    try:
        commit = store.commit(noise(tmp_path / "m", {f"w{n}": 400_000 for n in range(12)}), message="x")
        place = Place(str(disk))
        for _ in range(2):
            with pytest.raises(StoreError, match="cannot write to the store") as caught:
                push(store, place.remote(), [main(commit)])
            assert "free some space" in str(caught.value)
        assert place.remote().refs() == {}
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        push(store, place.remote(), [main(commit)])
        assert Store.open(disk).fsck().ok
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_that_is_no_object_of_ours_has_no_id(a_bucket: Place) -> None:
    remote = a_bucket.remote()
    for name in ("../format", "HEAD", file_id(b"")[:63], file_id(b"").upper()):
        with pytest.raises(StoreError, match="not an object id"), remote.open(name):
            pass


def test_other_things_in_a_bucket_are_left_alone(store: Store, a_bucket: Place, model: Path) -> None:
    a_bucket.put("holiday.jpg", b"sea")
    with pytest.raises(StoreError, match="holds other things"):
        push(store, a_bucket.remote(), [main(store.commit(model, message="x"))])
    assert a_bucket.files().keys() == {"holiday.jpg"}
    a_bucket.put("format", b"cofuse store 9\n")
    with pytest.raises(StoreError, match="another format"):
        push(store, a_bucket.remote(), [Push("refs/heads/main", store.resolve("main"))])
