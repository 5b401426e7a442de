"""Laws of the filter without git: whatever comes, in whatever pieces, comes back; what is hostile is refused."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_folders import ODD, noise, write_weights

from cofuse.checkpoint import TensorSpec
from cofuse.errors import CofuseError, CorruptError, StoreError
from cofuse.store import Store
from cofuse.store.git import roots
from cofuse.store.git.cleaning import clean
from cofuse.store.git.manifest import MAX_MANIFEST, Manifest, load_manifest
from cofuse.store.git.pktline import MAX_PACKET, Packets
from cofuse.store.git.smudging import smudge
from cofuse.store.trees import Weights, load_tree


@pytest.fixture(scope="module")
def kept() -> Store:
    return Store.init(Path(tempfile.mkdtemp()))


def odd(tmp_path: Path, seed: int = 0) -> bytes:
    write_weights(tmp_path / "odd", ODD, {"format": "pt"}, seed)
    return (tmp_path / "odd").read_bytes()


def stream(data: bytes, seed: int = 0) -> Callable[[memoryview], int]:
    """`data` in pieces as a pipe may give them."""
    source, file = random.Random(seed), io.BytesIO(data)
    return lambda view: file.readinto(view[: source.randrange(1, 1 << 17)])


def through(store: Store, data: bytes, size: int | None = None, seed: int = 0) -> bytes:
    raw = clean(store, stream(data, seed), size=size)
    return b"".join(smudge(store, load_manifest(raw, "test")))


headers = st.builds(
    lambda text, size: len(text).to_bytes(8, "little") + text + bytes(size),
    st.binary(max_size=40)
    | st.sampled_from(
        [b"{}", b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b'{"__metadata__":{"a":"b"}}']
    ),
    st.integers(0, 20),
)


@given(st.binary(min_size=1, max_size=400) | headers, st.none() | st.integers(0, 500), st.integers(0, 9))
def test_any_bytes_come_back_whatever_the_file_was_thought_to_be(
    kept: Store, data: bytes, size: int | None, seed: int
) -> None:
    right = len(data)
    for told in (None, right):
        assert through(kept, data, told, seed) == data
    try:
        assert through(kept, data, size, seed) == data
    except StoreError:  # changed while it was read
        assert size != right


def test_the_manifest_follows_from_the_bytes_alone(tmp_path: Path) -> None:
    data, found = odd(tmp_path), set()
    for k, size in enumerate([None, len(data), 3, len(data) + 1]):
        store = Store.init(tmp_path / str(k))
        like = () if k < 2 else [load_manifest(clean(store, stream(odd(tmp_path, 1))), "x").tree]
        found.add(clean(store, stream(data, k), size=size, like=like, threads=k + 1))
        assert b"".join(smudge(store, load_manifest(next(iter(found)), "x"), threads=k + 1)) == data
    assert len(found) == 1
    manifest = load_manifest(found.pop(), "x")
    assert (manifest.size, manifest.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest.content == store.checkpoint(manifest.tree).content


def test_cleaning_what_is_clean_changes_nothing(kept: Store, tmp_path: Path) -> None:
    raw = clean(kept, stream(odd(tmp_path)))
    assert len(raw) <= MAX_MANIFEST
    assert clean(kept, stream(raw)) == raw
    assert clean(kept, stream(b"")) == b""


def test_a_source_that_fails_fails_the_clean(kept: Store, tmp_path: Path) -> None:
    data = odd(tmp_path)
    file = io.BytesIO(data)

    def failing(view: memoryview) -> int:
        if file.tell() > 100_000:
            raise StoreError("git is gone")
        return file.readinto(view[:10_000])

    with pytest.raises(StoreError, match="git is gone"):
        clean(kept, failing, size=len(data))


@pytest.mark.parametrize("cut", [1, 20_000, 4_000_000])
def test_a_file_that_shrinks_while_it_is_read_is_not_kept(kept: Store, tmp_path: Path, cut: int) -> None:
    data = odd(tmp_path)
    with pytest.raises(StoreError, match="another number of bytes"):
        clean(kept, stream(data[:-cut]), size=len(data))


HARMS: dict[str, Callable[[Manifest], Manifest]] = {
    "sha256": lambda m: Manifest(m.tree, m.content, m.size, "0" * 64),
    "size": lambda m: Manifest(m.tree, m.content, m.size + 1, m.sha256),
    "content": lambda m: Manifest(m.tree, None, m.size, m.sha256),
    "tree": lambda m: Manifest("0" * 64, m.content, m.size, m.sha256),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("seen", [True, False])
def test_a_manifest_that_does_not_fit_is_refused(store: Store, tmp_path: Path, harm: str, seen: bool) -> None:
    manifest = load_manifest(clean(store, stream(odd(tmp_path))), "x")
    if not seen:  # as if it came from elsewhere
        for path in (store.path / "roots").glob("*/*"):
            path.unlink()
    with pytest.raises(CorruptError):
        list(smudge(store, HARMS[harm](manifest)))
    assert b"".join(smudge(store, manifest)) == odd(tmp_path)


def test_a_tree_of_several_files_is_no_file(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_weights(folder / "model.safetensors", {"x": TensorSpec("F32", (2,))}, {})
    (folder / "config.json").write_text("{}")
    made = store.commit(folder, message="x")
    size = load_tree(store.objects, made.tree).size
    with pytest.raises(CorruptError, match="does not fit"):
        list(smudge(store, Manifest(made.tree, made.content, size, "0" * 64)))


@pytest.mark.parametrize("harm", ["flip", "remove", "swap"])
def test_no_damaged_byte_is_handed_out(store: Store, tmp_path: Path, harm: str) -> None:
    data = odd(tmp_path)
    manifest = load_manifest(clean(store, stream(data)), "x")
    entry = load_tree(store.objects, manifest.tree).files["model.safetensors"]
    assert isinstance(entry, Weights)
    for tensor in dict.fromkeys(entry.tensors):
        path = store.objects.path(tensor)
        whole = path.read_bytes()
        other = store.objects.path(entry.header).read_bytes()
        path.unlink()
        if harm != "remove":
            path.write_bytes(other if harm == "swap" else whole[:-1] + bytes([whole[-1] ^ 1]))
        handed: list[bytes] = []
        with pytest.raises(CorruptError):
            handed.extend(map(bytes, smudge(store, manifest)))
        assert data.startswith(b"".join(handed))
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert b"".join(smudge(store, manifest)) == data


@given(st.binary(max_size=MAX_MANIFEST + 20))
def test_what_is_read_as_a_manifest_is_one(tail: bytes) -> None:
    good = Manifest("a" * 64, "b" * 64, 123, "c" * 64)
    assert Manifest.parse(good.encode(), "x") == good
    for raw in (tail, b"cofuse git 1\n" + tail, good.encode() + tail, good.encode()[:-1] + tail):
        try:
            found = Manifest.parse(raw, "x")
        except CofuseError:
            assert raw.startswith(b"cofuse git ")
            continue
        assert found is None or found.encode() == raw


def test_roots_are_found_kept_and_forgotten(store: Store, tmp_path: Path) -> None:
    first, second = (load_manifest(clean(store, stream(odd(tmp_path, k))), "x").tree for k in (1, 2))
    file = load_manifest(clean(store, stream(b"x")), "x").tree
    places = store.objects.places
    assert roots.roots(places) == sorted([first, second, file])
    entry = load_tree(store.objects, first).files["model.safetensors"]
    assert isinstance(entry, Weights)
    os.utime(next((store.path / "roots").glob(f"*/{second}")), (1, 1))
    assert roots.newest(places, entry.header) == [first]
    assert roots.forget(places, {first}, 3600) == [second]
    assert roots.roots(places) == sorted([first, file])
    assert roots.forget(places, {first}, 0, dry_run=True) == [file]
    assert roots.forget(places, {first}, 0) == [file]
    store.gc(grace_days=0)
    assert b"".join(smudge(store, load_manifest(clean(store, stream(odd(tmp_path, 1))), "x"))) == odd(tmp_path, 1)


def pipes() -> tuple[Packets, Packets, list[int]]:
    a, b = os.pipe(), os.pipe()
    return Packets(a[0], b[1]), Packets(b[0], a[1]), [*a, *b]


@given(st.lists(st.integers(0, 3 * MAX_PACKET), max_size=4), st.lists(st.text("ab=é\udcff/ ", max_size=20), max_size=5))
def test_packets_come_as_they_were_sent(sizes: list[int], lines: list[str]) -> None:
    here, there, fds = pipes()
    sent = [noise(size, size) for size in sizes]
    lines = [line for line in lines if line]

    def send() -> None:
        there.write_lines(*lines)
        there.write_content(sent)
        there.write_lines("end")
        os.close(fds[1])

    thread = threading.Thread(target=send)
    thread.start()
    assert here.read_lines() == lines
    content, got, buffer = here.content(), bytearray(), memoryview(bytearray(70_001))
    while n := content.readinto(buffer):
        got += buffer[:n]
    assert got == b"".join(sent)
    assert content.readinto(buffer) == 0
    assert here.read_lines() == ["end"]
    assert here.read_lines() is None
    thread.join()
    for fd in (fds[0], *fds[2:]):
        os.close(fd)


@given(st.binary(min_size=1, max_size=30))
def test_what_is_no_packet_is_refused(raw: bytes) -> None:
    a, b = os.pipe()
    os.write(b, raw)
    os.close(b)
    packets = Packets(a, a)
    try:
        while packets.read_lines() is not None:
            pass
    except StoreError:
        pass
    os.close(a)


def test_another_protocol_is_refused_without_a_traceback() -> None:
    for given_ in (b"", b"hello", b"0016git-filter-client\n000eversion=3\n0000"):
        done = subprocess.run(
            [sys.executable, "-m", "cofuse", "git", "filter-process"], input=given_, capture_output=True, check=False
        )
        assert done.returncode == 1
        assert b"Traceback" not in done.stderr
        assert done.stderr.startswith(b"cofuse: ")


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A quarter of a gigabyte in one tensor, in and out, below 300 MB; what is larger takes no more."""
    size = 1 << 28
    header = b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (size // 4, size)
    piece = random.Random(0).randbytes(1 << 22)
    with open(tmp_path / "m.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for k in range(size >> 22):
            file.write(piece[k:] + piece[:k])
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    code = (
        "import resource, subprocess, sys\n"
        "command = [sys.executable, '-P', '-m', 'cofuse', 'git']\n"
        "with open('m.safetensors', 'rb') as file:\n"
        "    raw = subprocess.run([*command, 'clean', 'm.safetensors'], stdin=file, capture_output=True, check=True).stdout\n"
        "subprocess.run([*command, 'smudge', 'm.safetensors'], input=raw, stdout=subprocess.DEVNULL, check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    assert int(done.stdout) * 1024 < 300e6
