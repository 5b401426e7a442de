"""Packing changes how objects are kept and nothing else: ids, bytes and what is there stay, at every moment."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dying import DYING
from hypothesis import given
from hypothesis import strategies as st
from odd_folders import digests

from cofuse.checkpoint import Memory
from cofuse.errors import CorruptError, StoreError
from cofuse.store import Store
from cofuse.store.packing import QUICK, pack, plan
from cofuse.store.rewriting import rewrite

versions = st.lists(st.integers(0, 30).map(str), max_size=20)


def depth(planned: dict[str, str | None], version: str) -> int:
    base = planned[version]
    return 0 if base is None else 1 + depth(planned, base)


def bound(count: int) -> int:
    """The longest chain of a line of so many versions: 7 (1 + log8 n), as a whole number."""
    return 7 * len(oct(max(1, count))[2:])


@given(st.lists(versions, max_size=5), st.data())
def test_a_plan_is_a_forest_of_bounded_depth_with_quick_tips(lineages: list[list[str]], data: st.DataObject) -> None:
    every = sorted({v for lineage in lineages for v in lineage})
    tips = set(data.draw(st.lists(st.sampled_from(every)))) if every else set()
    present = {v: data.draw(st.sampled_from([None, *every])) for v in every}
    planned = plan(lineages, tips, present)
    assert set(planned) == set(every)
    seen: set[str | None] = {None}
    for version, base in planned.items():  # each after what it is kept beside, so there are no circles
        assert base in seen
        seen.add(version)
    longest = max((len(lineage) for lineage in lineages), default=0)
    for version in planned:
        assert depth(planned, version) <= len(lineages) * (1 + bound(longest))
        assert version not in tips or depth(planned, version) <= QUICK
    if lineages and lineages[0]:
        assert planned[lineages[0][0]] is None


@given(st.integers(1, 600))
def test_a_line_is_no_deeper_than_its_logarithm_and_a_new_version_moves_few(n: int) -> None:
    line = [str(i) for i in range(n, 0, -1)]
    before, after = plan([line], {line[0]}, {}), plan([[str(n + 1), *line]], {str(n + 1)}, {})
    assert max(depth(before, v) for v in line) <= bound(n)
    moved = [v for v in line if before[v] != after[v]]
    assert len(moved) <= len(oct(n)[2:])


def test_what_has_been_packed_stays_as_it_is() -> None:
    line = [str(i) for i in range(9, 0, -1)]
    planned = plan([line, ["x", "9"]], {"9", "x"}, {})
    assert plan([line, ["x", "9"]], {"9", "x"}, planned) == planned


def grow(store: Store, count: int, *, branch: str | None = None, seed: int = 0, size: int = 20_000) -> None:
    """Versions each of which changes a little of the one before."""
    source = torch.Generator().manual_seed(seed)
    tip = store.branches().get(branch or "main")
    w = store.checkpoint(tip).read("w") if tip else torch.randn(size, generator=source)
    for n in range(count):
        w = w + (torch.rand(size, generator=source) < 0.02) * 0.01
        store.commit(Memory({"w": w, "b": w[:10]}), message=f"{branch} {n}", branch=branch, threads=1)


def everything(store: Store) -> dict[str, bytes]:
    return {i: bytes(store.objects.read(i)) for i in store.objects}


def depths(store: Store, rev: str) -> list[int]:
    return [len(store.objects.bases(store.checkpoint(c.id).tensor_ids()["w"])) for c in store.log(rev)]


def test_packing_turns_a_line_round_and_changes_no_byte(store: Store, tmp_path: Path) -> None:
    grow(store, 12)
    before, size = everything(store), sum(map(store.objects.stored_bytes, store.objects))
    assert depths(store, "main")[0] > 0
    done = pack(store.objects, store.refs)
    assert done.rewritten > 0
    assert everything(store) == before
    after = depths(store, "main")
    assert after[0] == 0
    assert max(after) <= 8
    now = sum(map(store.objects.stored_bytes, store.objects))
    assert done.gained == size - now
    assert now < 1.3 * size
    assert pack(store.objects, store.refs) == type(done)(0, 0)
    assert store.fsck().ok
    grow(store, 1, seed=5)
    assert 0 < pack(store.objects, store.refs).rewritten <= 3
    assert depths(store, "main")[0] == 0


def test_the_tips_of_many_branches_from_one_base_are_one_step_from_it(store: Store) -> None:
    grow(store, 1)
    for name in "abcdef":
        store.branch(name, "main")
        grow(store, 3, branch=name, seed=ord(name))
    size = sum(map(store.objects.stored_bytes, store.objects))
    pack(store.objects, store.refs)
    assert all(depths(store, name)[0] <= QUICK for name in "abcdef")
    assert sum(map(store.objects.stored_bytes, store.objects)) < 1.3 * size
    assert store.fsck().ok


def test_what_does_not_become_smaller_is_not_tried_again(store: Store) -> None:
    for n in range(5):  # nothing in common
        w = torch.randn(20_000, generator=torch.Generator().manual_seed(n))
        store.commit(Memory({"w": w}), message=str(n), threads=1)
    before = everything(store)
    pack(store.objects, store.refs)
    assert pack(store.objects, store.refs).rewritten == 0
    assert everything(store) == before


def test_a_damaged_version_is_not_handed_on(store: Store) -> None:
    grow(store, 4)
    victim = store.checkpoint("main~2").tensor_ids()["w"]
    path = store.objects.path(victim)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(CorruptError):
        store.gc()
    assert victim in {d.id for d in store.fsck().damaged}


@pytest.mark.parametrize("seed", range(3))
def test_rewriting_in_any_order_keeps_everything_readable(store: Store, seed: int) -> None:
    grow(store, 5, size=2000)
    before = everything(store)
    ids = [store.checkpoint(c.id).tensor_ids()["w"] for c in store.log()]
    source = random.Random(seed)
    for _ in range(15):
        version, base = source.sample([*ids, None], 2)
        if version is not None:
            if base is not None and version in store.objects.bases(base):
                with pytest.raises(StoreError, match="against itself"):
                    rewrite(store.objects, version, base)
            else:
                rewrite(store.objects, version, base)
            assert store.fsck(threads=1).ok
    assert everything(store) == before


EVERY_STEP = (
    DYING
    + """
from pathlib import Path
from cofuse.store import Store
from cofuse.store.packing import pack
STEPS = ("fsync", "rename", "pwrite", "mkdir", "unlink")

def packed_killed_at(step):
    die_at(step, STEPS)
    store = Store.open(sys.argv[1])
    pack(store.objects, store.refs, threads=1)
    os._exit(0)

step = 0
while True:
    child = os.fork()
    if child == 0:
        try:
            packed_killed_at(step)
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    store = Store.open(sys.argv[1])
    assert store.fsck(threads=1).ok, step
    assert sum(1 for _ in (store.path / "tmp").iterdir()) <= 1
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, status
        break
    step += 1
print(step)
"""
)


def test_killed_at_every_step_packing_leaves_everything_readable_and_ends(store: Store, tmp_path: Path) -> None:
    grow(store, 6)
    before = everything(store)
    store.checkout("main~3", tmp_path / "before")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EVERY_STEP, str(store.path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
    assert everything(store) == before
    assert depths(store, "main")[0] == 0
    store.checkout("main~3", tmp_path / "after")
    assert digests(tmp_path / "after") == digests(tmp_path / "before")


def test_who_reads_while_it_is_packed_gets_the_same_bytes(store: Store) -> None:
    grow(store, 8)
    opened = [store.checkpoint(c.id) for c in store.log()]
    before = [bytes(o.read_bytes("w")) for o in opened]
    code = "import sys\nfrom cofuse.store import Store\ns = Store.open(sys.argv[1])\ns.gc()"
    packer = subprocess.Popen([sys.executable, "-c", code, str(store.path)])
    while packer.poll() is None:
        assert [bytes(o.read_bytes("w")) for o in opened] == before
    assert packer.returncode == 0
    assert depths(store, "main")[0] == 0
