"""A mean that streams: near to the exact one, whatever the order, and whole whenever it is killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cofuse.checkpoint import Memory, open_local
from cofuse.errors import FuseError
from cofuse.fuse import fuse
from cofuse.fuse.running import Running

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def model(seed: int, dtype: torch.dtype = torch.float32) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    tied = torch.randn(40, 9, generator=generator).to(dtype)
    return Memory(
        {
            "wide": torch.randn(37, 11, generator=generator).to(dtype),
            "scalar": torch.randn((), generator=generator).to(dtype),
            "empty": torch.empty(0, 3, dtype=dtype),
            "head": tied,
            "embedding": tied,
            "steps": torch.tensor([7, seed]),
        },
        files={"config.json": b'{"a": 1}'},
    )


def digest(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_weighted_mean_in_float64_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    running = Running.create(tmp_path / "mean", like=model(99, dtype))
    weights = [0.5 + i % 3 for i in range(12)]
    models = [model(i, dtype) for i in range(12)]
    for one, weight in zip(models, weights, strict=True):
        running.add(one, weight)
    assert running.count == 12
    assert Running(tmp_path / "mean").weights == tuple(weights)
    mean, linear = running.mean(), fuse("linear", models, weights=weights)
    assert mean.files == {"config.json": b'{"a": 1}'}
    assert mean.aliases == {"embedding": "head"}
    assert mean.read("steps").tolist() == [7, 99]
    for name in ("wide", "scalar", "empty", "head"):
        got = mean.read(name)
        assert got.dtype == dtype
        assert got.shape == models[0].read(name).shape
        values = torch.stack([m.read(name).double() for m in models])
        shares = torch.tensor(weights, dtype=torch.float64).reshape(-1, *[1] * (values.ndim - 1))
        exact = (values * shares).sum(0) / sum(weights)
        # As the docstring says: n u max|t| before it is rounded to the dtype, to half a unit in the last place.
        kept = 2.0**-53 if dtype in (torch.float32, torch.float64) else 2.0**-24
        size = values.abs().amax(0)
        allowed = 12 * kept * size + torch.finfo(dtype).eps / 2 * exact.abs() + torch.finfo(dtype).smallest_normal
        assert ((got.double() - exact).abs() <= allowed).all(), name
        # `linear` adds up in float32, in float64 where its models are of it: n u max|t| too.
        near = torch.finfo(dtype).eps * size + 16 * (2.0**-53 if dtype == torch.float64 else 2.0**-24) * size
        assert ((got.double() - linear.read(name).double()).abs() <= near).all(), name


def test_the_order_does_not_matter_beyond_rounding(tmp_path: Path) -> None:
    found = []
    for order in (range(9), reversed(range(9))):
        running = Running.create(tmp_path / str(len(found)), like=model(0))
        for i in order:
            running.add(model(i), 1.0 + i)
        found.append(running.mean().read("wide"))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=2.0**-24)  # a float32's last bit, at most


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_models_that_agree_give_that_model(dtype: torch.dtype, tmp_path: Path) -> None:
    running = Running.create(tmp_path / "mean", like=model(99, dtype))
    for i in range(5):
        running.add(model(3, dtype), 0.1 + i)
    assert torch.equal(running.mean().read("wide"), model(3, dtype).read("wide"))


def test_models_of_other_dtypes_are_added(tmp_path: Path) -> None:
    running = Running.create(tmp_path / "mean", like=model(0, torch.bfloat16))
    running.add(model(1, torch.float32))
    running.add(model(2, torch.float16))
    assert running.mean().read("wide").dtype == torch.bfloat16


def test_the_folder_does_not_grow_with_the_number_of_models(tmp_path: Path) -> None:
    running = Running.create(tmp_path / "mean", like=model(0))
    sizes = set()
    for i in range(5):
        running.add(model(i))
        sizes.add(sum(len(data) for name, data in digest(tmp_path / "mean").items() if name != "running.json"))
        assert sorted(p.name for p in (tmp_path / "mean").iterdir()) == [f"mean-{i + 1:06d}", "running.json"]
    assert len(sizes) == 1


def test_a_mean_that_was_taken_stays_what_it_was(tmp_path: Path) -> None:
    running = Running.create(tmp_path / "mean", like=model(0))
    running.add(model(1))
    before = running.mean()
    running.add(model(2))
    assert torch.equal(before.read("wide"), model(1).read("wide"))
    before.save(tmp_path / "saved")
    assert open_local(tmp_path / "saved").config == {"a": 1}


def test_any_range_is_a_part_of_the_whole(tmp_path: Path) -> None:
    running = Running.create(tmp_path / "mean", like=model(0, torch.bfloat16))
    running.add(model(1, torch.bfloat16))
    mean = running.mean()
    whole = bytes(mean.read_bytes("wide"))
    for start, stop in ((0, 1), (3, 3), (5, 18), (7, len(whole))):
        assert bytes(mean.read_bytes("wide", start, stop)) == whole[start:stop]


def bad_models() -> dict[str, Memory]:
    good = {name: model(1).read(name) for name in model(1).names()}
    nan = good["wide"].clone()
    nan[30, 2] = float("nan")
    return {
        "not finite": Memory({**good, "wide": nan}),
        "another shape": Memory({**good, "wide": torch.zeros(3, 11)}),
        "missing": Memory({n: t for n, t in good.items() if n != "wide"}),
        "that the base lacks": Memory({**good, "more": torch.zeros(3)}),
        "another kind of dtype": Memory({**good, "wide": torch.zeros(37, 11, dtype=torch.int64)}),
    }


@pytest.mark.parametrize("what", list(bad_models()))
def test_what_is_refused_changes_nothing(what: str, tmp_path: Path) -> None:
    running = Running.create(tmp_path / "mean", like=model(0))
    running.add(model(1))
    before = digest(tmp_path / "mean")
    with pytest.raises(FuseError, match=what):
        running.add(bad_models()[what])
    assert digest(tmp_path / "mean") == before
    assert running.count == 1
    running.add(model(2))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_above_zero(weight: float, tmp_path: Path) -> None:
    running = Running.create(tmp_path / "mean", like=model(0))
    with pytest.raises(FuseError, match="above 0"):
        running.add(model(1), weight)


def test_a_folder_in_use_or_without_a_mean_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mean").mkdir()
    with pytest.raises(FuseError, match="no running mean"):
        Running(tmp_path / "mean")
    Running.create(tmp_path / "mean", like=model(0))
    with pytest.raises(FuseError, match="in use"):
        Running.create(tmp_path / "mean", like=model(0))
    with pytest.raises(FuseError, match="no models"):
        Running(tmp_path / "mean").mean()


def test_two_do_not_add_at_once(tmp_path: Path) -> None:
    running = Running.create(tmp_path / "mean", like=model(0))
    fd = os.open(tmp_path / "mean", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(FuseError, match="somebody else"):
        running.add(model(1))
    os.close(fd)
    running.add(model(1))


def test_one_object_sees_what_another_added(tmp_path: Path) -> None:
    first = Running.create(tmp_path / "mean", like=model(0))
    second = Running(tmp_path / "mean")
    first.add(model(1))
    second.add(model(2))
    assert second.weights == (1.0, 1.0)
    assert torch.equal(first.mean().read("wide"), second.mean().read("wide"))


# Kills itself at the n-th of the calls by which files become safe, get their names and go.
KILLED = """
import os, signal, sys
from pathlib import Path
left = int(sys.argv[3])
def mortal(call):
    def counted(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return counted
for name in ("fsync", "rename", "replace", "unlink", "pwrite", "rmdir"):
    setattr(os, name, mortal(getattr(os, name)))
import shutil
shutil.rmtree = mortal(shutil.rmtree)
from cofuse.checkpoint import open_local
from cofuse.fuse.running import Running
Running(Path(sys.argv[1])).add(open_local(Path(sys.argv[2])), 3.0, threads=1)
"""


def test_a_kill_anywhere_leaves_the_mean_before_or_after(tmp_path: Path) -> None:
    Memory({"x": torch.full((1000,), 5.0), "y": torch.ones(3)}).save(tmp_path / "late")
    first = Memory({"x": torch.ones(1000), "y": torch.ones(3)})
    seen = set()
    for n in range(1, 100):
        folder = tmp_path / f"mean-{n}"
        Running.create(folder, like=first).add(first)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "late"), str(n)],
            check=False,
            capture_output=True,
            text=True,
        )
        running = Running(folder)
        seen.add(running.count)
        assert running.mean().read("x")[:2].tolist() == ([1.0, 1.0] if running.count == 1 else [4.0, 4.0])
        running.add(first, 4.0 if running.count == 2 else 1.0)
        assert running.mean().read("x")[0] == (2.5 if running.count == 3 else 1.0)
        assert sorted(p.name for p in folder.iterdir()) == [f"mean-{running.count:06d}", "running.json"]
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.returncode == 0
    assert n > 5
    assert seen == {1, 2}
