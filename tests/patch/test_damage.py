"""A damaged, forged or hostile patch gives one clear error before anything of it is used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint import Memory, content_id, tensor_id
from cofuse.errors import CofuseError, PatchError
from cofuse.patch import LowRank, Patch, apply, make
from cofuse.patch.edits import Coded, decoded

from .forged import manifest, spelled, write
from .models import finetuned, floats


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Memory, bytes]:
    """A base, and a small patch with every part: edits, a product, something new, a file."""
    base = Memory(floats(0, {"w": (30, 30), "b": (6,)}))
    tuned = finetuned({n: base.read(n) for n in ("w", "b")}, 1, 0.1)
    after = Memory({**tuned, "n": torch.arange(3)}, files={"config.json": b'{"a": 1}'})
    patch = make(base, after, tmp_path_factory.mktemp("patch") / "x.patch", LowRank(rank=1))
    assert {change.how for change in patch.manifest.tensors.values()} == {"edit", "new", "product"}
    return base, patch.path.read_bytes()


def read_all(base: Memory, path: Path) -> str:
    applied = apply(base, Patch.load(path))
    assert dict(applied.files) is not None
    return content_id(applied)


def test_every_flipped_bit_is_found(small: tuple[Memory, bytes], tmp_path: Path) -> None:
    base, data = small
    good = read_all(base, _written(tmp_path, data))
    length = int.from_bytes(data[:8], "little")
    for at in range(len(data)):
        for bit in range(8) if at < 8 + length and at % 2 else (at % 8,):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(CofuseError) as caught:
                read_all(base, _written(tmp_path, bytes(flipped)))
            assert not isinstance(caught.value.__cause__, MemoryError)
    assert good == read_all(base, _written(tmp_path, data))


def test_every_truncation_is_found(small: tuple[Memory, bytes], tmp_path: Path) -> None:
    base, data = small
    for length in {*range(0, len(data), 13), len(data) - 1}:
        with pytest.raises(PatchError):
            read_all(base, _written(tmp_path, data[:length]))
    with pytest.raises(PatchError):
        read_all(base, _written(tmp_path, data + b"\0"))


def _written(folder: Path, data: bytes) -> Path:
    (folder / "x.patch").write_bytes(data)
    return folder / "x.patch"


def test_what_is_no_patch(tmp_path: Path) -> None:
    Memory({"w": torch.ones(2)}).save(tmp_path / "model")
    with pytest.raises(PatchError, match="not a patch"):
        Patch.load(tmp_path / "model" / "model.safetensors")
    with pytest.raises(PatchError, match="cannot open"):
        Patch.load(tmp_path / "none.patch")
    with pytest.raises(PatchError, match="not a file"):
        Patch.load(tmp_path)


def test_another_version_says_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path / "x.patch", manifest(), metadata={"cofuse.patch": "2"})
    with pytest.raises(PatchError, match="another version") as caught:
        Patch.load(path)
    assert caught.value.hint is not None
    assert "newer cofuse" in caught.value.hint


def test_the_forger_can_write_good_ones(tmp_path: Path) -> None:
    """Else the tests below would find what is wrong with the forger."""
    base = Memory({"w": torch.tensor([1, 2], dtype=torch.uint8)})
    said = manifest(base=content_id(base), tensors={"w": {"dtype": "U8", "shape": [2]}})
    applied = apply(base, Patch.load(write(tmp_path / "x.patch", said, [(0, 0, b"\x02\x05\x06")])))
    assert applied.read("w").tolist() == [5, 6]


TENSOR = {"dtype": "U8", "shape": [2]}
PRODUCT = {"dtype": "F32", "shape": [2, 3], "how": "product", "rank": 1, "a": 64 * "a", "b": 64 * "b"}
WRONG: dict[str, dict[str, Any]] = {
    "no JSON": {"frame": zstandard.compress(b"{")},
    "no object": {"document": []},
    "another spelling": {"frame": zstandard.compress(spelled(manifest()).replace(b":", b": "))},
    "a key twice": {"frame": zstandard.compress(b'{"made":"x",' + spelled(manifest())[1:])},
    "deep": {"frame": zstandard.compress(b"[" * 1_000_000)},
    "no frame": {"frame": b"no frame"},
    "a bomb": {"frame": zstandard.ZstdCompressor().compress(b" " * (17 << 20))},
    "a frame that does not say its size": {"frame": zstandard.ZstdCompressor(write_content_size=False).compress(b"{}")},
    "an unknown key": {"document": manifest(more=1)},
    "no id": {"document": manifest(base="0")},
    "escapes for a terminal": {"document": manifest(made="\x1b[2J")},
    "a path": {"document": manifest(tensors={"../x": TENSOR}), "chunks": [(0, 0, b"\x02\x05\x06")]},
    "no dtype": {"document": manifest(tensors={"w": {"dtype": "F31", "shape": [2]}}), "chunks": [(0, 0, b"")]},
    "a shape below zero": {"document": manifest(tensors={"w": {"dtype": "U8", "shape": [-1]}})},
    "a shape of text": {"document": manifest(tensors={"w": {"dtype": "U8", "shape": ["2"]}}), "chunks": [(0, 0, b"")]},
    "a huge shape": {"document": manifest(tensors={"w": {"dtype": "U8", "shape": [2**40, 2**40]}})},
    "a huge empty shape": {"document": manifest(tensors={"w": {"dtype": "U8", "shape": [0, 2**62, 2**62]}})},
    "many chunks": {"document": manifest(tensors={"w": {"dtype": "U8", "shape": [2**50]}})},
    "part of a byte": {"document": manifest(tensors={"w": {"dtype": "F4", "shape": [1]}}), "chunks": [(0, 0, b"")]},
    "an unknown way": {"document": manifest(tensors={"w": {**TENSOR, "how": "else"}}), "chunks": [(0, 0, b"")]},
    "a product without factors": {"document": manifest(tensors={"w": {**TENSOR, "how": "product"}})},
    "factors without a product": {"document": manifest(tensors={"w": {**TENSOR, "rank": 1}}), "chunks": [(0, 0, b"")]},
    "factors that are not there": {"document": manifest(tensors={"w": PRODUCT})},
    "factors of another shape": {
        "document": manifest(tensors={"w": PRODUCT}),
        "parts": {"a:w": ("F32", [1, 2], bytes(8)), "b:w": ("F32", [2, 1], bytes(8))},
    },
    "a huge rank": {"document": manifest(tensors={"w": {**PRODUCT, "rank": 2**60}})},
    "a part that belongs to nothing": {"document": manifest(), "parts": {"a:w": ("F32", [1], bytes(4))}},
    "fewer chunks": {"document": manifest(tensors={"w": TENSOR})},
    "more chunks": {"document": manifest(), "chunks": [(0, 0, b"x")]},
    "more bytes": {"document": manifest(), "data": b"x"},
    "a row that is too long": {
        "document": manifest(tensors={"w": TENSOR}),
        "rows": bytes(4) + (2**31).to_bytes(4, "little") + bytes(8),
    },
    "changed and removed": {"document": manifest(tensors={"w": TENSOR}, removed=["w"]), "chunks": [(0, 0, b"")]},
    "a file's path": {"document": manifest(files={"../x": 0})},
    "a hidden file": {"document": manifest(files={".x": 0})},
    "a huge file": {"document": manifest(files={"x": 2**40})},
    "another check sum": {"document": manifest(), "metadata": {"check": 64 * "0", "cofuse.patch": "1"}},
    "more metadata": {"document": manifest(), "metadata": {"cofuse.patch": "1", "x": "y"}},
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_forged_description_is_refused_on_opening(case: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.patch", **{"document": manifest(), **WRONG[case]})
    with pytest.raises(CofuseError) as caught:
        Patch.load(path)
    assert "x.patch" in str(caught.value)


EDITS: dict[str, tuple[int, int, bytes]] = {
    "too short": (0, 0, b"\x02\x05"),
    "too long": (0, 0, b"\x02\x05\x06\x07"),
    "an unknown place": (9, 0, b"\x02\x05\x06"),
    "an unknown kind": (0, 9, b"\x02\x05\x06"),
    "a plane of another size": (0, 0, b"\x01\x05"),
    "a bomb": (0, 0, bytes([len(zstandard.compress(bytes(10**6)))]) + zstandard.compress(bytes(10**6))),
    "no position": (1, 0, b"\x00\x00\x00\x00"),
    "more positions than elements": (1, 0, b"\x03\x00\x01\x07\x03\x01\x02\x03"),
    "a position outside": (1, 0, b"\x01\x00\x01\x08\x01\x05"),
    "a long number": (1, 0, b"\xff\xff\xff\xff\xff\xff\xff"),
    "a bitmap of another size": (2, 0, b"\x01" + bytes([len(zstandard.compress(b"ab"))]) + zstandard.compress(b"ab")),
    "a bit outside": (2, 0, b"\x01" + bytes([len(zstandard.compress(b"\x04"))]) + zstandard.compress(b"\x04") + b"\x01\x05"),
}  # fmt: skip


@pytest.mark.parametrize("case", EDITS)
def test_a_forged_edit_is_refused_when_it_is_read(case: str, tmp_path: Path) -> None:
    base = Memory({"w": torch.tensor([1, 2], dtype=torch.uint8)})
    said = manifest(base=content_id(base), tensors={"w": TENSOR})
    applied = apply(base, Patch.load(write(tmp_path / "x.patch", said, [EDITS[case]])))
    with pytest.raises(PatchError, match="damaged") as caught:
        applied.read_bytes("w")
    assert str(caught.value.where).endswith("x.patch: w")


@given(
    st.integers(0, 2),
    st.integers(0, 2),
    st.binary(min_size=1, max_size=30),
    st.integers(1, 20),
    st.sampled_from([1, 2, 4]),
)
def test_any_bytes_are_an_edit_or_an_error(where: int, what: int, data: bytes, size: int, width: int) -> None:
    try:
        edit = decoded(Coded(where, what, data), size, width)
    except ValueError:
        return
    count = size if edit.positions is None else len(edit.positions)
    assert len(edit.values) == count <= size


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"gone": TENSOR}, "does not fit"),
        ({"w": {"dtype": "U8", "shape": [9]}}, "does not fit"),
        ({"w": {"dtype": "I8", "shape": [2]}}, "does not fit"),
    ],
)
def test_a_patch_that_does_not_fit_its_own_base(tensors: dict[str, Any], match: str, tmp_path: Path) -> None:
    base = Memory({"w": torch.tensor([1, 2], dtype=torch.uint8)})
    said = manifest(base=content_id(base), tensors=tensors)
    patch = Patch.load(write(tmp_path / "x.patch", said, [(0, 0, b"\x02\x05\x06")]))
    with pytest.raises(PatchError, match=match):
        apply(base, patch)


@pytest.mark.parametrize("chunk", [(0, 0, b""), (1, 0, b"\x01\x00\x01\x01\x01\x05")])
def test_what_is_new_is_whole(chunk: tuple[int, int, bytes], tmp_path: Path) -> None:
    base = Memory({"w": torch.ones(1)})
    said = manifest(base=content_id(base), tensors={"n": {**TENSOR, "how": "new"}}, files={"x": 2})
    applied = apply(base, Patch.load(write(tmp_path / "x.patch", said, [chunk, chunk])))
    with pytest.raises(PatchError, match="new tensor"):
        applied.read_bytes("n")
    with pytest.raises(PatchError, match="file is not whole"):
        applied.files["x"]


def test_factors_are_checked(tmp_path: Path) -> None:
    base = Memory({"w": torch.zeros(2, 3)})
    for a, match in ((torch.full((1, 3), torch.nan), "not finite"), (torch.zeros(1, 3), "another id")):
        b = torch.ones(2, 1)
        held = Memory({"a": a, "b": b})
        ids = {key: tensor_id(held, key) for key in "ab"}
        if match == "another id":
            ids["a"] = 64 * "0"
        said = manifest(base=content_id(base), tensors={"w": {**PRODUCT, **ids}})
        parts = {"a:w": ("F32", [1, 3], a.numpy().tobytes()), "b:w": ("F32", [2, 1], b.numpy().tobytes())}
        applied = apply(base, Patch.load(write(tmp_path / "x.patch", said, parts=parts)))
        with pytest.raises(PatchError, match=match):
            applied.read_bytes("w")


def test_another_base_is_refused_with_both_ids(tmp_path: Path) -> None:
    base, other = Memory(floats(0, {"w": (3,)})), Memory(floats(1, {"w": (3,)}))
    patch = make(base, other, tmp_path / "x.patch")
    with pytest.raises(PatchError, match="another base") as caught:
        apply(other, patch)
    assert content_id(other) in str(caught.value.got)
    assert content_id(base) in str(caught.value.expected)


def test_where_no_patch_can_be_written(tmp_path: Path) -> None:
    base = Memory(floats(0, {"w": (3,)}))
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.patch").mkdir()
    for out in (tmp_path / "x.safetensors", tmp_path / "folder.patch", tmp_path / "file" / "x.patch"):
        with pytest.raises(CofuseError):
            make(base, base, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.patch"]


def test_a_failure_leaves_the_old_patch(tmp_path: Path) -> None:
    base = Memory(floats(0, {"w": (30, 30)}))
    make(base, Memory(floats(1, {"w": (30, 30)})), tmp_path / "x.patch")
    before = (tmp_path / "x.patch").read_bytes()
    with pytest.raises(PatchError):
        make(base, Memory({"w": torch.full((30, 30), torch.nan)}), tmp_path / "x.patch", LowRank(rank=1))
    assert (tmp_path / "x.patch").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.patch"]


def test_memory_follows_chunks(tmp_path: Path) -> None:
    """Two tensors of 256 MB that are holes on disk."""
    code = """
from pathlib import Path
from cofuse.checkpoint import build_header, open_local, content_id
from cofuse.patch import *
n = 64 << 20  # elements
for name in ("base", "tuned"):
    Path(name).mkdir()
    header = build_header({"w": ("F32", (n,))}, {})
    with open(f"{name}/model.safetensors", "wb") as file:
        file.write(header.raw)
        file.truncate(header.data_start + header.data_bytes)
        if name == "tuned":
            file.seek(header.data_start + header.data_bytes // 2)
            file.write(bytes(range(1, 255)) * 4)
base, tuned = open_local("base"), open_local("tuned")
for way in (Way(), Sparse(0.000001)):
    patch = make(base, tuned, "x.patch", way, threads=2)
    assert content_id(apply(base, patch), 2) == patch.result
assert patch.nbytes < 5000, patch.nbytes
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 250_000  # kB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip("a disk of its own needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("size", [300_000, 500_000, 1_000_000])
def test_a_full_disk_gives_one_clear_error_and_leaves_the_old_patch(size: int, small_disk: Path) -> None:
    """Full while edits are made (4 MB), or while the file is written beside them (2 MB twice)."""
    out = small_disk / "x.patch"
    make(Memory(floats(0, {"w": (10,)})), Memory(floats(1, {"w": (10,)})), out)
    before = out.read_bytes()
    base, tuned = (Memory(floats(seed, {"w": (size,)})) for seed in (0, 1))
    if size == 300_000:
        assert make(base, tuned, out, values=True).exact  # fits, twice
        return
    with pytest.raises(CofuseError) as caught:
        make(base, tuned, out, values=True)
    assert caught.value.got == "No space left on device"
    assert "free some space" in str(caught.value)
    assert out.read_bytes() == before
    assert [p.name for p in small_disk.iterdir()] == ["x.patch"]


def test_a_kill_leaves_the_old_patch_and_the_next_one_sweeps(tmp_path: Path) -> None:
    base, tuned = (Memory(floats(seed, {f"w{i}": (200_000,) for i in range(10)})) for seed in (0, 1))
    base.save(tmp_path / "base")
    tuned.save(tmp_path / "tuned")
    out = tmp_path / "made" / "x.patch"
    make(base, base, out)
    before = out.read_bytes()
    code = (
        "from cofuse.checkpoint import open_local; from cofuse.patch import *; print('go', flush=True)\n"
        "while True: make(open_local('base'), open_local('tuned'), 'made/y.patch', threads=1)"
    )
    for wait in (0.02, 0.1, 0.25):
        with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
        if (made := tmp_path / "made" / "y.patch").exists():
            assert Patch.load(made).result == content_id(tuned)  # whole or not there
        assert out.read_bytes() == before
    make(base, tuned, out)
    assert {p.name for p in out.parent.iterdir()} <= {"x.patch", "y.patch"}
