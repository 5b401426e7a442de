"""What is damaged is found, named, and never handed out; what is whole stays so whatever happens to a writer."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from dying import DYING
from odd_folders import digests, write_weights

from cofuse.checkpoint import Memory, TensorSpec
from cofuse.errors import CofuseError, CorruptError, StoreError
from cofuse.store import Store
from cofuse.store.commits import put_commit
from cofuse.store.envelope import Head
from cofuse.store.mending import mend
from cofuse.store.receiving import InFolder
from cofuse.store.trees import Plain, Tree, Weights, load_tree
from cofuse.store.writing import writing


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_flipped_bit_is_found_by_reading_by_checkout_and_by_fsck(store: Store, model: Path, tmp_path: Path) -> None:
    store.commit(model, message="x")
    opened = store.checkpoint("main")
    large = opened.tensor_ids()["large"]
    last = opened.spec("large").nbytes
    flip(store.objects.path(large), -1)
    opened.read_bytes("large", 0, 4 * 1024 * 1024)  # the first chunk is whole
    with pytest.raises(CorruptError, match="a chunk is damaged") as caught:
        opened.read_bytes("large", last - 1, last)
    assert large[2:] in str(caught.value.where)
    with pytest.raises(CorruptError, match="a chunk is damaged"):
        store.checkout("main", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [d.id for d in store.fsck().damaged] == [large]


@pytest.mark.parametrize("kind", ["tensor", "file", "header", "tree", "commit"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "remove", "swap"])
def test_fsck_names_what_is_damaged(store: Store, model: Path, kind: str, harm: str) -> None:
    commit = store.commit(model, message="x")
    tree = load_tree(store.objects, commit.tree)
    weights, config = tree.files["model.safetensors"], tree.files["config.json"]
    assert isinstance(weights, Weights)
    assert isinstance(config, Plain)
    victim = {
        "tensor": weights.tensors[5],
        "file": config.id,
        "header": weights.header,
        "tree": commit.tree,
        "commit": commit.id,
    }[kind]
    assert store.fsck().ok
    path = store.objects.path(victim)
    path.chmod(0o644)
    if harm == "flip":
        flip(path, random.Random(kind).randrange(path.stat().st_size))
    elif harm == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "remove":
        path.unlink()
    else:
        other = weights.tensors[6] if kind != "tensor" else config.id
        shutil.copy(store.objects.path(other), path)
    health = store.fsck()
    assert victim in [d.id for d in health.damaged]
    assert len(health.damaged) == 1, health.damaged


def put_lie(store: Store, tree: Tree, content: str | None) -> tuple[str, str]:
    """A commit, by a writer that checks nothing; gives the tree's id and the commit's."""
    with writing(store.objects) as pen:
        data = tree.encode()
        made = pen.put_bytes(Head("tree", len(data)), data)
        commit = put_commit(
            pen, store.objects, tree=made, content=content, parents=[], message="lie", author="", record={}
        )
        pen.sync()
    store.update_ref("refs/heads/lie", commit.id)
    return made, commit.id


@pytest.mark.parametrize("lie", ["content", "order", "count", "file size", "weights size", "kind"])
def test_a_tree_that_lies_is_found(store: Store, model: Path, tmp_path: Path, lie: str) -> None:
    honest = load_tree(store.objects, store.add(model))
    weights, config = honest.files["model.safetensors"], honest.files["config.json"]
    assert isinstance(weights, Weights)
    assert isinstance(config, Plain)
    swapped = (weights.tensors[1], weights.tensors[0], *weights.tensors[2:])
    changed = {
        "content": {},
        "order": {"model.safetensors": Weights(weights.header, weights.size, swapped)},
        "count": {"model.safetensors": Weights(weights.header, weights.size, weights.tensors[1:])},
        "file size": {"config.json": Plain(config.id, config.size + 1)},
        "weights size": {"model.safetensors": Weights(weights.header, weights.size + 8, weights.tensors)},
        "kind": {"config.json": Plain(weights.tensors[0], config.size)},
    }[lie]
    content = "0" * 64 if lie == "content" else honest.content
    tree, _ = put_lie(store, Tree({**honest.files, **changed}, content), content)
    assert [d.id for d in store.fsck().damaged] == [tree]
    if lie == "content":
        with pytest.raises(CorruptError, match="content id is wrong"):
            store.checkpoint("lie")
        return
    with pytest.raises(CofuseError):
        store.checkout("lie", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_commit_that_lies_about_its_content_is_found(store: Store, model: Path) -> None:
    honest = load_tree(store.objects, store.add(model))
    _, commit = put_lie(store, honest, "0" * 64)
    assert [d.id for d in store.fsck().damaged] == [commit]


def crowd(folder: Path, seed: int) -> None:
    """Forty small tensors and one of two chunks."""
    folder.mkdir(exist_ok=True)
    specs = {f"w{n}": TensorSpec("F32", (50 + n,)) for n in range(40)} | {"large": TensorSpec("U8", (4_500_000,))}
    write_weights(folder / "model.safetensors", specs, {"format": "pt"}, seed=seed)
    (folder / "config.json").write_text("{}")


# Forks a child for every step on which a commit may be killed, and kills it just before that step.
EVERY_STEP = (
    DYING
    + """
from pathlib import Path
from cofuse.store import Store

home, folder = Path(sys.argv[1]), Path(sys.argv[2])
STEPS = ("fsync", "link", "replace", "pwrite", "mkdir", "unlink")

def commit_killed_at(step):
    die_at(step, STEPS)
    Store.open(home).commit(folder, message="killed", threads=1)
    os._exit(0)

step, kills = 0, 0
while True:
    before = Store.open(home).resolve("main")
    child = os.fork()
    if child == 0:
        try:
            commit_killed_at(step)
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    store = Store.open(home)
    tip = store.load_commit("main")
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, status
        assert tip.parents == (before,)
        break
    kills += 1
    assert tip.id == before or tip.parents == (before,), (step, tip)
    assert len(list((store.path / "tmp").iterdir())) <= 1
    if step % 10 == 0:
        assert store.fsck().ok, (step, store.fsck())
    # what an unfinished commit leaves is whole objects and nothing else
    step += 1
    if tip.id != before:  # it was killed after the ref had moved: start again from the commit before
        store.update_ref("refs/heads/main", before)
assert store.fsck().ok
print(kills)
"""
)


def test_killed_at_every_step_a_commit_leaves_the_last_one_whole(store: Store, tmp_path: Path) -> None:
    crowd(tmp_path / "m", 0)
    store.commit(tmp_path / "m", message="first")
    for n in range(8):  # new tensors, so that there is something to write; few, as there is a fork a step
        write_weights(tmp_path / "m" / f"{n}.safetensors", {f"n{n}": TensorSpec("F32", (9,))}, {}, seed=n)
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", EVERY_STEP, str(store.path), str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 30
    store.checkout("main", tmp_path / "out")
    assert digests(tmp_path / "out") == digests(tmp_path / "m")
    assert list((store.path / "tmp").iterdir()) == []


COMMIT = """
import os, sys
from pathlib import Path
from cofuse.store import Store
store = Store.open(sys.argv[1])
print("ready", flush=True)
for n in range(1000):
    folder = Path(sys.argv[2]) / str(n % 2)
    (folder / "new.bin").write_bytes(os.urandom(1_000_000))
    print(store.commit(folder, message=str(n), record={"n": sys.argv[3], "i": n}).id, flush=True)
"""


def test_killed_at_random_moments_nothing_acknowledged_is_lost(store: Store, tmp_path: Path) -> None:
    crowd(tmp_path / "0", 1)
    crowd(tmp_path / "1", 2)
    source = random.Random(7)
    acknowledged: list[str] = []
    for n in range(15):
        child = subprocess.Popen(
            [sys.executable, "-c", COMMIT, str(store.path), str(tmp_path), str(n)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(source.random() * 0.15)
        child.send_signal(signal.SIGKILL)
        acknowledged += [line for line in child.stdout.read().splitlines() if len(line) == 64]
        child.wait()
        child.stdout.close()
        if acknowledged:
            assert set(acknowledged) <= {c.id for c in store.log()}
    assert store.fsck().ok
    store.commit(tmp_path / "0", message="the same command finishes")
    store.checkout("main", tmp_path / "out")
    assert digests(tmp_path / "out") == digests(tmp_path / "0")
    assert list((store.path / "tmp").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path):  # type: ignore[no-untyped-def]
    place = tmp_path / "disk"
    place.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("a disk of its own needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_gives_one_clear_error_and_harms_nothing(small_disk: Path, tmp_path: Path) -> None:
    store = Store.init(small_disk)
    little, much = tmp_path / "little", tmp_path / "much"
    little.mkdir()
    much.mkdir()
    write_weights(little / "model.safetensors", {"w": TensorSpec("F32", (1000,))}, {})
    write_weights(much / "model.safetensors", {f"w{n}": TensorSpec("U8", (500_000,)) for n in range(20)}, {})
    first = store.commit(little, message="fits")
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot write to the store") as caught:
            store.commit(much, message="does not")
        assert caught.value.got == "No space left on device"
        assert "free some space" in str(caught.value)
    assert [c.id for c in store.log()] == [first.id]
    assert store.fsck().ok
    assert list((store.path / "tmp").iterdir()) == []
    (small_disk / "fill").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    with pytest.raises(CofuseError, match="cannot write"):
        store.checkout("main", small_disk / "out")
    assert not (small_disk / "out").exists()
    (small_disk / "fill").unlink()
    store.checkout("main", small_disk / "out")
    assert digests(small_disk / "out") == digests(little)


def test_gc_makes_room_on_a_full_disk_and_the_commit_that_failed_ends(small_disk: Path, tmp_path: Path) -> None:
    store = Store.init(small_disk)
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, seed in ((one, 1), (other, 2)):
        folder.mkdir()
        (folder / "model.bin").write_bytes(random.Random(seed).randbytes(1_900_000))
    store.commit(one, message="lost", branch="side")
    first = store.commit(tmp_path / "one", message="kept", parents=[])
    with pytest.raises(StoreError, match="cannot write to the store"):
        store.commit(other, message="more")
    store.update_ref("refs/heads/side", None)
    store.update_ref("refs/heads/main", None)
    (small_disk / "fill").write_bytes(bytes(max(0, os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize)))
    assert store.gc(grace_days=0)[1].freed > 1_000_000
    assert first.id not in store.objects
    (small_disk / "fill").unlink()
    store.commit(other, message="more")
    store.checkout("main", tmp_path / "out")
    assert digests(tmp_path / "out") == digests(other)
    assert store.fsck().ok


def test_a_full_disk_while_packing_harms_nothing(small_disk: Path, tmp_path: Path) -> None:
    store = Store.init(small_disk)
    source = torch.Generator().manual_seed(0)
    w = torch.randn(200_000, generator=source)
    for n in range(4):
        w = w + (torch.rand(200_000, generator=source) < 0.01) * 0.01
        store.commit(Memory({"w": w}), message=str(n))
    before = {i: bytes(store.objects.read(i)) for i in store.objects}
    (small_disk / "fill").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    with pytest.raises(StoreError, match="cannot write to the store"):
        store.gc()
    assert {i: bytes(store.objects.read(i)) for i in store.objects} == before
    assert list((store.path / "tmp").iterdir()) == []
    (small_disk / "fill").unlink()
    assert store.gc()[0].rewritten > 0
    assert {i: bytes(store.objects.read(i)) for i in store.objects} == before


def test_a_read_only_store_can_be_read_and_says_why_it_cannot_be_written(small_disk: Path, model: Path) -> None:
    store = Store.init(small_disk)
    little = small_disk / "m"
    little.mkdir()
    (little / "config.json").write_text("{}")
    write_weights(little / "model.safetensors", {"w": TensorSpec("F32", (10,))}, {})
    store.commit(little, message="x")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = Store.open(small_disk)
    assert [c.message for c in store.log()] == ["x"]
    assert store.checkpoint("main").read_bytes("w")
    assert store.fsck().ok
    for write in (
        lambda: store.commit(model, message="y"),
        lambda: store.tag("v1"),
        store.gc,
        lambda: Store.init(small_disk / "n"),
    ):
        with pytest.raises(StoreError, match="cannot write to the store") as caught:
            write()
        assert caught.value.got == "Read-only file system"


class Short(Memory):
    """A checkpoint that gives less, or more, than its shape says."""

    by = -4

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        return bytearray(40 + self.by)


@pytest.mark.parametrize("by", [-40, -4, 4, 8_000_000])
def test_a_source_that_gives_another_number_of_bytes_is_refused(store: Store, by: int) -> None:
    source = Short({"w": torch.zeros(10)})
    source.by = by
    with pytest.raises(StoreError, match="another number of bytes") as caught:
        store.commit(source, message="x")
    assert caught.value.where == "model.safetensors: w"
    assert store.branches() == {}
    assert list((store.path / "tmp").iterdir()) == []


def test_a_file_that_grows_meanwhile_is_refused(store: Store, model: Path) -> None:
    class Grow:
        """Progress whose first sign of life comes when all sizes are known."""

        def bar(self, what: str, total: float, unit: str = "") -> "Grow":
            with (model / "config.json").open("ab") as file:
                file.write(b"\n")
            return self

        def advance(self, amount: float = 1) -> None:
            pass

        def say(self, line: str) -> None:
            pass

    with pytest.raises(StoreError, match="another number of bytes") as caught:
        store.commit(model, message="x", progress=Grow())
    assert caught.value.where == "config.json"


def test_a_damaged_version_does_not_keep_a_good_one_from_being_stored(store: Store, model: Path) -> None:
    commit = store.commit(model, message="x")
    flip(store.objects.path(commit.tree), -1)
    (model / "config.json").write_text("{}")
    assert store.commit(model, message="y").parents == (commit.id,)
    assert [d.id for d in store.fsck().damaged] == [commit.tree]


# What damage touches, and mending


def put_near(store: Store, count: int) -> list[str]:
    """Versions of two tensors, each a delta against the one before; the ids of the one that changes."""
    w = torch.arange(50_000, dtype=torch.float32)
    for n in range(count):
        w = w + (torch.arange(50_000) % 97 == n)
        store.commit(Memory({"w": w, "still": torch.ones(3)}), message=f"version {n}", threads=1)
    return [store.checkpoint(c.id).tensor_ids()["w"] for c in reversed(store.log(limit=count))]


def test_fsck_names_every_version_and_tensor_that_damage_touches(store: Store) -> None:
    ids = put_near(store, 4)
    store.branch("side", "main~2")
    assert store.objects.bases(ids[2])[0] == ids[1]
    flip(store.objects.path(ids[1]), -1)
    commits = {c.message: c.id for c in store.log()}
    [damage] = store.fsck().damaged  # what is a delta against it is touched, not damaged
    assert damage.id == ids[1]
    assert {v.id for v in damage.versions} == {commits[f"version {n}"] for n in (1, 2, 3)}
    assert {v.message: v.refs for v in damage.versions} == {
        "version 1": ("refs/heads/main", "refs/heads/side"),
        "version 2": ("refs/heads/main",),
        "version 3": ("refs/heads/main",),
    }
    assert damage.parts == ("model.safetensors: w",)


def test_damage_to_a_tree_or_a_commit_names_who_needs_it(store: Store, model: Path) -> None:
    first = store.commit(model, message="first")
    second = store.commit(model, message="second")
    flip(store.objects.path(first.id), -1)
    [damage] = store.fsck().damaged
    assert {v.id: v.refs for v in damage.versions} == dict.fromkeys((first.id, second.id), ("refs/heads/main",))
    flip(store.objects.path(second.tree), -1)
    assert {d.id: {v.message for v in d.versions} for d in store.fsck().damaged} == {
        first.id: {"", "second"},
        second.tree: {"second"},
    }


@pytest.mark.parametrize("harm", ["flip", "remove", "swap"])
@pytest.mark.parametrize("way", ["store", "files"])
def test_mending_brings_back_every_byte(store: Store, model: Path, tmp_path: Path, way: str, harm: str) -> None:
    commit = store.commit(model, message="x")
    put_near(store, 3)
    good = tmp_path / "good.cofuse"
    shutil.copytree(store.path, good)
    tree = load_tree(store.objects, commit.tree)
    victims = [commit.tree, *tree.objects()]
    if way == "store":
        victims = [i for i in store.objects if i != store.resolve("main")]
    for n, victim in enumerate(victims):
        path = store.objects.path(victim)
        path.chmod(0o644)
        if harm == "flip":
            flip(path, random.Random(n).randrange(path.stat().st_size))
        elif harm == "remove":
            path.unlink()
        else:
            path.write_bytes(b"something else")
    source = InFolder(Store.open(good).objects) if way == "store" else model
    for _ in range(5):  # what comes back may name more that is missing
        damaged = [d.id for d in store.fsck().damaged]
        if not damaged:
            break
        assert set(mend(store.objects, damaged, source).values()) == {None}
    assert store.fsck().ok
    for object_id in Store.open(good).objects:
        assert store.objects.read(object_id) == Store.open(good).objects.read(object_id)
    assert list((store.path / "tmp").iterdir()) == []


def test_a_bad_copy_does_not_mend(store: Store, model: Path, tmp_path: Path) -> None:
    commit = store.commit(model, message="x")
    bad = tmp_path / "bad.cofuse"
    shutil.copytree(store.path, bad)
    large = store.checkpoint(commit.id).tensor_ids()["large"]
    for folder in (store.path, bad):
        flip(folder / "objects" / large[:2] / large[2:], -1)
    before = store.objects.path(large).read_bytes()
    [(object_id, why_not)] = mend(store.objects, [large, "refs/heads/main"], bad).items()
    assert object_id == large
    assert why_not is not None
    assert "damaged" in why_not
    assert store.objects.path(large).read_bytes() == before
