"""Objects kept as deltas: the same ids and bytes, however they are kept; and whatever is wrong with one is found."""

import contextlib
import hashlib
import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_folders import ODD, digests, write_weights

from cofuse.checkpoint import CHUNK, Memory, TensorSpec
from cofuse.errors import CofuseError, CorruptError, StoreError
from cofuse.store import Store
from cofuse.store.choosing import MAX_DEPTH
from cofuse.store.envelope import MAGIC_DELTA, MAX_SHARED, Envelope, Head, Row, Shared, parse
from cofuse.store.objects import MAX_CHAIN, Objects
from cofuse.store.rewriting import rewrite
from cofuse.store.writing import writing


def head_of(data: bytes, dtype: str = "F32") -> Head:
    width = {"F32": 4, "BF16": 2, "U8": 1}[dtype]
    return Head.tensor(TensorSpec(dtype, (len(data) // width,)))


def put(
    store: Store, data: bytes, like: str | Sequence[str] | None = None, head: Head | None = None, threads: int = 1
) -> str:
    with writing(store.objects, threads) as pen:
        made = pen.put(head or head_of(data), (data[a : a + CHUNK] for a in range(0, len(data), CHUNK)), like=like)
        pen.sync()
        return made


def numbers(count: int, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).standard_normal(count).astype("<f4")


def nudged(data: bytes, step: int = 100) -> bytes:
    """Every so many elements one step further."""
    array = np.frombuffer(data, "<u4").copy()
    array[::step] += 1
    return array.tobytes()


BASE = numbers(20_000).tobytes()
TUNED = nudged(BASE)


def test_a_delta_has_the_id_and_bytes_of_the_whole_and_takes_less(store: Store, tmp_path: Path) -> None:
    base = put(store, BASE)
    tuned = put(store, TUNED, like=base)
    assert store.objects.bases(tuned) == (base,)
    assert store.objects.bases(base) == ()
    assert store.objects.read(tuned) == TUNED
    assert store.objects.stored_bytes(tuned) < store.objects.stored_bytes(base) / 50
    apart = Store.init(tmp_path / "apart")
    assert put(apart, TUNED) == tuned
    assert apart.objects.path(put(apart, BASE)).read_bytes() == store.objects.path(base).read_bytes()


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    dtype=st.sampled_from(["F32", "BF16", "U8"]),
    other=st.sampled_from(["F32", "BF16", "U8"]),
    kinds=st.tuples(st.sampled_from(["tensor", "file", "tree"]), st.sampled_from(["tensor", "file"])),
    share=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    seed=st.integers(0, 100),
)
def test_whatever_an_object_is_said_to_resemble_it_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: tuple[int, int],
    dtype: str,
    other: str,
    kinds: tuple[str, str],
    share: float,
    seed: int,
) -> None:
    store = Store.init(tmp_path_factory.mktemp("s"))
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, 4 * sizes[0], np.uint8)
    second = np.resize(first, 4 * sizes[1]) if len(first) else rng.integers(0, 256, 4 * sizes[1], np.uint8)
    second = np.where(rng.random(len(second)) < share, rng.integers(0, 256, len(second)), second).astype(np.uint8)
    heads = [
        head_of(d.tobytes(), t) if k == "tensor" else Head(k, len(d))
        for d, t, k in zip((first, second), (dtype, other), kinds, strict=True)
    ]
    base = put(store, first.tobytes(), head=heads[0])
    made = put(store, second.tobytes(), like=["0" * 64, base], head=heads[1])
    assert store.objects.read(made) == second.tobytes()
    assert set(store.objects.bases(made)) <= {base}
    assert store.objects.stored_bytes(made) <= len(second) + 500


@pytest.mark.parametrize(("rows", "more"), [(3000, 3010), (3010, 3000), (1, 3000), (3000, 1)])
def test_a_resized_vocabulary_still_gains(store: Store, rows: int, more: int) -> None:
    most = numbers(400 * max(rows, more)).reshape(-1, 400)  # more than a chunk
    base = put(store, most[:rows].tobytes(), head=Head.tensor(TensorSpec("F32", (rows, 400))))
    data = nudged(most[:more].tobytes())
    made = put(store, data, like=base, head=Head.tensor(TensorSpec("F32", (more, 400))))
    assert store.objects.read(made) == data
    assert store.objects.stored_bytes(made) < 0.9 * max(0, more - rows) * 1600 + 0.05 * len(data) + 400
    assert put(Store.init(store.path.parent / "b"), data, head=Head.tensor(TensorSpec("F32", (more, 400)))) == made


def test_equal_chunks_cost_nothing_wherever_they_stand(store: Store) -> None:
    data = bytearray(numbers(CHUNK // 4 * 3 + 10).tobytes())
    base = put(store, bytes(data))
    data[CHUNK + 5] ^= 1
    made = put(store, bytes(data), like=base)
    rows = store.objects.envelope(made).rows
    assert [row.stored > 0 for row in rows] == [False, True, False, False]
    assert store.objects.read(made) == data
    assert store.objects.read(made, CHUNK - 3, CHUNK + 9) == data[CHUNK - 3 : CHUNK + 9]


def test_the_same_bytes_are_written_by_any_number_of_threads(tmp_path: Path) -> None:
    whole = numbers(CHUNK // 4 * 5 + 7)
    changed = whole.copy()
    changed[CHUNK // 4 :: 50] *= 1.5
    other = whole * np.float32(1.01)
    kept = []
    for threads in (1, 2, 7):
        store = Store.init(tmp_path / str(threads))
        ids = [put(store, whole.tobytes(), threads=threads), put(store, other.tobytes(), threads=threads)]
        ids.append(put(store, changed.tobytes(), like=ids, threads=threads))
        kept.append([(i, store.objects.path(i).read_bytes()) for i in ids])
    assert kept[0] == kept[1] == kept[2]


def test_the_nearest_of_several_is_taken(store: Store) -> None:
    near, far = put(store, nudged(BASE, 1000)), put(store, numbers(20_000, 1).tobytes())
    made = put(store, BASE, like=[far, near])
    assert store.objects.bases(made) == (near,)


def test_a_leading_part_of_the_first_is_kept_when_another_is_nearer(store: Store) -> None:
    first = numbers(CHUNK // 4 * 2)
    other = numbers(CHUNK // 4 * 2, 1)
    ids = [put(store, a.tobytes()) for a in (first, other)]
    data = np.concatenate([first[: CHUNK // 4], other[CHUNK // 4 :]])
    data[-1] = 7
    made = put(store, data.tobytes(), like=ids)
    assert store.objects.read(made) == data.tobytes()
    assert store.objects.bases(made) == (ids[1],)


def test_chains_are_bounded(store: Store) -> None:
    data, made = BASE, put(store, BASE)
    longest = 0
    for _ in range(3 * MAX_DEPTH):
        data = nudged(data, 77)
        made = put(store, data, like=made)
        longest = max(longest, len(store.objects.bases(made)))
        assert store.objects.read(made) == data
    assert longest == MAX_DEPTH


def test_a_delta_reads_through_a_chain_that_packing_has_turned_round(store: Store) -> None:
    versions = [BASE]
    for _ in range(5):
        versions.append(nudged(versions[-1], 50))
    ids: list[str] = []
    for data in versions:
        ids.append(put(store, data, like=ids[-1:]))
    assert rewrite(store.objects, ids[-1], None)[1] > 50_000
    for older, newer in zip(reversed(ids[:-1]), reversed(ids[1:]), strict=True):
        rewrite(store.objects, older, None)
        before, after = rewrite(store.objects, older, newer)
        assert after < before / 10
        assert store.objects.path(older).stat().st_size == after
    assert store.objects.bases(ids[0]) == tuple(ids[1:])
    for object_id, data in zip(ids, versions, strict=True):
        assert store.objects.read(object_id) == data


def test_nothing_becomes_a_delta_against_itself(store: Store) -> None:
    base = put(store, BASE)
    tuned = put(store, TUNED, like=base)
    for base_, of in ((base, base), (tuned, base)):
        with pytest.raises(StoreError, match="against itself"):
            rewrite(store.objects, of, base_)
    assert store.objects.read(base) == BASE
    assert store.objects.read(tuned) == TUNED
    with pytest.raises(CorruptError, match="missing"):
        rewrite(store.objects, base, "0" * 64)
    assert list((store.path / "tmp").iterdir()) == []


def test_rewriting_beside_something_unlike_keeps_the_object_whole(store: Store) -> None:
    base = put(store, BASE)
    other = put(store, np.random.default_rng(1).integers(0, 256, 80_000, np.uint8).tobytes())
    before = store.objects.path(base).read_bytes()
    rewrite(store.objects, base, other)
    assert store.objects.path(base).read_bytes() == before


def test_a_reader_of_a_delta_whose_base_has_gone_reads_what_took_its_place(store: Store) -> None:
    base = put(store, BASE)
    tuned = put(store, TUNED, like=base)
    with store.objects.opened(tuned) as reader:
        rewrite(store.objects, tuned, None)
        store.objects.path(base).unlink()
        assert reader.chunk(0) == TUNED
    newer = put(store, nudged(TUNED), like=tuned)
    with store.objects.opened(newer) as reader:
        store.objects.path(tuned).unlink()
        with pytest.raises(CorruptError, match="object is missing"):
            reader.chunk(0)


def forge(store: Store, data: bytes, base: str, codec: int = 3) -> str:
    """An object's file by a writer that checks nothing: one chunk, a delta against any id."""
    head = head_of(data)
    envelope = Envelope.of(head, [Row.of(blake3(data).digest(), codec, b"")], base)
    path = store.objects.path(envelope.id)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(envelope.encode() + envelope.tail())
    return envelope.id


def test_circles_and_endless_chains_are_found(store: Store) -> None:
    itself = forge(store, BASE, head_of(BASE).id([blake3(BASE).digest()]))
    a, b = b"aaaa", b"bbbb"
    id_a, id_b = (head_of(d).id([blake3(d).digest()]) for d in (a, b))
    forge(store, a, id_b)
    forge(store, b, id_a)
    at = put(store, struct.pack("<f", -1.0))
    for n in range(MAX_CHAIN + 1):
        at = forge(store, struct.pack("<f", n), at)
    for object_id in (itself, id_a, id_b, at):
        with pytest.raises(CorruptError, match="too long, or a circle"):
            store.objects.read(object_id)
        with pytest.raises(CorruptError, match="too long, or a circle"):
            store.objects.bases(object_id)


@pytest.mark.parametrize("codec", [3, 4, 5, 6, 7, 8])
def test_a_delta_that_holds_nothing_of_its_own_is_refused(store: Store, codec: int) -> None:
    base = put(store, BASE)
    with pytest.raises(CorruptError, match="a chunk is damaged"):
        store.objects.read(forge(store, TUNED, base, codec))


def test_a_base_of_another_kind_is_refused(store: Store) -> None:
    file = put(store, BASE, head=Head("file", len(BASE)))
    with pytest.raises(CorruptError, match="another kind"):
        store.objects.read(forge(store, BASE, file))


def check_every_bit(objects: Objects, object_id: str) -> None:
    with objects.opened(object_id) as found:
        found.chunk(0, every_bit=True)
        found.shared()


def test_one_flipped_bit_anywhere_in_a_delta_or_its_base_is_found(store: Store) -> None:
    data = numbers(40).tobytes()
    base = put(store, data)
    tuned = put(store, nudged(data), like=base)
    assert store.objects.bases(tuned) == (base,)
    for object_id in (base, tuned):
        path = store.objects.path(object_id)
        whole = path.read_bytes()
        path.chmod(0o644)
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            again = Store.open(store.path).objects
            with contextlib.suppress(CofuseError):  # a bit of a frame that means nothing
                assert again.read(tuned) == nudged(data)
            with pytest.raises(CofuseError):
                check_every_bit(again, object_id)
        for end in range(len(whole)):
            path.write_bytes(whole[:end])
            with pytest.raises(CofuseError):
                Store.open(store.path).objects.read(tuned)
        path.write_bytes(whole)
    assert store.objects.read(tuned) == nudged(data)


def test_a_hostile_tail_is_refused(store: Store, tmp_path: Path) -> None:
    base = put(store, BASE)
    envelope = store.objects.envelope(put(store, TUNED, like=base))
    good = store.objects.path(envelope.id).read_bytes()
    tail = len(envelope.tail())
    other = store.objects.envelope(put(store, nudged(TUNED), like=base))

    def sealed(base_: str, shared: Shared) -> bytes:
        return Envelope(envelope.head, envelope.rows, envelope.offsets, base_, shared).tail()

    for bad, message in [
        (good[:-tail], "end of the object is damaged"),
        (good[:-tail] + other.tail(), "end of the object is damaged"),
        (good[:-tail] + sealed(base, Shared(bytes(32), MAX_SHARED + 1)), "shares too much"),
        (good[:-tail] + sealed(base, Shared(bytes(32), 5)), "truncated object"),
        (good[:-tail] + b"12345" + sealed(base, envelope.shared), "bytes after"),
        (good[:6] + b"\0\1" + good[8:], "envelope is damaged"),
        (MAGIC_DELTA + bytes(8), "does not fit"),
        (MAGIC_DELTA, "truncated object"),
    ]:
        (tmp_path / "x").write_bytes(bad)
        fd = os.open(tmp_path / "x", os.O_RDONLY)
        try:
            with pytest.raises(CorruptError, match=message):
                parse(fd, "x")
        finally:
            os.close(fd)


def test_what_chunks_share_is_verified(store: Store) -> None:
    base, tuned = low_rank_pair(store)
    path = store.objects.path(tuned)
    envelope = store.objects.envelope(tuned)
    assert store.objects.bases(tuned) == (base,)
    assert envelope.shared.size
    data = bytearray(path.read_bytes())
    data[envelope.end + envelope.shared.size // 2] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="share is damaged"):
        store.objects.read(tuned)


def low_rank_pair(store: Store, rows: int = 1500) -> tuple[str, str]:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((rows, 1024)).astype("<f4")
    tuned = base + (rng.standard_normal((rows, 4)) @ rng.standard_normal((4, 1024)) / 50).astype("<f4")
    head = Head.tensor(TensorSpec("F32", (rows, 1024)))
    first = put(store, base.tobytes(), head=head)
    return first, put(store, tuned.tobytes(), like=first, head=head)


def test_a_change_of_low_rank_needs_not_be_announced(store: Store) -> None:
    base, tuned = low_rank_pair(store)
    size = store.objects.envelope(base).head.size
    assert store.objects.stored_bytes(tuned) < 0.06 * size  # the difference in steps of the last bit takes 70 %
    whole = store.objects.read(tuned)
    assert store.objects.read(tuned, CHUNK + 12, CHUNK + 99) == whole[CHUNK + 12 : CHUNK + 99]
    before, after = rewrite(store.objects, tuned, None)
    assert after > 10 * before
    assert store.objects.read(tuned) == whole
    assert rewrite(store.objects, tuned, base)[1] == before
    assert store.objects.read(tuned) == whole


@pytest.mark.parametrize("harm", ["base", "missing"])
def test_a_damaged_base_is_no_reason_not_to_keep_good_bytes(store: Store, harm: str) -> None:
    base = put(store, BASE)
    path = store.objects.path(base)
    path.chmod(0o644)
    if harm == "base":
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    made = put(store, TUNED, like=base)
    assert store.objects.bases(made) == ()
    assert store.objects.read(made) == TUNED


# Commits


def test_a_commit_after_another_keeps_what_changed_as_deltas(store: Store, tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.mkdir()
    rng = np.random.default_rng(0)
    body = {f"layer{n}.w": torch.from_numpy(rng.standard_normal((64, 64)).astype(np.float32)) for n in range(20)}
    vocabulary = "\n".join(map(str, range(5000)))

    def save(step: int) -> None:
        shutil.rmtree(model)
        Memory({n: t + 1e-6 * step * t.abs() for n, t in body.items()}).save(model)
        (model / "vocab.txt").write_text(vocabulary.replace("\n77\n", f"\n{step}77\n"))

    sizes, kept = [], []
    for step in range(4):
        save(step)
        before = set(store.objects)
        store.commit(model, message=str(step))
        kept.append(digests(model))
        sizes.append(sum(store.objects.stored_bytes(i) for i in set(store.objects) - before))
    assert max(sizes[1:]) < 0.3 * sizes[0]
    for step, expected in enumerate(kept):
        store.checkout(f"main~{3 - step}", tmp_path / f"out{step}")
        assert digests(tmp_path / f"out{step}") == expected
    assert store.fsck().ok
    tree = store.load_commit("main").tree
    assert store.objects.bases(tree)
    assert store.objects.bases(store.tree("main"))


def test_a_merge_is_kept_beside_the_parent_that_it_is_nearest_to(store: Store) -> None:
    a, b = numbers(40_000), numbers(40_000, 1)
    store.commit(Memory({"w": torch.from_numpy(a)}), message="root")
    store.branch("side")
    store.commit(Memory({"w": torch.from_numpy(a * 2)}), message="ours")
    store.commit(Memory({"w": torch.from_numpy(b)}), message="theirs", branch="side")
    near = b.copy()
    near[::10] += 1e-6
    made = store.commit(Memory({"w": torch.from_numpy(near)}), message="both", parents=["main", "side"])
    ids = [store.checkpoint(rev).tensor_ids()["w"] for rev in (made.id, "side")]
    assert store.objects.bases(ids[0])[0] == ids[1]


def test_every_dtype_survives_being_a_delta(store: Store, tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.mkdir()
    write_weights(model / "model.safetensors", ODD, {}, seed=1)
    store.commit(model, message="one")
    data = bytearray((model / "model.safetensors").read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    for at in range(start, len(data), 700):
        data[at] ^= 1
    (model / "model.safetensors").write_bytes(data)
    store.commit(model, message="two")
    store.checkout("main", tmp_path / "out")
    assert digests(tmp_path / "out") == digests(model)
    large = store.checkpoint("main").tensor_ids()["large"]
    assert store.objects.bases(large)


def test_one_large_tensor_is_bounded_by_chunks(store: Store) -> None:
    size = 40 * CHUNK
    head = Head("file", size)
    alive = most = 0

    class Piece(bytearray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def chunks():  # type: ignore[no-untyped-def]
        nonlocal alive, most
        for n in range(40):
            piece = Piece(CHUNK)
            piece[:8] = n.to_bytes(8, "little")
            alive += 1
            most = max(most, alive)
            yield piece
            del piece

    with writing(store.objects, 2) as pen:
        made = pen.put(head, chunks())
    assert store.objects.read(made, 39 * CHUNK, 39 * CHUNK + 8) == (39).to_bytes(8, "little")
    assert most <= 8


def test_sha256_of_every_file_is_that_of_its_bytes(store: Store, folder: Path) -> None:
    store.commit(folder, message="one")
    for path in (p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        expected = hashlib.sha256(path.read_bytes()).hexdigest()
        assert store.sha256("main", name) == expected == store.sha256("main", name)
    with pytest.raises(StoreError, match="no such file in this version"):
        store.sha256("main", "nothing")


def test_a_remembered_sha256_is_no_more_than_a_memory(store: Store, model: Path) -> None:
    store.commit(model, message="one")
    expected = store.sha256("main", "model.safetensors")
    [place] = [p for p in (store.path / "cache").rglob("*") if p.is_file()]
    for bad in (b"", b"0" * 64 + b"\n", place.read_bytes().replace(expected[:4].encode(), b"0000"), b"x" * 10**6):
        place.write_bytes(bad)
        assert store.sha256("main", "model.safetensors") == expected
    place.unlink()
    place.mkdir()
    assert store.sha256("main", "model.safetensors") == expected
