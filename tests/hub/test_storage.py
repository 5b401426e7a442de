"""A hub whose repositories are in a bucket on a real S3 server: folders lost, processes killed, the bucket away."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from cofuse.checkpoint import Memory
from cofuse.errors import CofuseError, HubError, RefError, StoreError
from cofuse.hub import settings as told
from cofuse.hub.faults import Unavailable
from cofuse.hub.hub import Hub
from cofuse.hub.repositories import store_folder
from cofuse.hub.settings import Settings
from cofuse.hub.storage import Storage, begin, next_run
from cofuse.hub.work.places import HubWork
from cofuse.hub.work.worker import Worker
from cofuse.store import Store
from cofuse.store.commits import load_commit
from cofuse.store.refs import HEADS, PULLS, TAGS
from cofuse.store.remotes import Named, Push, clone, open_remote, push
from cofuse.store.remotes.addresses import parse
from cofuse.store.remotes.bucket import BucketRemote
from cofuse.store.remotes.http import Http
from cofuse.store.remotes.hub import HubRemote
from cofuse.store.remotes.remote import Move
from cofuse.store.remotes.s3 import Bucket

from .dying import KEPT, POINTS, move_and_die
from .rounds.people import Model
from .serving import HubServer
from .swift import KEY, USER, Swift

Start = Callable[..., HubServer]
MAIN = f"{HEADS}main"
MAIN_PROGRAM = "import sys; from cofuse.cli import main; sys.argv[0] = 'cofuse'; main()"
_numbers = count()


class Place:
    """A bucket for a hub: its settings, and its insides past the hub's code."""

    def __init__(self, swift: Swift) -> None:
        self.swift = swift
        self.url = f"s3://hub{next(_numbers)}/of/ours"
        swift.make_bucket(self.url.split("/")[2])

    def settings(self, data: Path, patience: float = 10.0) -> Settings:
        storage = told.Storage(
            url=self.url, endpoint=self.swift.endpoint, region="us-east-1", key=USER, secret=KEY, patience=patience
        )
        return Settings(data=data, storage=storage)

    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": USER, "AWS_SECRET_ACCESS_KEY": KEY, "AWS_ENDPOINT_URL": self.swift.endpoint}

    def remote(self, key: str) -> BucketRemote:
        return BucketRemote(Bucket(f"{self.url}/{key}", self.swift.account()))

    def names(self) -> set[str]:
        return Bucket(self.url, self.swift.account()).list("")


@pytest.fixture
def place(swift: Swift) -> Place:
    return Place(swift)


def serve(start_hub: Start, place: Place, *, workers: int = 0, **more: object) -> HubServer:
    """A hub that keeps its repositories in the bucket."""
    given = {"limits.requests": 1_000_000, "storage.url": place.url, "storage.patience": 2, **more}
    return start_hub(given, workers=workers, environment=place.environment())


def lose(server: HubServer) -> None:
    """Its machine dies, and its disk but for the database."""
    server.kill()
    for path in server.data.iterdir():
        if not path.name.startswith("hub.sqlite"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def files(store: Store, rev: str, folder: Path) -> dict[str, bytes]:
    """Every byte of a version."""
    made = store.checkout(rev, folder)
    return {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()}


def remote_of(server: HubServer, secret: str, full: str, patience: float = 10.0) -> HubRemote:
    return HubRemote(Http(server.url, secret, patience=patience), parse(f"{server.url}/{full}"))


def refs_of(store: Store) -> dict[str, str | None]:
    return {ref: store.refs.get(ref) for ref in store.refs.names("refs/")}


# The whole: what was acknowledged outlives the machine


@pytest.mark.slow
def test_a_lost_disk_comes_back_and_work_goes_on(start_hub: Start, place: Place, tmp_path: Path) -> None:
    server = serve(start_hub, place, workers=1)
    model = Model(server, tmp_path, "story", "round: {contributions: 2}\nfuse: {method: linear}")
    numbers = [model.offer("bob", 1), model.offer("eve", 2)]
    (release,) = model.released(1)
    waiting = model.offer("kim", 3)
    model.until(lambda: model.states()[waiting] == "open")
    before = model.store()
    refs, bytes_ = refs_of(before), files(before, release["commit"], tmp_path / "before")
    assert {f"{PULLS}{number}" for number in (*numbers, waiting)} <= refs.keys()
    lose(server)
    assert not before.path.exists()
    server.start()
    copy = clone(model.remote(model.secret), tmp_path / "copy", Named(model.address))
    assert files(copy, release["commit"], tmp_path / "after") == bytes_
    after = Store.open(before.path)
    assert refs_of(after) == refs
    model.check()
    # Nobody notices: the next push, and the next round, go on from there.
    model.offer("bob", 4)
    model.released(2)
    model.check()
    tuned = model.here.commit(model.tuned(model.tip(), 5), message="pushed", branch="next", parents=[model.tip()])
    push(model.here, model.remote(model.secret), [Push(MAIN, tuned.id)])
    assert model.tip() == tuned.id == place.remote(before.path.stem).refs()[MAIN]


@pytest.mark.slow
def test_killed_at_any_moment_nothing_acknowledged_is_lost(start_hub: Start, place: Place, tmp_path: Path) -> None:
    """Pushes and rounds; kills at random, every other with the disk: what was acknowledged is there, and whole."""
    server = serve(start_hub, place, workers=1, **{"server.processes": 2, "lease": 3})
    model = Model(server, tmp_path, "killed", "round: {contributions: 2}\nfuse: {method: linear}")
    feed, chance, acknowledged = f"{HEADS}feed", random.Random(7), [model.base]
    push(model.here, model.remote(model.secret), [Push(feed, model.base)])
    offered = []
    for turn in range(6):
        enough = threading.Event()

        def go_on(enough: threading.Event = enough, turn: int = turn) -> None:
            for n in count():
                before = acknowledged[-1]
                new = commit(model.here, 100.0 * turn + n, before)
                with contextlib.suppress(CofuseError):
                    push(model.here, remote_of(server, model.secret, model.full, patience=1), [Push(feed, new)])
                    acknowledged.append(new)
                if enough.is_set():
                    return

        offered.append(model.offer(f"p{turn}", turn, base=model.base))
        pusher = threading.Thread(target=go_on)
        pusher.start()
        time.sleep(chance.uniform(0.3, 3.0))
        if turn % 2:
            lose(server)
        else:
            server.kill()
        enough.set()
        pusher.join()
        server.start()
        tip = model.remote(model.secret).refs()[feed]
        # It is where it was acknowledged to be, or one further: its answer did not come.
        if tip != acknowledged[-1]:
            assert load_commit(model.here.objects, tip).parents == (acknowledged[-1],)
            acknowledged.append(tip)
    assert len(acknowledged) > 2

    def done() -> bool:
        """All are in a release, but for one that waits for a second."""
        states = [model.states()[one] for one in offered]
        going = [one for one in model.rounds() if one["state"] != "published"]
        return set(states) <= {"fused", "open"} and states.count("open") < 2 and not going

    model.until(done, 120)
    assert model.releases()
    model.check()
    key = model.store().path.stem
    assert refs_of(model.store()) == place.remote(key).all_refs()
    name = f"{place.url}/{key}"
    assert clone(open_remote(name, place.swift.account()), tmp_path / "copy", Named(name)).fsck().ok


@pytest.mark.slow
def test_a_bucket_that_is_away(start_hub: Start, place: Place, tmp_path: Path) -> None:
    """Reads go on from the folder; who moves something is told, soon; when it is back so is everything."""
    (tmp_path / "swift").mkdir()
    swift = Swift(tmp_path / "swift")
    place = Place(swift)
    try:
        server = serve(start_hub, place)
        model = Model(server, tmp_path, "away")
        number = model.offer("bob", 1)
        tuned = model.here.commit(model.tuned(model.base, 9), message="next", branch="next", parents=[model.base]).id
        port = swift.port
        swift.stop()

        clone(model.remote(model.secret), tmp_path / "copy", Named(model.address))  # from the folder
        impatient = remote_of(server, model.secret, model.full, patience=0.5)
        began = time.monotonic()
        with pytest.raises(StoreError) as refused:
            push(model.here, impatient, [Push(MAIN, tuned)])
        assert time.monotonic() - began < 12
        assert "cannot reach where it keeps its weights" in str(refused.value)
        assert model.tip() == model.base
        with server.client(model.secret) as client:
            assert client.post("/api/v1/repositories", json={"name": "new"}).status_code == 503
        # A worker gives the job back: it is no attempt, and nobody is refused for it.
        with contextlib.closing(Hub(place.settings(server.data, patience=1))) as hub:
            source = HubWork(hub)
            worker = Worker(source)
            worker.stop()  # it does not wait between two jobs
            assert worker.step()
            assert model.states()[number] == "received"
            assert [job["attempts"] for job in model.jobs()] == [0]

            swift.start()
            assert swift.port == port
            push(model.here, model.remote(model.secret), [Push(MAIN, tuned)])
            assert model.tip() == tuned
            time.sleep(3)  # for as long as the bucket is not asked again
            while worker.step():
                pass
            assert model.states()[number] == "open"
            source.close()
        key = next(iter(store.path.stem for store in [model.store()]))
        assert place.remote(key).all_refs()[f"{PULLS}{number}"]
    finally:
        swift.stop()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-and-hidden"}, "refuses access"),
        ({"COFUSE_HUB_STORAGE__URL": "s3://nothere"}, "no such bucket"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "COFUSE_HUB_STORAGE__PATIENCE": "0.5"}, "cannot be reached"),
        ({"COFUSE_HUB_STORAGE__URL": "ftp://bucket"}, "s3://"),
    ],
    ids=["keys", "bucket", "server", "address"],
)
def test_a_hub_that_cannot_use_its_bucket_does_not_start(
    place: Place, tmp_path: Path, wrong: dict[str, str], said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAIN_PROGRAM, "serve", "--data", "data", "--port", "0"],
        env={**os.environ, **place.environment(), "COFUSE_HUB_STORAGE__URL": place.url, **wrong},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode not in (0, None)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "hidden" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


# Moves: of the bucket first, of the folder then


class Repository:
    """A repository of a hub that is not listening."""

    def __init__(self, place: Place, data: Path, *, make: bool = True) -> None:
        self.place, self.settings = place, place.settings(data)
        self.storage = Storage(self.settings.storage, data)
        self.folder = store_folder(data / "repositories", KEPT)
        if make:
            Store.init(self.folder)
            self.storage.make(KEPT)

    def store(self) -> Store:
        store, current = self.storage.open(KEPT)
        assert current
        return store

    def again(self) -> Repository:
        """The same, as the next process finds it; of the same run."""
        return Repository(self.place, self.folder.parents[2], make=False)

    def next_run(self) -> Repository:
        """The same, when the hub has been started again."""
        next_run(self.settings.data)
        return self.again()

    def check(self, store: Store) -> None:
        """The folder is what the bucket is, and both are whole."""
        remote = self.place.remote(KEPT)
        assert refs_of(store) == remote.all_refs()
        assert store.refs.head() == remote.head()
        assert store.fsck().ok


def commit(store: Store, value: float, *parents: str) -> str:
    """A version of one number, on no branch of the hub's."""
    drafts = Store.open(store.path)  # whose refs move here alone
    model = Memory({"w": torch.full((500,), value)}, files={"config.json": b"{}"})
    made = drafts.commit(model, message=str(value), branch="draft", parents=parents, expect=...)
    drafts.update_ref(f"{HEADS}draft", None)
    return made.id


@pytest.fixture
def there(place: Place, tmp_path: Path) -> Repository:
    next_run(tmp_path / "data")
    return Repository(place, tmp_path / "data")


@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=() if point == "bucket" else pytest.mark.slow) for point in POINTS]
)
def test_a_kill_between_bucket_and_folder_is_made_good(there: Repository, point: str) -> None:
    mine = there.store()
    old = commit(mine, 0.0)
    mine.refs.update(MAIN, old, expect=None)
    new, mine_next = commit(mine, 1.0, old), commit(mine, 2.0, old)
    dead = multiprocessing.get_context("spawn").Process(
        target=move_and_die, args=(there.settings, point, MAIN, new, old)
    )
    dead.start()
    dead.join()
    assert dead.exitcode == 7
    has_moved = point in ("bucket", "folder")
    # Whoever has it open already can neither lose what the bucket has, nor be kept from going on.
    if has_moved:
        with pytest.raises(RefError, match="moved"):
            mine.refs.update(MAIN, mine_next, expect=old)
        assert mine.refs.get(MAIN) == new
    else:
        assert mine.refs.get(MAIN) == old
        mine.refs.update(MAIN, mine_next, expect=old)
    there.check(there.again().store())
    tip = mine.refs.get(MAIN)
    assert tip == (new if has_moved else mine_next)
    last = commit(mine, 3.0, tip)
    mine.refs.update(MAIN, last, expect=tip)
    there.check(there.next_run().store())


def test_what_the_folder_alone_has_was_never_acknowledged(there: Repository) -> None:
    store = there.store()
    first = commit(store, 0.0)
    store.refs.update(MAIN, first)
    here = Store.open(store.path)
    here.refs.update(MAIN, commit(store, 1.0, first))
    here.refs.update(f"{TAGS}v1", first)
    again = there.next_run().store()
    assert refs_of(again) == {MAIN: first}
    there.check(again)


@pytest.mark.slow
def test_two_machines_one_after_the_other(there: Repository, place: Place, tmp_path: Path) -> None:
    """Each finds what the other has done: moved, removed, made, HEAD."""
    one = there.store()
    first = commit(one, 0.0)
    for ref in (MAIN, f"{HEADS}old/a", f"{TAGS}v1", f"{PULLS}1", f"{PULLS}1-fisher"):
        one.refs.update(ref, first)
    next_run(tmp_path / "other")
    other = Repository(place, tmp_path / "other", make=False)
    two = other.store()
    other.check(two)
    second = commit(two, 1.0, first)
    two.refs.update(MAIN, second, expect=first)
    two.refs.update(f"{HEADS}old/a", None, expect=first)
    two.refs.update(f"{HEADS}old", second, expect=None)  # where a folder was
    two.refs.update(f"{TAGS}v1", None)
    two.refs.update(f"{TAGS}v1", second, expect=None)  # removed, and made again
    two.refs.point_head(f"{HEADS}old")
    # The first has not looked; it cannot overwrite what it has not seen.
    with pytest.raises(RefError, match="moved"):
        one.refs.update(MAIN, commit(one, 2.0, first), expect=first)
    there.check(one)
    again = there.next_run().store()
    assert refs_of(again) == {MAIN: second, f"{HEADS}old": second, f"{TAGS}v1": second} | dict.fromkeys(
        (f"{PULLS}1", f"{PULLS}1-fisher"), first
    )
    there.check(again)


def test_of_many_who_move_one_ref_one_wins(there: Repository) -> None:
    """In threads of processes that share the folder."""
    store = there.store()
    base = commit(store, 0.0)
    store.refs.update(MAIN, base)
    for turn in range(3):
        base = store.refs.get(MAIN) or ""
        stores = [there.again().store() for _ in range(4)]
        commits = [commit(one, 10.0 * turn + n + 1, base) for n, one in enumerate(stores)]

        def move(one: Store, new: str, old: str = base) -> bool:
            try:
                one.refs.update(MAIN, new, expect=old)
            except RefError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            won = [new for new, yes in zip(commits, pool.map(move, stores, commits), strict=True) if yes]
        assert len(won) == 1
        assert store.refs.get(MAIN) == won[0]
    there.check(store)


@pytest.mark.slow
def test_of_many_who_push_to_a_branch_one_wins(start_hub: Start, place: Place, tmp_path: Path) -> None:
    server = serve(start_hub, place, **{"server.processes": 2})
    model = Model(server, tmp_path, "race")
    for turn in range(3):
        tip = model.tip()
        commits = [
            model.here.commit(model.tuned(tip, 10 * turn + n), message=f"{n}", branch=f"b{turn}{n}", parents=[tip]).id
            for n in range(4)
        ]

        def send(new: str) -> bool:
            try:
                push(model.here, model.remote(model.secret), [Push(MAIN, new)])
            except RefError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            won = [new for new, yes in zip(commits, pool.map(send, commits), strict=True) if yes]
        assert won == [model.tip()]
    lose(server)
    server.start()
    assert model.tip() == won[0]
    model.check()


# What was here before the bucket, and what is not there any more


def test_a_hub_moves_into_a_bucket(place: Place, tmp_path: Path) -> None:
    data = tmp_path / "data"
    store = Store.init(store_folder(data / "repositories", KEPT))
    first = commit(store, 0.0)
    store.refs.update(f"{HEADS}trunk", first)
    store.refs.update(f"{PULLS}1", commit(store, 1.0, first))
    store.refs.point_head(f"{HEADS}trunk")
    refs = refs_of(store)
    begin(place.settings(data))
    there = Repository(place, data, make=False)
    there.check(there.store())
    shutil.rmtree(data)
    again = there.next_run().store()
    assert refs_of(again) == refs
    there.check(again)
    # It is not by mistake left again: what would move here alone would be lost at the next start with the bucket.
    with pytest.raises(HubError, match="kept in a bucket"):
        begin(Settings(data=data))
    (data / "storage").unlink()
    begin(Settings(data=data))
    alone = Store.open(again.path)
    alone.refs.update(f"{HEADS}trunk", commit(alone, 2.0, first))
    refs = refs_of(alone)
    back = there.next_run().store()
    assert refs_of(back) == refs
    there.check(back)


def test_two_that_have_gone_different_ways_are_both_left_alone(place: Place, tmp_path: Path, there: Repository) -> None:
    one = there.store()
    one.refs.update(MAIN, commit(one, 0.0))
    data = tmp_path / "elsewhere"
    store = Store.init(store_folder(data / "repositories", KEPT))
    store.refs.update(MAIN, commit(store, 1.0))
    refs = refs_of(store)
    next_run(data)
    other = Repository(place, data, make=False)
    found, current = other.storage.open(KEPT)
    assert not current
    assert refs_of(found) == refs
    with pytest.raises(Unavailable):
        found.refs.update(f"{TAGS}v1", refs[MAIN])
    there.check(one)


def test_an_empty_bucket_takes_nothing_from_the_folder(there: Repository, place: Place) -> None:
    store = there.store()
    first = commit(store, 0.0)
    store.refs.update(MAIN, first)
    place.remote(KEPT).clear()  # somebody has emptied it
    found, current = there.next_run().storage.open(KEPT)
    assert not current
    assert refs_of(found) == {MAIN: first}
    with pytest.raises(Unavailable):
        found.refs.update(f"{TAGS}v1", first)
    # And one that is nowhere is not taken for an empty one.
    shutil.rmtree(there.folder)
    time.sleep(3)
    with pytest.raises(Unavailable):
        there.again().storage.open(KEPT)
    assert not (there.folder / "format").exists()


@pytest.mark.slow
def test_a_repository_is_made_and_removed_in_the_bucket(start_hub: Start, place: Place, tmp_path: Path) -> None:
    server = serve(start_hub, place)
    secret = server.token("ann", "maintain")
    full = server.repository(secret, "empty")
    lose(server)
    server.start()
    here = Store.init(tmp_path / "here")
    with server.client(secret) as client:
        assert client.get(f"/api/v1/repositories/{full}/store").json()["refs"] == {}
        remote = remote_of(server, secret, full)
        push(here, remote, [Push(MAIN, commit(here, 0.0))])
        # By a client of another kind: a commit, a branch, a tag, one of them removed.
        hugging = HfApi(endpoint=server.url, token=secret)
        sent = hugging.upload_file(path_or_fileobj=b"# A model", path_in_repo="README.md", repo_id=full)
        hugging.create_branch(full, branch="next", revision="main")
        hugging.create_tag(full, tag="v1", revision="main")
        hugging.delete_branch(full, branch="next")
        kept = place.remote(next(name.split("/")[0] for name in place.names() if "/" in name))
        assert {ref: tip[:40] for ref, tip in kept.refs().items()} == dict.fromkeys((MAIN, f"{TAGS}v1"), sent.oid)
        assert kept.refs() == remote.refs()
        assert client.request("DELETE", "/api/repos/delete", json={"name": "empty"}).status_code == 200
    assert place.names() == {"hub"}


@pytest.mark.slow
def test_refs_of_a_bucket_are_removed_and_made_again(place: Place, tmp_path: Path) -> None:
    """As those of a folder are."""
    store = Store.init(tmp_path / "a")
    first = commit(store, 0.0)
    remote = place.remote(KEPT)
    push(store, remote, [Push(MAIN, first), Push(f"{HEADS}a/b", first)])
    with pytest.raises(RefError, match="in the way"):
        remote.update([Move(f"{HEADS}a", first, None)])
    with pytest.raises(RefError, match="moved"):
        remote.update([Move(f"{HEADS}a/b", None, "0" * 63 + "1")])
    remote.update([Move(f"{HEADS}a/b", None, first)])
    assert remote.refs() == {MAIN: first}
    remote.update([Move(f"{HEADS}a", first, None)])
    with pytest.raises(RefError, match="in the way"):
        remote.update([Move(f"{HEADS}a/b", first, None)])
    remote.update([Move(f"{HEADS}a", None, first), Move(f"{HEADS}a/b", first, None), Move(f"{PULLS}7", first, None)])
    assert remote.refs() == {MAIN: first, f"{HEADS}a/b": first}
    assert remote.all_refs() == {MAIN: first, f"{HEADS}a/b": first, f"{PULLS}7": first}
    copy = clone(open_remote(remote.name, place.swift.account()), tmp_path / "copy", Named(remote.name))
    assert set(copy.branches()) == {"main"}
