"""An exact patch gives the tuned model back bit for bit: tensors, ties, metadata and files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint.models import assert_same, random_tensor
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint import CHUNK, Checkpoint, Memory, content_id, open_local
from cofuse.fuse import fuse
from cofuse.patch import Patch, apply, make
from cofuse.patch.edits import ADD
from cofuse.store import Store

from .models import Folder, finetuned, floats, nudged, pairs


def assert_equal(got: Checkpoint, tuned: Checkpoint) -> None:
    assert_same(got, {name: tuned.read(name) for name in (*tuned.names(), *tuned.aliases)})
    assert dict(got.aliases) == dict(tuned.aliases)
    assert dict(got.metadata) == dict(tuned.metadata)
    assert dict(got.files) == dict(tuned.files)
    assert content_id(got) == content_id(tuned)


@given(pairs(), st.booleans())
def test_it_gives_the_tuned_model(pair: tuple[Memory, Memory], values: bool) -> None:
    base, tuned = pair
    with Folder() as folder:
        patch = make(base, tuned, folder / "x.patch", values=values)
        assert patch.exact
        assert (patch.base, patch.result) == (content_id(base), content_id(tuned))
        assert_equal(apply(base, Patch.load(folder / "x.patch")), tuned)


@given(pairs(), st.data())
def test_blocks_and_ranges_are_the_whole(pair: tuple[Memory, Memory], data: st.DataObject) -> None:
    base, tuned = pair
    with Folder() as folder:
        applied = apply(base, make(base, tuned, folder / "x.patch"))
        for name in applied.names():
            whole = bytes(tuned.read_bytes(name))
            start = data.draw(st.integers(0, len(whole)))
            stop = data.draw(st.integers(start, len(whole)))
            assert bytes(applied.read_bytes(name, start, stop)) == whole[start:stop]
            assert b"".join(bytes(applied.read_bytes(name, a, b)) for a, b in applied.blocks(name, 8)) == whole


def test_nothing_changes_nothing(tmp_path: Path) -> None:
    base = Memory(floats(0, {"a": (3, 4), "b": (5,)}))
    patch = make(base, base, tmp_path / "x.patch")
    assert not patch.manifest.tensors
    assert patch.nbytes < 700
    assert_equal(apply(base, patch), base)


@pytest.fixture(scope="module")
def large() -> tuple[Memory, Memory]:
    """Tensors of several chunks, whose chunks want different edits."""
    size = CHUNK // 4 + 1000
    base = floats(0, {"w": (2 * size,), "v": (300,)})
    base["n"] = random_tensor(9, (CHUNK + 5,), torch.int8)
    tuned = finetuned({k: base[k] for k in ("w", "v")}, 1, 1e-4)
    tuned["w"][:size] = nudged(base["w"][:size], 2, 0.001)
    tuned["n"] = nudged(base["n"], 3, 0.0001)
    tuned["new"] = random_tensor(4, (CHUNK // 2 + 3,), torch.bfloat16)
    return Memory(base), Memory(tuned)


def test_tensors_of_several_chunks(large: tuple[Memory, Memory], tmp_path: Path) -> None:
    base, tuned = large
    patch = make(base, tuned, tmp_path / "x.patch")
    applied = apply(base, patch)
    assert_equal(applied, tuned)
    edge = bytes(applied.read_bytes("w", CHUNK - 3, CHUNK + 3))
    assert edge == bytes(tuned.read_bytes("w", CHUNK - 3, CHUNK + 3))
    assert patch.whats("w") > {ADD}  # each chunk has its own


def test_the_file_does_not_depend_on_threads(large: tuple[Memory, Memory], tmp_path: Path) -> None:
    made = set()
    for threads in (1, 2, 7):
        make(*large, tmp_path / "x.patch", threads=threads)
        made.add((tmp_path / "x.patch").read_bytes())
    assert len(made) == 1


def test_small_changes_take_few_bytes(large: tuple[Memory, Memory], tmp_path: Path) -> None:
    base, tuned = large
    whole = sum(tuned.spec(n).nbytes for n in ("w",))
    shorter = make(base, tuned, tmp_path / "x.patch").nbytes
    longer = make(base, tuned, tmp_path / "y.patch", values=True).nbytes
    assert shorter < 0.35 * whole + CHUNK // 2 + 3 + CHUNK // 2
    assert shorter < longer < sum(tuned.spec(n).nbytes for n in tuned.names())


def test_it_composes_without_being_written(tmp_path: Path) -> None:
    base = Memory(floats(0, {"a.weight": (20, 30), "b": (7,)}), files={"config.json": b"{}"})
    tuned = [Memory(finetuned({n: base.read(n) for n in base.names()}, seed), files=base.files) for seed in (1, 2)]
    on = [apply(base, make(base, t, tmp_path / f"{i}.patch")) for i, t in enumerate(tuned)]
    fused = fuse("ties", on, base=base, density=0.5)
    assert content_id(fused) == content_id(fuse("ties", tuned, base=base, density=0.5))
    on[0].save(tmp_path / "saved")
    assert content_id(open_local(tmp_path / "saved")) == content_id(tuned[0])
    store = Store.init(tmp_path)
    store.commit(on[1], message="a patch on a base")
    assert content_id(store.checkpoint("main")) == content_id(tuned[1])
    # and a patch on a patch
    middle = make(on[0], tuned[1], tmp_path / "2.patch")
    assert content_id(apply(on[0], middle)) == content_id(tuned[1])


def test_what_a_store_knows_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = floats(0, {"a": (4, 4), "b": (5,)})
    store = Store.init(tmp_path)
    store.commit(Memory(base), message="base")
    store.commit(Memory({**base, "b": base["b"] + 1}), message="tuned")
    before, after = store.checkpoint("main~1"), store.checkpoint("main")
    read: list[str] = []
    for checkpoint in (before, after):
        real = checkpoint.read_bytes
        monkeypatch.setattr(checkpoint, "read_bytes", lambda n, *r, real=real: (read.append(n), real(n, *r))[1])
    make(before, after, tmp_path / "x.patch")
    assert set(read) == {"b"}


def test_it_does_without_torch(tmp_path: Path) -> None:
    base = floats(0, {"a": (40, 30)})
    Memory(base).save(tmp_path / "base")
    Memory(finetuned(base, 1)).save(tmp_path / "tuned")
    code = (
        "import sys; from cofuse.checkpoint import open_local\n"
        "from cofuse.patch import *\n"
        "b, t = open_local('base'), open_local('tuned')\n"
        "for way in (Way(), Sparse(0.1), LowRank(rank=2)):\n"
        "    apply(b, make(b, t, 'x.patch', way)).save('out')\n"
        "compose(Patch.load('x.patch'), make(open_local('out'), t, 'y.patch'), 'z.patch', base=b)\n"
        "assert not {'torch', 'transformers', 'numba'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
