"""gc removes what nothing needs, and never what a ref, a reader or a writer does, whenever it comes."""

import fcntl
import gc as python_gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dying import DYING
from odd_folders import digests, write_weights

from cofuse.checkpoint import Memory, TensorSpec, content_id
from cofuse.errors import CorruptError, RefError, StoreError
from cofuse.progress import Silent
from cofuse.store import Store
from cofuse.store.collecting import Collected, needs
from cofuse.store.rewriting import rewrite
from cofuse.store.trees import load_tree

LONG_AGO = 1_000_000_000  # seconds


def model(seed: int, names: str = "abcdefgh") -> Memory:
    """A few tensors; those of one seed and name are the same in every model."""
    return Memory({n: torch.full((5, 3), float(100 * seed + ord(n))) for n in names})


def age(store: Store) -> None:
    """Everything in the store was last used long ago."""
    for object_id in store.objects:
        os.utime(store.objects.path(object_id), (LONG_AGO, LONG_AGO))


def closed(store: Store) -> bool:
    """Whether every object has what it needs."""
    there = set(store.objects)
    return all(below in there for object_id in there for below, _ in needs(store.objects, object_id))


def collect(store: Store, **settings: Any) -> Collected:
    return store.gc(**settings)[1]


class When(Silent):
    """Progress that does something once, when a bar of this name is first moved (or opened)."""

    def __init__(self, what: str, then: Callable[[], object]) -> None:
        self.what, self.then = what, then
        self.done = False

    def bar(self, what: str, total: float, unit: str = "") -> "When":
        self.inside = what.startswith(self.what)
        return self

    def advance(self, amount: float = 1) -> None:
        if self.inside and not self.done:
            self.done = True
            self.then()


@pytest.fixture
def lost(store: Store) -> str:
    """A store with one version that a branch has and one, long ago, that none has any more: the latter's commit."""
    store.commit(model(0), message="kept", threads=1)
    lost = store.commit(model(1), message="lost", branch="side", threads=1)
    store.update_ref("refs/heads/side", None)
    age(store)
    return lost.id


def test_what_only_a_removed_branch_had_goes_and_the_rest_stays(store: Store, lost: str) -> None:
    before = set(store.objects)
    tree = load_tree(store.objects, store.load_commit(lost).tree)
    shared = set(load_tree(store.objects, store.load_commit("main").tree).objects())
    gone = {lost, store.load_commit(lost).tree, *tree.objects()} - shared
    size = sum(store.objects.stored_bytes(i) for i in gone)
    said = collect(store, dry_run=True)
    assert set(store.objects) == before
    done = collect(store)
    assert said == done
    assert (done.removed, done.freed, done.kept) == (len(gone), size, len(before) - len(gone))
    assert set(store.objects) == before - gone
    assert store.fsck().ok
    assert collect(store).removed == 0


def test_what_is_young_stays_until_it_is_said_that_it_need_not(store: Store) -> None:
    store.commit(model(0), message="x")
    store.update_ref("refs/heads/main", None)
    there = set(store.objects)
    assert collect(store).removed == 0
    assert collect(store, grace_days=1e-4).removed == 0
    assert collect(store, grace_days=0).removed == len(there)
    assert list(store.objects) == []
    assert list((store.path / "tmp").iterdir()) == []


@pytest.mark.parametrize("days", [-1, float("nan")])
def test_a_grace_that_is_none_is_refused(store: Store, days: float) -> None:
    with pytest.raises(StoreError, match="not a number of days"):
        collect(store, grace_days=days)


@pytest.mark.parametrize("ref", ["refs/heads/a/b", "refs/tags/v1", "refs/remotes/origin/main"])
def test_every_kind_of_ref_keeps_what_it_reaches(store: Store, lost: str, ref: str) -> None:
    store.update_ref(ref, lost)
    assert collect(store, grace_days=0).removed == 0
    store.update_ref(ref, None)
    assert collect(store, grace_days=0).removed > 0


def test_roots_keep_what_they_reach(store: Store, lost: str) -> None:
    tree = store.load_commit(lost).tree
    assert collect(store, roots=[lost]).removed == 0
    assert collect(store, roots=[tree]).removed == 1  # the commit
    assert store.checkpoint(tree).read("a") is not None


def test_a_base_stays_as_long_as_a_delta_needs_it(store: Store) -> None:
    base = {"w": torch.arange(100_000, dtype=torch.float32)}
    old = store.commit(Memory(base), message="base", branch="side")
    new = store.commit(Memory({"w": base["w"] + (base["w"] == 7)}), message="near")
    old_id, new_id = (store.checkpoint(c.id).tensor_ids()["w"] for c in (old, new))
    rewrite(store.objects, old_id, None)
    rewrite(store.objects, new_id, old_id)
    assert store.objects.bases(new_id) == (old_id,)
    store.update_ref("refs/heads/side", None)
    age(store)
    assert collect(store).removed >= 1
    assert old_id in store.objects
    assert old.id not in store.objects
    assert store.fsck().ok


def test_a_young_object_keeps_what_it_needs(store: Store, lost: str) -> None:
    os.utime(store.objects.path(lost))
    assert collect(store, dry_run=True).removed == 0
    assert collect(store, grace_days=1).removed == 0


def test_what_nobody_goes_on_with_goes_when_it_is_old(store: Store, lost: str) -> None:
    (store.path / "arriving").mkdir()
    young, old, busy = (store.path / "arriving" / (digit * 64) for digit in "012")
    for path in (young, old, busy):
        path.write_bytes(b"half")
    for path in (old, busy):
        os.utime(path, (LONG_AGO, LONG_AGO))
    with open(busy, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        freed = collect(store, dry_run=True).freed
        assert sorted((store.path / "arriving").iterdir()) == [young, old, busy]
        assert collect(store).freed == freed
        assert sorted((store.path / "arriving").iterdir()) == [young, busy]
    assert collect(store).freed == 4


# Readers


def test_who_has_opened_a_version_can_read_it_to_the_end(store: Store, lost: str) -> None:
    opened = store.checkpoint(lost)
    again = Store.open(store.path).checkpoint(lost)
    assert collect(store, grace_days=0).removed == 1  # the commit, which is not needed for reading
    assert collect(Store.open(store.path), grace_days=0).removed == 0
    assert opened.read("a").tolist() == model(1).read("a").tolist()
    del opened
    python_gc.collect()
    assert collect(store, grace_days=0).removed == 0
    assert again.read("h").tolist() == model(1).read("h").tolist()
    del again
    python_gc.collect()
    assert collect(store, grace_days=0).removed > 0


READ = """
import sys
from cofuse.store import Store
opened = Store.open(sys.argv[1]).checkpoint(sys.argv[2])
print("open", flush=True)
sys.stdin.readline()
print(all(opened.read_bytes(name) for name in opened.names()), flush=True)
sys.stdin.readline()
"""


def test_another_process_reads_on_and_its_death_frees_what_it_held(store: Store, lost: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", READ, str(store.path), lost], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin
    assert child.stdout
    assert child.stdout.readline() == "open\n"
    assert collect(store, grace_days=0).removed == 1
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "True\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert collect(store, grace_days=0).removed > 1


def test_a_checkout_under_way_ends_well(store: Store, lost: str, tmp_path: Path) -> None:
    when = When("writing", lambda: collect(store, grace_days=0))
    store.checkout(lost, tmp_path / "out", progress=when, threads=1)
    assert when.done
    model(1).save(tmp_path / "same")
    assert digests(tmp_path / "out") == digests(tmp_path / "same")
    collect(store, grace_days=0)
    assert lost not in store.objects


def test_a_fork_does_not_give_back_what_its_parent_holds(store: Store, lost: str) -> None:
    opened = store.checkpoint(lost)
    child = os.fork()
    if child == 0:
        del opened
        python_gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    collect(store, grace_days=0)
    assert opened.read("a").tolist() == model(1).read("a").tolist()


def test_opening_holds_only_while_it_is_open(store: Store, lost: str) -> None:
    tree = store.load_commit(lost).tree
    for _ in range(3):
        first, second = store.checkpoint(tree), store.checkpoint(tree)
        assert store.objects.leases.any(tree)
        del first
        python_gc.collect()
        assert store.objects.leases.any(tree)
        del second
        python_gc.collect()
        assert not store.objects.leases.any(tree)


# Writers


class Meddler(Memory):
    """A checkpoint during whose storing something else happens."""

    then: Callable[[], object]

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        if name == "h":  # the last
            self.then()
        return super().read_bytes(name, start, stop)


def meddler(seed: int, then: Callable[[], object]) -> Meddler:
    made = Meddler({n: model(seed).read(n) for n in "abcdefgh"})
    made.then = then
    return made


@pytest.mark.parametrize("seed", [1, 2])
def test_a_commit_under_way_loses_nothing_old_or_new(store: Store, lost: str, seed: int) -> None:
    """Of seed 1 everything is there already, and nothing but the writer needs it."""
    seen = []
    commit = store.commit(meddler(seed, lambda: seen.append(collect(store, grace_days=0))), message="new", threads=1)
    assert seen
    assert store.fsck().ok
    assert store.checkpoint(commit.id).content == content_id(model(seed))


def test_a_commit_whose_parts_are_removed_just_before_writes_them_again(store: Store, lost: str) -> None:
    collect(store, grace_days=0)
    store.commit(model(1), message="again")
    assert store.fsck().ok


def test_what_comes_after_a_lost_commit_keeps_it(store: Store, lost: str) -> None:
    source = meddler(3, lambda: collect(store, grace_days=0))
    store.commit(source, message="after", branch="side", parents=[lost], threads=1)
    assert [c.id for c in store.log("side")][1] == lost
    assert store.fsck().ok
    assert closed(store)


@pytest.mark.parametrize("name", ["again", "v/1"])
def test_a_branch_made_while_gc_removes_keeps_what_it_reaches_or_is_refused(store: Store, lost: str, name: str) -> None:
    collect(store, grace_days=0, progress=When("looking", lambda: store.branch(name, lost)))
    assert store.branches()[name] == lost
    assert store.fsck().ok
    store.update_ref(f"refs/heads/{name}", None)
    collect(store, grace_days=0)
    with pytest.raises(RefError):
        store.update_ref(f"refs/heads/{name}", lost)


def test_a_reader_that_comes_while_gc_looks_around_is_seen(store: Store, lost: str) -> None:
    opened = []
    collect(store, grace_days=0, progress=When("looking", lambda: opened.append(store.checkpoint(lost))))
    assert content_id(opened[0]) == content_id(model(1))
    assert torch.equal(opened[0].read("a"), model(1).read("a"))


COME_AND_GO = """
import sys, random
from cofuse.checkpoint import Memory
from cofuse.store import Store
import torch
store, branch = Store.open(sys.argv[1]), sys.argv[2]
source = random.Random(branch)
for n in range(25):
    seeds = [source.randrange(3) for _ in "abcd"]
    names = dict(zip("abcd", seeds))
    store.commit(Memory({n: torch.full((5, 3), float(100 * s + ord(n))) for n, s in names.items()}),
                 message=str(n), branch=branch, parents=[], threads=1)
    read = store.checkpoint(branch)
    if n % 3 == 2:
        store.update_ref("refs/heads/" + branch, None)
    assert {m: int(read.read(m)[0, 0]) for m in read.names()} == {m: 100 * s + ord(m) for m, s in names.items()}
"""


def test_writers_and_collectors_side_by_side(store: Store) -> None:
    """The same few tensors are lost and wanted again all the time, by three writers, while gc runs all the time."""
    command = [sys.executable, "-W", "error", "-c", COME_AND_GO, str(store.path)]
    writers = [subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in "xyz"]
    removed = 0
    while any(writer.poll() is None for writer in writers):
        removed += collect(store, grace_days=0).removed
        assert closed(store)
    for writer in writers:
        _, said = writer.communicate()
        assert writer.returncode == 0, said
    assert removed
    assert store.fsck().ok
    assert list((store.path / "tmp").iterdir()) == []


# Kills and damage

EVERY_STEP = (
    DYING
    + """
from cofuse.store import Store
STEPS = ("unlink", "stat", "replace", "mkdir", "fsync")

def collect_killed_at(step):
    die_at(step, STEPS)
    Store.open(sys.argv[1]).gc()
    os._exit(0)

step = 0
while True:
    child = os.fork()
    if child == 0:
        try:
            collect_killed_at(step)
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, status
        break
    sys.path.insert(0, sys.argv[2])
    from test_gc import closed
    store = Store.open(sys.argv[1])
    assert closed(store), step
    assert store.fsck().ok, step
    step += 1
print(step)
"""
)


def test_killed_at_every_step_gc_leaves_everything_with_all_it_needs(store: Store, lost: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EVERY_STEP, str(store.path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
    assert lost not in store.objects
    assert collect(store, grace_days=0).removed == 0
    assert list((store.path / "tmp").iterdir()) == []


@pytest.mark.parametrize("what", ["commit", "tree", "tensor", "ref"])
def test_nothing_is_removed_from_a_damaged_store(store: Store, lost: str, what: str) -> None:
    commit = store.load_commit("main")
    victim = {
        "commit": store.objects.path(commit.id),
        "tree": store.objects.path(commit.tree),
        "tensor": store.objects.path(store.checkpoint("main").tensor_ids()["a"]),
        "ref": store.path / "refs/heads/main",
    }[what]
    victim.chmod(0o644)
    victim.write_bytes(b"damaged")
    there = set(store.objects)
    with pytest.raises((CorruptError, RefError)) as caught:
        collect(store, grace_days=0)
    assert what == "ref" or "cofuse fsck" in str(caught.value)
    assert set(store.objects) == there


def test_opening_a_version_takes_no_longer_for_the_lease(store: Store) -> None:
    store.commit(model(0), message="x")
    tree = store.load_commit("main").tree
    store.checkpoint(tree)
    leases = store.objects.leases

    class Holder:
        pass

    took = []
    for _ in range(50):
        began = time.perf_counter()
        leases.hold_for(Holder(), tree)
        took.append(time.perf_counter() - began)
    assert sorted(took)[25] < 0.001


def test_many_tensors_and_commits_are_looked_at_once(store: Store, tmp_path: Path) -> None:
    """Versions that share a tree, and trees that share tensors, cost no more than one."""
    write_weights(tmp_path / "model.safetensors", {f"w{n}": TensorSpec("F32", (2,)) for n in range(300)}, {})
    (tmp_path / "m").mkdir()
    os.rename(tmp_path / "model.safetensors", tmp_path / "m/model.safetensors")
    for n in range(5):
        store.commit(tmp_path / "m", message=str(n), threads=1)
    looked = []

    class Counting(Silent):
        def bar(self, what: str, total: float, unit: str = "") -> "Counting":
            return self

        def advance(self, amount: float = 1) -> None:
            looked.append(amount)

    collect(store, progress=Counting())
    assert sum(looked) == len(list(store.objects))
