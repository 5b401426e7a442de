"""Writing: what was put in comes out, the same bytes however it was done, and never over anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint import Checkpoint, Memory, TensorSpec, content_id, open_local, plan_layout, save
from cofuse.errors import CheckpointError, HeaderError

from .models import checkpoints, random_tensor, same_bits

HELD = {f"layer.{i}": random_tensor(i, (i + 1, 30)) for i in range(12)} | {
    "half": random_tensor(20, (7, 5), torch.bfloat16),
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 4),
    "turned": random_tensor(21, (30, 40)).T,
}


def tree(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@given(checkpoint=checkpoints(), shard=st.sampled_from([None, 1, 40, 10**6]))
def test_saving_and_opening_keeps_everything(
    checkpoint: Memory, shard: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "round"
    written = save(checkpoint, folder, max_shard_bytes=shard, threads=1)
    got = open_local(folder)
    assert content_id(got) == content_id(checkpoint)
    assert dict(got.aliases) == dict(checkpoint.aliases)
    assert dict(got.files) == dict(checkpoint.files)
    assert dict(got.metadata) == {"format": "pt", **checkpoint.metadata}
    for name in (*checkpoint.names(), *checkpoint.aliases):
        assert got.spec(name) == checkpoint.spec(name)
        assert same_bits(got.read(name), checkpoint.read(name))
    assert written.tensors == len(checkpoint.names())
    assert written.bytes == sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    assert written.shards == len(list(folder.glob("*.safetensors")))
    again = folder.with_name("again")
    save(got, again, max_shard_bytes=shard, threads=1)
    if shard is None:  # a file's order is its layout's, so that only one file is filled in the same order again
        assert tree(again) == tree(folder)


@pytest.mark.parametrize("shard", [None, 1500])
def test_the_same_bytes_for_any_threads_and_blocks(shard: int | None, tmp_path: Path) -> None:
    trees = []
    for threads, block in [(1, 8 << 20), (2, 8), (8, 64), (8, 1000), (3, 1)]:
        folder = tmp_path / f"{threads}-{block}"
        save(Memory(HELD), folder, threads=threads, block=block, max_shard_bytes=shard)
        trees.append(tree(folder))
    assert all(t == trees[0] for t in trees)
    assert len(trees[0]) == (1 if shard is None else len(list((tmp_path / "1-8388608").iterdir())))


def test_shards_stay_below_the_limit_unless_one_tensor_is_larger() -> None:
    specs = {
        name: TensorSpec("U8", (n,)) for name, n in [("a", 50), ("b", 50), ("c", 1), ("d", 300), ("e", 0), ("f", 100)]
    }
    layout = plan_layout(specs, {"tied": "d", "note": "=x"}, max_shard_bytes=100)
    assert [sorted(h.entries) for h in layout.headers.values()] == [["a", "b"], ["c"], ["d"], ["e", "f"]]
    # A shard names its own tied tensors only, so that it is a whole file by itself.
    assert [dict(h.metadata) for h in layout.headers.values()] == [
        {"note": "=x"}, {"note": "=x"}, {"note": "=x", "tied": "d"}, {"note": "=x"},
    ]  # fmt: skip
    assert layout.homes == {n: f for f, h in layout.headers.items() for n in h.entries}


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    save(Memory(HELD, files={"config.json": b"old", "vocab.txt": b"old"}), tmp_path / "m", max_shard_bytes=1000)
    save(Memory({"x": torch.ones(1)}, files={"config.json": b"new"}), tmp_path / "m")
    assert sorted(tree(tmp_path / "m")) == ["config.json", "model.safetensors"]
    assert open_local(tmp_path / "m").files["config.json"] == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_checkpoint_can_be_saved_over_itself(tmp_path: Path) -> None:
    before = save(Memory(HELD, files={"config.json": b"{}"}), tmp_path / "m", max_shard_bytes=1000)
    expected = content_id(Memory(HELD))
    checkpoint = open_local(tmp_path / "m")
    save(checkpoint, tmp_path / "m")
    assert before.shards > 1
    assert content_id(open_local(tmp_path / "m")) == expected
    assert content_id(checkpoint) == expected
    assert sorted(tree(tmp_path / "m")) == ["config.json", "model.safetensors"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "m")
    for value in (1.0, 2.0):
        save(Memory({"x": torch.tensor(value)}), tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert open_local(tmp_path / "disk" / "m").read("x").item() == value
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["m"]


@pytest.mark.parametrize(
    "other", ["notes.txt", "optimizer.pt", "checkpoint-500/x", ".git/HEAD", "train.py", ".gitattributes"]
)
@pytest.mark.parametrize("weights", [True, False])
def test_a_folder_with_other_things_is_not_replaced(other: str, weights: bool, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    if weights:
        save(Memory({"x": torch.ones(1)}), folder)
    (folder / other).parent.mkdir(exist_ok=True)
    (folder / other).write_text("mine")
    if weights and other == "notes.txt":  # a model may have such a file of its own
        save(Memory({"x": torch.zeros(1)}), folder)
        return
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(CheckpointError, match="holds other things") as caught:
        save(Memory({"x": torch.zeros(1)}), folder)
    assert caught.value.got == Path(other).parts[0]
    assert sorted(p.name for p in folder.iterdir()) == before
    assert (folder / other).read_text() == "mine"


def test_an_empty_folder_is_filled_and_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    save(Memory({"x": torch.ones(1)}), tmp_path / "m")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"):
        save(Memory({"x": torch.ones(1)}), tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot write"):
        save(Memory({"x": torch.ones(1)}), tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_folder_that_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path / "m")
    with pytest.raises(CheckpointError, match="folder that you are in"):
        save(Memory({"x": torch.ones(1)}), ".")
    save(Memory({"x": torch.ones(1)}), "below")
    assert open_local("below").names() == ("x",)


@pytest.mark.parametrize("name", ["../x.json", "/x.json", "a/b.json", "", ".", "..", ".hidden", "a\0b"])
def test_a_file_cannot_be_written_elsewhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a name for a file"):
        save(Memory({"x": torch.ones(1)}, files={name: b"mine"}), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_file_cannot_take_the_place_of_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write"):
        save(Memory({"x": torch.ones(1)}, files={"model.safetensors": b"mine"}), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


class Lazy(Checkpoint):
    """A checkpoint whose tensors are computed, wrongly."""

    def __init__(self, fault: Exception | bytes) -> None:
        self.fault = fault

    def names(self) -> tuple[str, ...]:
        return tuple(f"t{i}" for i in range(20))

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec("F32", (10,))

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        if name != "t13":
            return bytes(40)
        if isinstance(self.fault, bytes):
            return self.fault
        raise self.fault


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize(
    "fault", [CheckpointError("mine"), bytes(39), bytes(41), ValueError("mine"), KeyboardInterrupt()], ids=repr
)
def test_a_failing_tensor_leaves_what_was_there(threads: int, fault: Exception | bytes, tmp_path: Path) -> None:
    save(Memory(HELD), tmp_path / "m")
    before = tree(tmp_path / "m")
    with pytest.raises(CheckpointError if isinstance(fault, bytes) else type(fault)):
        save(Lazy(fault), tmp_path / "m", threads=threads)
    assert tree(tmp_path / "m") == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_progress_is_told_of_every_byte(tmp_path: Path) -> None:
    class Watching:
        total = done = 0.0

        def bar(self, what: str, total: float, unit: str = "") -> Watching:
            assert (what, unit) == ("writing m", "B")
            self.total = total
            return self

        def say(self, line: str) -> None:
            raise AssertionError(line)

        def advance(self, amount: float = 1) -> None:
            self.done += amount

    watching = Watching()
    Memory(HELD).save(tmp_path / "m", threads=2, progress=watching)
    assert watching.done == sum(t.nbytes for t in HELD.values())
    assert watching.total == (tmp_path / "m" / "model.safetensors").stat().st_size


def test_more_than_one_header_holds_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Many(Lazy):
        def names(self) -> tuple[str, ...]:
            return tuple(map(str, range(100_001)))

    with pytest.raises(HeaderError, match="too much"):
        save(Many(b""), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
